"""The linear layer in bf16 on the CPU's matrix unit: operands rounded to bf16 (nearest even), sums in float32.

All three products are out (M, N) = a (M, K) b (K, N) + addend, over operands packed into tiles (common/amx.py):

    y = x wᵀ + bias      a: rows of x                    b: rows of w, transposed
    dx = dy w            a: rows of dy                   b: columns of w
    dw += dyᵀ x          a: columns of dy, transposed    b: columns of x

**Packed** is an operand as uint16 (panels, steps, 1024): 32 of its rows, or columns, make a panel, 32 of K make a step,
and what a panel needs for a step is two tiles of 1 KiB, one after the other. Element (m, k) of `a` stands at
[m // 32, k // 32, m % 32 * 32 + k % 32]: 32 x 32 blocks, each in its natural order. Element (k, n) of `b` stands at
[n // 32, k // 32, n % 32 // 16 * 512 + k % 32 // 2 * 32 + n % 16 * 2 + k % 2]: 16 columns a tile, rows two by two.
Edges are filled with zeros, which change no sum. Operands start on 64-byte lines.

**Blocks.** A worker computes 8 x 8 panels of the result at a time, its sums in 256 KiB of its own, K in chunks of about
eight steps: a chunk of one of b's panels (16 KiB) stays in L1 while a's stream past it from L2. With longer chunks both
come from L2, which gives 35 to 50 bytes a cycle where the unit eats 64. Every step also fetches a few lines of what
comes next, and writes a few rows of the 32 x 32 sums finished before it, past the caches: written all at once, or read
before they are overwritten, they leave the unit waiting for memory. Each element is summed over K in order by one
worker, so the number of threads changes no bit.

Measured on one busy machine's core at BERT-Base's sizes with 1,700 tokens: 900 to 1,050 GFLOP/s over packed operands
where BLAS in fp32 made 110 to 120, up to 1,400 in its quiet moments; the unit's peak is 3,450. Zeros are a tenth faster
than numbers: measure with numbers. Packing runs at about the rate of copying.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from minibert.kernels.common import amx
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices import Device, cpu
from minibert.kernels.devices.cpu import inlined, jit, run

SIDE = 32  # rows of a panel; K of a step
BLOCK = SIDE * SIDE  # elements of a panel's step, and of the sums that the registers hold
TILE = BLOCK // 2  # elements of a tile of bf16
STEP = 2 * BLOCK  # bytes of a panel's step
LINE = 64  # bytes
TALL, WIDE = 8, 8  # panels of a and of b that one block of the result covers
DEEP = 8  # steps of a chunk, about
SUMS = (TALL * WIDE + 1) * BLOCK  # float32 of a worker's sums; the last 32 x 32 are those on their way out
FETCHED = STEP // LINE // 8  # lines of a's next chunk, and of b's, that a step asks for: eight visits fetch it all


def panels(n: int) -> int:
    """How many panels n rows make, or how many steps a K of n."""
    return -(-n // SIDE)


def packed_shape(n: int, k: int) -> tuple[int, int, int]:
    """The shape of an operand with n rows (`a`) or columns (`b`), uint16."""
    return panels(n), panels(k), BLOCK


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch for backward: dy twice, w and x packed, the partial sums of dbias, the workers' sums."""
    packed = 2 * panels(t) * panels(f) + panels(f) * panels(c) + panels(t) * panels(c)
    return STEP * packed + _lines(4 * chunks(t) * f) + _lines(4 * c) + 4 * SUMS * cpu.threads() + LINE


def forward(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None) -> None:
    config = amx.configuration()
    (t, c), f = x.shape, w.shape[0]
    room = _Room(_own_scratch(STEP * (panels(t) + panels(f)) * panels(c) + _lines(4 * f) + 4 * SUMS * cpu.threads()))
    a, b = room.packed(t, c), room.packed(f, c)
    run(pack_rows, panels(t), a, x, False)
    run(pack_rows, panels(f), b, w, True)
    multiply(y, a, b, room.zeros(f) if bias is None else bias, 0, room.sums(), config)


