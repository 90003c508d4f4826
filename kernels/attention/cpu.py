"""Attention in float32 on the CPU: one task is a head of a sequence, in scratch that fits in cache.

Queries go in blocks of QUERIES, a vector register of 16 lanes, against all keys, and **scores lie transposed**, (keys,
QUERIES): sums over keys need no sum inside a register. cpu_bf16.py has the formulas, but here q is divided by sqrt(D)
when it is copied, which dk then need not be. Matrices in scratch have rows of whole lines, and what a product sums over
comes in fours: keys, queries and columns that are not there are zeros in k, v, q and dout, whatever stands in scores.

Everything is named by its address and the bytes from a row to the next: views of arrays cost Numba seconds.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, masks, tiles
from minibert.kernels.common.elementary_lanes import LOG2E, logarithm, power
from minibert.kernels.common.packing import LINE, SIDE, TILE, address
from minibert.kernels.common.philox_cpu import settings, stack_words
from minibert.kernels.devices.compiling import exact, inlined, jit
from minibert.kernels.devices.cpu import run, threads

from .blocks import BLOCK
from .queries import draw, longest_of, pair_at, shares, task_of

QUERIES = 16
FOUR = 4  # rows of a product that are computed together
DEEP = 32  # numbers that are summed before the sum is added to another: about the root of the most that there are
WIDE = lanes.compiles("avx512f")  # registers hold 16 lanes, not eight


def workspace(t: int, longest: int, heads: int, c: int) -> int:
    """Bytes of scratch for forward and backward."""
    return threads() * _share(longest, c // heads) + LINE


def _share(length: int, width: int) -> int:
    """Bytes of a worker's part of the scratch: see `_places`."""
    keys, row = -(-length // FOUR) * FOUR, -(-width // QUERIES) * LINE
    return 4 * keys * row + 5 * QUERIES * row + 2 * keys * LINE + -(-length // SIDE) * BLOCK


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
    share = _share(longest_of(offsets), y.shape[1] // heads)
    run(
        _forward, (len(offsets) - 1) * heads, y, lse, qkv, offsets, examples, heads, settings(rate, seed, stream),
        shares(scratch, share),
    )  # fmt: skip


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
    share = _share(longest_of(offsets), y.shape[1] // heads)
    run(
        _backward, (len(offsets) - 1) * heads, dqkv, dy, lse, qkv, offsets, examples, heads,
        settings(rate, seed, stream), shares(scratch, share),
    )  # fmt: skip


@jit
def _forward(worker, begin, end, y, lse, qkv, offsets, examples, heads, dropout, scratch):
    threshold, scale = dropout[0], dropout[1]
    row, y_row = 4 * qkv.shape[1], 4 * y.shape[1]
    width = y.shape[1] // heads
    root = np.float32(1) / np.sqrt(np.float32(width))
    logarithms, factors = stack_words(QUERIES).view(np.float32), stack_words(QUERIES).view(np.float32)
    for task in range(begin, end):
        head, first, length = task_of(task, heads, offsets)
        keys, depth, columns = _fours(length), _fours(width), (width + QUERIES - 1) // QUERIES
        wide = columns * LINE
        k, v, _, _, _, _, qt, _, out, p, _, bits = _places(address(scratch[worker]), length, width)
        q_at = address(qkv) + first * row + 4 * head * width
        _copy(k, q_at + y_row, row, length, keys, width, np.float32(1))
        _copy(v, q_at + 2 * y_row, row, length, keys, width, np.float32(1))
        for start in range(0, length, QUERIES):
            rows, at = min(QUERIES, length - start), first + start
            _copy(out, q_at + start * row, row, rows, QUERIES, width, root)  # q, until there are sums
            _transpose(qt, out, wide, columns)
            if threshold > 0:
                draw(bits, start, length, head, examples[first], dropout)
            _product(p, LINE, k, wide, 4, qt, LINE, keys, depth, 1, False)
            _hide(p, length)
            top, total = _softmax(p, keys, bits, threshold)
            lanes.store(address(logarithms), top + logarithm(total))
            lanes.store(address(factors), lanes.splat(scale) / total)
            _product(out, wide, p, 4, LINE, v, wide, _fours(rows), keys, columns, False)
            _copy_back(address(y) + at * y_row + 4 * head * width, y_row, out, rows, width, factors)
            for r in range(rows):
                lse[at + r, head] = logarithms[r]


@jit
def _backward(worker, begin, end, dqkv, dy, lse, qkv, offsets, examples, heads, dropout, scratch):
    threshold, scale = dropout[0], dropout[1]
    row, y_row = 4 * qkv.shape[1], 4 * dy.shape[1]
    width = dy.shape[1] // heads
    root = np.float32(1) / np.sqrt(np.float32(width))
    logarithms = stack_words(QUERIES).view(np.float32)
    scales, roots = stack_words(QUERIES).view(np.float32), stack_words(QUERIES).view(np.float32)
    scales[:], roots[:] = scale, scale * root
    for task in range(begin, end):
        head, first, length = task_of(task, heads, offsets)
        keys, depth, columns = _fours(length), _fours(width), (width + QUERIES - 1) // QUERIES
        wide = columns * LINE
        k, v, dk, dv, q, dout, qt, dout_t, dq, p, ds, bits = _places(address(scratch[worker]), length, width)
        q_at = address(qkv) + first * row + 4 * head * width
        dq_at = address(dqkv) + first * row + 4 * head * width
        dy_at = address(dy) + first * y_row + 4 * head * width
        _copy(k, q_at + y_row, row, length, keys, width, np.float32(1))
        _copy(v, q_at + 2 * y_row, row, length, keys, width, np.float32(1))
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            _copy(q, q_at + start * row, row, rows, QUERIES, width, root)
            _copy(dout, dy_at + start * y_row, y_row, rows, QUERIES, width, np.float32(1))
            _transpose(qt, q, wide, columns)
            _transpose(dout_t, dout, wide, columns)
            for r in range(QUERIES):
                logarithms[r] = lse[first + start + r, head] if r < rows else np.float32(0)
            if threshold > 0:
                draw(bits, start, length, head, examples[first], dropout)
            _product(p, LINE, k, wide, 4, qt, LINE, keys, depth, 1, False)
            _product(ds, LINE, v, wide, 4, dout_t, LINE, keys, depth, 1, False)
            _hide(p, length)
            _gradients(p, ds, keys, lanes.load(address(logarithms)), bits, threshold)
            _product(dv, wide, p, LINE, 4, dout, wide, keys, QUERIES, columns, start > 0)
            _product(dk, wide, ds, LINE, 4, q, wide, keys, QUERIES, columns, start > 0)
            _product(dq, wide, ds, 4, LINE, k, wide, _fours(rows), keys, columns, False)
            _copy_back(dq_at + start * row, row, dq, rows, width, roots)
        for start in range(0, length, QUERIES):
            rows, at = min(QUERIES, length - start), dq_at + y_row + start * row
            _copy_back(at, row, dk + start * wide, rows, width, scales)
            _copy_back(at + y_row, row, dv + start * wide, rows, width, scales)


@inlined
def _fours(n):
    return (n + FOUR - 1) // FOUR * FOUR


@inlined
def _places(at, length, width):
    """Where a task's matrices are in a worker's share: k, v, dk and dv (keys, D); q, dout, both transposed and dq
    (QUERIES, D); scores and dP (keys, QUERIES); the mask's bits, two keys a line, in the first tile of each block.
    """
    keys, wide = _fours(length), (width + QUERIES - 1) // QUERIES * LINE
    whole, part = keys * wide, QUERIES * wide
    q = at + 4 * whole
    p = q + 5 * part
    return (
        at, at + whole, at + 2 * whole, at + 3 * whole,
        q, q + part, q + 2 * part, q + 3 * part, q + 4 * part,
        p, p + keys * LINE, p + 2 * keys * LINE,
    )  # fmt: skip


@inlined
def _columns(width, j):
    """A bit for each of the 16 columns from j on that are there."""
    return (1 << min(QUERIES, width - j)) - 1


@inlined
def _copy(to, x, row, rows, padded, width, factor):
    """`padded` rows of whole lines = the first `rows` at x times factor, zeros around them."""
    for r in range(padded):
        for j in range(0, width, QUERIES):
            mask = _columns(width, j) if r < rows else 0
            lanes.store(to, masks.load_some(x + r * row + 4 * j, mask) * factor)
            to += LINE


@inlined
def _copy_back(x, row, block, rows, width, factors):
    """`rows` rows at x = rows of whole lines, each times its factor."""
    for r in range(rows):
        factor = factors[r]
        for j in range(0, width, QUERIES):
            masks.store_some(x + r * row + 4 * j, lanes.load(block) * factor, _columns(width, j))
            block += LINE


@inlined
def _transpose(to, x, row, columns):
    """16 rows of `columns` lines, in columns: as many rows of a line as x has columns."""
    for j in range(columns):
        for r in range(QUERIES):
            lanes.store(to + j * TILE + r * LINE, lanes.load(x + r * row + j * LINE))
        tiles.transpose(to + j * TILE)


@inlined
def _hide(scores, length):
    """Scores of keys that are not there: their exponentials are 0."""
    for key in range(length, _fours(length)):
        lanes.store(scores + key * LINE, lanes.splat(np.float32(-np.inf)))


@exact
def _softmax(p, keys, bits, threshold):
    """For 16 queries: scores to exponentials, those that are kept. Returns each query's highest score and the sum of
    all its exponentials.
    """
    top = lanes.load(p)
    for key in range(1, keys):
        top = lanes.maximum(lanes.load(p + key * LINE), top)
    total = lanes.splat(np.float32(0))
    for first in range(0, keys, DEEP):
        part = lanes.splat(np.float32(0))
        for key in range(first, min(keys, first + DEEP)):
            e = power(lanes.load(p + key * LINE) - top, LOG2E)
            lanes.store(p + key * LINE, lanes.where(_kept(bits, key, threshold), e))
            part = part + e
        total = total + part
    return top, total


@inlined
def _kept(bits, key, threshold):
    """Which of 16 queries keep a key."""
    if threshold == 0:
        return masks.all_lanes()
    half = lanes.load_words(pair_at(bits, key // 2)) << np.uint32(16 - key % 2 * 16)
    return half >= np.uint32(np.uint32(threshold) << np.uint32(16))


@exact
def _gradients(p, ds, keys, log, bits, threshold):
    """For 16 queries: scores to M P, dP to dS = P (M dP - rowsum(P M dP)).

    All keys are at hand. So P is normalised again, for the rounding of a large lse makes a factor of all of it; and
    the sum is of what it is subtracted from: where both cancel, as for a single key, they do.
    """
    moment = total = lanes.splat(np.float32(0))
    for first in range(0, keys, DEEP):
        part = part_moment = lanes.splat(np.float32(0))
        for key in range(first, min(keys, first + DEEP)):
            e = power(lanes.load(p + key * LINE) - log, LOG2E)
            dp = lanes.where(_kept(bits, key, threshold), lanes.load(ds + key * LINE))
            lanes.store(p + key * LINE, e)
            lanes.store(ds + key * LINE, dp)
            part, part_moment = part + e, lanes.fma(e, dp, part_moment)
        total, moment = total + part, moment + part_moment
    inverse = lanes.splat(np.float32(1)) / total
    moment = moment * inverse
    for key in range(keys):
        e = lanes.load(p + key * LINE) * inverse
        lanes.store(ds + key * LINE, e * (lanes.load(ds + key * LINE) - moment))
        lanes.store(p + key * LINE, lanes.where(_kept(bits, key, threshold), e))


@exact
def _product(c, c_row, a, a_row, a_step, b, b_row, rows, depth, columns, adds):
    """c (rows, columns of 16) = a b, plus what it was where `adds`; rows and depth are multiples of FOUR. a's numbers
    are `a_step` bytes apart.

    Sums of DEEP products stay in registers before c is added to, which keeps the errors of long sums small.
    """
    for first in range(0, depth, DEEP):
        last = min(depth, first + DEEP)
        for j in range(0, columns * LINE, LINE):
            for i in range(0, rows, FOUR):
                c0, a_at, b_at = c + i * c_row + j, a + i * a_row + first * a_step, b + first * b_row + j
                c1, c2, c3 = c0 + c_row, c0 + 2 * c_row, c0 + 3 * c_row
                sum0, sum1, sum2, sum3 = _four_rows(a_at, a_row, a_step, b_at, b_row, last - first)
                if adds or first > 0:
                    sum0, sum1 = sum0 + lanes.load(c0), sum1 + lanes.load(c1)
                    sum2, sum3 = sum2 + lanes.load(c2), sum3 + lanes.load(c3)
                lanes.store(c0, sum0)
                lanes.store(c1, sum1)
                lanes.store(c2, sum2)
                lanes.store(c3, sum3)


@exact
def _four_rows(a, a_row, a_step, b, b_row, depth):
    """The sums over `depth` of four rows: in registers of 16 lanes those of even and of odd terms apart, because four
    sums alone would wait for each other.
    """
    zero = lanes.splat(np.float32(0))
    sum0, sum1, sum2, sum3 = zero, zero, zero, zero
    odd0, odd1, odd2, odd3 = zero, zero, zero, zero
    a0, a1, a2, a3 = a, a + a_row, a + 2 * a_row, a + 3 * a_row
    for k in range(0, depth, 2):
        at, line = k * a_step, lanes.load(b)
        sum0 = lanes.fma(line, lanes.repeat(a0 + at), sum0)
        sum1 = lanes.fma(line, lanes.repeat(a1 + at), sum1)
        sum2 = lanes.fma(line, lanes.repeat(a2 + at), sum2)
        sum3 = lanes.fma(line, lanes.repeat(a3 + at), sum3)
        at, line = at + a_step, lanes.load(b + b_row)
        if WIDE:
            odd0 = lanes.fma(line, lanes.repeat(a0 + at), odd0)
            odd1 = lanes.fma(line, lanes.repeat(a1 + at), odd1)
            odd2 = lanes.fma(line, lanes.repeat(a2 + at), odd2)
            odd3 = lanes.fma(line, lanes.repeat(a3 + at), odd3)
        else:
            sum0 = lanes.fma(line, lanes.repeat(a0 + at), sum0)
            sum1 = lanes.fma(line, lanes.repeat(a1 + at), sum1)
            sum2 = lanes.fma(line, lanes.repeat(a2 + at), sum2)
            sum3 = lanes.fma(line, lanes.repeat(a3 + at), sum3)
        b += 2 * b_row
    if WIDE:
        return sum0 + odd0, sum1 + odd1, sum2 + odd2, sum3 + odd3
    return sum0, sum1, sum2, sum3
