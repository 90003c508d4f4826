"""What the cores can do at best: kernels that do nothing else than multiply tiles, or copy."""

from __future__ import annotations

from minibert.kernels.common import amx
from minibert.kernels.devices.cpu import inlined, jit

PRODUCTS = 4 * 2 * 16 * 16 * 32  # floating-point operations of a round of `multiply`


@jit
def multiply(worker, begin, end, operands, config, rounds):
    """`rounds` times four products of tiles, operands and sums in registers, for each of begin to end.

    operands: 4 KiB of bf16 on a line; numbers, since the unit is faster on zeros.
    """
    at = operands.ctypes.data
    amx.configure(config.ctypes.data)
    for _ in range(begin, end):
        _fill(at)
        for _ in range(rounds):
            amx.dot(0, 4, 6)
            amx.dot(1, 4, 7)
            amx.dot(2, 5, 6)
            amx.dot(3, 5, 7)
    amx.release()


@inlined
def _fill(at):
    amx.zero(0)
    amx.zero(1)
    amx.zero(2)
    amx.zero(3)
    amx.load(4, at, 64)
    amx.load(5, at + 1024, 64)
    amx.load(6, at + 2048, 64)
    amx.load(7, at + 3072, 64)


@jit
def copy(worker, begin, end, to, source, piece):
    """Pieces begin to end of `piece` elements."""
    to, source = to[begin * piece : end * piece], source[begin * piece : end * piece]
    for i in range(source.size):
        to[i] = source[i]