def backward(
    dx: np.ndarray | None,
    dw: np.ndarray,
    dbias: np.ndarray | None,
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    scratch: np.ndarray,
) -> None:
    config = amx.configuration()
    (t, f), c = dy.shape, x.shape[1]
    room = _Room(scratch)
    sums = room.sums()
    partials = room.floats(chunks(t) if dbias is not None else 0, f)
    dy_rows, dy_columns = room.packed(t if dx is not None else 0, f), room.packed(f, t)
    run(_pack_gradient, chunks(t), dy_rows, dy_columns, partials, dy)
    if dx is not None:
        w_columns = room.packed(c, f)
        run(pack_columns, panels(f), w_columns, w, False)
        multiply(dx, dy_rows, w_columns, room.zeros(c), 0, sums, config)
    x_columns = room.packed(c, t)
    run(pack_columns, panels(t), x_columns, x, False)
    multiply(dw, dy_columns, x_columns, dw.reshape(-1), c, sums, config)
    if dbias is not None:
        add_partials(dbias, partials)


def multiply(
    out: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    addend: np.ndarray,
    stride: int,
    sums: np.ndarray,
    config: np.ndarray,
) -> None:
    """out (M, N) = a b + addend[m * stride + n], of packed operands; sums (threads, SUMS), on a line, is scratch."""
    blocks = -(-a.shape[0] // TALL) * -(-b.shape[0] // WIDE)
    run(_product, blocks, out, a, b, addend, stride, sums, config)


@jit
def pack_rows(worker, begin, end, packed, source, transposed):
    """Panels begin to end from as many rows x 32 of `source` (n, K); the b of sourceᵀ where `transposed`."""
    for panel in range(begin, end):
        _pack_panel(packed, source, panel, transposed)


@jit
def pack_columns(worker, begin, end, packed, source, transposed):
    """Steps begin to end from as many rows x 32 of `source` (K, n); the a of sourceᵀ where `transposed`."""
    for step in range(begin, end):
        _pack_step(packed, source, step, transposed)


@jit
def _pack_gradient(worker, begin, end, rows, columns, partials, dy):
    """All that backward needs of dy, read once: both forms and each chunk's sums. Unwanted arrays are empty."""
    for chunk in range(begin, end):
        for panel in range(chunk * CHUNK // SIDE, min((chunk + 1) * CHUNK // SIDE, columns.shape[1])):
            if rows.size:
                _pack_panel(rows, dy, panel, False)
            _pack_step(columns, dy, panel, True)
        if partials.size:
            total = partials[chunk]
            total[:] = 0
            for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, dy.shape[0])):
                row = dy[t]
                for i in range(total.size):
                    total[i] += row[i]


@inlined
def _pack_panel(packed, source, panel, transposed):
    rows = source[panel * SIDE : (panel + 1) * SIDE]
    for step in range(packed.shape[1]):
        block = packed[panel, step]
        width = min(SIDE, source.shape[1] - step * SIDE)
        if rows.shape[0] < SIDE or width < SIDE:
            block[:] = 0
        for r in range(rows.shape[0]):
            row, line = rows[r][step * SIDE : step * SIDE + width], block[r * SIDE : (r + 1) * SIDE]
            if width == SIDE:  # a known count: vector code
                for i in range(SIDE):
                    line[i] = amx.to_bf16(row[i])
            else:
                for i in range(width):
                    line[i] = amx.to_bf16(row[i])
        if transposed:
            _transpose_tiles(block)


