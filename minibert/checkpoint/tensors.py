"""One tensor of a checkpoint, whatever the format: described when the file is opened, its values read when asked for.

Every reader gives entries and every writer takes them, so that a conversion holds one tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from minibert.errors import CheckpointError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What tensors may be made of, little-endian; a reader's table maps its own codes to these.
DTYPES = {
    **{name: np.dtype(name).newbyteorder("<") for name in (
        "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
        "float16", "float32", "float64",
    )},
    "bfloat16": BFLOAT16,
}  # fmt: skip
_FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Entry:
    """A tensor's place (for errors), type by its name in DTYPES, shape, and a function that gives its array.

    `stored` returns the array as the file has it, a view of the mapped file where that can be; it raises
    CheckpointError where a checksum is wrong. Types that DTYPES lacks may stand in entries that nobody reads.
    """

    where: str
    dtype: str
    shape: tuple[int, ...]
    stored: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize if self.dtype in DTYPES else 0

    def read(self) -> np.ndarray:
        """The values as float32, a view of the file where it holds that; raises on NaN and infinity."""
        if self.dtype not in _FLOATS:
            raise CheckpointError(f"{self.where}: {self.dtype} is not {', '.join(_FLOATS)}: convert the checkpoint")
        array = self.stored()
        if not array.flags.aligned:
            array = array.copy()
        # What does not fit becomes infinite, and NaN stays NaN: both are refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(np.float32, copy=False)
        if not _finite(array):
            raise CheckpointError(f"{self.where}: holds NaN or infinite values: get the checkpoint again")
        return array

    def bytes(self) -> memoryview:
        """What a file holds of it: the array as stored, little-endian, in C order."""
        return np.ascontiguousarray(self.stored(), DTYPES[self.dtype]).reshape(-1).view(np.uint8).data

    def transposed(self) -> Entry:
        """The same tensor with its axes reversed."""
        return Entry(self.where, self.dtype, self.shape[::-1], lambda: self.stored().T)


@dataclass(frozen=True)
class Stored:
    """What a reader found in a file or in several that belong together."""

    format: str  # "hf", "torch" or "tensorflow", as `minibert convert --to` names them
    path: Path  # the file, or TensorFlow's prefix: for errors
    entries: Mapping[str, Entry]  # by their names in the file


def of_array(name: str, array: np.ndarray) -> Entry:
    """An entry for an array that is in memory."""
    return Entry(f"tensor {name}", array.dtype.name, array.shape, lambda: array)


def view(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes (n,) uint8, as many as the shape needs, as an array of this type and shape; no copy."""
    return raw.view(DTYPES[dtype]).reshape(shape)


def are_sizes(value: object) -> bool:
    """Whether `value` is a list or tuple of at most 8 whole numbers from 0 that a file of today could need."""
    return (
        isinstance(value, list | tuple)
        and len(value) <= 8
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    )


def is_shape(value: list[int] | tuple[int, ...]) -> bool:
    """Whether `value` are sizes of an array that NumPy takes, which counts a side of 0 as 1."""
    return are_sizes(value) and math.prod(side or 1 for side in value) < 1 << 59


def _finite(array: np.ndarray) -> bool:
    # A finite sum has only finite terms, and takes one pass and no copy; one that overflowed proves nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())
