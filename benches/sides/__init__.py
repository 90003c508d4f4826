"""What the comparisons with other frameworks share: the data all sides load, and a process for each side.

A side is a class in a module of this package, made as `Class(folder, threads, **options)`; its framework is imported
with the module. The process does what it is asked, (method, *arguments), and answers with result and seconds. A side
that fails, even if it is killed, says so and is left out; the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

BATCH, LENGTH, SEED = 32, 128, 1
MIB = 1024  # /proc counts in KiB
FEWEST = 5  # rounds, however slow a side is

Kind = tuple[str, dict[str, Any]]  # "module.Class" and its options
Call = tuple[Any, ...]  # a method's name and its arguments


def prepare(source: str, data_dir: Path, name: str, folder: Path) -> None:
    """Writes what every side loads: the checkpoint, weights drawn where it has none, and a split of MRPC, tokenized."""
    from minibert import checkpoint, tasks
    from minibert.checkpoint.names import shapes
    from minibert.evaluation import read_split
    from minibert.model import tokenizer_of
    from minibert.random import initial_weights

    found = checkpoint.load(source)
    drawn = initial_weights(shapes(found.config, 2), found.config.initializer_range, SEED)
    drawn["classifier.weight"] *= 25  # so that logits differ by more than bf16's rounding
    whole = {} if source.startswith(checkpoint.RANDOM) else found.arrays
    checkpoint.save(folder, found.config, drawn | whole)
    split = read_split(tasks.get("mrpc"), name, data_dir, tokenizer_of(found), LENGTH)
    features = split.features
    np.savez(
        folder / "examples.npz",
        ids=features.ids, segments=features.segments, offsets=features.offsets, labels=split.labels,
    )  # fmt: skip


class Examples:
    """The tokenized examples that `prepare` wrote, and batches of them with padding for those who need it."""

    def __init__(self, folder: Path):
        with np.load(folder / "examples.npz") as file:
            self.ids, self.segments, self.offsets, self.labels = (
                file[name] for name in ("ids", "segments", "offsets", "labels")
            )
        self.lengths = np.diff(self.offsets)

    def training_batch(self, number: int) -> np.ndarray:
        """The examples of batch `number`, in an order that depends on nothing else."""
        from minibert.random import order

        return order(len(self.lengths), SEED, 0)[number * BATCH :][:BATCH]

    def sorted_batches(self) -> list[np.ndarray]:
        """All examples in batches of like length, the shortest first."""
        by_length = np.argsort(self.lengths, kind="stable")
        return [by_length[i : i + BATCH] for i in range(0, len(by_length), BATCH)]

    def width(self, numbers: np.ndarray, multiple: int) -> int:
        """The length that a batch is padded to: its longest, rounded up to a multiple."""
        return int(-(-self.lengths[numbers].max() // multiple) * multiple)

    def one_of_each_width(self, calls: Sequence[Call], multiple: int) -> list[int]:
        """Of the training batches in calls, ("steps", numbers), one for each width: what is to be compiled."""
        numbers = [number for _, some in calls for number in some]
        return list({self.width(self.training_batch(number), multiple): number for number in numbers}.values())

    def padded(self, numbers: np.ndarray, multiple: int) -> dict[str, np.ndarray]:
        """ids, segments and mask of these examples, (S, width) int64, by transformers' names."""
        places = np.arange(self.width(numbers, multiple))
        here = places < self.lengths[numbers, None]
        arrays = {"attention_mask": here.astype(np.int64)}
        for name, source in (("input_ids", self.ids), ("token_type_ids", self.segments)):
            arrays[name] = np.zeros(here.shape, np.int64)
            arrays[name][here] = source[(self.offsets[numbers, None] + places)[here]]
        return arrays


class SideFailed(Exception):
    """A side that cannot answer; the message says which one and why."""


