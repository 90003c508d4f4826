"""Chosen rows: one copy a step, which NumPy does as well as Numba would."""

from __future__ import annotations

import numpy as np


def forward(y: np.ndarray, x: np.ndarray, rows: np.ndarray) -> None:
    np.take(x, rows, axis=0, out=y, mode="clip")  # any other mode copies y


def backward(dx: np.ndarray, dy: np.ndarray, rows: np.ndarray) -> None:
    dx.fill(0)
    dx[rows] = dy
