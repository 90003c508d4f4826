"""MRPC, seed by seed: minibert's command line against transformers + PyTorch (peer.py), as a Markdown table.

    pip install ".[peers]"
    python benches/mrpc_seeds.py --checkpoint DIR --data-dir DIR --learning-rate 5e-5 --log seeds.jsonl

Every training is a process of its own, ours and theirs in turn. Each adds a line to the log when it ends;
what the log already holds under the same settings is not run again, so an interrupted measurement goes on.

Both tokenize, train, evaluate and save, so that the seconds compare whole runs, minibert's kernels being compiled
before. For that take --recipe stable, which PyTorch has fused kernels for, and --precision bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, median, stdev

HERE = Path(__file__).parent
METRICS = {"accuracy": "accuracy", "f1": "F1"}


def train_ours(args: argparse.Namespace, settings: dict, seed: int) -> dict:
    """One `minibert finetune`; what its eval_results.json says."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        options = {**settings, "data-dir": args.data_dir, "output-dir": output, "seed": seed}
        began = time.perf_counter()
        call([sys.executable, "-m", "minibert", "finetune", "mrpc", *flags(options)])
        seconds = time.perf_counter() - began
        results = json.loads((output / "eval_results.json").read_text())
    return {**results, "seconds": round(seconds, 1)}


def train_theirs(args: argparse.Namespace, settings: dict, seed: int) -> dict:
    """One training by peer.py; the line that it prints."""
    with tempfile.TemporaryDirectory() as output:
        options = {**settings, "data-dir": args.data_dir, "output-dir": output, "first-seed": seed, "seeds": 1}
        began = time.perf_counter()
        out = call([sys.executable, str(HERE / "peer.py"), "mrpc", *flags(options)])
    return {**json.loads(out.splitlines()[-1]), "seconds": round(time.perf_counter() - began, 1)}


def flags(options: dict) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def call(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}; start again to go on from there")
    return done.stdout


def measure(args: argparse.Namespace) -> list[dict]:
    """The log's lines for these settings, the missing trainings done first."""
    names = ("checkpoint", "learning-rate", "epochs", "recipe", "precision")
    settings = {name: getattr(args, name.replace("-", "_")) for name in names}
    log = Path(args.log)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    lines = [line for line in lines if line["settings"] == settings]
    done = {(line["who"], line["seed"]) for line in lines}
    # By the same command: Numba's cache knows kernels by their path too, and the installed ones are another copy.
    call([sys.executable, "-m", "minibert", "compile"])
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for who, train in (("minibert", train_ours), ("transformers", train_theirs)):
            if (who, seed) in done:
                continue
            line = {"who": who, "seed": seed, "settings": settings, **train(args, settings, seed)}
            line["load"] = os.getloadavg()[0]
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
    wanted = range(args.first_seed, args.first_seed + args.seeds)
    return [line for line in lines if line["seed"] in wanted]


def standard_error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def table(lines: list[dict], command: str) -> str:
    """The measurement in Markdown: every seed, means, standard errors, the difference in standard errors."""
    ours = {line["seed"]: line for line in lines if line["who"] == "minibert"}
    theirs = {line["seed"]: line for line in lines if line["who"] == "transformers"}
    majority = next(iter(ours.values()))["majority"]
    rows = [
        "| seed | minibert accuracy | F1 | seconds | transformers accuracy | F1 | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in sorted(ours):
        a, b = (f"{run['accuracy']:.4f} | {run['f1']:.4f} | {run['seconds']:.0f}" for run in (ours[seed], theirs[seed]))
        rows.append(f"| {seed} | {a} | {b} |")
    for what, reduce in (("mean", fmean), ("standard error", standard_error)):
        values = [reduce([r[key] for r in side.values()]) for side in (ours, theirs) for key in METRICS]
        a, b, c, d = (f"{value:.4f}" for value in values)
        rows.append(f"| {what} | {a} | {b} | | {c} | {d} | |")
    failed = [sum(any(r[k] <= majority[k] for k in METRICS) for r in side.values()) for side in (ours, theirs)]
    rows.append(f"| failed to beat the majority | {failed[0]} | | | {failed[1]} | | |")
    a, b = (f"{majority[key]:.4f}" for key in METRICS)
    rows += [f"| majority class | {a} | {b} | | {a} | {b} | |", ""]
    for key, name in METRICS.items():
        x, y = ([r[key] for r in side.values()] for side in (ours, theirs))
        apart, error = fmean(x) - fmean(y), math.hypot(standard_error(x), standard_error(y))
        errors = apart / error if error else math.nan
        rows.append(f"{name}, ours less theirs: {apart:+.4f}, {errors:+.2f} standard errors.")
    x, y = (median([r["seconds"] for r in side.values()]) for side in (ours, theirs))
    rows.append(f"Seconds, medians: {x:.0f} and {y:.0f}, theirs {y / x:.2f} times ours.")
    peer, load = next(iter(theirs.values())), max(line["load"] for line in lines)
    rows.append(f"{peer['peer']}, {peer['threads']} threads.")
    rows.append(f"Seconds are those of whole processes, under a load average of up to {load:.1f}.")
    return "\n".join(["    " + command, "", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="directory in Hugging Face's form")
    parser.add_argument("--data-dir", required=True, help="folder of MRPC, or the one above it")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--recipe", choices=["google", "stable"], default="google")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--log", required=True, help="JSON lines of finished trainings; kept and added to")
    parser.add_argument("--output", help="the table's file; default: standard output")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds: a standard error needs at least two")
    made_by = shlex.join(["python", *sys.argv])
    if shared := os.environ.get("MINIBERT_SHARED"):
        made_by = made_by.replace(shared, "$MINIBERT_SHARED")
    text = table(measure(args), made_by)
    if args.output:
        Path(args.output).write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
