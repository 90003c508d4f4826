"""A sum of squares in Numba: float64 throughout, and still memory is slower."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, storage
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run

PIECE = 1 << 16
AHEAD = 1 << 10  # a page: the processor itself looks no further than to the end of one


def workspace(n: int) -> int:
    """Bytes of scratch: the sum of each piece."""
    return -(-n // PIECE) * 8


def forward(total: np.ndarray, x: np.ndarray, scratch: np.ndarray) -> None:
    partials = scratch[: workspace(x.size)].view(np.float64)
    run(_squares, partials.size, partials, x.reshape(-1))
    total[0] = partials.sum()  # one thread, a fixed order


@jit
def _squares(worker, begin, end, partials, x):
    n = x.size
    for piece in range(begin, end):
        total = lanes.splat_double(0.0)
        for i in range(piece * PIECE, min((piece + 1) * PIECE, n), 16):
            storage.fetch(x, i + AHEAD)
            total = lanes.add_squares(total, storage.load(x, i, storage.inside(i, n)))
        partials[piece] = lanes.total(total)