class Side:
    """A side's process."""

    def __init__(self, name: str, kind: Kind, folder: Path, threads: int):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(kind, folder, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that a side that dies ends the wait for its answer

    def ask(self, *request: Any) -> tuple[Any, float]:
        """The result of a method and the seconds that it took."""
        try:
            self.pipe.send(request)
            error, result, seconds = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise SideFailed(
                f"{self.name}: its process ended with {self.process.exitcode} (-9: killed, for memory perhaps)"
            ) from None
        if error:
            raise SideFailed(f"{self.name}: {error}")
        return result, seconds

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(10)
        self.process.terminate()  # where it has not seen it: in the middle of a call
        self.process.join()


def serve(kind: Kind, folder: Path, threads: int, pipe: Any) -> None:
    """A side's process: loads it, then does what the pipe asks for until the pipe closes."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # for those who count cores themselves
    try:
        module, _, name = kind[0].rpartition(".")
        loaded = importlib.import_module(f"sides.{module}")
        imported = peak_memory()
        side = getattr(loaded, name)(folder, threads, **kind[1])
        with side.session:
            while True:
                method, *arguments = pipe.recv()
                if method == "memory":
                    pipe.send((None, (peak_memory(), imported), 0.0))
                    continue
                began = time.perf_counter()
                result = getattr(side, method)(*arguments)
                pipe.send((None, result, time.perf_counter() - began))
                if method == "warm":
                    forget_peak()  # what compiling took is not what a step takes
    except EOFError:
        pass  # nobody asks any more
    except Exception as error:
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {error}".splitlines()[0], None, 0.0))


def peak_memory() -> int:
    """The most memory this process had resident, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // MIB


def forget_peak() -> None:
    """From now on the peak counts from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def take_turns(first: Side, second: Side, calls: Sequence[Call], budget: float) -> np.ndarray:
    """Seconds of the same calls on both sides, (2, rounds); each begins every other round.

    Stops when the second has used up its budget of seconds, but not before FEWEST rounds.
    """
    rounds: list[tuple[float, float]] = []
    for number, call in enumerate(calls):
        if number >= FEWEST and sum(seconds for _, seconds in rounds) > budget:
            break
        order = (first, second) if number % 2 else (second, first)
        seconds = {side: side.ask(*call)[1] for side in order}
        rounds.append((seconds[first], seconds[second]))
    return np.array(rounds).T


def duels(
    model: str,
    args: argparse.Namespace,
    kinds: dict[str, Kind],
    folder: Path,
    question: Call,
    near: dict[str, float],
    calls: Sequence[Call],
    tokens: Sequence[float],
    together: int = 1,
) -> None:
    """Prints a row for each side, as it is known: the others of args.sides against the first, one after another.

    Before that the answers to `question` must agree, relative to the largest: `near` says how much, by precision.
    `together`: how many steps a call takes; the time and the `tokens` of each call are those of one.
    """
    first, *others = args.sides
    print(HEADER)
    with Side(first, kinds[first], folder, args.threads) as ours:
        wanted, all_rounds = ours.ask(*question)[0], []
        ours.ask("warm", calls)
        for other in others:
            try:
                with Side(other, kinds[other], folder, args.threads) as theirs:
                    apart = float(np.abs(theirs.ask(*question)[0] - wanted).max() / max(1, np.abs(wanted).max()))
                    if not apart <= max(near[kinds[name][1]["precision"]] for name in (first, other)):
                        raise SideFailed(f"{other}: answers {apart:.2g} apart from {first}: not timed")
                    warming = theirs.ask("warm", calls)[1]
                    seconds = take_turns(ours, theirs, calls, args.seconds) / together
                    all_rounds.append(seconds[0])
                    print(row(model, theirs, seconds, tokens), flush=True)
                    detail = f"{apart:.1e} apart, warm after {warming:.1f} s, {theirs.ask('about')[0]}"
                    print(f"  {other}: {detail}; {' '.join(f'{s:.4g}' for s in seconds[1])}", file=sys.stderr)
            except SideFailed as error:
                print(error, file=sys.stderr)
        if all_rounds:
            longest = max(all_rounds, key=len)
            print(row(model, ours, np.array([longest, longest]), tokens), flush=True)
            print(f"  {first}: {ours.ask('about')[0]}; {args.threads} threads", file=sys.stderr)


HEADER = """
| model | side | ms | the first's ms meanwhile | ratio | tokens/s | peak MiB | of it loaded | rounds | load |
|---|---|---|---|---|---|---|---|---|---|"""


def row(model: str, side: Side, seconds: np.ndarray, tokens: Sequence[float]) -> str:
    """The side's medians beside those of the first, its memory, the load."""
    ours, theirs = (median(one) for one in seconds)
    peak, imported = side.ask("memory")[0]
    cells = (
        model, side.name, milliseconds(theirs), milliseconds(ours), f"{theirs / ours:.2f}",
        f"{median(np.array(tokens)[: len(seconds[1])] / seconds[1]):,.0f}",
        f"{peak:,}", f"{peak - imported:,}", str(len(seconds[1])), f"{os.getloadavg()[0]:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.2f}"


def on_gpu(kinds: dict[str, Kind]) -> dict[str, Kind]:
    """The same sides with their model on the GPU."""
    return {name: (kind, {**options, "device": "gpu"}) for name, (kind, options) in kinds.items()}


def arguments(description: str, kinds: dict[str, Kind], rounds: int) -> argparse.Namespace:
    """The command line of a comparison; `kinds` holds those of the device that it names, afterwards."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of MRPC, or the one above it")
    parser.add_argument(
        "--models", nargs="+", default=["random:minilm", "random:base"], help="random:SHAPE or a folder"
    )
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--sides", nargs="+", choices=kinds, help="the first meets all others")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"a side, at least {FEWEST}")
    parser.add_argument(
        "--seconds", type=float, default=60, help=f"a side; a slow one gets {FEWEST} rounds all the same"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.device == "gpu":
        able = {name: kind for name, kind in kinds.items() if kind[0].startswith(("ours", "pytorch"))}
        kinds.clear()
        kinds |= on_gpu(able)
    args.sides = args.sides or list(kinds)
    if args.rounds < FEWEST:
        parser.error(f"--rounds: a median of fewer than {FEWEST} says little")
    return args
