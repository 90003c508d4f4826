"""Powers and logarithms on lanes."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.compiling import exact

from . import lanes

LOG2E = np.float32(1.44269504)
LN2 = np.float32(0.693147181)
ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
LOWEST = np.float32(ROUND - 115)  # 2^-115 times a gradient is still a normal number; below, powers are 0
ONE = np.uint32(0x3F800000)  # the bits of 1
ROOT_HALF = np.uint32(0x3F3504F3)  # the bits of sqrt(1/2)


@exact
def power(x, steepness):
    """2^(x steepness) within 2e-7 of itself and more where it is small, 0 below 2^-115; NaN stays NaN."""
    shifted = lanes.fma(x, steepness, ROUND)
    f = lanes.fma(x, steepness, lanes.splat(ROUND) - shifted)  # between -1/2 and 1/2; 2^f is a minimax fit
    p = lanes.fma(f, np.float32(0.001326473), np.float32(0.009671513))
    p = lanes.fma(p, f, np.float32(0.055507336))
    p = lanes.fma(p, f, np.float32(0.24022242))
    p = lanes.fma(p, f, np.float32(0.693147))
    p = lanes.fma(p, f, np.float32(1))
    # The integer stands in the low bits of `shifted`: an exponent, for a factor. Added to p's it would turn some NaN
    # into numbers.
    factor = lanes.floats_of((lanes.words(shifted) << np.uint32(23)) + ONE)
    return lanes.select(lanes.below(shifted, LOWEST), lanes.splat(np.float32(0)), p * factor)


@exact
def logarithm(x):
    """The natural logarithm of a number from 1 on, within 2e-7 of the larger of itself and 1; NaN stays NaN."""
    bits = lanes.words(x) - ROOT_HALF
    m = lanes.floats_of((bits & np.uint32(0x7FFFFF)) + ROOT_HALF)  # x = m 2^exponent, m from sqrt(1/2) to sqrt(2)
    exponent = lanes.floats_of((bits >> np.uint32(23)) | np.uint32(0x4B000000)) - np.float32(2**23)
    s = (m - np.float32(1)) / (m + np.float32(1))
    u = s * s
    series = lanes.fma(u, np.float32(1 / 7), np.float32(1 / 5))  # of artanh(s), that is log(m) / 2
    series = lanes.fma(series, u, np.float32(1 / 3))
    series = lanes.fma(series * u, s, s)
    return lanes.fma(exponent, LN2, series + series) + (x - x)
