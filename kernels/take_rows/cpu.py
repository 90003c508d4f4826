"""Chosen rows in Numba: from float32 or bf16 to float32, and back."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import storage
from minibert.kernels.devices.compiling import jit


def forward(y: np.ndarray, x: np.ndarray, rows: np.ndarray) -> None:
    _take(y, x, rows)


def backward(dx: np.ndarray, dy: np.ndarray, rows: np.ndarray) -> None:
    dx.fill(0)
    _put(dx, dy, rows)


@jit
def _take(y, x, rows):
    c = y.shape[1]
    for s in range(rows.size):
        for i in range(0, c, 16):
            inside = storage.inside(i, c)
            storage.store(y, s * c + i, storage.load(x, rows[s] * c + i, inside), inside)


@jit
def _put(dx, dy, rows):
    c = dy.shape[1]
    for s in range(rows.size):
        for i in range(0, c, 16):
            inside = storage.inside(i, c)
            storage.store(dx, rows[s] * c + i, storage.load(dy, s * c + i, inside), inside)
