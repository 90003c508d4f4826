"""Padding-free batches: the tokens of all sequences end to end, and where each sequence begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minibert.kernels.devices import ALIGNMENT, Device
from minibert.tokenizer import Features

EVALUATED = 4096  # tokens computed at a time outside training, at most: more would take memory, and hardly less time


@dataclass(frozen=True)
class Batch:
    """T tokens of S sequences, as arrays of one device.

    ids, segments, positions (inside the sequence), examples (number of the token's example in its data set): (T,)
    int32; offsets: (S + 1,) int32; firsts, first_positions, first_examples: (S,) int32, the row of each [CLS] and its
    entries above; labels: (S,) int32 classes or floats, or (2, S) int32, first and last token of each answer. `longest`
    is the greatest length, `numbers` the examples' numbers (S,), both known to the host.
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


@dataclass(frozen=True)
class Layout:
    """A batch on the host. `integers`: all of its int32 arrays, each from a line of memory on, so that one copy places
    them; `spans`: where each stands.
    """

    integers: np.ndarray
    spans: dict[str, slice]
    labels: np.ndarray | None
    longest: int
    numbers: np.ndarray


def pack(device: Device, features: Features, numbers: Sequence[int] | np.ndarray, labels: np.ndarray | None) -> Batch:
    """The examples of these numbers as one batch; `labels` are those of the whole data set, or None."""
    found = lay_out(features, numbers, labels)
    return on_device(found, device.array(found.integers), None if found.labels is None else device.array(found.labels))


def on_device(layout: Layout, integers: Any, labels: Any) -> Batch:
    """The batch whose arrays of the layout have been placed in these of the device."""
    placed = {name: integers[span] for name, span in layout.spans.items()}
    return Batch(**placed, labels=labels, longest=layout.longest, numbers=layout.numbers)


def lay_out(
    features: Features, numbers: Sequence[int] | np.ndarray, labels: np.ndarray | None, filling: int = 0
) -> Layout:
    """The arrays of a batch. `filling`: tokens of one sequence more, at the end, that stands for nothing: its label is
    0, and it is not in `numbers`.
    """
    numbers = np.asarray(numbers, np.int64)
    starts = features.offsets[numbers]
    lengths = features.offsets[numbers + 1] - starts
    positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = np.repeat(starts, lengths) + positions
    columns = {
        "ids": features.ids[source], "segments": features.segments[source], "positions": positions,
        "examples": np.repeat(numbers, lengths), "offsets": np.cumsum([0, *lengths]),
        "firsts": np.cumsum(lengths) - lengths, "first_positions": np.zeros_like(numbers), "first_examples": numbers,
    }  # fmt: skip
    chosen = None if labels is None else labels[numbers]
    if filling:
        tokens = len(positions)
        more = {"offsets": tokens + filling, "firsts": tokens, "first_positions": 0, "first_examples": 0}
        for name, column in columns.items():
            columns[name] = np.append(column, more.get(name, np.zeros(filling, np.int64)))
        chosen = None if chosen is None else np.concatenate([chosen, np.zeros_like(chosen[:1])])
    chosen = None if chosen is None else np.ascontiguousarray(chosen.T)
    return Layout(*_together(columns), chosen, int(max(lengths.max(initial=0), filling)), numbers)


def _together(columns: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, slice]]:
    """Integers as one int32 array, and where each of them stands in it: from a line of memory on."""
    line, spans, end = ALIGNMENT // 4, {}, 0
    for name, column in columns.items():
        spans[name] = slice(end, end + len(column))
        end += -(-len(column) // line) * line
    integers = np.zeros(end, np.int32)
    for name, column in columns.items():
        integers[spans[name]] = column
    return integers, spans


def cut(lengths: np.ndarray, most: int, tokens: int | None) -> list[slice]:
    """Sequences of these lengths, in order, as micro-batches of at most `most` of them and, if given, `tokens` tokens.

    They are as few as can be and as even as can be in tokens: their largest is as small as that number of them allows.
    Where a sequence is longer than `tokens`, its length is the limit.
    """
    if tokens is None:
        return [slice(start, start + most) for start in range(0, len(lengths), most)]
    least = int(lengths.max(initial=0))
    enough = max(least, tokens)
    parts = filled(lengths, most, enough)
    while least < enough:
        middle = (least + enough) // 2
        if len(filled(lengths, most, middle)) > len(parts):
            least = middle + 1
        else:
            enough = middle
    return filled(lengths, most, enough)


def filled(lengths: np.ndarray, most: int, tokens: int) -> list[slice]:
    """One batch after the other, each as full as `most` and `tokens` allow, and with at least one sequence."""
    parts, start, total = [], 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and (i - start == most or total + length > tokens):
            parts.append(slice(start, i))
            start, total = i, 0
        total += length
    return [*parts, slice(start, len(lengths))] if len(lengths) else []


def regrouped(parts: Iterable[Features], most: int, tokens: int) -> Iterator[Features]:
    """The examples of all parts in their order, in batches that are `filled`."""
    rest = Features(np.empty(0, np.int32), np.empty(0, np.int8), np.zeros(1, np.int64))
    for part in parts:
        both = _joined(rest, part)
        batches = filled(np.diff(both.offsets), most, tokens)
        whole = batches[-1].start if batches and len(both) - batches[-1].start < most else len(both)
        for some in batches:
            if some.start < whole:
                yield _some(both, some.start, some.stop)
        rest = _some(both, whole, len(both))
    if len(rest):
        yield rest


def _joined(a: Features, b: Features) -> Features:
    offsets = np.concatenate([a.offsets, b.offsets[1:] + a.offsets[-1]])
    return Features(np.concatenate([a.ids, b.ids]), np.concatenate([a.segments, b.segments]), offsets)


def _some(features: Features, low: int, high: int) -> Features:
    offsets = features.offsets[low : high + 1]
    tokens = slice(offsets[0], offsets[-1])
    return Features(features.ids[tokens], features.segments[tokens], offsets - offsets[0])
