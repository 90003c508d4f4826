"""Dropout's random bits on lanes: Philox (philox.py) with eight counters in a register, a word in each 64 bits.

A product of 32-bit words is one instruction there, and a word's upper half may hold anything: no product sees it.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.compiling import inlined

from . import lanes, philox

_M0, _M1 = (np.uint32(m) for m in philox.MULTIPLIERS)
_STEP0, _STEP1 = (np.uint32(step) for step in philox.KEY_STEPS)
_HALF = np.uint64(32)


@inlined
def philox4x32(c0, c1, c2, c3, key0, key1):
    """Philox4x32-10 of eight counters; the words are the lower halves of what it returns."""
    for _ in range(philox.ROUNDS):
        p, q = lanes.product(c0, _M0), lanes.product(c2, _M1)
        c0, c1 = (q >> _HALF) ^ c1 ^ np.uint64(key0), q
        c2, c3 = (p >> _HALF) ^ c3 ^ np.uint64(key1), p
        key0, key1 = np.uint32(key0 + _STEP0), np.uint32(key1 + _STEP1)
    return c0, c1, c2, c3
