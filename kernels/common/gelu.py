"""GELU and its slope in float32, for a number or for 16 lanes; which GELU is meant says kernels/bias_gelu.

Neither needs erf itself. With a = |h|, Phi(-a) = e^L(a) where L is close to a parabola, and

    gelu(h) = max(h, 0) - a Phi(-a),    gelu'(h) = D(a) for h < 0, else 1 - D(a),    D(a) = e^(-a^2 / 2) P(a)

with D(a) = Phi(-a) - a phi(a). L and P are polynomials, minimax fits made for this file and weighted such that
gelu is within 1e-7 max(1, a) and its slope within 2e-7 of the exact value.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes
from minibert.kernels.common.elementary import exp_bounded
from minibert.kernels.common.elementary_lanes import LOG2E, power
from minibert.kernels.devices.compiling import exact

ZERO, HALF, ONE, THREE = (np.float32(x) for x in (0, 0.5, 1, 3))
ROOT = np.float32(2 * np.sqrt(2 / np.pi))  # slope of 2 s at 0
CUBIC = np.float32(0.044715)
DENSITY = np.float32(1 / np.sqrt(2 * np.pi))  # phi(0)
FAR = np.float32(14)  # where both slopes are 0 or 1; further out a's powers would be infinite
L = tuple(
    np.float32(c)
    for c in (
        -1.2479244e-06, 1.8463352e-05, -8.5541695e-05, -0.00020527613, 0.0050504375, -0.036506094, -0.31825247,
        -0.79789305, -0.69314688,
    )
)  # fmt: skip
P = tuple(
    np.float32(c)
    for c in (
        1.6316903e-06, -3.5207791e-05, 0.0003397385, -0.0019746276, 0.0079393908, -0.02431393, 0.061154887, -0.13251379,
        0.24991679, -0.7978788, 0.49999994,
    )
)  # fmt: skip


@exact
def _polynomial(x, coefficients):
    """Of a number or of lanes, by Horner's rule."""
    y = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        y = y * x + c
    return y


@exact
def gelu(h):
    a = abs(h)
    return (h if h > ZERO else ZERO) - a * exp_bounded(_polynomial(a, L))


@exact
def gelu_slope(h):
    a = abs(h)
    a = FAR if a > FAR else a
    d = exp_bounded(-HALF * a * a) * _polynomial(a, P)
    return d if h < ZERO else ONE - d


@exact
def gelu_tanh(h):
    return h / (ONE + exp_bounded(-ROOT * (h + CUBIC * h * h * h)))


@exact
def gelu_tanh_slope(h):
    a = abs(h)
    a = FAR if a > FAR else a
    e = exp_bounded(-ROOT * (a + CUBIC * a * a * a))
    high = ONE / (ONE + e)  # sigmoid(2 s(a)), and e * high = 1 - high without cancellation
    below = e * high
    d = below - a * (high * below) * (ROOT * (ONE + THREE * CUBIC * a * a))
    return d if h < ZERO else ONE - d


@exact
def gelu_lanes(h, tanh):
    if tanh:
        return gelu_and_slope_lanes(h, tanh)[0]
    a = lanes.absolute(h)
    return lanes.maximum(lanes.splat(ZERO), h) - a * power(_polynomial(a, L), LOG2E)


@exact
def gelu_and_slope_lanes(h, tanh):
    """Both from one exponential: the share below -a is D(a) + a phi(a). gelu is within 2e-7 max(1, a) so."""
    a = lanes.minimum(lanes.splat(FAR), lanes.absolute(h))
    if tanh:
        e = power((a * a * CUBIC + ONE) * a * -ROOT, LOG2E)
        high = lanes.splat(ONE) / (e + ONE)
        below = e * high
        d = below - a * (high * below) * ((a * a * (THREE * CUBIC) + ONE) * ROOT)
    else:
        e, p = power(a * a * -HALF, LOG2E), _polynomial(a, P)
        below, d = e * (a * DENSITY + p), e * p
    return lanes.maximum(lanes.splat(ZERO), h) - a * below, lanes.select(lanes.negative(h), d, lanes.splat(ONE) - d)
