"""Dropout, residual sum and LayerNorm in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.philox import hidden_mask


def workspace(t: int, c: int) -> int:
    return 0


def forward(
    y: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    x: np.ndarray,
    residual: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    positions: np.ndarray,
    examples: np.ndarray,
    eps: float,
    rate: float,
    seed: int,
    stream: int,
) -> None:
    z = residual + x * hidden_mask(positions, examples, x.shape[1], rate, seed, stream, x.dtype)
    mean[...] = z.mean(1)
    rstd[...] = 1 / np.sqrt(((z - mean[:, None]) ** 2).mean(1) + x.dtype.type(eps))
    y[...] = (z - mean[:, None]) * rstd[:, None] * gamma + beta


def backward(
    dx: np.ndarray,
    dresidual: np.ndarray,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
    dy: np.ndarray,
    dy2: np.ndarray | None,
    x: np.ndarray,
    residual: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    gamma: np.ndarray,
    positions: np.ndarray,
    examples: np.ndarray,
    rate: float,
    seed: int,
    stream: int,
    scratch: np.ndarray,
) -> None:
    dy = dy if dy2 is None else dy + dy2
    mask = hidden_mask(positions, examples, x.shape[1], rate, seed, stream, x.dtype)
    xhat = (residual + x * mask - mean[:, None]) * rstd[:, None]
    g = dy * gamma
    dresidual[...] = rstd[:, None] * (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True))
    dx[...] = dresidual * mask
    dgamma += (dy * xhat).sum(0)
    dbeta += dy.sum(0)
