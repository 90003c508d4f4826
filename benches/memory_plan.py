"""Predicted memory beside measured: each case in a fresh process, whose high-water mark (VmHWM) the system tells.

    python benches/memory_plan.py sample --log sample.jsonl      # 60 cases drawn from the whole grid
    python benches/memory_plan.py table --log table.jsonl        # the chapter's table at full size, within 12.0e9 bytes
    python benches/memory_plan.py show sample.jsonl
    python benches/memory_plan.py bits table.jsonl

A process compiles or loads its kernels with a tiny model first; then its mark is reset and read, a model is built and
trained for a step, and the mark is read again: the difference is what is compared with the plan, and beside it stands
our own counter. Cases that the log has already are not run again. Linux only.

Each row tells the weights after the step by a digest. The table's cells are run at an eighth of their size too, keeping
everything and with `layers`, and at full size a second time, with the policy for a third more memory; `bits` tells
whether the digests of a size are one.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COUNT, SEED = 60, 2026
MOST = {"base": 4096, "large": 1536}  # tokens of a case of the sample: more changes nothing but the time
GRID = {
    "shape": ("base", "large"),
    "task": ("mrpc", "squad"),
    "length": (48, 128, 320, 512),
    "batch": (1, 3, 8, 16, 40),
    "policy": ("none", "cheap", "layers", "segments:3", "auto"),
    "optimizer": ("adam", "adam8bit", "adafactor"),
    "precision": ("fp32", "bf16"),
    "layerwise": (False, False, True),
}
BUDGET, MORE = 12 * 10**9, 16 * 10**9
FULL = {  # sequences of a length that must fit as one micro-batch
    "base": {64: 1024, 128: 512, 256: 256, 384: 170, 512: 128},
    "large": {128: 256, 256: 128, 384: 85, 512: 64},
}


def sample(precisions: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """COUNT cases of the grid, always the same ones."""
    rng, seen = np.random.default_rng(SEED), set()
    while len(seen) < COUNT:
        case = {name: values[rng.integers(len(values))] for name, values in GRID.items()}
        key = tuple(case.values())
        if case["length"] * case["batch"] <= MOST[case["shape"]] and key not in seen:
            seen.add(key)
            if case["precision"] in precisions:
                yield case | {"steps": 1}


def table(precisions: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every cell of the table, in the policy that the plan finds for it; at an eighth of its size keeping everything
    and with `layers`; and at full size as the plan says for `MORE`.
    """
    for part, policy, budget in ((1, "auto", BUDGET), (8, "none", None), (8, "layers", None), (1, "auto", MORE)):
        for precision, (shape, cells) in itertools.product(precisions, FULL.items()):
            for length, batch in cells.items():
                case = {
                    "shape": shape, "task": "mrpc", "length": length, "batch": -(-batch // part), "policy": policy,
                    "optimizer": "adam", "precision": precision, "layerwise": False, "steps": 1,
                }  # fmt: skip
                yield case | ({"budget": budget} if budget else {})


def reset_high_water() -> None:
    """VmHWM = what is resident now, and nothing that the C library merely keeps (proc(5): clear_refs)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def high_water() -> int:
    """The process's VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no VmHWM: not Linux")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Runs a case in this process; its row."""
    from minibert import models
    from minibert.kernels import devices
    from minibert.kernels.devices import PROCESS
    from minibert.memory import Planner
    from minibert.planning import Plan
    from minibert.settings import TrainConfig

    count, lengths = case["batch"], [case["length"]] * case["batch"]
    settings = TrainConfig(
        task="bench", batch_size=count, precision=case["precision"], optimizer=case["optimizer"],
        layerwise_update=case["layerwise"],
    )  # fmt: skip
    spans = case["task"] == "squad"
    config = dataclasses.replace(models.config(case["shape"]), id2label=() if spans else ("0", "1"))
    device = devices.open("cpu", precision=case["precision"])
    policy = case["policy"]
    if policy == "auto":  # in the sample within twice what a single layer's policy takes, to have something to choose
        least = Planner(config, settings, device, spans).use(lengths, "layers", case["layerwise"]).process
        plan = Plan(config, settings, device, case.get("budget", least + least // 16), spans)
        policy = plan.choose(lengths, whole=True).recompute
    use = Planner(config, settings, device, spans).use(lengths, policy, case["layerwise"])
    tiny = dataclasses.replace(models.config("tiny"), id2label=config.id2label)
    warm = trainer(
        tiny, devices.open("cpu", precision=case["precision"]), case | {"batch": 2, "length": 8}, "cheap", spans
    )
    with warm.bert.device.session():
        for step in range(2):
            warm.step(step)
    del warm
    gc.collect()
    reset_high_water()
    before = high_water()
    real = trainer(config, device, case, policy, spans)
    for group in () if case["layerwise"] else real.bert.groups:
        _ = group.raw_gradients  # as from the second step on
    began = time.perf_counter()
    with device.session():
        for step in range(case["steps"]):
            real.step(step)
    seconds = (time.perf_counter() - began) / case["steps"]
    reached = high_water()
    digest = hashlib.sha256()
    for group in real.bert.groups:
        digest.update(np.ascontiguousarray(group.weights))
    return case | {
        "recompute": policy,
        "predicted": use.process - PROCESS,
        "counted": device.peak.total(),
        "measured": reached - before,
        "process": reached,
        "seconds": round(seconds, 1),
        "weights": digest.hexdigest()[:16],
    }


def trainer(config: Any, device: Any, case: dict[str, Any], policy: str, spans: bool) -> Any:
    """A model of random weights in training on random tokens."""
    from minibert.bert import Bert
    from minibert.evaluation import Split
    from minibert.settings import TrainConfig
    from minibert.squad.reader import Reader
    from minibert.tokenizer import Features
    from minibert.training import Trainer

    count, length = case["batch"], case["length"]
    rng = np.random.default_rng(0)
    model = Reader(config, device) if spans else Bert(config, 2, device)
    for array in model.arrays().values():
        array.fill(1) if array.ndim == 1 else rng.standard_normal(out=array, dtype=np.float32)
        array *= np.float32(0.02)
    ids = rng.integers(1000, 30000, count * length).astype(np.int32)
    labels = np.zeros((count, 2) if spans else count, np.int32)
    data = Split("bench", Features(ids, np.zeros_like(ids, np.int8), np.arange(count + 1) * length), labels)
    settings = TrainConfig(
        task="bench", batch_size=count, epochs=case["steps"] + 1, precision=case["precision"],
        optimizer=case["optimizer"], recompute=policy, layerwise_update=case["layerwise"],
    )  # fmt: skip
    return Trainer(model, data, settings)


def run(cases: Iterator[dict[str, Any]], log: Path) -> None:
    """Each case that the log lacks, in a process of its own."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for case in cases:
        if any(all(row.get(name) == value for name, value in case.items()) for row in done):
            continue
        result = subprocess.run([sys.executable, __file__, "case", json.dumps(case)], stdout=subprocess.PIPE, text=True)
        if result.returncode:
            raise SystemExit(f"failed: {case}")
        with log.open("a") as file:
            file.write(result.stdout)
        print(result.stdout, end="", flush=True)


def show(log: Path) -> None:
    """The rows as a table in Markdown, and the worst ratio."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    print(
        "| shape | task | sequences | policy | optimizer | precision | predicted MB | counted | measured | ratio | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        policy = r["recompute"] + (" layerwise" if r["layerwise"] else "")
        sizes = " | ".join(f"{r[name] / 1e6:,.0f}" for name in ("predicted", "counted", "measured"))
        print(
            f"| {r['shape']} | {r['task']} | {r['batch']} x {r['length']} | {policy} | {r['optimizer']} "
            f"| {r['precision']} | {sizes} | {r['predicted'] / r['measured']:.3f} | {r['seconds']} |"
        )
    ratios = [r["predicted"] / r["measured"] for r in rows]
    print(f"\n{len(rows)} cases: predicted over measured {min(ratios):.3f} to {max(ratios):.3f}")


def bits(log: Path) -> None:
    """Whether all policies that a size was run in made the same weights of it."""
    sizes: dict[tuple, list[dict]] = {}
    for row in (json.loads(line) for line in log.read_text().splitlines()):
        if "weights" in row:  # rows of before there were digests have none
            sizes.setdefault(tuple(row[name] for name in ("shape", "precision", "length", "batch")), []).append(row)
    for (shape, precision, length, batch), rows in sizes.items():
        same = "one digest" if len({row["weights"] for row in rows}) == 1 else "DIFFERENT"
        print(f"{shape} {precision} {batch} x {length}: {same} of {', '.join(row['recompute'] for row in rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sample", "table", "show", "bits", "case"))
    parser.add_argument("argument", nargs="?")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    if arguments.what == "case":
        print(json.dumps(measure(json.loads(arguments.argument))))
    elif arguments.what == "show":
        show(Path(arguments.argument))
    elif arguments.what == "bits":
        bits(Path(arguments.argument))
    else:
        cases = {"sample": sample, "table": table}[arguments.what](tuple(arguments.precisions))
        run(cases, arguments.log)


if __name__ == "__main__":
    main()
