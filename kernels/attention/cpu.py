"""Attention in Numba: one task is a head of a sequence, its keys and values copied to scratch that fits in cache.

The copies are padded with zeros, keys to a multiple of 16 and D to a multiple of 4, so that products have no
ragged ends. Queries go in blocks of QUERIES against all keys.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import exp_bounded
from minibert.kernels.common.philox_cpu import attention_words, settings, stack_words
from minibert.kernels.devices.cpu import exact, inlined, jit, run, threads

QUERIES = 32
STRIP = 128  # columns of a product's tile: with its four rows 2 KB, a corner of the first cache
LOWEST = np.float32(-80)  # e^-80 is still a normal number; below, probabilities are 0


def workspace(t: int, longest: int, heads: int, c: int) -> int:
    """Bytes of scratch for forward and backward: see the arrays that these take from it."""
    keys, d = _padded(longest, c // heads)
    return threads() * 4 * (5 * keys * d + QUERIES * (2 * keys + 3 * d) + 9 * keys)


def forward(
    y: np.ndarray,
    lse: np.ndarray,
    qkv: np.ndarray,
    offsets: np.ndarray,
    examples: np.ndarray,
    heads: int,
    rate: float,
    seed: int,
    stream: int,
    scratch: np.ndarray,
) -> None:
    floats = scratch.view(np.float32).reshape(threads(), -1)
    run(
        _forward,
        (len(offsets) - 1) * heads,
        y,
        lse,
        qkv,
        offsets,
        examples,
        heads,
        settings(rate, seed, stream),
        floats,
    )


def backward(
    dqkv: np.ndarray,
    dy: np.ndarray,
    y: np.ndarray,
    lse: np.ndarray,
    qkv: np.ndarray,
    offsets: np.ndarray,
    examples: np.ndarray,
    heads: int,
    rate: float,
    seed: int,
    stream: int,
    scratch: np.ndarray,
) -> None:
    floats = scratch.view(np.float32).reshape(threads(), -1)
    run(
        _backward, (len(offsets) - 1) * heads, dqkv, dy, y, lse, qkv, offsets, examples, heads,
        settings(rate, seed, stream), floats,
    )  # fmt: skip


@jit
def _forward(worker, begin, end, y, lse, qkv, offsets, examples, heads, dropout, floats):
    threshold, scale = dropout[:2]
    c = y.shape[1]
    width = c // heads
    root = np.float32(1) / np.sqrt(np.float32(width))
    for task in range(begin, end):
        sequence, head = task // heads, task % heads
        first, length = np.intp(offsets[sequence]), np.intp(offsets[sequence + 1] - offsets[sequence])
        column = head * width
        keys, d = _padded(length, width)
        v, kt, _, _, _, q, out, _, p, _, drawn, words = _arrays(floats[worker], keys, d)
        bits = words.view(np.uint16)
        _copy_transposed(kt, qkv, first, length, c + column, width)
        _copy(v, qkv, first, length, 2 * c + column, width, np.float32(1))
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            used = (rows + 3) // 4 * 4
            _copy(q[:used], qkv, first + start, rows, column, width, root)
            _zero(p)
            _product(p[:used], q[:used, :], kt)
            for r in range(rows):
                if r % 16 == 0:
                    attention_words(words, drawn, start + r, head, examples[first], dropout)
                total, logarithm = _softmax_row(p[r], length)
                lse[first + start + r, head] = logarithm
                row, row_bits = p[r], bits[r % 16]
                for j in range(keys):
                    row[j] *= total * scale if row_bits[j] >= threshold else np.float32(0)
            _zero(out)
            _product(out[:used], p[:used, :], v)
            _copy_back(y, out, first + start, rows, column, width, np.float32(1))


@jit
def _backward(worker, begin, end, dqkv, dy, y, lse, qkv, offsets, examples, heads, dropout, floats):
    threshold, scale = dropout[:2]
    c = y.shape[1]
    width = c // heads
    root = np.float32(1) / np.sqrt(np.float32(width))
    for task in range(begin, end):
        sequence, head = task // heads, task % heads
        first, length = np.intp(offsets[sequence]), np.intp(offsets[sequence + 1] - offsets[sequence])
        column = head * width
        keys, d = _padded(length, width)
        k, kt, vt, dk, dv, q, dout, dq, p, ds, drawn, words = _arrays(floats[worker], keys, d)
        bits = words.view(np.uint16)
        _copy(k, qkv, first, length, c + column, width, np.float32(1))
        _copy_transposed(kt, qkv, first, length, c + column, width)
        _copy_transposed(vt, qkv, first, length, 2 * c + column, width)
        _zero(dk)
        _zero(dv)
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            used = (rows + 3) // 4 * 4
            _copy(q[:used], qkv, first + start, rows, column, width, root)
            _copy(dout[:used], dy, first + start, rows, column, width, np.float32(1))
            _zero(p)
            _product(p[:used], q[:used, :], kt)
            _zero(ds)
            _product(ds[:used], dout[:used, :], vt)
            for r in range(rows):
                if r % 16 == 0:
                    attention_words(words, drawn, start + r, head, examples[first], dropout)
                _gradient_row(p[r], ds[r], bits[r % 16], lse[first + start + r, head], threshold, scale, length)
            _product(dv, p.T[:, :used], dout[:used])
            _product(dk, ds.T[:, :used], q[:used])
            _zero(dq)
            _product(dq[:used], ds[:used, :], k)
            _copy_back(dqkv, dq, first + start, rows, column, width, root)
        _copy_back(dqkv, dk, first, length, c + column, width, np.float32(1))
        _copy_back(dqkv, dv, first, length, 2 * c + column, width, np.float32(1))


@jit
def _padded(length, d):
    """(length up to a multiple of 16, d up to a multiple of 4)."""
    return (length + 15) // 16 * 16, (d + 3) // 4 * 4


@jit
def _arrays(floats, keys, d):
    """The arrays that a worker needs for one task, in its share of the scratch."""
    whole = floats[: 5 * keys * d].reshape(5, keys * d)  # keys, values and their gradients
    blocks = floats[whole.size :][: 3 * QUERIES * d].reshape(3, QUERIES, d)
    scores = floats[whole.size + blocks.size :][: 2 * QUERIES * keys].reshape(2, QUERIES, keys)
    words = floats[whole.size + blocks.size + scores.size :][: 9 * keys].view(np.uint32)
    return (
        whole[0].reshape(keys, d),
        whole[1].reshape(d, keys),
        whole[2].reshape(d, keys),
        whole[3].reshape(keys, d),
        whole[4].reshape(keys, d),
        blocks[0],
        blocks[1],
        blocks[2],
        scores[0],
        scores[1],
        words[:keys].reshape(4, keys // 4),
        words[keys:].reshape(16, keys // 2),
    )


@jit
def _zero(x):
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[row, i] = 0


@jit
def _copy(to, x, first, rows, column, width, factor):
    """`rows` rows of x from `first` on, columns from `column` on, times factor; zeros around them."""
    _zero(to)
    for r in range(rows):
        row, target = x[first + r][column : column + width], to[r]
        for i in range(width):
            target[i] = row[i] * factor


@jit
def _copy_transposed(to, x, first, rows, column, width):
    _zero(to)
    for r in range(rows):
        row = x[first + r][column : column + width]
        for i in range(width):
            to[i, r] = row[i]


@jit
def _copy_back(x, block, first, rows, column, width, factor):
    for r in range(rows):
        row, source = x[first + r][column : column + width], block[r]
        for i in range(width):
            row[i] = source[i] * factor


@inlined
def _softmax_row(row, length):
    """Scores to exponentials, zeros after `length`; returns 1 / their sum and the log-sum-exp."""
    highest = row[0]
    for j in range(length):
        highest = row[j] if row[j] > highest else highest
    total = np.float32(0)
    for j in range(length):
        x = row[j] - highest
        e = np.float32(0) if x < LOWEST else exp_bounded(x)
        row[j] = e
        total += e
    for j in range(length, row.size):
        row[j] = 0
    return np.float32(1) / total, highest + np.log(total)


@inlined
def _gradient_row(p, ds, bits, lse, threshold, scale, length):
    """Scores to mask * p, and dy vT to ds; zeros after `length`.

    The whole row is at hand. So it is normalised again, for the rounding of a large lse makes a factor of all p;
    and rowsum(p * dp) is summed from what it is subtracted from: where both cancel, as for a single key, they do.
    """
    total = np.float32(0)
    moment = np.float32(0)
    for j in range(length):
        x = p[j] - lse
        e = np.float32(0) if x < LOWEST else exp_bounded(x)
        dp = ds[j] * (scale if bits[j] >= threshold else np.float32(0))
        p[j] = e
        ds[j] = dp
        total += e
        moment += e * dp
    inverse = np.float32(1) / total
    moment *= inverse
    for j in range(length):
        e = p[j] * inverse
        ds[j] = e * (ds[j] - moment)
        p[j] = e * (scale if bits[j] >= threshold else np.float32(0))
    for j in range(length, p.size):
        p[j] = 0
        ds[j] = 0


@exact
def _product(c, a, b):
    """c += a b; c's rows and a's columns are multiples of 4.

    Four rows of c lie on the stack while they are summed: what LLVM knows to overlap nothing, it vectorises. Four
    products are added before c is, in this order: a quarter of the roundings that BLAS makes.
    """
    tile = stack_words(4 * STRIP).view(np.float32)
    c0, c1, c2, c3 = tile[:STRIP], tile[STRIP : 2 * STRIP], tile[2 * STRIP : 3 * STRIP], tile[3 * STRIP :]
    for left in range(0, c.shape[1], STRIP):
        width = min(STRIP, c.shape[1] - left)
        for i in range(0, c.shape[0], 4):
            for j in range(width):
                c0[j], c1[j] = c[i, left + j], c[i + 1, left + j]
                c2[j], c3[j] = c[i + 2, left + j], c[i + 3, left + j]
            for m in range(0, a.shape[1], 4):
                a00, a01, a02, a03 = a[i, m], a[i, m + 1], a[i, m + 2], a[i, m + 3]
                a10, a11, a12, a13 = a[i + 1, m], a[i + 1, m + 1], a[i + 1, m + 2], a[i + 1, m + 3]
                a20, a21, a22, a23 = a[i + 2, m], a[i + 2, m + 1], a[i + 2, m + 2], a[i + 2, m + 3]
                a30, a31, a32, a33 = a[i + 3, m], a[i + 3, m + 1], a[i + 3, m + 2], a[i + 3, m + 3]
                b0, b1 = b[m][left : left + width], b[m + 1][left : left + width]
                b2, b3 = b[m + 2][left : left + width], b[m + 3][left : left + width]
                for j in range(width):
                    c0[j] += a00 * b0[j] + a01 * b1[j] + a02 * b2[j] + a03 * b3[j]
                    c1[j] += a10 * b0[j] + a11 * b1[j] + a12 * b2[j] + a13 * b3[j]
                    c2[j] += a20 * b0[j] + a21 * b1[j] + a22 * b2[j] + a23 * b3[j]
                    c3[j] += a30 * b0[j] + a31 * b1[j] + a32 * b2[j] + a33 * b3[j]
            for j in range(width):
                c[i, left + j], c[i + 1, left + j] = c0[j], c1[j]
                c[i + 2, left + j], c[i + 3, left + j] = c2[j], c3[j]
