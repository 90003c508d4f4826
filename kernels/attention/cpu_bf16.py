"""Attention over bf16 activations, its products on the CPU's matrix unit: one task is a head of a sequence, in scratch.

Operands of products are bf16; sums, exponentials and all else are float32, and factors are multiplied in float32, too.
Queries go in blocks of QUERIES against all keys, and **scores lie transposed**, (keys, QUERIES): a row is two vector
registers whatever the length, sums over keys need no sum inside a register, and a call of Philox has what a register
of pairs of keys needs. With S = q kT / sqrt(D), M the mask of zeros and ones, f dropout's factor:

    forward   Sᵀ = k qᵀ / sqrt(D)    y = (M exp(S - max)) v * f / total
    backward  Sᵀ again    dPᵀ = M v dyᵀ    dS = P (dP - rowsum(P dP))
              dv += (M P)ᵀ dy * f    dk += dSᵀ q * f / sqrt(D)    dq = dS k * f / sqrt(D)

blocks.py packs the operands; what padded keys and queries yield is thrown away. Random bits and exponentials, most of
the work at a few dozen tokens, are computed for the 16 queries of a half only if it has any. Much of the rest is
waiting for memory: a head's rows may stand 3 C numbers apart, so each task asks for those of the next one.

qkv and dqkv may be strips (common/packing.py), where the columns of a head are whole ones: (3C / 32, T, 32).
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import halves, lanes, tiles
from minibert.kernels.common.elementary_lanes import LOG2E, logarithm, power
from minibert.kernels.common.packing import LINE, SIDE, TILE, address, unstripped
from minibert.kernels.common.philox_cpu import settings, stack_words
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run, threads

from .blocks import (
    BLOCK,
    blocks,
    pack_left,
    pack_right,
    pack_transposed,
    product,
    product_onto,
    transpose_tiles,
    unpack,
)  # fmt: skip
from .queries import draw, longest_of, pair_at, shares, task_of

QUERIES = SIDE
ROW = 4 * QUERIES  # bytes of a row of scores


def workspace(t: int, longest: int, heads: int, c: int) -> int:
    """Bytes of scratch for forward and backward."""
    return threads() * _share(longest, c // heads) + LINE


def _share(length: int, width: int) -> int:
    """Bytes of a worker's part of the scratch: see `_places`; forward needs less."""
    down, across = -(-length // SIDE), -(-width // SIDE)
    return (7 * down * across + 4 * across + 5 * down + 2 * max(down, across)) * BLOCK


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
        _forward, (len(offsets) - 1) * heads, y, lse, unstripped(qkv), _strides(qkv, heads), offsets, examples, heads,
        settings(rate, seed, stream), shares(scratch, share), tiles.configuration(),
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
        _backward, (len(offsets) - 1) * heads, unstripped(dqkv), dy, lse, unstripped(qkv), _strides(qkv, heads),
        offsets, examples, heads, settings(rate, seed, stream), shares(scratch, share), tiles.configuration(),
    )  # fmt: skip


def _strides(qkv: np.ndarray, heads: int) -> tuple[int, int, int]:
    """The bytes from a row to the next, from 32 columns of a row to the next 32, and from a head to the next."""
    if qkv.ndim == 2:
        return 2 * qkv.shape[1], LINE, 2 * qkv.shape[1] // (3 * heads)
    strips, t, _ = qkv.shape
    return LINE, t * LINE, strips // (3 * heads) * t * LINE


