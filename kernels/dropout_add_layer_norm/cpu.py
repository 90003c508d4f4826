"""Dropout, residual sum and LayerNorm in Numba: each row is read once and stays in cache until it is done."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.layer_norm_cpu import normalise_row, normalise_row_backward
from minibert.kernels.common.philox_cpu import hidden_words, settings, stack_words
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.cpu import jit, run


def workspace(t: int, c: int) -> int:
    """Bytes of scratch for backward: the partial sums of dgamma and dbeta."""
    return chunks(t) * 2 * c * 4


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
    dropout = settings(rate, seed, stream)
    run(
        _forward, len(x), y, mean, rstd, x, residual, gamma, beta, positions, examples, np.float32(eps), dropout,
        grain=16,
    )  # fmt: skip


def backward(
    dx: np.ndarray,
    dresidual: np.ndarray,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
    dy: np.ndarray,
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
    t, c = x.shape
    partials = scratch[: workspace(t, c)].view(np.float32).reshape(2, chunks(t), c)
    dropout = settings(rate, seed, stream)
    run(_backward, chunks(t), dx, dresidual, partials, dy, x, residual, mean, rstd, gamma, positions, examples, dropout)
    add_partials(dgamma, partials[0])
    add_partials(dbeta, partials[1])


@jit
def _forward(worker, begin, end, y, mean, rstd, x, residual, gamma, beta, positions, examples, eps, dropout):
    threshold, scale = dropout[:2]
    c = x.shape[1]
    drawn = stack_words((c + 7) // 8 * 4)
    bits = drawn.view(np.uint16)
    for t in range(begin, end):
        hidden_words(drawn, positions[t], examples[t], dropout)
        for i in range(c):
            y[t, i] = residual[t, i] + x[t, i] * (scale if bits[i] >= threshold else np.float32(0))
        mean[t], rstd[t] = normalise_row(y[t], gamma, beta, eps)


@jit
def _backward(
    worker, begin, end, dx, dresidual, partials, dy, x, residual, mean, rstd, gamma, positions, examples, dropout
):
    threshold, scale = dropout[:2]
    c = x.shape[1]
    drawn = stack_words((c + 7) // 8 * 4)
    bits = drawn.view(np.uint16)
    for chunk in range(begin, end):
        partials[:, chunk] = 0
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            hidden_words(drawn, positions[t], examples[t], dropout)
            for i in range(c):
                mask = scale if bits[i] >= threshold else np.float32(0)
                dresidual[t, i] = (residual[t, i] + x[t, i] * mask - mean[t]) * rstd[t]
            normalise_row_backward(dresidual[t], partials[0, chunk], partials[1, chunk], dy[t], gamma, rstd[t])
            for i in range(c):
                dx[t, i] = dresidual[t, i] * (scale if bits[i] >= threshold else np.float32(0))
