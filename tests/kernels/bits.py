"""What the tests of several kernels need: the same bits for any number of threads, outputs that start as NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minibert.kernels.devices import cpu

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
    return np.full(shape, np.nan, dtype)
