"""Operands of products as the CPU's matrix unit takes them, and what packs them.

**Packed** is an operand as uint16 (panels, steps, 1024): 32 of its rows, or columns, make a panel, 32 of K make a step,
and what a panel needs for a step is two tiles of 1 KiB, one after the other. Element (m, k) of `a` stands at
[m // 32, k // 32, m % 32 * 32 + k % 32]: 32 x 32 blocks, each in its natural order. Element (k, n) of `b` stands at
[n // 32, k // 32, n % 32 // 16 * 512 + k % 32 // 2 * 32 + n % 16 * 2 + k % 2]: 16 columns a tile, rows two by two.
Edges are filled with zeros, which change no sum. Operands start on 64-byte lines. Of an operand that is a sum of
several bf16, such as a float32 (split.py), every step has the blocks of all parts one after the other.

**Strips** are a form of activations (T, N), N being a multiple of 32: (N / 32, T, 32), one after the other. A block's
rows lie together, where those of (T, N) lie in a page each, which costs whoever writes or reads blocks: 2,304 columns
take a product 1.2 to 1.4 of the time that their strips do. Strips begin on a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from minibert.kernels.common import halves, lanes, masks, tiles
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run

SIDE = 32  # rows of a panel; K of a step
BLOCK = SIDE * SIDE  # elements of a panel's step, and of the sums that the registers hold
STEP = 2 * BLOCK  # bytes of a panel's step
TILE = STEP // 2  # bytes of a tile
LINE = 64  # bytes
NEAR = 16  # panels whose columns are read together
ALL = (1 << SIDE) - 1  # a bit for each column of a panel


def panels(n: int) -> int:
    """How many panels n rows make, or how many steps a K of n."""
    return -(-n // SIDE)


def packed_bytes(n: int, k: int, parts: int = 1) -> int:
    """Bytes of an operand with n rows (`a`) or columns (`b`)."""
    return parts * STEP * panels(n) * panels(k)


def unstripped(x: np.ndarray) -> np.ndarray:
    """x (T, N), or its strips as an array of this shape, for kernels that know where to find what in it."""
    if x.ndim == 2:
        return x
    assert x.flags.c_contiguous and x.ctypes.data % LINE == 0, "strips that kernels stream past the caches"
    return x.reshape(x.shape[1], x.shape[0] * x.shape[2])


def whole_lines(nbytes: int) -> int:
    """nbytes, rounded up to whole lines."""
    return -(-nbytes // LINE) * LINE


@jit
def pack_rows(worker, begin, end, tasks, own, kept, steps, x):
    """Rows of x, those of a task of products.py, as they lie."""
    top, bottom, _, _ = tasks[begin]
    row, a = 2 * x.shape[1], own_place(own, worker) + kept
    for panel in range(bottom - top):
        for step in range(steps):
            mask = columns(x, step)
            to = a + (panel * steps + step) * STEP
            at = address(x) + (top + panel) * SIDE * row + step * LINE
            rows = min(SIDE, x.shape[0] - (top + panel) * SIDE)
            for r in range(rows):
                tiles.prefetch(at + (SIDE + r) * row)  # of the next panel
                lanes.store(to + r * LINE, halves.load_some_bf16(at + r * row, mask))
            for r in range(rows, SIDE):
                lanes.store(to + r * LINE, lanes.splat(np.uint32(0)))


@jit
def pack_strips(worker, begin, end, tasks, own, kept, steps, x):
    """The same of x in strips, given as if it were (T, N)."""
    top, bottom, _, _ = tasks[begin]
    a = own_place(own, worker) + kept
    for panel in range(bottom - top):
        rows = min(SIDE, x.shape[0] - (top + panel) * SIDE)
        for step in range(steps):
            to = a + (panel * steps + step) * STEP
            at = strip_row(x, (top + panel) * SIDE, step * SIDE)
            for r in range(rows):
                tiles.prefetch(at + (SIDE + r) * LINE)  # of the next panel
                lanes.store(to + r * LINE, lanes.load_words(at + r * LINE))
            for r in range(rows, SIDE):
                lanes.store(to + r * LINE, lanes.splat(np.uint32(0)))


def _columns_packer(block: Callable) -> Callable:
    """The kernel that packs columns of dy (T, N), a task's panels, transposed, and adds their sums to dbias if it is
    wanted, in the first task of those panels. block(dy, step, panel): where a block lies, the bytes from row to row,
    its columns and rows.
    """

    @jit
    def pack(worker, begin, end, tasks, own, kept, steps, dy, dbias):
        top, bottom, left, _ = tasks[begin]
        adds, a = left == 0 and dbias.size > 0, own_place(own, worker) + kept
        sums = stack_words(NEAR * SIDE)
        for near in range(0, bottom - top, NEAR):
            last = min(near + NEAR, bottom - top)
            sums[:] = 0
            for step in range(steps):
                for panel in range(near, last):
                    to = a + (panel * steps + step) * STEP
                    at, row, mask, rows = block(dy, step, top + panel)
                    _pack_block(to, at, row, mask, rows, SIDE * row)
                    if adds:
                        _add_tokens(address(sums) + (panel - near) * 2 * LINE, to)
                    tiles.transpose(to)
                    tiles.transpose(to + TILE)
            for panel in range(near, last if adds else near):
                add_sums(dbias, top + panel, address(sums) + (panel - near) * 2 * LINE)

    return pack


@inlined
def add_sums(dbias, panel, sums):
    """A panel's numbers of dbias += 32 float32 at `sums`"""
    at = address(dbias) + panel * 2 * LINE
    for half in range(2):
        mask, off = _within(dbias.size, panel) >> (16 * half), half * LINE
        masks.store_some(at + off, masks.load_some(at + off, mask) + lanes.load(sums + off), mask)


