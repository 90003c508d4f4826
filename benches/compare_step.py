"""Speed and memory of a training step on real MRPC batches of 32: minibert against PyTorch and JAX, and itself.

    pip install ".[peers]" jax
    python benches/compare_step.py --data-dir DIR [--device gpu]

Random weights of the shapes of MiniLM and BERT-Base. A step is forward, backward, clipping and the update, dropout
on. The first side meets each of the others in turn, both on the same batches; what compiles, compiles before. Without
dropout all must give one loss. Padding: to the longest of the batch, to 128 as Google's code did, or to a multiple.
On a GPU TOGETHER steps are asked for one after the other and then waited for, as in training, where it never waits;
but transformers itself waits once a step, to look at the mask, where it is not compiled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sides import BATCH, Examples, Kind, arguments, duels, prepare

TOGETHER = {"cpu": 1, "gpu": 4}
NEAR = {"fp32": 1e-5, "bf16": 2e-2}  # how far apart losses without dropout may be


def minibert(precision: str, **options: object) -> Kind:
    return "ours.Training", {"precision": precision, **options}


def pytorch(precision: str, multiple: int, **options: object) -> Kind:
    return "pytorch.Training", {"precision": precision, "multiple": multiple, **options}


def jax(precision: str, multiple: int) -> Kind:
    return "jax_bert.Training", {"precision": precision, "multiple": multiple}


SIDES = {
    "minibert-bf16": minibert("bf16"),
    "minibert-fp32": minibert("fp32"),
    **{f"minibert-{precision}-{policy}": minibert(precision, recompute=policy)
       for precision in ("bf16", "fp32") for policy in ("cheap", "layers", "segments:4")},
    **{f"minibert-{precision}-layerwise": minibert(precision, layerwise=True) for precision in ("bf16", "fp32")},
    "torch-fp32-128": pytorch("fp32", 128),
    "torch-fp32": pytorch("fp32", 1),
    "torch-bf16": pytorch("bf16", 1),
    "torch-compile-fp32": pytorch("fp32", 1, compiled=True),
    "torch-compile-bf16": pytorch("bf16", 1, compiled=True),
    "jax-fp32": jax("fp32", 16),
    "jax-bf16": jax("bf16", 16),
}  # fmt: skip


def main() -> None:
    args = arguments(__doc__, SIDES, rounds=9)
    for model in args.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(model, args.data_dir, "train", folder)
            examples, together = Examples(folder), TOGETHER[args.device]
            if (args.rounds * together + 1) * BATCH > len(examples.lengths):
                raise SystemExit(f"--rounds {args.rounds}: MRPC has too few batches for that")
            rounds = [range(1 + i * together, 1 + (i + 1) * together) for i in range(args.rounds)]
            tokens = [np.mean([examples.lengths[examples.training_batch(n)].sum() for n in one]) for one in rounds]
            calls = [("steps", numbers) for numbers in rounds]
            duels(model, args, SIDES, folder, ("loss", 0), NEAR, calls, tokens, together)


if __name__ == "__main__":
    main()
