"""Bias and tanh in Numba. One row a sequence: small arrays, so backward needs no partial sums."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import tanh
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


def forward(y: np.ndarray, x: np.ndarray, bias: np.ndarray) -> None:
    run(_forward, len(x), y, x, bias, grain=32)


def backward(dx: np.ndarray, dbias: np.ndarray, dy: np.ndarray, y: np.ndarray) -> None:
    run(_backward, dbias.size, dx, dbias, dy, y, grain=128)


@jit
def _forward(worker, begin, end, y, x, bias):
    for s in range(begin, end):
        for i in range(bias.size):
            y[s, i] = tanh(x[s, i] + bias[i])


@jit
def _backward(worker, begin, end, dx, dbias, dy, y):
    """Columns begin to end, each summed down the rows in order."""
    for i in range(begin, end):
        total = np.float32(0)
        for s in range(y.shape[0]):
            g = dy[s, i] * (np.float32(1) - y[s, i] * y[s, i])
            dx[s, i] = g
            total += g
        dbias[i] += total
