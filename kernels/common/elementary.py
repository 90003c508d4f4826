"""exp and tanh in float32 for the loops of CPU kernels: branch-free, so that LLVM inlines and vectorises them.

Numba would call the C library once per element. These are polynomials, minimax fits made for this file; every
docstring says how far the result is from the exact value at worst, and tests/kernels/test_elementary.py holds it
to that. NaN stays NaN.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.compiling import exact

ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
ROUND_BITS = np.int32(ROUND.view(np.int32))
LOG2E = np.float32(1.44269504)
LN2_HIGH = np.float32(0.693359375)  # ten bits: n * LN2_HIGH is exact
LN2_LOW = np.float32(-2.12194440e-4)
EXP_LOWEST = np.float32(-103.97208)  # below, the nearest float32 is 0
EXP_HIGHEST = np.float32(89)  # e^89 = p 2^128 is infinity already
EXP_NORMAL = np.float32(-87.33654)  # below, results are subnormal


@exact
def _power_of_two(n):
    """2^n for n from -126 to 127, infinity for 128, by writing the exponent's bits."""
    return np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)


@exact
def _exp_parts(x):
    """(p, n) with e^x = p 2^n and p between 0.7 and 1.42, for |x| < 2^21."""
    shifted = np.float32(x * LOG2E + ROUND)
    n = shifted - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = np.float32(0.0013814467) * r + np.float32(0.008368781)
    p = p * r + np.float32(0.041668393)
    p = p * r + np.float32(0.1666652)
    p = p * r + np.float32(0.49999994)
    p = p * (r * r) + r + np.float32(1)
    # From the bits and not by a cast of n, which would be undefined for NaN.
    return p, np.int32(shifted.view(np.int32) - ROUND_BITS)


@exact
def exp(x):
    """e^x to 1 ulp, subnormal results included; 0 below -103.97, infinity above 88.72."""
    clamped = EXP_HIGHEST if x > EXP_HIGHEST else x
    clamped = EXP_LOWEST if clamped < EXP_LOWEST else clamped
    p, n = _exp_parts(clamped)
    # n reaches from -150 to 128, more than one float32's exponent does: two factors.
    half = np.int32(n >> np.int32(1))
    rest = _power_of_two(np.int32(n - half))
    # A product that underflows costs 150 cycles, a product with zero nothing.
    return p * _power_of_two(half) * (np.float32(0) if x < EXP_LOWEST else rest)


@exact
def exp_bounded(x):
    """e^x to 1 ulp where that is a normal number; 0 below -87.3, infinity above 88.3: a third faster than exp."""
    clamped = EXP_HIGHEST if x > EXP_HIGHEST else x
    p, n = _exp_parts(clamped)
    return np.float32(0) if x < EXP_NORMAL else p * _power_of_two(n)


@exact
def tanh(x):
    """The hyperbolic tangent: within 1.5 ulp (8e-8) everywhere."""
    a = abs(x)
    u = a * a
    near = np.float32(-0.005717045) * u + np.float32(0.020650588)
    near = near * u + np.float32(-0.053743497)
    near = near * u + np.float32(0.13331491)
    near = near * u + np.float32(-0.33333284)
    far = np.float32(1) - np.float32(2) / (exp_bounded(a + a) + np.float32(1))
    return near * u * x + x if a < np.float32(0.625) else (-far if x < np.float32(0) else far)
