"""Chosen rows in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def forward(y: np.ndarray, x: np.ndarray, rows: np.ndarray) -> None:
    y[...] = x[rows]


def backward(dx: np.ndarray, dy: np.ndarray, rows: np.ndarray) -> None:
    dx[...] = 0
    dx[rows] = dy
