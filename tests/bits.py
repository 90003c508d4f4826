"""What the tests of several kernels need: the same bits for any number of threads, outputs that start as NaN, bf16."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import pytest

from minibert.kernels.common import unit
from minibert.kernels.devices import cpu

needs_amx = pytest.mark.skipif(unit.mode() != "amx", reason="about AMX itself, which these tests do not run on")
FEW_ULPS = 5e-7  # on an array of few elements plain NumPy is exact by luck, and no bar for a kernel


def assert_same_bits(compute: Callable[[], Sequence[np.ndarray]], counts: Sequence[int] = (1, 2, 3)) -> None:
    """compute() returns the same bytes on each number of threads."""
    before = cpu.threads()
    results = {}
    try:
        for count in counts:
            cpu.set_threads(count)
            results[count] = [array.tobytes() for array in compute()]
    finally:
        cpu.set_threads(before)
    for count in counts:
        assert results[count] == results[counts[0]], f"{count} threads give other bits than {counts[0]}"


def unwritten(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """An output array on which a forgotten element shows: NaN everywhere."""
    return np.full(shape, BF16_NAN if dtype == np.uint16 else np.nan, dtype)


def in_strips(x: np.ndarray) -> np.ndarray:
    """x (T, N) as strips of 32 columns, on a line, (N / 32, T, 32): see common/packing.py."""
    t, n = x.shape
    strips = on_a_line((n // 32, t, 32), x.dtype)
    strips[...] = x.reshape(t, n // 32, 32).swapaxes(0, 1)
    return strips


def in_rows(strips: np.ndarray) -> np.ndarray:
    """The (T, N) that strips are of."""
    return strips.swapaxes(0, 1).reshape(strips.shape[1], -1)


def on_a_line(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array that begins on a line; all bits are set, which is NaN."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.full(nbytes + 64, 255, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:nbytes].view(dtype).reshape(shape)


def one(number: float, dtype=np.float32) -> np.ndarray:
    """A number where a kernel takes an array of one."""
    return np.array([number], dtype)


BF16_NAN = 0x7FC0


def as_bf16(x: np.ndarray) -> np.ndarray:
    """Float32 rounded to bf16, which travels as uint16."""
    return x.astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bf16(stored: np.ndarray) -> np.ndarray:
    """bf16 as float32."""
    return stored.view(ml_dtypes.bfloat16).astype(np.float32)


def through_bf16(x: np.ndarray) -> np.ndarray:
    """The numbers that bf16 holds in place of x."""
    return from_bf16(as_bf16(x))