@inlined
def _pack_step(packed, source, step, transposed):
    rows = source[step * SIDE : (step + 1) * SIDE]
    for panel in range(packed.shape[0]):
        block = packed[panel, step]
        width = min(SIDE, source.shape[1] - panel * SIDE)
        if rows.shape[0] == SIDE and width == SIDE:
            for pair in range(SIDE // 2):
                first, second = (
                    rows[2 * pair].ctypes.data + panel * 4 * SIDE,
                    rows[2 * pair + 1].ctypes.data + panel * 4 * SIDE,
                )
                line = block.ctypes.data + pair * LINE
                amx.to_pairs(line, first, second)
                amx.to_pairs(line + 2 * TILE, first + LINE, second + LINE)
        else:
            block[:] = 0
            for r in range(rows.shape[0]):
                for i in range(width):
                    place = i // 16 * TILE + r // 2 * SIDE + i % 16 * 2 + r % 2
                    block[place] = amx.to_bf16(rows[r, panel * SIDE + i])
        if transposed:
            _transpose_tiles(block)


@inlined
def _transpose_tiles(block):
    amx.transpose(block.ctypes.data)
    amx.transpose(block.ctypes.data + 2 * TILE)


@jit
def _product(worker, begin, end, out, a, b, addend, stride, sums, config):
    (m, n), steps = out.shape, a.shape[1]
    panel = STEP * steps
    out_row, addend_row = 4 * n, 4 * stride
    sums_at = sums[worker].ctypes.data
    leaving = sums_at + TALL * WIDE * 4 * BLOCK
    # What is added to has just been read; anything else is written past the caches.
    strides = out_row, addend_row, stride == 0 and out.ctypes.data % LINE == 0 and out_row % LINE == 0
    rows = leaving, leaving, leaving, 0  # none on their way out
    depth = max(1, (steps + 3) // DEEP)
    across = -(-b.shape[0] // WIDE)
    amx.configure(config.ctypes.data)
    for block in range(begin, end):
        top, left = block // across * TALL, block % across * WIDE
        bottom, right = min(top + TALL, a.shape[0]), min(left + WIDE, b.shape[0])
        for chunk in range(depth):
            first, last = chunk * steps // depth, (chunk + 1) * steps // depth
            share = (last - first) * FETCHED * LINE
            for j in range(left, right):
                b_at = b.ctypes.data + j * panel + first * STEP
                b_next = b_at + panel if j + 1 < right else b.ctypes.data + left * panel + last * STEP
                for i in range(top, bottom):
                    a_at = a.ctypes.data + i * panel + first * STEP
                    a_next = a.ctypes.data + i * panel + last * STEP
                    to = out.ctypes.data + i * SIDE * out_row + j * SIDE * 4
                    plus = addend.ctypes.data + i * SIDE * addend_row + j * SIDE * 4
                    sum_at = sums_at + ((i - top) * WIDE + j - left) * 4 * BLOCK
                    if chunk == 0:
                        _zero_sums()
                    else:
                        _load_sums(sum_at)
                    if stride and chunk + 1 == depth:
                        _fetch_rows(plus, addend_row)
                    ahead = a_next + (j - left) * share, b_next + (i - top) * share
                    rows = _add_steps(a_at, b_at, last - first, ahead, rows, strides)
                    if chunk + 1 < depth:
                        _store_sums(sum_at)
                        continue
                    _write_rows(rows, SIDE, strides)
                    _store_sums(leaving)
                    if (i + 1) * SIDE <= m and (j + 1) * SIDE <= n:
                        rows = to, leaving, plus, SIDE
                    else:
                        _write_edge(out, sums[worker, TALL * WIDE * BLOCK :], addend, stride, i * SIDE, j * SIDE)
                        rows = leaving, leaving, leaving, 0
    _write_rows(rows, SIDE, strides)
    amx.release()
    amx.fence()


@inlined
def _add_steps(a, b, steps, ahead, rows, strides):
    """Tiles 0 to 3, the 32 x 32 sums, += the product of `steps` steps from `a` and `b` on."""
    a_ahead, b_ahead = ahead
    for _ in range(steps):
        amx.load(4, a, 64)
        amx.load(6, b, 64)
        amx.dot(0, 4, 6)
        rows = _write_rows(rows, 4, strides)
        amx.load(7, b + 1024, 64)
        amx.dot(1, 4, 7)
        for line in range(FETCHED):
            amx.prefetch(a_ahead + line * LINE)
            amx.prefetch(b_ahead + line * LINE)
        amx.load(5, a + 1024, 64)
        amx.dot(2, 5, 6)
        amx.dot(3, 5, 7)
        a += STEP
        b += STEP
        a_ahead += FETCHED * LINE
        b_ahead += FETCHED * LINE
    return rows


@inlined
def _fetch_rows(at, stride):
    """Asks for the 32 rows of 32 float32 from `at` on."""
    for r in range(SIDE):
        amx.prefetch(at + r * stride)
        amx.prefetch(at + r * stride + LINE)


@inlined
def _write_rows(rows, count, strides):
    """Writes up to `count` finished rows of 32. `rows`: where to, from where, plus what, and how many are left."""
    to, row, plus, left = rows
    out_row, addend_row, streams = strides
    for _ in range(min(count, left)):
        if streams:
            amx.stream_row(to, row, plus)
        else:
            amx.add_row(to, row, plus)
        to += out_row
        row += 4 * SIDE
        plus += addend_row
    return to, row, plus, left - min(count, left)


@inlined
def _write_edge(out, block, addend, stride, top, left):
    for r in range(min(SIDE, out.shape[0] - top)):
        for i in range(min(SIDE, out.shape[1] - left)):
            out[top + r, left + i] = block[r * SIDE + i] + addend[(top + r) * stride + left + i]


@inlined
def _zero_sums():
    amx.zero(0)
    amx.zero(1)
    amx.zero(2)
    amx.zero(3)


@inlined
def _load_sums(at):
    amx.load(0, at, 4 * SIDE)
    amx.load(1, at + 64, 4 * SIDE)
    amx.load(2, at + STEP, 4 * SIDE)
    amx.load(3, at + STEP + 64, 4 * SIDE)


@inlined
def _store_sums(at):
    amx.store(0, at, 4 * SIDE)
    amx.store(1, at + 64, 4 * SIDE)
    amx.store(2, at + STEP, 4 * SIDE)
    amx.store(3, at + STEP + 64, 4 * SIDE)


class _Room:
    """Cuts arrays off a scratch, each on a 64-byte line."""

    def __init__(self, scratch: np.ndarray):
        self.rest = scratch[-scratch.ctypes.data % LINE :]

    def _cut(self, nbytes: int) -> np.ndarray:
        piece, self.rest = self.rest[:nbytes], self.rest[_lines(nbytes) :]
        return piece

    def packed(self, n: int, k: int) -> np.ndarray:
        """An operand with n rows or columns: see the top."""
        return self._cut(STEP * panels(n) * panels(k)).view(np.uint16).reshape(panels(n), panels(k), BLOCK)

    def floats(self, *shape: int) -> np.ndarray:
        return self._cut(4 * math.prod(shape)).view(np.float32).reshape(shape)

    def zeros(self, n: int) -> np.ndarray:
        zeros = self.floats(n)
        zeros.fill(0)
        return zeros

    def sums(self) -> np.ndarray:
        """All workers' sums."""
        return self.floats(cpu.threads(), SUMS)


def _lines(nbytes: int) -> int:
    """nbytes, rounded up to whole lines."""
    return -(-nbytes // LINE) * LINE


_kept = threading.local()


def _own_scratch(nbytes: int) -> np.ndarray:
    """Scratch for forward, which is given none: kept from call to call, so that its pages are touched once."""
    kept = getattr(_kept, "scratch", None)
    if kept is None or kept.nbytes < nbytes + LINE:
        _kept.scratch = kept = Device("cpu").scratch(nbytes + LINE)
    return kept
