"""Bias and tanh in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def forward(y: np.ndarray, x: np.ndarray, bias: np.ndarray) -> None:
    y[...] = np.tanh(x + bias)


def backward(dx: np.ndarray, dbias: np.ndarray, dy: np.ndarray, y: np.ndarray) -> None:
    dx[...] = dy * (1 - y * y)
    dbias += dx.sum(0)
