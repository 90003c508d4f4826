"""What the cores can do at best: kernels that do nothing else than multiply, or copy."""

from __future__ import annotations

from minibert.kernels.common import fma, tiles
from minibert.kernels.common.packing import address
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices.compiling import inlined, jit

PRODUCTS = 4 * 2 * 16 * 16 * 32  # floating-point operations of a round of `multiply`
BLOCK_OF = 256
PRODUCTS_OF_FLOATS = 2 * fma.HIGH * fma.WIDE * BLOCK_OF  # of a round of `multiply_floats`


@jit
def multiply(worker, begin, end, operands, config, rounds):
    """`rounds` times four products of tiles, operands and sums in registers, for each of begin to end.

    operands: 4 KiB of bf16 on a line; numbers, since AMX is faster on zeros.
    """
    at = operands.ctypes.data
    unit = tiles.configure(config.ctypes.data)
    for _ in range(begin, end):
        _fill(unit, at)
        for _ in range(rounds):
            tiles.dot(unit, 0, 4, 6)
            tiles.dot(unit, 1, 4, 7)
            tiles.dot(unit, 2, 5, 6)
            tiles.dot(unit, 3, 5, 7)
    tiles.release(unit)


@jit
def multiply_floats(worker, begin, end, operands, rounds):
    """`rounds` times a block of fma.py's over BLOCK_OF of K, for each of begin to end.

    operands: so many lines of float32, of which the first are `a` as well, in L1.
    """
    sums = stack_words(fma.SUMS // 4)
    at = address(operands)
    for _ in range((end - begin) * rounds):
        fma.block(address(sums), at, at, BLOCK_OF, at, 0, False)


@inlined
def _fill(unit, at):
    tiles.zero(unit, 0)
    tiles.zero(unit, 1)
    tiles.zero(unit, 2)
    tiles.zero(unit, 3)
    tiles.load(unit, 4, at, 64)
    tiles.load(unit, 5, at + 1024, 64)
    tiles.load(unit, 6, at + 2048, 64)
    tiles.load(unit, 7, at + 3072, 64)


@jit
def copy(worker, begin, end, to, source, piece):
    """Pieces begin to end of `piece` elements."""
    to, source = to[begin * piece : end * piece], source[begin * piece : end * piece]
    for i in range(source.size):
        to[i] = source[i]