@jit
def _forward(worker, begin, end, y, lse, qkv, strides, offsets, examples, heads, dropout, shares, config):
    threshold, scale = dropout[0], dropout[1]
    row, step, head_step = strides
    y_row, width, k_step = 2 * y.shape[1], y.shape[1] // heads, heads * head_step
    root = np.float32(1) / np.sqrt(np.float32(width))
    logarithms, factors = stack_words(QUERIES).view(np.float32), stack_words(QUERIES).view(np.float32)
    unit = tiles.configure(address(config))
    for task in range(begin, end):
        head, first, length = task_of(task, heads, offsets)
        down, across = blocks(length), blocks(width)
        k = address(shares[worker])
        v = k + down * across * BLOCK
        q = v + down * across * BLOCK
        p = q + across * BLOCK
        scores = p + down * BLOCK  # later the sums of y
        q_at = address(qkv) + first * row + head * head_step
        y_at = address(y) + first * y_row + 2 * head * width
        ahead = _ahead(qkv, strides, 3, across, min(task + 1, end - 1), heads, offsets, length)
        pack_left(k, q_at + k_step, row, step, length, width)
        pack_right(v, q_at + 2 * k_step, row, step, length, width)
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            pack_transposed(q, q_at + start * row, row, step, rows, width)
            if threshold > 0:
                _draw(p, start, rows, length, head, examples[first], dropout)
            for i in range(down):
                product(unit, scores + i * SIDE * ROW, ROW, k + i * across * BLOCK, BLOCK, q, BLOCK, across)
            for half in range(2):
                tile, lane = p + half * TILE, half * LINE
                if 16 * half < rows:
                    piece = _pieces(start + 16 * half, length)
                    top, total = _softmax(tile, scores + lane, length, root, threshold, ahead, piece)
                    lanes.store(address(logarithms) + lane, top + logarithm(total))
                    lanes.store(address(factors) + lane, lanes.splat(scale) / total)
                _clear(tile, length if 16 * half < rows else 0, down)
                transpose_tiles(tile, down)
            for j in range(across):
                product(unit, scores + j * 2 * LINE, across * 2 * LINE, p, BLOCK, v + j * BLOCK, across * BLOCK, down)
            unpack(y_at + start * y_row, y_row, LINE, rows, width, scores, factors)
            for r in range(rows):
                lse[first + start + r, head] = logarithms[r]
    tiles.release(unit)


@jit
def _backward(worker, begin, end, dqkv, dy, lse, qkv, strides, offsets, examples, heads, dropout, shares, config):
    threshold, scale = dropout[0], dropout[1]
    row, step, head_step = strides
    y_row, width, k_step = 2 * dy.shape[1], dy.shape[1] // heads, heads * head_step
    dy_strides = y_row, LINE, 2 * width
    root = np.float32(1) / np.sqrt(np.float32(width))
    logarithms = stack_words(QUERIES).view(np.float32)
    scales, roots = stack_words(QUERIES).view(np.float32), stack_words(QUERIES).view(np.float32)
    scales[:], roots[:] = scale, scale * root
    unit = tiles.configure(address(config))
    for task in range(begin, end):
        head, first, length = task_of(task, heads, offsets)
        down, across = blocks(length), blocks(width)
        places = _places(address(shares[worker]), down, across)
        k, v, k_right, dk, dv, q, dout, q_right, dout_right, p, ds, ds_left, dp, scores = places
        q_at = address(qkv) + first * row + head * head_step
        dq_at = address(dqkv) + first * row + head * head_step
        dy_at = address(dy) + first * y_row + 2 * head * width
        later = min(task + 1, end - 1)
        ahead = (
            _ahead(qkv, strides, 3, across, later, heads, offsets, length),
            _ahead(dy, dy_strides, 1, across, later, heads, offsets, length),
            _ahead(dqkv, strides, 3, across, task, heads, offsets, length),
        )  # fmt: skip
        pack_left(k, q_at + k_step, row, step, length, width)
        pack_right(k_right, q_at + k_step, row, step, length, width)
        pack_left(v, q_at + 2 * k_step, row, step, length, width)
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            pack_transposed(q, q_at + start * row, row, step, rows, width)
            pack_transposed(dout, dy_at + start * y_row, y_row, LINE, rows, width)
            pack_right(q_right, q_at + start * row, row, step, rows, width)
            pack_right(dout_right, dy_at + start * y_row, y_row, LINE, rows, width)
            for r in range(QUERIES):
                logarithms[r] = lse[first + start + r, head] if r < rows else np.float32(0)
            if threshold > 0:
                _draw(ds_left, start, rows, length, head, examples[first], dropout)
            for i in range(down):
                product(unit, scores + i * SIDE * ROW, ROW, k + i * across * BLOCK, BLOCK, q, BLOCK, across)
                product(unit, dp + i * SIDE * ROW, ROW, v + i * across * BLOCK, BLOCK, dout, BLOCK, across)
            for half in range(2):
                piece = _pieces(start + 16 * half, length)
                log = lanes.load(address(logarithms) + half * LINE)
                _gradients(places, half, rows, length, root, log, threshold, ahead, piece)
            for i in range(down):
                for j in range(across):
                    at = (i * SIDE * across + j) * 2 * LINE
                    product_onto(unit, dv + at, across * 2 * LINE, p + i * BLOCK, dout_right + j * BLOCK, start > 0)
                    product_onto(unit, dk + at, across * 2 * LINE, ds + i * BLOCK, q_right + j * BLOCK, start > 0)
            for j in range(across):
                at = scores + j * 2 * LINE  # done with: now the sums of dq
                product(unit, at, across * 2 * LINE, ds_left, BLOCK, k_right + j * BLOCK, across * BLOCK, down)
            unpack(dq_at + start * row, row, step, rows, width, scores, roots)
        for start in range(0, length, QUERIES):
            rows, at = min(QUERIES, length - start), start * across * 2 * LINE
            unpack(dq_at + k_step + start * row, row, step, rows, width, dk + at, roots)
            unpack(dq_at + 2 * k_step + start * row, row, step, rows, width, dv + at, scales)
    tiles.release(unit)


