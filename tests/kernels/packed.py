"""Packed batches for kernels' tests, awkward lengths included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PRIMES = (1, 2, 3, 5, 17, 31, 61, 127)
BATCHES = {
    "no tokens": (),
    "one token": (1,),
    "sequences of one": (1, 1, 1, 1),
    "primes": PRIMES,
    "512": (512,),
    "an empty sequence": (7, 0, 19),
}


class Packed(NamedTuple):
    """T tokens of S sequences: offsets (S + 1,), positions and examples (T,)."""

    offsets: np.ndarray
    positions: np.ndarray
    examples: np.ndarray


def pack(lengths: Sequence[int], numbers: Sequence[int] | None = None) -> Packed:
    """Sequences of these lengths; the examples are numbered 100, 103, ... unless `numbers` says otherwise."""
    numbers = range(100, 100 + 3 * len(lengths), 3) if numbers is None else numbers
    return Packed(
        np.cumsum([0, *lengths]).astype(np.int32),
        np.concatenate([np.arange(length) for length in [0, *lengths]]).astype(np.int32),
        np.repeat(np.array(numbers, np.int32), np.array(lengths, int)).astype(np.int32),
    )


def floats(rng: np.random.Generator, *shape: int, shift: float = 0) -> np.ndarray:
    """Normal float32 numbers around `shift`."""
    return (rng.standard_normal(shape) + shift).astype(np.float32)


def exact(*arrays: np.ndarray) -> list[np.ndarray]:
    """The same numbers in float64."""
    return [array.astype(np.float64) for array in arrays]
