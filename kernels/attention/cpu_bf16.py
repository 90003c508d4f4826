"""Attention with its products in bf16 on the CPU's matrix unit: one task is a head of a sequence, all in scratch.

Operands of products are rounded to bf16, to the nearest; sums, exponentials and all else stay float32, as do arrays in
memory. Queries go in blocks of QUERIES against all keys, and **scores lie transposed**, (keys, QUERIES): a row is two
vector registers whatever the length, sums over keys need no sum inside a register, and a call of Philox has what a
register of pairs of keys needs. With S = q kT / sqrt(D), M the mask of zeros and ones, f dropout's factor:

    forward   Sᵀ = k (q / sqrt(D))ᵀ    y = (M exp(S - max)) v * (f / total)
    backward  Sᵀ again    dPᵀ = v (f dy)ᵀ    dv += (M P)ᵀ (f dy)    dk += dSᵀ (q / sqrt(D))    dq = dS k / sqrt(D)

**Blocks** are what operands are packed in, 32 x 32 bf16 or 2 KiB, two tiles (common/amx.py says what a tile is): in the
left form 32 rows of a product's left operand as they lie, 16 a tile; in the right form 32 rows of the right operand two
by two, 16 columns a tile. The left form of X, each tile transposed, is the right form of Xᵀ, and the reverse. Lengths
and D are padded to whole blocks with zeros, which add nothing; what padded queries yield is thrown away.

Measured piece by piece on a busy machine, a block of queries on 53 keys with D = 64 takes in forward 0.3 microseconds
for both products, 0.65 for Philox, 0.75 for exponentials, mask and rounding: the products are the least of the work.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import amx, lanes
from minibert.kernels.common.elementary import LN2_HIGH, LN2_LOW, LOG2E, ROUND
from minibert.kernels.common.philox_cpu import philox4x32, settings, stack_words
from minibert.kernels.devices.cpu import exact, inlined, jit, run, threads

QUERIES = 32
SIDE = 32  # rows and columns of a block
LINE = 64  # bytes; also of a block's row, and of 16 lanes
ROW = 4 * QUERIES  # bytes of a row of scores, or of the mask's words
TILE = 1024  # bytes
BLOCK = 2 * TILE
LOWEST = np.float32(-80)  # e^-80 times a gradient is still a normal number; below, probabilities are 0
HALF, LOW, HIGH = np.uint32(16), np.uint32(0xFFFF), np.uint32(0xFFFF0000)


def workspace(longest: int, heads: int, c: int) -> int:
    """Bytes of scratch for forward and backward: see the arrays that these take from it."""
    return threads() * 4 * _floats(longest, c // heads) + LINE


def _floats(length: int, width: int) -> int:
    """A worker's share of the scratch, in float32: whole lines."""
    keys, d = _padded(length, width)
    return 7 * keys * d // 2 + 3 * QUERIES * d + 4 * keys * QUERIES


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
    run(
        _forward, (len(offsets) - 1) * heads, y, lse, qkv, offsets, examples, heads, settings(rate, seed, stream),
        _shares(scratch), amx.configuration(),
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
    run(
        _backward, (len(offsets) - 1) * heads, dqkv, dy, lse, qkv, offsets, examples, heads,
        settings(rate, seed, stream), _shares(scratch), amx.configuration(),
    )  # fmt: skip


def _shares(scratch: np.ndarray) -> np.ndarray:
    """The workers' shares, each on a line: float32 (threads, ...)."""
    lines = scratch[-scratch.ctypes.data % LINE :]
    share = lines.size // (LINE * threads()) * LINE
    return lines[: share * threads()].view(np.float32).reshape(threads(), -1)


@jit
def _forward(worker, begin, end, y, lse, qkv, offsets, examples, heads, dropout, floats, config):
    threshold, scale = np.uint32(dropout[0]), dropout[1]
    c = y.shape[1]
    width = c // heads
    one, root = np.float32(1), np.float32(1) / np.sqrt(np.float32(width))
    stage = stack_words(SIDE * (SIDE + 1)).view(np.float32).reshape(SIDE + 1, SIDE)
    stage[SIDE] = 0
    drawn = stack_words(4 * SIDE).reshape(4, SIDE)
    lanes = stack_words(2 * QUERIES).view(np.float32)
    highest, total = lanes[:QUERIES], lanes[QUERIES:]
    amx.configure(_at(config))
    for task in range(begin, end):
        sequence, head = task // heads, task % heads
        first, length = np.intp(offsets[sequence]), np.intp(offsets[sequence + 1] - offsets[sequence])
        column = head * width
        keys, d = _padded(length, width)
        k, v, _, _, _, q, _, _, _, out, scores, _, p, _, _, words = _arrays(floats[worker], keys, d)
        _pack(k, None, stage, qkv, first, length, c + column, width, one)
        _pack(None, v, stage, qkv, first, length, 2 * c + column, width, one)
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            _pack(q, None, stage, qkv, first + start, rows, column, width, root)
            _transpose_tiles(q)
            _scores(scores, k, q)
            _draw(words, drawn, start, length, head, examples[first], dropout)
            _softmax(p, highest, total, scores, words, threshold, length)
            _transpose_tiles(p)
            _rows_product(out, p, v)
            for r in range(rows):
                lse[first + start + r, head] = highest[r] + np.log(total[r])
                total[r] = scale / total[r]
            _copy_back(y, out, first + start, rows, column, width, total)
    amx.release()


@jit
def _backward(worker, begin, end, dqkv, dy, lse, qkv, offsets, examples, heads, dropout, floats, config):
    threshold, scale = np.uint32(dropout[0]), dropout[1]
    c = dy.shape[1]
    width = c // heads
    one, root = np.float32(1), np.float32(1) / np.sqrt(np.float32(width))
    stage = stack_words(SIDE * (SIDE + 1)).view(np.float32).reshape(SIDE + 1, SIDE)
    stage[SIDE] = 0
    drawn = stack_words(4 * SIDE).reshape(4, SIDE)
    lanes = stack_words(3 * QUERIES).view(np.float32)
    logarithm, roots, ones = lanes[:QUERIES], lanes[QUERIES : 2 * QUERIES], lanes[2 * QUERIES :]
    roots[:], ones[:] = root, one
    amx.configure(_at(config))
    for task in range(begin, end):
        sequence, head = task // heads, task % heads
        first, length = np.intp(offsets[sequence]), np.intp(offsets[sequence + 1] - offsets[sequence])
        column = head * width
        keys, d = _padded(length, width)
        k, v, k_right, dk, dv, q, dout, q_right, dout_right, dq, scores, dp, p, ds, ds_left, words = _arrays(
            floats[worker], keys, d
        )
        _pack(k, k_right, stage, qkv, first, length, c + column, width, one)
        _pack(v, None, stage, qkv, first, length, 2 * c + column, width, one)
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            _pack(q, q_right, stage, qkv, first + start, rows, column, width, root)
            _pack(dout, dout_right, stage, dy, first + start, rows, column, width, scale)
            _transpose_tiles(q)
            _transpose_tiles(dout)
            for r in range(QUERIES):
                logarithm[r] = lse[first + start + r, head] if r < rows else np.float32(0)
            _scores(scores, k, q)
            _scores(dp, v, dout)
            _draw(words, drawn, start, length, head, examples[first], dropout)
            _gradients(p, ds, ds_left, scores, dp, logarithm, words, threshold, length)
            _transpose_tiles(ds_left)
            _columns_product(dv, p, dout_right, start > 0)
            _columns_product(dk, ds, q_right, start > 0)
            _rows_product(dq, ds_left, k_right)
            _copy_back(dqkv, dq, first + start, rows, column, width, roots)
        for start in range(0, length, QUERIES):
            rows = min(QUERIES, length - start)
            _copy_back(dqkv, dk[start:], first + start, rows, c + column, width, ones)
            _copy_back(dqkv, dv[start:], first + start, rows, 2 * c + column, width, ones)
    amx.release()


@jit
def _padded(length, width):
    """Both up to whole blocks."""
    return (length + SIDE - 1) // SIDE * SIDE, (width + SIDE - 1) // SIDE * SIDE


@jit
def _arrays(floats, keys, d):
    """The arrays that a worker needs for one task, in its share of the scratch; `_floats` adds them up.

    Blocks (down, across, 1024) of k, v and k; dk and dv (keys, d); blocks of q, dout, q and dout; dq (QUERIES, d), in
    forward y; scores and dP (keys, QUERIES); blocks of P and twice dS; the mask's words (keys / 2, QUERIES).
    """
    down, across, size = keys // SIDE, d // SIDE, SIDE * SIDE
    whole = floats[: 7 * keys * d // 2]
    packed, sums = whole[: 3 * keys * d // 2].view(np.uint16), whole[3 * keys * d // 2 :]
    operands = packed.reshape(3, down, across, size)
    gradients = sums.reshape(2, keys, d)
    part = floats[whole.size :][: 3 * QUERIES * d]
    blocks = part[: 2 * QUERIES * d].view(np.uint16).reshape(4, 1, across, size)
    out = part[2 * QUERIES * d :].reshape(QUERIES, d)
    tall = floats[whole.size + part.size :][: 4 * keys * QUERIES]
    scores = tall[: 2 * keys * QUERIES].reshape(2, keys, QUERIES)
    rounded = tall[2 * keys * QUERIES : 7 * keys * QUERIES // 2].view(np.uint16).reshape(3, 1, down, size)
    words = tall[7 * keys * QUERIES // 2 :].view(np.uint32).reshape(keys // 2, QUERIES)
    return (
        operands[0], operands[1], operands[2], gradients[0], gradients[1],
        blocks[0], blocks[1], blocks[2], blocks[3], out,
        scores[0], scores[1], rounded[0], rounded[1], rounded[2], words,
    )  # fmt: skip


@inlined
def _pack(left, right, stage, x, first, rows, column, width, factor):
    """Blocks (down, across, 1024) of `rows` rows of x from `first` on, `width` columns from `column` on, times factor:
    in the left form, in the right one, or both; None is not wanted. stage (33, 32) is scratch, the last row zeros.
    """
    blocks = right if left is None else left
    zeros = _at(stage) + SIDE * 2 * LINE
    for i in range(blocks.shape[0]):
        for j in range(blocks.shape[1]):
            count = min(SIDE, rows - i * SIDE)
            row = 4 * x.shape[1]
            at = _at(x) + (first + i * SIDE) * row + 4 * (column + j * SIDE)
            if width < (j + 1) * SIDE:
                _stage(stage, x, first + i * SIDE, count, column + j * SIDE, width - j * SIDE)
                at, row = _at(stage), 2 * LINE
            for pair in range(SIDE // 2):
                even = at + 2 * pair * row if 2 * pair < count else zeros
                odd = at + (2 * pair + 1) * row if 2 * pair + 1 < count else zeros
                e0, e1 = _bf16(lanes.load(even) * factor), _bf16(lanes.load(even + LINE) * factor)
                o0, o1 = _bf16(lanes.load(odd) * factor), _bf16(lanes.load(odd + LINE) * factor)
                if left is not None:
                    to = _at(left[i, j]) + 2 * pair * LINE
                    lanes.store(to, lanes.row(e0, e1))
                    lanes.store(to + LINE, lanes.row(o0, o1))
                if right is not None:
                    to = _at(right[i, j]) + pair * LINE
                    lanes.store(to, _pair(e0, o0))
                    lanes.store(to + TILE, _pair(e1, o1))


@inlined
def _stage(stage, x, first, rows, column, width):
    """stage = `rows` rows of x from `first` on, `width` columns, fewer than 32, from `column` on, and zeros."""
    for r in range(rows):
        line, row = stage[r], x[first + r][column : column + width]
        for i in range(SIDE):
            line[i] = 0
        for i in range(width):
            line[i] = row[i]


@inlined
def _at(x):
    """An array's address, signed: where uint64 and int64 meet, Numba computes in float64."""
    return np.intp(x.ctypes.data)


@inlined
def _transpose_tiles(blocks):
    at = _at(blocks)
    for tile in range(blocks.size * 2 // TILE):
        amx.transpose(at + tile * TILE)


@inlined
def _scores(out, a, b):
    """out (keys, 32) = a b, of a (keys, d) and b (d, 32)."""
    steps = a.shape[1]
    for i in range(a.shape[0]):
        _zero_sums()
        _add_steps(_at(a) + i * steps * BLOCK, BLOCK, _at(b), BLOCK, steps)
        _store_sums(_at(out) + i * 4 * SIDE * SIDE, 4 * SIDE)


@inlined
def _rows_product(out, a, b):
    """out (32, d) = a b, of a (32, keys) and b (keys, d)."""
    across = b.shape[1]
    for j in range(across):
        _zero_sums()
        _add_steps(_at(a), BLOCK, _at(b) + j * BLOCK, across * BLOCK, b.shape[0])
        _store_sums(_at(out) + j * 4 * SIDE, across * 4 * SIDE)


@inlined
def _columns_product(out, a, b, adds):
    """out (keys, d) = a b, of a (keys, 32) and b (32, d); plus what it was where `adds`."""
    across = b.shape[1]
    row = across * 4 * SIDE
    for i in range(a.shape[1]):
        for j in range(across):
            at = _at(out) + i * SIDE * row + j * 4 * SIDE
            if adds:
                _load_sums(at, row)
            else:
                _zero_sums()
            _add_steps(_at(a) + i * BLOCK, BLOCK, _at(b) + j * BLOCK, BLOCK, 1)
            _store_sums(at, row)


@inlined
def _add_steps(a, a_step, b, b_step, steps):
    """Tiles 0 to 3, 32 x 32 sums, += the product of `steps` blocks each."""
    for _ in range(steps):
        amx.load(4, a, LINE)
        amx.load(6, b, LINE)
        amx.dot(0, 4, 6)
        amx.load(7, b + TILE, LINE)
        amx.dot(1, 4, 7)
        amx.load(5, a + TILE, LINE)
        amx.dot(2, 5, 6)
        amx.dot(3, 5, 7)
        a += a_step
        b += b_step


@inlined
def _zero_sums():
    amx.zero(0)
    amx.zero(1)
    amx.zero(2)
    amx.zero(3)


@inlined
def _load_sums(at, row):
    amx.load(0, at, row)
    amx.load(1, at + LINE, row)
    amx.load(2, at + 16 * row, row)
    amx.load(3, at + 16 * row + LINE, row)


@inlined
def _store_sums(at, row):
    amx.store(0, at, row)
    amx.store(1, at + LINE, row)
    amx.store(2, at + 16 * row, row)
    amx.store(3, at + 16 * row + LINE, row)


@inlined
def _draw(words, drawn, start, length, head, example, dropout):
    """words[k // 2, q]: the bits of query start + q, of key k in the lower half if k is even, else in the upper.

    One call of Philox has those of the queries q and q + 8 and of the keys k, k + 1, k + 8 and k + 9 (philox.py).
    """
    threshold, _, key0, key1, stream = dropout
    if threshold == 0:
        return
    c1 = np.uint32(head << 16 | start // 2)
    w0, w1, w2, w3 = drawn[0], drawn[1], drawn[2], drawn[3]
    for block in range(0, (length + 15) // 16 * 4, 2):
        for i in range(SIDE):
            w0[i], w1[i], w2[i], w3[i] = philox4x32(
                np.uint32(block + i // 16), np.uint32(c1 + np.uint32(i % 16)), np.uint32(example), stream, key0, key1
            )
        for i in range(4):
            row = block // 4 * 8 + block % 4 + i // 2
            near, far = words[row][i % 2 * 16 : i % 2 * 16 + 16], words[row + 4][i % 2 * 16 : i % 2 * 16 + 16]
            for lane in range(8):
                near[lane] = w0[8 * i + lane]
                near[lane + 8] = w1[8 * i + lane]
                far[lane] = w2[8 * i + lane]
                far[lane + 8] = w3[8 * i + lane]


@inlined
def _softmax(p, highest, total, scores, words, threshold, length):
    """Exponentials of scores, those kept, to blocks of the right form of Pᵀ; each query's highest score, and the sum
    of its exponentials.
    """
    for half in range(2):
        at, word_at = _at(scores) + half * LINE, _at(words) + half * LINE
        to = _at(p) + half * TILE
        if length % 2:
            lanes.store(at + length * ROW, lanes.splat(np.float32(-np.inf)))
        top = lanes.load(at)
        for key in range(1, length):
            top = lanes.maximum(lanes.load(at + key * ROW), top)
        sums = lanes.splat(np.float32(0))
        for pair in range((length + 1) // 2):
            e0, e1 = _exp(lanes.load(at + 2 * pair * ROW) - top), _exp(lanes.load(at + (2 * pair + 1) * ROW) - top)
            sums = sums + (e0 + e1)
            keep0, keep1 = _kept(lanes.load_words(word_at + pair * ROW), threshold)
            lanes.store(_pair_at(to, pair), _pair(_bf16(lanes.where(keep0, e0)), _bf16(lanes.where(keep1, e1))))
        _clear_pairs(to, length, scores.shape[0])
        lanes.store(_at(highest) + half * LINE, top)
        lanes.store(_at(total) + half * LINE, sums)


@inlined
def _gradients(p, ds, ds_right, scores, dp, logarithm, words, threshold, length):
    """Scores and dP to blocks of M P and of dS, in the left form of their transposes; and of dS in the right one.

    rowsum(P * dP) is summed from what it is subtracted from: where both cancel, as for a single key, they do.
    """
    at, dp_at, word_at = _at(scores), _at(dp), _at(words)
    p_at, ds_at, right = _at(p), _at(ds), _at(ds_right)
    if length % 2:
        for half in range(2):
            lanes.store(at + length * ROW + half * LINE, lanes.splat(np.float32(-np.inf)))
    log0, log1 = lanes.load(_at(logarithm)), lanes.load(_at(logarithm) + LINE)
    moment0 = moment1 = lanes.splat(np.float32(0))
    for pair in range((length + 1) // 2):
        to, place = p_at + 2 * pair * LINE, 2 * pair * ROW
        e0, o0, moment0 = _probabilities(at + place, dp_at + place, word_at + pair * ROW, log0, moment0, threshold)
        place += LINE
        e1, o1, moment1 = _probabilities(
            at + place, dp_at + place, word_at + pair * ROW + LINE, log1, moment1, threshold
        )
        lanes.store(to, lanes.row(e0, e1))
        lanes.store(to + LINE, lanes.row(o0, o1))
    for pair in range((length + 1) // 2):
        to, place = ds_at + 2 * pair * LINE, 2 * pair * ROW
        e0, o0 = _differences(at + place, dp_at + place, moment0)
        e1, o1 = _differences(at + place + LINE, dp_at + place + LINE, moment1)
        lanes.store(to, lanes.row(e0, e1))
        lanes.store(to + LINE, lanes.row(o0, o1))
        lanes.store(_pair_at(right, pair), _pair(e0, o0))
        lanes.store(_pair_at(right + TILE, pair), _pair(e1, o1))
    _clear_pairs(right, length, scores.shape[0])
    _clear_pairs(right + TILE, length, scores.shape[0])


@inlined
def _probabilities(at, dp_at, word_at, log, moment, threshold):
    """For two keys and 16 queries: P in place of scores, M dP in place of dP; returns M P rounded and a new moment."""
    keep0, keep1 = _kept(lanes.load_words(word_at), threshold)
    p0, p1 = _exp(lanes.load(at) - log), _exp(lanes.load(at + ROW) - log)
    dp0, dp1 = lanes.where(keep0, lanes.load(dp_at)), lanes.where(keep1, lanes.load(dp_at + ROW))
    lanes.store(at, p0)
    lanes.store(at + ROW, p1)
    lanes.store(dp_at, dp0)
    lanes.store(dp_at + ROW, dp1)
    return _bf16(lanes.where(keep0, p0)), _bf16(lanes.where(keep1, p1)), moment + (p0 * dp0 + p1 * dp1)


@inlined
def _differences(at, dp_at, moment):
    """dS of two keys and 16 queries, rounded."""
    return _bf16(lanes.load(at) * (lanes.load(dp_at) - moment)), _bf16(
        lanes.load(at + ROW) * (lanes.load(dp_at + ROW) - moment)
    )


@inlined
def _pair_at(tile, pair):
    """Where a pair of keys stands, in the tile at `tile` or in that of a later block."""
    return tile + pair // 16 * BLOCK + pair % 16 * LINE


@inlined
def _clear_pairs(tile, length, keys):
    for pair in range((length + 1) // 2, keys // 2):
        lanes.store(_pair_at(tile, pair), lanes.splat(np.uint32(0)))


@inlined
def _kept(word, threshold):
    """Which of the even key's elements are kept, and which of the odd one's."""
    return word & LOW >= lanes.splat(threshold), word >> HALF >= lanes.splat(threshold)


@inlined
def _pair(low, high):
    """Units from the upper halves of words."""
    return low >> HALF | high & HIGH


@exact
def _bf16(x):
    """Words with the bf16 nearest to x in their upper half, ties to even; NaN stays NaN."""
    word = lanes.words(x)
    return lanes.select(x == x, word + (word >> HALF & np.uint32(1)) + np.uint32(0x7FFF), word | np.uint32(0x400000))


@exact
def _exp(x):
    """e^x to 1 ulp, 0 from LOWEST down, for x up to 88; NaN stays NaN. The polynomial of common/elementary.py."""
    clamped = lanes.maximum(lanes.splat(LOWEST), x)
    shifted = clamped * LOG2E + ROUND
    n = shifted - ROUND
    r = (clamped - n * LN2_HIGH) - n * LN2_LOW
    p = r * np.float32(0.0013814467) + np.float32(0.008368781)
    p = p * r + np.float32(0.041668393)
    p = p * r + np.float32(0.1666652)
    p = p * r + np.float32(0.49999994)
    p = p * (r * r) + r + np.float32(1)
    # n stands in the low bits of `shifted`; p 2^n is n added to p's exponent.
    power = lanes.floats_of(lanes.words(p) + (lanes.words(shifted) << np.uint32(23)))
    return lanes.select(clamped == LOWEST, lanes.splat(np.float32(0)), power)


@inlined
def _copy_back(x, block, first, rows, column, width, factors):
    for r in range(rows):
        row, source, factor = x[first + r][column : column + width], block[r], factors[r]
        for i in range(width):
            row[i] = source[i] * factor
