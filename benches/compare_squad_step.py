"""Training speed on SQuAD's windows: the reader of spans against the classifier, on the same tokens, in one process.

    python benches/compare_squad_step.py --checkpoint DIR --data train-v1.1.json

A step is forward, backward, clipping and update of 12 windows, dropout on; the sides take the same steps in turn. The
classifier computes only what it reads: behind the last layer's attention nothing but each window's first token. A
reader reads all tokens and cannot. "whole" is the classifier with its last layer computed for all tokens, which is the
same work as the reader's but for the head: what the path through windows, spans and their loss costs is seen there.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median

import numpy as np

from minibert import checkpoint, ops
from minibert.autograd import Tensor
from minibert.batch import Batch
from minibert.bert import Bert
from minibert.checkpoint.names import shapes
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.model import tokenizer_of
from minibert.random import Key, initial_weights
from minibert.settings import TrainConfig
from minibert.squad import reading, windows
from minibert.squad.reader import Reader
from minibert.training import Trainer

BATCH = 12


class Whole(Bert):
    """The classifier, its last layer computed for every token."""

    def encode(
        self, batch: Batch, key: Key | None, recompute_layers: bool = False, only_firsts: bool = False
    ) -> Tensor:
        x = super().encode(batch, key, recompute_layers)
        return ops.take_rows(x, batch.firsts)


def trainers(args: argparse.Namespace) -> dict[str, Trainer]:
    """The sides with the checkpoint's weights, on windows of the file; a class is whether a window holds its answer."""
    found = checkpoint.load(args.checkpoint)
    made = windows.prepare(reading.read(args.data), tokenizer_of(found), windows.Lengths(), negative=False)
    spans = Split("spans", made.features, made.labels)
    classes = Split("classes", made.features, (made.labels[:, 0] > 0).astype(np.int32))
    device = devices.open("cpu", threads=args.threads, precision=args.precision)
    sides = {
        "reader": (Reader(found.config, device), spans, shapes(found.config, spans=True)),
        "classifier, whole": (Whole(found.config, 2, device), classes, shapes(found.config, 2)),
        "classifier": (Bert(found.config, 2, device), classes, shapes(found.config, 2)),
    }
    settings = TrainConfig(task="squad", batch_size=BATCH, epochs=1, precision=args.precision)
    made_of = {}
    for name, (bert, data, wanted) in sides.items():
        bert.fill(initial_weights(wanted, found.config.initializer_range, 1) | found.arrays)
        made_of[name] = Trainer(bert, data, settings)
    return made_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="directory in Hugging Face's form")
    parser.add_argument("--data", type=Path, required=True, help="a training file of SQuAD 1.1")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    args = parser.parse_args()
    sides = trainers(args)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    with sides["reader"].bert.device.session():
        for step in range(args.rounds + 1):  # the first one compiles
            turn = step % len(sides)
            for name in [*sides][turn:] + [*sides][:turn]:
                began = time.perf_counter()
                tokens = sides[name].step(step).tokens
                rates[name].append(tokens / (time.perf_counter() - began))
    print("| side | tokens/s | the reader's speed beside it |\n|---|---|---|")
    for name in sides:
        ratio = median(a / b for a, b in zip(rates["reader"][1:], rates[name][1:], strict=True))
        print(f"| {name} | {median(rates[name][1:]):,.0f} | {ratio:.3f} |")
    print(f"{args.rounds} steps a side, {args.threads} threads, {args.precision}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
