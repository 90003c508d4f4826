"""Embedding, LayerNorm and dropout in Numba."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, storage
from minibert.kernels.common import layer_norm_cpu as norm
from minibert.kernels.common.philox_cpu import dropped, hidden_room, hidden_words, settings, stack_words
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run


def workspace(t: int, c: int) -> int:
    """Bytes of scratch for backward: dz (T, C), and per chunk the sums of dgamma and dbeta."""
    return (t + 2 * chunks(t)) * c * 4


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
    t, c = dy.shape
    rows = scratch[: workspace(t, c)].view(np.float32).reshape(-1, c)
    dz, partials = rows[:t], rows[t:].reshape(2, chunks(t), c)
    run(
        _backward, chunks(t), dz, partials, dy, dy2, mean, rstd, ids, segments, positions, examples, word, position,
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
    c = y.shape[1]
    bits = stack_words(hidden_room(c)).ctypes.data
    row = stack_words(norm.room(c)).ctypes.data
    for t in range(begin, end):
        next_word = ids[min(t + 1, end - 1)] * c
        sums = lanes.splat(np.float32(0))
        for i in range(0, c, 16):
            inside = storage.inside(i, c)
            storage.fetch(word, next_word + i)
            z = _sum(word, position, segment, ids[t], positions[t], segments[t], i, inside)
            lanes.store(row + 4 * i, z)
            sums = sums + z
        mean[t], rstd[t], rest = norm.centre(row, c, sums, eps)
        hidden_words(bits, c, positions[t], examples[t], dropout)
        for i in range(0, c, 16):
            inside = storage.inside(i, c)
            normal = norm.scaled(row, i, rest, rstd[t], gamma, beta, inside)
            storage.store(y, t * c + i, dropped(normal, bits + 2 * i, dropout), inside)


@jit
def _backward(
    worker, begin, end, dz, partials, dy, dy2, mean, rstd, ids, segments, positions, examples, word, position, segment,
    gamma, dropout,
):  # fmt: skip
    c = dy.shape[1]
    bits = stack_words(hidden_room(c)).ctypes.data
    buffers = norm.split(stack_words(norm.BUFFERS * norm.room(c)).ctypes.data, c)
    for chunk in range(begin, end):
        norm.clear(buffers, c)
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, dy.shape[0])):
            next_word = ids[min(t + 1, dy.shape[0] - 1)] * c
            hidden_words(bits, c, positions[t], examples[t], dropout)
            sums = moments = lanes.splat(np.float32(0))
            for i in range(0, c, 16):
                inside = storage.inside(i, c)
                storage.fetch(word, next_word + i)
                norm.fetch_arriving(dy, dy2, (t + 1) * c + i)
                z = _sum(word, position, segment, ids[t], positions[t], segments[t], i, inside)
                d = dropped(norm.arriving(dy, dy2, t * c + i, inside), bits + 2 * i, dropout)
                g, moment = norm.collect(buffers, i, (z - mean[t]) * rstd[t], d, storage.load(gamma, i, inside))
                sums = sums + g
                moments = moments + moment
            means = norm.over_row(sums, moments, c)
            for i in range(0, c, 16):
                storage.store(dz, t * c + i, norm.gradient(buffers, i, means, rstd[t]), storage.inside(i, c))
        norm.hand_over(partials, chunk, buffers, c)


@inlined
def _sum(word, position, segment, word_id, place, kind, i, inside):
    """16 elements of a token's three embeddings."""
    c = word.shape[1]
    z = storage.load(word, word_id * c + i, inside) + storage.load(segment, kind * c + i, inside)
    return z + storage.load(position, place * c + i, inside)


@jit
def _scatter(worker, begin, end, dword, dposition, dsegment, dz, ids, positions, segments):
    """Adds the rows of dz to the tables' columns [begin, end), tokens in order."""
    for t in range(dz.shape[0]):
        row = dz[t][begin:end]
        word_row, position_row, segment_row = dword[ids[t]], dposition[positions[t]], dsegment[segments[t]]
        _add(word_row[begin:end], row)
        _add(position_row[begin:end], row)
        _add(segment_row[begin:end], row)


@inlined
def _add(total, row):
    for i in range(row.size):
        total[i] += row[i]
