"""SQuAD with MiniLM: minibert against transformers + PyTorch, two epochs of SQuAD 1.1, and SQuAD 2.0's threshold.

    pip install ".[peers]"
    python benches/squad_seeds.py --checkpoint DIR --data-dir DIR --work DIR

Four parts, or those that --parts names, into a text in Markdown:

losses   not by default: the first 100 losses of `parity` and no more
parity   both sides without dropout (squad_training.py): their first 100 losses, and F1 on dev-v1.1
seeds    both sides with dropout, seed by seed: F1 and its means
full     `minibert finetune squad`, two epochs of train-v1.1
squad2   from there, on every other article of dev-v2.0: what the threshold is worth that is found on articles that are
         not scored, against 0, on the remaining articles

Each training is a process of its own, ours and theirs in turn, and adds a line to WORK/log.jsonl when it ends; what the
log holds under the same settings is not run again, and PyTorch's trainings and `full` resume where they were killed.
With the defaults, in bf16 on two cores with a matrix unit, about six hours: parity and seeds eight trainings of 1,000
steps, ours of 7 minutes and theirs of an hour, full an hour and a half, squad2 a quarter of an hour. (A step takes 0.33
and 3 to 4 s.) Compile the kernels before, with `minibert compile`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from squad_training import COMPARED, arguments

from minibert.runs import read_description
from minibert.squad import metrics, reading
from minibert.squad.evaluation import golds

HERE = Path(__file__).parent
SIDES = ("minibert", "transformers")
PARTS = ("losses", "parity", "seeds", "full", "squad2")


def train(args: argparse.Namespace, side: str, seed: int, dropout: float, steps: int | None = None) -> dict[str, Any]:
    """One training by squad_training.py, out of the log where it has it."""
    settings = {"windows": args.windows, "dropout": dropout, "seed": seed, "learning-rate": args.learning_rate}
    settings |= {"precision": args.precision, "checkpoint": args.checkpoint}
    if args.dev_questions:
        settings["dev-questions"] = args.dev_questions
    if steps:
        settings["steps"] = steps
    options = settings | {"data-dir": args.data_dir, "threads": args.threads}
    state = args.work / f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}.pt"
    if side == "transformers":
        options["state"] = state
    command = [sys.executable, str(HERE / "squad_training.py"), side, *flags(options)]
    line = logged(args, {"who": side, **settings}, lambda: json.loads(call(command).splitlines()[-1]))
    state.unlink(missing_ok=True)
    return line


def full(args: argparse.Namespace) -> dict[str, Any]:
    """minibert's two epochs of all windows."""
    output = args.work / "full"
    options = {"checkpoint": args.checkpoint, "data-dir": args.data_dir, "epochs": args.full_epochs}
    return finetune(args, "squad", output, options)


