"""Embedding, LayerNorm and dropout in Numba."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.layer_norm_cpu import normalise_row, normalise_row_backward
from minibert.kernels.common.philox_cpu import hidden_words, settings, stack_words
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.cpu import jit, run


def workspace(t: int, c: int) -> int:
    """Bytes of scratch for backward: dz (T, C), and per chunk a row of dy * mask and the sums of dgamma and dbeta."""
    return (t + 3 * chunks(t)) * c * 4


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
    dropout = settings(rate, seed, stream)
    run(
        _forward, len(ids), y, mean, rstd, ids, segments, positions, examples, word, position, segment, gamma, beta,
        np.float32(eps), dropout, grain=16,
    )  # fmt: skip


def backward(
    dword: np.ndarray,
    dposition: np.ndarray,
    dsegment: np.ndarray,
    dgamma: np.ndarray,
    dbeta: np.ndarray,
    dy: np.ndarray,
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
    t, c = dy.shape
    rows = scratch[: workspace(t, c)].view(np.float32).reshape(-1, c)
    dz, masked, partials = rows[:t], rows[t : t + chunks(t)], rows[t + chunks(t) :].reshape(2, chunks(t), c)
    run(
        _backward, chunks(t), dz, masked, partials, dy, mean, rstd, ids, segments, positions, examples, word, position,
        segment, gamma, settings(rate, seed, stream),
    )  # fmt: skip
    run(_scatter, c, dword, dposition, dsegment, dz, ids, positions, segments, grain=64)
    add_partials(dgamma, partials[0])
    add_partials(dbeta, partials[1])


@jit
def _forward(
    worker, begin, end, y, mean, rstd, ids, segments, positions, examples, word, position, segment, gamma, beta,
    eps, dropout,
):  # fmt: skip
    threshold, scale = dropout[:2]
    c = y.shape[1]
    drawn = stack_words((c + 7) // 8 * 4)
    bits = drawn.view(np.uint16)
    for t in range(begin, end):
        row, word_row, segment_row, position_row = y[t], word[ids[t]], segment[segments[t]], position[positions[t]]
        for i in range(c):
            row[i] = word_row[i] + segment_row[i] + position_row[i]
        mean[t], rstd[t] = normalise_row(row, gamma, beta, eps)
        hidden_words(drawn, positions[t], examples[t], dropout)
        for i in range(c):
            row[i] *= scale if bits[i] >= threshold else np.float32(0)


@jit
def _backward(
    worker, begin, end, dz, masked, partials, dy, mean, rstd, ids, segments, positions, examples, word, position,
    segment, gamma, dropout,
):  # fmt: skip
    threshold, scale = dropout[:2]
    c = dy.shape[1]
    drawn = stack_words((c + 7) // 8 * 4)
    bits = drawn.view(np.uint16)
    for chunk in range(begin, end):
        partials[:, chunk] = 0
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, dy.shape[0])):
            row, word_row, segment_row, position_row = dz[t], word[ids[t]], segment[segments[t]], position[positions[t]]
            hidden_words(drawn, positions[t], examples[t], dropout)
            for i in range(c):
                row[i] = (word_row[i] + segment_row[i] + position_row[i] - mean[t]) * rstd[t]
                masked[chunk, i] = dy[t, i] * (scale if bits[i] >= threshold else np.float32(0))
            normalise_row_backward(row, partials[0, chunk], partials[1, chunk], masked[chunk], gamma, rstd[t])


@jit
def _scatter(worker, begin, end, dword, dposition, dsegment, dz, ids, positions, segments):
    """Adds the rows of dz to the tables' columns [begin, end), tokens in order."""
    for t in range(dz.shape[0]):
        row = dz[t][begin:end]
        word_row, position_row, segment_row = dword[ids[t]], dposition[positions[t]], dsegment[segments[t]]
        _add(word_row[begin:end], row)
        _add(position_row[begin:end], row)
        _add(segment_row[begin:end], row)


@jit
def _add(total, row):
    for i in range(row.size):
        total[i] += row[i]