@inlined
def _add_tokens(sums, block):
    """32 float32 at `sums` += the sums over the 32 tokens of a block in pairs."""
    for half in range(2):
        total = lanes.load(sums + half * LINE)
        for pair in range(SIDE // 2):
            both = lanes.load_words(block + half * TILE + pair * LINE)
            total = total + lanes.floats_of(both << np.uint32(16)) + lanes.floats_of(both & np.uint32(0xFFFF0000))
        lanes.store(sums + half * LINE, total)


@jit
def pack_pairs(worker, begin, end, b, x):
    """Steps begin to end: rows of x two by two."""
    for step in range(begin, end):
        for panel in range(b.shape[0]):
            at, row, mask, rows = _block_of_rows(x, step, panel)
            _pack_block(address(b) + (panel * b.shape[1] + step) * STEP, at, row, mask, rows, 4 * LINE)


@inlined
def _pack_block(to, at, row, mask, rows, ahead):
    """Two tiles = pairs of 32 columns of 32 rows, `row` bytes apart; zeros beyond `rows` and where mask has no bit.
    Asks for what is `ahead` bytes after.
    """
    for pair in range(SIDE // 2):
        even = halves.load_some_bf16(at, mask if 2 * pair < rows else 0)
        odd = halves.load_some_bf16(at + row, mask if 2 * pair + 1 < rows else 0)
        tiles.prefetch(at + ahead)
        tiles.prefetch(at + row + ahead)
        lanes.store(to + pair * LINE, halves.lower_pairs(even, odd))
        lanes.store(to + TILE + pair * LINE, halves.upper_pairs(even, odd))
        at += 2 * row


@jit
def _round(worker, begin, end, out, x):
    """Rows begin to end of x in bf16."""
    for row in range(begin, end):
        for step in range((x.shape[1] + SIDE - 1) // SIDE):
            mask = columns(x, step)
            halves.store_some_bf16(address(out) + 2 * row * x.shape[1] + step * LINE, rounded(x, row, step, mask), mask)


@inlined
def rounded(x, row, panel, mask):
    """32 columns of a row of float32 in bf16; beyond its edges zeros."""
    mask = mask if row < x.shape[0] else 0
    at = address(x) + 4 * row * x.shape[1] + 2 * panel * LINE
    return halves.to_row(masks.load_some(at, mask), masks.load_some(at + LINE, mask >> 16))


@inlined
def columns(x, panel):
    """A bit for each of the panel's 32 columns that x has."""
    return _within(x.shape[1], panel)


@inlined
def _within(n, panel):
    """A bit for each of the panel's 32 numbers that are below n."""
    return ALL >> (SIDE - min(SIDE, n - panel * SIDE))


@inlined
def address(x):
    """An array's address, signed: where uint64 and int64 meet, Numba computes in float64."""
    return np.intp(x.ctypes.data)


@inlined
def own_place(own, worker):
    """Where a worker's own bytes are."""
    return address(own) + worker * own.shape[1]


# A plain function for Numba's cache, which knows a kernel by what it closes over: compiled functions have random names.
finishing = register_jitable(forceinline=True, fastmath={"contract"})


@finishing
def _block_of_rows(x, step, panel):
    """Where a block of x (T, N) lies, the bytes from row to row, its columns and rows."""
    row = 2 * x.shape[1]
    return address(x) + step * SIDE * row + panel * LINE, row, columns(x, panel), x.shape[0] - step * SIDE


@finishing
def _block_of_panels(x, step, panel):
    """The same of what is packed as `a`, rows beyond T included."""
    return address(x) + (step * x.shape[1] + panel) * STEP, LINE, ALL, SIDE


@finishing
def strip_row(x, m, n):
    """Where row m of x, the columns from n on, stands in its strips; x is given as if it were (T, N)."""
    return address(x) + (n // SIDE * x.shape[0] + m) * LINE


@finishing
def _block_of_strips(x, step, panel):
    """As `_block_of_rows` of x in strips, given as if it were (T, N)."""
    return strip_row(x, step * SIDE, panel * SIDE), LINE, ALL, x.shape[0] - step * SIDE


pack_columns = _columns_packer(_block_of_rows)
pack_strip_columns = _columns_packer(_block_of_strips)
pack_packed_columns = _columns_packer(_block_of_panels)  # of what is packed as another product's a


@finishing
def packed_row(a, m, n):
    """Where 32 numbers of row m, from column n on, stand in a packed operand `a`."""
    return address(a) + (m // SIDE * a.shape[1] + n // SIDE) * STEP + m % SIDE * LINE


@finishing
def store_pairs(b, m, n, row):
    """Row m, its 32 numbers from column n on, into a packed operand `b`; after the row before, if m is odd."""
    at = address(b) + (n // SIDE * b.shape[1] + m // SIDE) * STEP + m % SIDE // 2 * LINE
    nothing = lanes.splat(np.uint32(0))
    if m % 2 == 0:
        lanes.store(at, halves.lower_pairs(row, nothing))
        lanes.store(at + TILE, halves.upper_pairs(row, nothing))
    else:
        lanes.store(at, lanes.load_words(at) | halves.lower_pairs(nothing, row))
        lanes.store(at + TILE, lanes.load_words(at + TILE) | halves.upper_pairs(nothing, row))


class Room:
    """Cuts arrays off a scratch, each on a 64-byte line."""

    def __init__(self, scratch: np.ndarray):
        self.rest = scratch[-scratch.ctypes.data % LINE :]

    def _cut(self, nbytes: int) -> np.ndarray:
        piece, self.rest = self.rest[:nbytes], self.rest[whole_lines(nbytes) :]
        return piece

    def packed(self, n: int, k: int, parts: int = 1) -> np.ndarray:
        """An operand with n rows (`a`) or columns (`b`)."""
        return self._cut(packed_bytes(n, k, parts)).view(np.uint16).reshape(panels(n), panels(k), parts * BLOCK)

    def floats(self, *shape: int) -> np.ndarray:
        return self._cut(4 * math.prod(shape)).view(np.float32).reshape(shape)

    def halves(self, *shape: int) -> np.ndarray:
        return self._cut(2 * math.prod(shape)).view(np.uint16).reshape(shape)

    def zeros(self, n: int) -> np.ndarray:
        zeros = self.floats(n)
        zeros.fill(0)
        return zeros

    def own(self, each: int) -> np.ndarray:
        """The workers' own bytes."""
        return self._cut(cpu.threads() * each).reshape(cpu.threads(), each)

    def bf16(self, x: np.ndarray) -> np.ndarray:
        """x, rounded if it is float32."""
        if x.dtype == np.uint16:
            return x
        out = self.halves(*x.shape)
        run(_round, len(x), out, x, grain=SIDE)
        return out


def clear_rows(a: np.ndarray, m: int) -> None:
    """Zeros for the rows from m on of a packed operand `a`, which are rows of K in a product of its columns."""
    a[-1].reshape(-1, SIDE, SIDE)[:, (m - 1) % SIDE + 1 :] = 0


def clear_pairs(b: np.ndarray, k: int) -> None:
    """Zeros for the pairs of rows from k on of a packed operand `b`."""
    b[:, -1].reshape(-1, 2, SIDE // 2, SIDE)[:, :, (k - 1) % SIDE // 2 + 1 :] = 0
