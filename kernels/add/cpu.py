"""A sum in Numba, for both types of storage: as fast as memory."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import storage
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run

PIECE = 1 << 14


def forward(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    run(_add, -(-y.size // PIECE), y.reshape(-1), a.reshape(-1), b.reshape(-1))


@jit
def _add(worker, begin, end, y, a, b):
    n = y.size
    for i in range(begin * PIECE, min(end * PIECE, n), 16):
        inside = storage.inside(i, n)
        storage.store(y, i, storage.load(a, i, inside) + storage.load(b, i, inside), inside)
