"""What the cores can do at best: kernels that do nothing else than multiply tiles, or copy."""

from __future__ import annotations

from minibert.kernels.common import tiles
from minibert.kernels.devices.compiling import inlined, jit

PRODUCTS = 4 * 2 * 16 * 16 * 32  # floating-point operations of a round of `multiply`


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
