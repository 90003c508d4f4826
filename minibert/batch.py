"""Padding-free batches: the tokens of all sequences end to end, and where each sequence begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minibert.kernels.devices import ALIGNMENT, Device
from minibert.tokenizer import Features


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences, as arrays of one device.

    ids, segments, positions (inside the sequence), examples (number of the token's example in its data set): (T,)
    int32; offsets: (S + 1,) int32; firsts, first_positions, first_examples: (S,) int32, the row of each [CLS] and its
    entries above; labels: (S,) int32 classes or floats, or (2, S) int32 starts and ends. `longest` is the greatest length, `numbers` the examples'
    numbers (S,), both known to the host.
    """

    ids: Any
    segments: Any
    positions: Any
    examples: Any
    offsets: Any
    firsts: Any
    first_positions: Any
    first_examples: Any
    labels: Any
    longest: int
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def tokens(self) -> int:
        return len(self.ids)


def pack(device: Device, features: Features, numbers: Sequence[int] | np.ndarray, labels: np.ndarray | None) -> Batch:
    """The examples of these numbers as one batch; `labels` are those of the whole data set, or None."""
    numbers = np.asarray(numbers, np.int64)
    starts = features.offsets[numbers]
    lengths = features.offsets[numbers + 1] - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    source = np.repeat(starts, lengths) + positions

    placed = _together(
        device,
        ids=features.ids[source],
        segments=features.segments[source],
        positions=positions,
        examples=np.repeat(numbers, lengths),
        offsets=offsets,
        firsts=offsets[:-1],
        first_positions=np.zeros_like(numbers),
        first_examples=numbers,
    )
    chosen = None if labels is None else device.array(np.ascontiguousarray(labels[numbers].T))
    return Batch(**placed, labels=chosen, longest=int(lengths.max(initial=0)), numbers=numbers)


def _together(device: Device, **columns: np.ndarray) -> dict[str, Any]:
    """Integers as int32 arrays of the device, each on a line of memory, by one copy."""
    line = ALIGNMENT // 4
    ends = np.cumsum([-(-len(column) // line) * line for column in columns.values()])
    packed = np.zeros(ends[-1], np.int32)
    spans = [slice(end - -(-len(c) // line) * line, None) for end, c in zip(ends, columns.values(), strict=True)]
    for span, column in zip(spans, columns.values(), strict=True):
        packed[span][: len(column)] = column
    placed = device.array(packed)
    return {name: placed[span][: len(columns[name])] for name, span in zip(columns, spans, strict=True)}


def cut(lengths: np.ndarray, most: int, tokens: int | None) -> list[slice]:
    """Sequences of these lengths, in order, as micro-batches of at most `most` of them and, if given, `tokens` tokens.

    They are as few as can be and as even as can be in tokens: their largest is as small as that number of them allows.
    Where a sequence is longer than `tokens`, its length is the limit.
    """
    if tokens is None:
        return [slice(start, start + most) for start in range(0, len(lengths), most)]
    least = int(lengths.max(initial=0))
    enough = max(least, tokens)
    parts = _filled(lengths, most, enough)
    while least < enough:
        middle = (least + enough) // 2
        if len(_filled(lengths, most, middle)) > len(parts):
            least = middle + 1
        else:
            enough = middle
    return _filled(lengths, most, enough)


def _filled(lengths: np.ndarray, most: int, tokens: int) -> list[slice]:
    """One micro-batch after the other, each as full as `most` and `tokens` allow."""
    parts, start, total = [], 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and (i - start == most or total + length > tokens):
            parts.append(slice(start, i))
            start, total = i, 0
        total += length
    return [*parts, slice(start, len(lengths))] if len(lengths) else []


def in_order(count: int, size: int) -> Iterator[np.ndarray]:
    """The numbers 0 to count - 1 in slices of `size`, the last one shorter: batches for evaluation."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
