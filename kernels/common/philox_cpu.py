"""Dropout's random bits in Numba: the rows of 16 bits that philox.py defines, drawn in vector registers."""

from __future__ import annotations

import llvmlite.ir
import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from minibert.kernels.devices.compiling import inlined

from . import halves, lanes, philox, philox_lanes

_NONE, _ONE = np.uint64(0), np.uint64(1)


def settings(rate: float, seed: int, stream: int) -> tuple:
    """(threshold, scale, the seed's halves, stream), typed: how kernels take dropout's three scalars."""
    return (
        np.uint16(philox.threshold(rate)),
        np.float32(philox.scale(rate)),
        np.uint32(seed & philox.WORD),
        np.uint32(seed >> 32 & philox.WORD),
        np.uint32(stream),
    )


@intrinsic
def stack_words(typing, count):
    """A uint32 array of `count` words on the stack, gone when the caller returns: call it once, outside loops."""
    array_type = types.Array(types.uint32, 1, "C")

    def generate(context, builder, signature, arguments):
        data = builder.alloca(llvmlite.ir.IntType(32), arguments[0])
        data.align = 64
        array = arrayobj.make_array(array_type)(context, builder)
        stride = context.get_constant(types.intp, 4)
        arrayobj.populate_array(array, data, shape=arguments, strides=[stride], itemsize=stride, meminfo=None)
        return array._getvalue()

    return array_type(types.intp), generate


@inlined
def hidden_room(c):
    """How many words `hidden_words` draws for c elements: whole lanes of blocks."""
    return (c + 63) // 64 * 32


@inlined
def hidden_words(out, c, position, example, dropout):
    """Draws the words of a token's c elements to address `out`, on a line: 16 bits an element, in order.

    With rate 0 every bit pattern is kept, and nothing is drawn.
    """
    threshold, _, key0, key1, stream = dropout
    if threshold == 0:
        return
    c1 = lanes.longs(np.uint64(np.uint32(position)), _NONE)
    c2 = lanes.longs(np.uint64(np.uint32(example)), _NONE)
    c3 = lanes.longs(np.uint64(stream), _NONE)
    for block in range(0, (c + 7) // 8, 8):
        words = philox_lanes.philox4x32(lanes.longs(np.uint64(block), _ONE), c1, c2, c3, key0, key1)
        lanes.store_words(out + 16 * block, words[0], words[1], words[2], words[3])


@inlined
def dropped(x, bits, dropout):
    """Dropout of 16 elements, whose bits stand at address `bits`; NaN stays NaN, dropped or not."""
    return x * lanes.where(halves.load_halves(bits) >= dropout[0], lanes.splat(dropout[1]))
