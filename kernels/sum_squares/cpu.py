"""A sum of squares in Numba: float64 costs nothing here, memory is slower."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.cpu import jit, run

PIECE = 1 << 16


def workspace(n: int) -> int:
    """Bytes of scratch: the sum of each piece."""
    return -(-n // PIECE) * 8


def forward(total: np.ndarray, x: np.ndarray, scratch: np.ndarray) -> None:
    partials = scratch[: workspace(x.size)].view(np.float64)
    run(_squares, partials.size, partials, x.reshape(-1))
    total[0] = partials.sum()  # one thread, a fixed order


@jit
def _squares(worker, begin, end, partials, x):
    for piece in range(begin, end):
        total = 0.0
        part = x[piece * PIECE : (piece + 1) * PIECE]
        for i in range(part.size):
            total += np.float64(part[i]) * np.float64(part[i])
        partials[piece] = total
