"""Squared error in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def forward(loss: np.ndarray, x: np.ndarray, target: np.ndarray) -> None:
    loss[...] = (x[:, 0] - target) ** 2


def backward(dx: np.ndarray, dloss: np.ndarray, x: np.ndarray, target: np.ndarray) -> None:
    dx[:, 0] = 2 * dloss * (x[:, 0] - target)
