"""How much of the matrix unit's rate the products of a training step reach, with all that they pack and finish.

    python benches/step_share.py --data-dir DIR [--models random:base] [--rounds 30]

A step of real MRPC batches of 32 in bf16 on the CPU; the unit is measured between steps, because a machine that other
guests share is faster in one second than in the next. Operations are counted by the shapes that products are given.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from types import ModuleType
from typing import Any

from sides import ours, prepare

from minibert import limits


def operations(name: str, function: str, arrays: tuple[Any, ...]) -> int:
    """Of a call of matmul's or feed_forward's forward(y, ...) or backward(dx, ...)."""
    if name == "feed_forward":
        h, x = arrays[1:3] if function == "forward" else (arrays[7], arrays[6])
        return (4 if function == "forward" else 8) * h.size * x.shape[1]
    if function == "forward":
        return 2 * arrays[0].size * arrays[1].shape[1]
    return (2 if arrays[0] is None else 4) * arrays[3].size * arrays[4].shape[1]


class Timed:
    """An operation's module, whose products add to `spent` their seconds and operations."""

    def __init__(self, name: str, module: ModuleType, spent: list[float]):
        self._name, self._module, self._spent = name, module, spent

    def __getattr__(self, function: str) -> Any:
        found = getattr(self._module, function)
        return self._timed(function, found) if function in ("forward", "backward") else found

    def _timed(self, function: str, found: Callable) -> Callable:
        def call(*arrays: Any) -> None:
            began = time.perf_counter()
            found(*arrays)
            self._spent[0] += time.perf_counter() - began
            self._spent[1] += operations(self._name, function, arrays)

        return call


def unit() -> float:
    """Operations a second, now."""
    return limits._cores_product_rate.__wrapped__("bf16")


def shares(side: ours.Training, rounds: int) -> list[tuple[float, float, float]]:
    """Seconds of each step, the rate of its products, and that of the unit around it."""
    spent, device = [0.0, 0.0], side.bert.device
    for name in ("matmul", "feed_forward"):
        setattr(device, name, Timed(name, getattr(device, name), spent))
    found = []
    with side.session:
        side.steps([0])  # which compiles
        before = unit()
        for number in range(1, rounds + 1):
            spent[:] = 0.0, 0.0
            began = time.perf_counter()
            side.steps([number])
            seconds, after = time.perf_counter() - began, unit()
            found.append((seconds, spent[1] / spent[0], (before + after) / 2))
            before = after
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MRPC, or the one above it")
    parser.add_argument("--models", nargs="+", default=["random:base"], help="random:SHAPE or a folder")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    print("| model | ms | products, GFLOP/s | the unit | share | quartiles | rounds |\n|---|---|---|---|---|---|---|")
    for model in args.models:
        with tempfile.TemporaryDirectory() as name:
            prepare(model, args.data_dir, "train", Path(name))
            found = shares(ours.Training(Path(name), args.threads, precision="bf16"), args.rounds)
        seconds, products, rate = (median(column) for column in zip(*found, strict=True))
        low, middle, high = quantiles(products / rate for _, products, rate in found)
        row = f"| {model} | {seconds * 1e3:,.0f} | {products / 1e9:,.0f} | {rate / 1e9:,.0f} "
        print(f"{row}| {middle:.3f} | {low:.3f}, {high:.3f} | {args.rounds} |", flush=True)


if __name__ == "__main__":
    main()