@inlined
def _places(at, down, across):
    """Where backward keeps what one task needs in a worker's share, which is that long (see `_share`).

    Blocks (down, across) of k, v and k; dk and dv (keys, d); blocks (across) of q, dout, q and dout; blocks (down) of P
    and twice dS, the latter in the right form at first, and before in place of it the mask's bits; dP and scores (keys,
    QUERIES), the latter with room for (QUERIES, d).
    """
    whole, part, side = down * across * BLOCK, across * BLOCK, down * BLOCK
    q = at + 7 * whole
    p = q + 4 * part
    dp = p + 3 * side
    return (
        at, at + whole, at + 2 * whole, at + 3 * whole, at + 5 * whole, q, q + part, q + 2 * part, q + 3 * part,
        p, p + side, p + 2 * side, dp, dp + 2 * side,
    )  # fmt: skip


@inlined
def _pieces(queries, length):
    """How many rows of 16 queries and two keys come before a query, in the order in which exponentials are computed."""
    return (queries + 15) // 16 * ((length + 1) // 2)


@inlined
def _ahead(x, strides, matrices, across, task, heads, offsets, length):
    """What `_fetch` has to know to bring the rows of a task out of x, `matrices` side by side, in a task this long."""
    head, first, rows = task_of(task, heads, offsets)
    row, step, head_step = strides
    pieces = _pieces(length, length)
    at = address(x) + first * row + head * head_step
    return at, row, step, across, heads * head_step, matrices, rows, (rows + pieces - 1) // pieces


@inlined
def _fetch(ahead, piece):
    """Asks for a piece of the next task's rows: a few lines at a time, or the core waits for them right here."""
    at, row, step, across, matrix_step, matrices, rows, share = ahead
    for r in range(piece * share, min(piece * share + share, rows)):
        for matrix in range(matrices):
            for j in range(across):
                tiles.prefetch(at + r * row + matrix * matrix_step + j * step)


