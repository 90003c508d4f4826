"""Padded batches: the examples that the other devices take end to end, as rows of one of a few lengths.

A compiled program has one shape, so an epoch's batches have to come in few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minibert.tokenizer import Features

LENGTHS = (32, 64, 128, 256, 384, 512)  # tokens; beyond them multiples of the last


def bucket(longest: int, most: int) -> int:
    """The length that sequences of at most `longest` tokens are padded to, in a model of `most` positions."""
    found = next((length for length in LENGTHS if length >= longest), -(-longest // LENGTHS[-1]) * LENGTHS[-1])
    return min(found, most)


def multiple(rows: int, devices: int) -> int:
    """So many rows, or a few more, that all devices have as many."""
    return -(-rows // devices) * devices


def pad(
    features: Features, numbers: Sequence[int] | np.ndarray, labels: np.ndarray | None, length: int, rows: int
) -> dict[str, np.ndarray]:
    """The examples of these numbers, padded to `length` tokens and `rows` rows, as minibert/tpu/model.py has a batch.

    `labels` are those of the whole data set, or None: a batch without them. Each example weighs 1 over their number; a
    row that only fills has one token and no weight.
    """
    numbers = np.asarray(numbers, np.int64)
    starts, count = features.offsets[numbers], len(numbers)
    lengths = features.offsets[numbers + 1] - starts
    real = np.arange(length) < lengths[:, None]
    source = (starts[:, None] + np.arange(length))[real]
    batch = {
        "ids": np.zeros((rows, length), np.int32),
        "segments": np.zeros((rows, length), np.int32),
        "lengths": np.ones(rows, np.int32),
        "examples": np.zeros(rows, np.int32),
        "weights": np.zeros(rows, np.float32),
    }
    batch["ids"][:count][real] = features.ids[source]
    batch["segments"][:count][real] = features.segments[source]
    batch["lengths"][:count], batch["examples"][:count], batch["weights"][:count] = lengths, numbers, 1 / max(count, 1)
    if labels is not None:
        batch["labels"] = np.zeros((rows, *labels.shape[1:]), labels.dtype)
        batch["labels"][:count] = labels[numbers]
    return batch
