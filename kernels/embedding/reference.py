"""Embedding, LayerNorm and dropout in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.philox import hidden_mask


def workspace(t: int, c: int) -> int:
    return 0


def forward(
    y: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    ids: np.ndarray,
    segments: np.ndarray,
    positions: np.ndarray,
    examples: np.ndarray,
    word: np.ndarray,
    position: np.ndarray,
    segment: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    eps: float,
    rate: float,
    seed: int,
    stream: int,
) -> None:
    z = word[ids] + segment[segments] + position[positions]
    mean[...] = z.mean(1)
    rstd[...] = 1 / np.sqrt(((z - mean[:, None]) ** 2).mean(1) + z.dtype.type(eps))
    mask = hidden_mask(positions, examples, z.shape[1], rate, seed, stream, z.dtype)
    y[...] = ((z - mean[:, None]) * rstd[:, None] * gamma + beta) * mask


def backward(
    dword: np.ndarray,
    dposition: np.ndarray,
    dsegment: np.ndarray,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
    dy: np.ndarray,
    dy2: np.ndarray | None,
    mean: np.ndarray,
    rstd: np.ndarray,
    ids: np.ndarray,
    segments: np.ndarray,
    positions: np.ndarray,
    examples: np.ndarray,
    word: np.ndarray,
    position: np.ndarray,
    segment: np.ndarray,
    gamma: np.ndarray,
    rate: float,
    seed: int,
    stream: int,
    scratch: np.ndarray,
) -> None:
    z = word[ids] + segment[segments] + position[positions]
    xhat = (z - mean[:, None]) * rstd[:, None]
    dy = dy if dy2 is None else dy + dy2
    dy = dy * hidden_mask(positions, examples, z.shape[1], rate, seed, stream, z.dtype)
    g = dy * gamma
    dz = rstd[:, None] * (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True))
    np.add.at(dword, ids, dz)
    np.add.at(dposition, positions, dz)
    np.add.at(dsegment, segments, dz)
    dgamma += (dy * xhat).sum(0)
    dbeta += dy.sum(0)
