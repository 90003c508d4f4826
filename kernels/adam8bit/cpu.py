"""Adam with moments of 8 bits in Numba: a block at a time, whose moments are float32 on the stack meanwhile."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, storage
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices.compiling import exact, inlined, jit
from minibert.kernels.devices.cpu import run

from . import codes

BLOCK, TINY = codes.BLOCK, np.float32(codes.TINY)
SMALLEST, SMALLEST_ROOT = np.float32(codes.SIGNED[1]), np.float32(codes.UNSIGNED[1])
EXPONENT, SIGN = np.uint32(0x7F800000), np.uint32(0x80000000)
TWO = np.uint32(128 << 23)  # the bits of 2
NOT_ZERO = np.float32(2.0**-149)  # the smallest float32
INTEGER = np.float32(2**23)  # adding it leaves the nearest integer in the low bits


def update(
    p: np.ndarray,
    m: np.ndarray,
    root: np.ndarray,
    m_largest: np.ndarray,
    root_largest: np.ndarray,
    g: np.ndarray,
    scale: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
) -> None:
    if np.isnan(scale[0]):
        return
    # 1 - beta and the like in double, as in adam/cpu.py.
    scalars = scale[0], lr, beta1, 1 - beta1, beta2, 1 - beta2, eps, decay, 1 / correction1, correction2**-0.5
    arrays = p, m.reshape(-1), root.reshape(-1), m_largest, root_largest, g
    run(_update, len(m), *arrays, tuple(map(np.float32, scalars)), grain=16)


@jit
def _update(worker, begin, end, p, m, root, m_largest, root_largest, g, scalars):
    stack = stack_words(2 * BLOCK).ctypes.data
    for block in range(begin, end):
        rest, largest = p.size - block * BLOCK, (m_largest[block], root_largest[block])
        # Two copies of the code: masks, which a short last block needs, cost a whole one half of its speed.
        if rest >= BLOCK:
            most = _move(stack, p, m, root, largest, g, block, BLOCK, scalars)
        else:
            most = _move(stack, p, m, root, largest, g, block, rest, scalars)
        m_largest[block], root_largest[block] = _store(stack, m, root, most, block)


@inlined
def _move(stack, p, m, root, largest, g, block, size, scalars):
    """The update of a block's `size` elements. Their new moments are left on the stack, the missing ones of a whole
    block being zeros; returns lanes whose largest is the largest |M|, and of sqrt(V).
    """
    scale, lr, keep1, new1, keep2, new2, eps, decay, unbias1, unbias2 = scalars
    first, zero = block * BLOCK, np.float32(0)
    m_unit, root_unit = largest[0] * np.float32(8.0**-7), largest[1] * np.float32(8.0**-8)
    most = most_root = lanes.splat(zero)
    for i in range(0, size, 16):
        inside = storage.inside(i, size)
        gradient = storage.load(g, first + i, inside) * scale
        moment = _signed(storage.load_bytes(m, first + i)) * (keep1 * m_unit) + gradient * new1
        r = lanes.apart(_unsigned(storage.load_bytes(root, first + i)) * root_unit)  # root_unit**2 may be 0
        r = lanes.root(r * r * keep2 + gradient * gradient * new2)
        at = storage.load(p, first + i, inside)
        step = moment * unbias1 / (r * unbias2 + eps) + at * decay
        storage.store(p, first + i, at - step * lr, inside)
        lanes.store(stack + 4 * i, moment)
        lanes.store(stack + 4 * (BLOCK + i), r)
        most = lanes.maximum(lanes.absolute(moment), most)
        most_root = lanes.maximum(r, most_root)
    for i in range((size + 15) // 16 * 16, BLOCK, 16):
        lanes.store(stack + 4 * i, lanes.splat(zero))
        lanes.store(stack + 4 * (BLOCK + i), lanes.splat(zero))
    return most, most_root


@inlined
def _store(stack, m, root, most, block):
    """The codes of a block's moments; returns the largest of both."""
    first = block * BLOCK
    m_largest, share = _largest(most[0])
    root_largest, share_root = _largest(most[1])
    for i in range(0, BLOCK, 16):
        moment = lanes.load(stack + 4 * i) * share
        sign = (lanes.words(moment) & SIGN) >> np.uint32(24)
        code = _code(lanes.absolute(moment), np.float32(64), SMALLEST, np.float32(0.5) * SMALLEST)
        storage.store_bytes(m, first + i, code | sign)
        r = lanes.load(stack + 4 * (BLOCK + i)) * share_root
        storage.store_bytes(root, first + i, _code(r, np.float32(128), SMALLEST_ROOT, NOT_ZERO))
    return m_largest, root_largest


@inlined
def _largest(most):
    """The largest lane, 0 for a number too small to be divided by, and what makes numbers shares of it."""
    largest = lanes.largest(most)
    return (largest, np.float32(1) / largest) if largest >= TINY else (np.float32(0), np.float32(0))


@exact
def _unsigned(code):
    """The numbers of codes, times 8^bits: see codes.py. As a float32 a code has its leading one in its exponent."""
    code = lanes.numbers(code)
    one = lanes.floats_of(lanes.words(code) & EXPONENT)
    return (code * np.float32(7) + np.float32(7) - one * np.float32(6)) * one * one


@exact
def _signed(code):
    """The same of codes whose highest bit is the sign."""
    magnitude = lanes.words(_unsigned(code & np.uint32(127)))
    return lanes.floats_of(magnitude | ((code & np.uint32(128)) << np.uint32(24)))


@exact
def _code(x, steps, smallest, least):
    """The codes whose numbers are nearest to x, from 0 to 1: 0 for x below `least` alone, that of the `smallest` number
    at least for the rest. `steps` is how many the range below 1 has.

    After r divisions by 8 the codes begin with n - 1 for n = steps / 2^r, and x 8^r is from 1/8 to 1: the code is
    n - 1 + n (x 8^r - 1/8) 8/7. Where x lies on the border of two ranges both give one code.
    """
    number = lanes.words(lanes.maximum(x, lanes.splat(smallest)))
    halvings = (lanes.splat(TWO) - number) >> np.uint32(23)  # j + 1 for x above 2^-(j + 1) and up to 2^-j
    # r is a third of j, rounded down, here as exponents add it: 85/256 is near enough for all j up to 23.
    divisions = ((halvings * np.uint32(85)) >> np.uint32(8)) << np.uint32(23)
    n = lanes.floats_of(lanes.words(lanes.splat(steps)) - divisions)
    scaled = lanes.floats_of(number + divisions + divisions)  # x 4^r, that is x 8^r n / steps
    code = scaled * (steps * np.float32(8 / 7)) + n * np.float32(6 / 7) + (INTEGER - np.float32(1))
    return lanes.words(lanes.select(lanes.below(x, least), lanes.splat(np.float32(0)), code))
