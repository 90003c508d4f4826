"""Blocks: the operands of attention's products on the matrix unit, packed in scratch, and those products.

A block is 32 x 32 bf16 or 2 KiB, two tiles (common/amx.py says what a tile is): in the **left form** 32 rows of a
product's left operand as they lie, 16 a tile; in the **right form** 32 rows of the right operand two by two, 16 columns
a tile. The left form of X, each tile transposed, is the right form of Xᵀ, and the reverse. A matrix's blocks stand row
by row; the last are padded with zeros, which add nothing. Sums are float32, in rows as long as the blocks together.

Everything is named by its address and the bytes from a row to the next: views of arrays cost Numba seconds.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import amx, lanes
from minibert.kernels.devices.cpu import inlined

SIDE = 32  # rows and columns of a block
LINE = 64  # bytes; also of a block's row, and of 16 lanes
TILE = 1024  # bytes
BLOCK = 2 * TILE


@inlined
def blocks(n):
    """How many blocks n rows or columns take."""
    return (n + SIDE - 1) // SIDE


@inlined
def address(x):
    """An array's address, signed: where uint64 and int64 meet, Numba computes in float64."""
    return np.intp(x.ctypes.data)


@inlined
def pack_left(to, x, row, rows, width):
    """The left form of `rows` rows and `width` columns at x."""
    across = blocks(width)
    for r in range(blocks(rows) * SIDE):
        place = to + r // SIDE * across * BLOCK + r % SIDE * LINE
        for j in range(across):
            lanes.store(place + j * BLOCK, _line(x, row, rows, width, r, j))


@inlined
def pack_right(to, x, row, rows, width):
    """The right form of `rows` rows and `width` columns at x."""
    across = blocks(width)
    for pair in range(blocks(rows) * SIDE // 2):
        place = to + pair // 16 * across * BLOCK + pair % 16 * LINE
        for j in range(across):
            even, odd = _line(x, row, rows, width, 2 * pair, j), _line(x, row, rows, width, 2 * pair + 1, j)
            lanes.store(place + j * BLOCK, lanes.lower_pairs(even, odd))
            lanes.store(place + j * BLOCK + TILE, lanes.upper_pairs(even, odd))


@inlined
def pack_transposed(to, x, row, rows, width):
    """The right form of the transpose of up to 32 rows and `width` columns at x."""
    for j in range(blocks(width)):
        at = x + j * LINE
        lanes.transpose_rows(to + j * BLOCK, at, row, rows, width - j * SIDE)
        lanes.transpose_rows(to + j * BLOCK + TILE, at + 16 * row, row, rows - 16, width - j * SIDE)


@inlined
def _line(x, row, rows, width, r, j):
    """32 columns of row r from column 32 j on; zeros beyond the last column and the last row."""
    at = x + min(r, rows - 1) * row + j * LINE
    return lanes.load_row(at, width - j * SIDE if r < rows else 0)


@inlined
def unpack(to, row, rows, width, sums, factors):
    """`rows` rows and `width` columns of bf16 at `to`: sums, in rows of whole lines, times factors, one a row."""
    across = blocks(width)
    for r in range(rows):
        factor = factors[r]
        for j in range(across):
            at = sums + (r * across + j) * 2 * LINE
            line = lanes.to_row(lanes.load(at) * factor, lanes.load(at + LINE) * factor)
            lanes.store_row(to + r * row + j * LINE, line, width - j * SIDE)


@inlined
def transpose_tiles(at, count):
    """One tile of each of `count` blocks, from one form into the other."""
    for block in range(count):
        amx.transpose(at + block * BLOCK)


@inlined
def product(sums, row, a, a_step, b, b_step, steps):
    """32 x 32 sums = the product of `steps` blocks of a and of b, so many bytes apart."""
    _zero_sums()
    for _ in range(steps):
        _add_product(a, b)
        a += a_step
        b += b_step
    _store_sums(sums, row)


@inlined
def product_onto(sums, row, a, b, adds):
    """32 x 32 sums = the product of two blocks, plus what they were where `adds`."""
    if adds:
        amx.load(0, sums, row)
        amx.load(1, sums + LINE, row)
        amx.load(2, sums + 16 * row, row)
        amx.load(3, sums + 16 * row + LINE, row)
    else:
        _zero_sums()
    _add_product(a, b)
    _store_sums(sums, row)


@inlined
def _zero_sums():
    amx.zero(0)
    amx.zero(1)
    amx.zero(2)
    amx.zero(3)


@inlined
def _add_product(a, b):
    """Tiles 0 to 3 += a block times a block."""
    amx.load(4, a, LINE)
    amx.load(6, b, LINE)
    amx.dot(0, 4, 6)
    amx.load(7, b + TILE, LINE)
    amx.dot(1, 4, 7)
    amx.load(5, a + TILE, LINE)
    amx.dot(2, 5, 6)
    amx.dot(3, 5, 7)


@inlined
def _store_sums(sums, row):
    amx.store(0, sums, row)
    amx.store(1, sums + LINE, row)
    amx.store(2, sums + 16 * row, row)
    amx.store(3, sums + 16 * row + LINE, row)
