"""Dropout, residual sum and LayerNorm in Numba: each row is read once and stays in cache until it is done."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, storage
from minibert.kernels.common import layer_norm_cpu as norm
from minibert.kernels.common.philox_cpu import dropped, hidden_room, hidden_words, settings, stack_words
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run


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
    t, c = x.shape
    partials = scratch[: workspace(t, c)].view(np.float32).reshape(2, chunks(t), c)
    dropout = settings(rate, seed, stream)
    run(
        _backward, chunks(t), dx, dresidual, partials, dy, dy2, x, residual, mean, rstd, gamma, positions, examples,
        dropout,
    )  # fmt: skip
    add_partials(dgamma, partials[0])
    add_partials(dbeta, partials[1])


@jit
def _forward(worker, begin, end, y, mean, rstd, x, residual, gamma, beta, positions, examples, eps, dropout):
    c = x.shape[1]
    bits = stack_words(hidden_room(c)).ctypes.data
    row = stack_words(norm.room(c)).ctypes.data
    for t in range(begin, end):
        hidden_words(bits, c, positions[t], examples[t], dropout)
        sums = lanes.splat(np.float32(0))
        for i in range(0, c, 16):
            storage.fetch(x, (t + 1) * c + i)
            storage.fetch(residual, (t + 1) * c + i)
            z = _sum(x, residual, t * c + i, bits + 2 * i, dropout, storage.inside(i, c))
            lanes.store(row + 4 * i, z)
            sums = sums + z
        mean[t], rstd[t], rest = norm.centre(row, c, sums, eps)
        for i in range(0, c, 16):
            inside = storage.inside(i, c)
            storage.store(y, t * c + i, norm.scaled(row, i, rest, rstd[t], gamma, beta, inside), inside)


@jit
def _backward(
    worker, begin, end, dx, dresidual, partials, dy, dy2, x, residual, mean, rstd, gamma, positions, examples, dropout
):
    c = x.shape[1]
    bits = stack_words(hidden_room(c)).ctypes.data
    buffers = norm.split(stack_words(norm.BUFFERS * norm.room(c)).ctypes.data, c)
    for chunk in range(begin, end):
        norm.clear(buffers, c)
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            hidden_words(bits, c, positions[t], examples[t], dropout)
            sums = moments = lanes.splat(np.float32(0))
            for i in range(0, c, 16):
                inside = storage.inside(i, c)
                storage.fetch(x, (t + 1) * c + i)
                storage.fetch(residual, (t + 1) * c + i)
                norm.fetch_arriving(dy, dy2, (t + 1) * c + i)
                z = _sum(x, residual, t * c + i, bits + 2 * i, dropout, inside)
                d, weights = norm.arriving(dy, dy2, t * c + i, inside), storage.load(gamma, i, inside)
                g, moment = norm.collect(buffers, i, (z - mean[t]) * rstd[t], d, weights)
                sums = sums + g
                moments = moments + moment
            means = norm.over_row(sums, moments, c)
            for i in range(0, c, 16):
                inside = storage.inside(i, c)
                dz = norm.gradient(buffers, i, means, rstd[t])
                storage.store(dresidual, t * c + i, dz, inside)
                storage.store(dx, t * c + i, dropped(dz, bits + 2 * i, dropout), inside)
        norm.hand_over(partials, chunk, buffers, c)


@inlined
def _sum(x, residual, place, bits, dropout, inside):
    """16 elements of residual + dropout(x)."""
    return storage.load(residual, place, inside) + dropped(storage.load(x, place, inside), bits, dropout)
