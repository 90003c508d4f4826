"""Dropout in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.philox import hidden_mask


def forward(
    y: np.ndarray, x: np.ndarray, positions: np.ndarray, examples: np.ndarray, rate: float, seed: int, stream: int
) -> None:
    y[...] = x * hidden_mask(positions, examples, x.shape[1], rate, seed, stream, x.dtype)


def backward(
    dx: np.ndarray, dy: np.ndarray, positions: np.ndarray, examples: np.ndarray, rate: float, seed: int, stream: int
) -> None:
    forward(dx, dy, positions, examples, rate, seed, stream)
