"""Blocks: the operands of attention's products on the matrix unit, packed in scratch, and those products.

A block is 32 x 32 bf16 or 2 KiB, two tiles (common/tiles.py says what a tile is): in the **left form** 32 rows of a
product's left operand as they lie, 16 a tile; in the **right form** 32 rows of the right operand two by two, 16 columns
a tile. The left form of X, each tile transposed, is the right form of Xᵀ, and the reverse. A matrix's blocks stand row
by row; the last are padded with zeros, which add nothing. Sums are float32, in rows as long as the blocks together.

Everything is named by its address, the bytes from a row to the next and, of what is no block yet, those from 32 columns
to the next 32: views of arrays cost Numba seconds.
"""

from __future__ import annotations

from minibert.kernels.common import halves, lanes, tiles
from minibert.kernels.common.packing import LINE, SIDE, TILE
from minibert.kernels.devices.compiling import inlined

BLOCK = 2 * TILE  # bytes


@inlined
def blocks(n):
    """How many blocks n rows or columns take."""
    return (n + SIDE - 1) // SIDE


@inlined
def pack_left(to, x, row, step, rows, width):
    """The left form of `rows` rows and `width` columns at x."""
    across = blocks(width)
    for r in range(blocks(rows) * SIDE):
        place = to + r // SIDE * across * BLOCK + r % SIDE * LINE
        for j in range(across):
            lanes.store(place + j * BLOCK, _line(x, row, step, rows, width, r, j))


@inlined
def pack_right(to, x, row, step, rows, width):
    """The right form of `rows` rows and `width` columns at x."""
    across = blocks(width)
    for pair in range(blocks(rows) * SIDE // 2):
        place = to + pair // 16 * across * BLOCK + pair % 16 * LINE
        for j in range(across):
            even = _line(x, row, step, rows, width, 2 * pair, j)
            odd = _line(x, row, step, rows, width, 2 * pair + 1, j)
            lanes.store(place + j * BLOCK, halves.lower_pairs(even, odd))
            lanes.store(place + j * BLOCK + TILE, halves.upper_pairs(even, odd))


@inlined
def pack_transposed(to, x, row, step, rows, width):
    """The right form of the transpose of up to 32 rows and `width` columns at x."""
    for j in range(blocks(width)):
        at = x + j * step
        halves.transpose_rows(to + j * BLOCK, at, row, rows, width - j * SIDE)
        halves.transpose_rows(to + j * BLOCK + TILE, at + 16 * row, row, rows - 16, width - j * SIDE)


@inlined
def _line(x, row, step, rows, width, r, j):
    """32 columns of row r from column 32 j on; zeros beyond the last column and the last row."""
    at = x + min(r, rows - 1) * row + j * step
    return halves.load_row(at, width - j * SIDE if r < rows else 0)


@inlined
def unpack(to, row, step, rows, width, sums, factors):
    """`rows` rows and `width` columns of bf16 at `to`: sums, in rows of whole lines, times factors, one a row."""
    across = blocks(width)
    for r in range(rows):
        factor = factors[r]
        for j in range(across):
            at = sums + (r * across + j) * 2 * LINE
            line = halves.to_row(lanes.load(at) * factor, lanes.load(at + LINE) * factor)
            halves.store_row(to + r * row + j * step, line, width - j * SIDE)


@inlined
def transpose_tiles(at, count):
    """One tile of each of `count` blocks, from one form into the other."""
    for block in range(count):
        tiles.transpose(at + block * BLOCK)


@inlined
def product(unit, sums, row, a, a_step, b, b_step, steps):
    """32 x 32 sums = the product of `steps` blocks of a and of b, so many bytes apart."""
    _zero_sums(unit)
    for _ in range(steps):
        _add_product(unit, a, b)
        a += a_step
        b += b_step
    _store_sums(unit, sums, row)


@inlined
def product_onto(unit, sums, row, a, b, adds):
    """32 x 32 sums = the product of two blocks, plus what they were where `adds`."""
    if adds:
        tiles.load(unit, 0, sums, row)
        tiles.load(unit, 1, sums + LINE, row)
        tiles.load(unit, 2, sums + 16 * row, row)
        tiles.load(unit, 3, sums + 16 * row + LINE, row)
    else:
        _zero_sums(unit)
    _add_product(unit, a, b)
    _store_sums(unit, sums, row)


@inlined
def _zero_sums(unit):
    tiles.zero(unit, 0)
    tiles.zero(unit, 1)
    tiles.zero(unit, 2)
    tiles.zero(unit, 3)


@inlined
def _add_product(unit, a, b):
    """Tiles 0 to 3 += a block times a block."""
    tiles.load(unit, 4, a, LINE)
    tiles.load(unit, 6, b, LINE)
    tiles.dot(unit, 0, 4, 6)
    tiles.load(unit, 7, b + TILE, LINE)
    tiles.dot(unit, 1, 4, 7)
    tiles.load(unit, 5, a + TILE, LINE)
    tiles.dot(unit, 2, 5, 6)
    tiles.dot(unit, 3, 5, 7)


@inlined
def _store_sums(unit, sums, row):
    tiles.store(unit, 0, sums, row)
    tiles.store(unit, 1, sums + LINE, row)
    tiles.store(unit, 2, sums + 16 * row, row)
    tiles.store(unit, 3, sums + 16 * row + LINE, row)
