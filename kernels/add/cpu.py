"""A sum, in pieces that NumPy's own vector loop adds; it lets go of the interpreter's lock."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.cpu import run

PIECE = 1 << 16


def forward(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    run(_add, -(-y.size // PIECE), y.reshape(-1), a.reshape(-1), b.reshape(-1))


def _add(worker: int, begin: int, end: int, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    piece = slice(begin * PIECE, end * PIECE)
    np.add(a[piece], b[piece], out=y[piece])