@inlined
def _draw(words, start, rows, length, head, example, dropout):
    """The bits of 32 queries from `start` on, to a right form's places."""
    for half in range((rows + 15) // 16):
        draw(words + half * TILE, start + 16 * half, length, head, example, dropout)


@inlined
def _softmax(p, scores, length, root, threshold, ahead, piece):
    """For 16 queries: exponentials of scores, those kept, in place of the mask's bits: tiles of the right form of Pᵀ.
    Returns each query's highest score and the sum of its exponentials.
    """
    if length % 2:
        lanes.store(scores + length * ROW, lanes.splat(np.float32(-np.inf)))
    top = top_odd = lanes.load(scores)
    for pair in range((length + 1) // 2):
        top = lanes.maximum(lanes.load(scores + 2 * pair * ROW), top)
        top_odd = lanes.maximum(lanes.load(scores + (2 * pair + 1) * ROW), top_odd)
    top, steepness = lanes.maximum(top, top_odd), root * LOG2E
    total = lanes.splat(np.float32(0))
    for pair in range((length + 1) // 2):
        _fetch(ahead, piece + pair)
        at = scores + 2 * pair * ROW
        e0, e1 = power(lanes.load(at) - top, steepness), power(lanes.load(at + ROW) - top, steepness)
        total = total + (e0 + e1)
        units = halves.pairs(halves.to_row(e0, e1))
        if threshold > 0:
            units = halves.kept(units, lanes.load_words(pair_at(p, pair)), threshold)
        lanes.store(pair_at(p, pair), units)
    return lanes.apart(top * root), total


@inlined
def _gradients(places, half, rows, length, root, log, threshold, ahead, piece):
    """For 16 queries: M P and dS, rounded, to the left form of their transposes, and dS to its own."""
    _, _, _, _, _, _, _, _, _, p, ds, ds_left, dp, scores = places
    tile, lane, narrow = ds_left + half * TILE, half * LINE, half * LINE // 2
    down = blocks(length)
    if 16 * half < rows:
        moment = _probabilities(p + narrow, scores + lane, dp + lane, tile, length, root, log, threshold, ahead, piece)
        _differences(ds + narrow, tile, scores + lane, dp + lane, length, moment)
    else:
        _clear_halves(p + narrow, down)
        _clear_halves(ds + narrow, down)
    _clear(tile, length if 16 * half < rows else 0, down)
    transpose_tiles(tile, down)


@inlined
def _probabilities(p, scores, dp, bits, length, root, log, threshold, ahead, piece):
    """For 16 queries: P in place of scores, M dP in place of dP; M P, rounded, to half of the left form of Pᵀ. Returns
    rowsum(P dP), summed from what it is subtracted from: where both cancel, as for a single key, they do. P's own sum
    is 1 but for the rounding of lse, which would leave a share of every dP: it is divided by.
    """
    if length % 2:
        lanes.store(scores + length * ROW, lanes.splat(np.float32(-np.inf)))
    moment = total = lanes.splat(np.float32(0))
    least = np.uint32(np.uint32(threshold) << np.uint32(16))
    ahead_qkv, ahead_dy, written = ahead
    for pair in range((length + 1) // 2):
        _fetch(ahead_qkv, piece + pair)
        _fetch(ahead_dy, piece + pair)
        _fetch(written, piece + pair)
        at, dp_at = scores + 2 * pair * ROW, dp + 2 * pair * ROW
        p0 = power(lanes.apart(lanes.load(at) * root) - log, LOG2E)
        p1 = power(lanes.apart(lanes.load(at + ROW) * root) - log, LOG2E)
        lanes.store(at, p0)
        lanes.store(at + ROW, p1)
        total = total + (p0 + p1)
        dp0, dp1 = lanes.load(dp_at), lanes.load(dp_at + ROW)
        if threshold > 0:
            word = lanes.load_words(pair_at(bits, pair))
            keep0, keep1 = word << np.uint32(16) >= least, word >= least
            dp0, dp1 = lanes.where(keep0, dp0), lanes.where(keep1, dp1)
            lanes.store(dp_at, dp0)
            lanes.store(dp_at + ROW, dp1)
        moment = lanes.fma(p0, dp0, lanes.fma(p1, dp1, moment))
        if threshold > 0:
            p0, p1 = lanes.where(keep0, p0), lanes.where(keep1, p1)
        halves.store_halves(p + 2 * pair * LINE, p + (2 * pair + 1) * LINE, halves.to_row(p0, p1))
    return moment / total


@inlined
def _differences(ds, ds_right, p, dp, length, moment):
    """For 16 queries: dS = P (dP - moment), rounded, to half of the left form of dSᵀ and to tiles of the right form."""
    for pair in range((length + 1) // 2):
        at, dp_at = p + 2 * pair * ROW, dp + 2 * pair * ROW
        ds0 = lanes.load(at) * (lanes.load(dp_at) - moment)
        ds1 = lanes.load(at + ROW) * (lanes.load(dp_at + ROW) - moment)
        line = halves.to_row(ds0, ds1)
        halves.store_halves(ds + 2 * pair * LINE, ds + (2 * pair + 1) * LINE, line)
        lanes.store(pair_at(ds_right, pair), halves.pairs(line))


@inlined
def _clear(tile, length, down):
    """Zeros for the pairs of keys from `length` on."""
    for pair in range((length + 1) // 2, down * SIDE // 2):
        lanes.store(pair_at(tile, pair), lanes.splat(np.uint32(0)))


@inlined
def _clear_halves(half, down):
    """Zeros for 16 queries and all keys of a left form."""
    for pair in range(down * SIDE // 2):
        halves.store_halves(half + 2 * pair * LINE, half + (2 * pair + 1) * LINE, lanes.splat(np.uint32(0)))