def squad2(args: argparse.Namespace) -> dict[str, Any]:
    """minibert on every other article of dev-v2.0, from the run of `full`; what it scores on the remaining ones."""
    whole = json.loads((args.data_dir / "dev-v2.0.json").read_text(encoding="utf-8"))
    halves = {"train": {**whole, "data": whole["data"][::2]}, "dev": {**whole, "data": whole["data"][1::2]}}
    for article in halves["train"]["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                del qa["answers"][1:]  # training takes one
    for name, half in halves.items():
        (args.work / f"squad2-{name}.json").write_text(json.dumps(half))
    output, dev = args.work / "squad2", args.work / "squad2-dev.json"
    options = {
        "checkpoint": args.work / "full", "first": f"{args.work / 'squad2-train.json'}:{args.squad2_epochs}", "dev": dev
    }  # fmt: skip
    found = finetune(args, "squad2", output, options)
    n_best, odds = (json.loads((output / f"{name}.json").read_text()) for name in ("nbest_predictions", "null_odds"))
    texts = {id: next(one["text"] for one in entries if one["text"]) for id, entries in n_best.items()}
    said = {id: "" if odds[id] > 0 else text for id, text in texts.items()}
    return {**found, "at 0": metrics.evaluate_squad2(golds(reading.parts(dev)), said)}


def finetune(args: argparse.Namespace, task: str, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """`minibert finetune`, resumed where a run has begun; what its eval_results.json says, and the seconds."""
    settings = {name: str(value) for name, value in options.items()} | {"learning-rate": args.learning_rate}
    settings |= {"precision": args.precision, "who": task, "full-epochs": args.full_epochs}

    def run() -> dict[str, Any]:
        description = read_description(output)
        begun = description is not None and not description["finished"]
        command = [sys.executable, "-m", "minibert", "finetune", task, "--output-dir", str(output)]
        command += flags({**options, "learning-rate": args.learning_rate, "precision": args.precision})
        call([*command, *flags({"threads": args.threads}), *(["--resume"] if begun else ["--overwrite"])])
        return json.loads((output / "eval_results.json").read_text()) | {"resumed": begun}

    return logged(args, settings, run)


def flags(options: dict[str, Any]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def call(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}; start again to go on from there")
    return done.stdout


def logged(args: argparse.Namespace, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The log's line with these settings, made by `run` where it has none."""
    log = args.work / "log.jsonl"
    for line in map(json.loads, log.read_text().splitlines() if log.exists() else ()):
        if line["settings"] == settings:
            return line
    began = time.perf_counter()
    line = {"settings": settings, **run()}
    line |= {"seconds": round(time.perf_counter() - began, 1), "load": os.getloadavg()[0]}
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return line


def tell_losses(args: argparse.Namespace) -> list[str]:
    return compare_losses(args, *(train(args, side, args.first_seed, 0.0, COMPARED) for side in SIDES))


def compare_losses(args: argparse.Namespace, ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    apart = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    worst = max(range(len(apart)), key=apart.__getitem__)
    return [
        f"Without dropout, {args.precision}, the first {len(apart)} losses differ by at most {apart[worst]:.2e} "
        f"(step {worst + 1}, {ours['losses'][worst]:.4f} and {theirs['losses'][worst]:.4f})."
    ]


def tell_parity(args: argparse.Namespace) -> list[str]:
    ours, theirs = (train(args, side, args.first_seed, 0.0) for side in SIDES)
    return [
        *compare_losses(args, ours, theirs),
        f"dev F1 {ours['f1']:.3f} and {theirs['f1']:.3f}, {ours['f1'] - theirs['f1']:+.3f}; "
        f"exact match {ours['exact_match']:.3f} and {theirs['exact_match']:.3f} ({theirs['by']}).",
        f"Training took {ours['training_seconds']:.0f} and {theirs['training_seconds']:.0f} s, with a peak of "
        f"{ours['peak_mib']:,} and {theirs['peak_mib']:,} MiB.",
    ]


def tell_seeds(args: argparse.Namespace) -> list[str]:
    rows = ["| seed | minibert exact match | F1 | transformers exact match | F1 |", "|---|---|---|---|---|"]
    runs = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        runs.append([train(args, side, seed, args.dropout) for side in SIDES])
        rows.append(f"| {seed} | " + " | ".join(f"{r['exact_match']:.2f} | {r['f1']:.2f}" for r in runs[-1]) + " |")
    means = [fmean(pair[side][what] for pair in runs) for side in (0, 1) for what in ("exact_match", "f1")]
    rows.append("| mean | " + " | ".join(f"{value:.2f}" for value in means) + " |")
    return [*rows, "", f"Mean F1, ours less theirs: {means[1] - means[3]:+.2f}. Dropout {args.dropout:g}."]


def tell_full(args: argparse.Namespace) -> list[str]:
    found = full(args)
    resumed = ", resumed" if found["resumed"] else ""
    return [
        f"{args.full_epochs:g} epochs of train-v1.1, {found['global_step']} steps: exact match "
        f"{found['exact_match']:.2f}, F1 {found['f1']:.2f}, {found['seconds']:.0f} s with evaluation{resumed}."
    ]


def tell_squad2(args: argparse.Namespace) -> list[str]:
    full(args)
    found = squad2(args)
    fitted, zero, best = found["cross_fitted"], found["at 0"], f"{found['exact']:.2f} | {found['f1']:.2f}"
    return [
        "| threshold | exact match | F1 |",
        "|---|---|---|",
        f"| 0 | {zero['exact']:.2f} | {zero['f1']:.2f} |",
        f"| found on other articles | {fitted['exact']:.2f} | {fitted['f1']:.2f} |",
        f"| found on the articles that are scored, {found['threshold']:.2f} | {best} |",
        "",
        f"{zero['total']} questions, {zero['NoAns_total']} of them without an answer.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments(parser)
    parser.add_argument("--work", type=Path, required=True, help="folder of the log and of runs; kept and added to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--full-epochs", type=float, default=2.0)
    parser.add_argument("--squad2-epochs", type=float, default=2.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[1:])
    args = parser.parse_args()
    if {"losses", "parity", "seeds"} & set(args.parts) and not find_spec("torch"):
        sys.exit('squad_seeds: the other side needs PyTorch and transformers: pip install ".[peers]"')
    args.work.mkdir(parents=True, exist_ok=True)
    made_by = shlex.join(["python", *sys.argv])
    if shared := os.environ.get("MINIBERT_SHARED"):
        made_by = made_by.replace(shared, "$MINIBERT_SHARED")
    tell = {"losses": tell_losses, "parity": tell_parity, "seeds": tell_seeds, "full": tell_full, "squad2": tell_squad2}
    print("    " + made_by)
    for part in args.parts:
        print("", *tell[part](args), sep="\n", flush=True)


if __name__ == "__main__":
    main()
