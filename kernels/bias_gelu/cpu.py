"""Bias and GELU in Numba, one pass each way.

Neither direction needs erf itself. With a = |h|, Phi(-a) = e^L(a) where L is close to a parabola, and

    gelu(h) = max(h, 0) - a Phi(-a),    gelu'(h) = D(a) for h < 0, else 1 - D(a),    D(a) = e^(-a^2 / 2) P(a)

with D(a) = Phi(-a) - a phi(a). L and P are polynomials, minimax fits made for this file and weighted such that
gelu is within 1e-7 max(1, a) and its slope within 2e-7 of the exact value.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import exp_bounded
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.cpu import exact, jit, run

HALF, ONE = np.float32(0.5), np.float32(1)
SLOPE = np.float32(2 * np.sqrt(2 / np.pi))  # of 2 s at 0
CUBIC = np.float32(0.044715)
FAR = np.float32(14)  # e^(-98) is 0 here


def workspace(t: int, f: int) -> int:
    """Bytes of scratch for backward: the partial sums of dbias."""
    return chunks(t) * f * 4


def forward(y: np.ndarray, x: np.ndarray, bias: np.ndarray, tanh: bool) -> None:
    run(_forward, len(x), y, x, bias, tanh, grain=16)


def backward(
    dx: np.ndarray,
    dbias: np.ndarray,
    dy: np.ndarray,
    x: np.ndarray,
    bias: np.ndarray,
    tanh: bool,
    scratch: np.ndarray,
) -> None:
    t, f = x.shape
    partials = scratch[: workspace(t, f)].view(np.float32).reshape(chunks(t), f)
    run(_backward, chunks(t), dx, partials, dy, x, bias, tanh)
    add_partials(dbias, partials)


@exact
def _gelu(h):
    a = abs(h)
    log_phi = np.float32(-1.2479244e-06) * a + np.float32(1.8463352e-05)
    log_phi = log_phi * a + np.float32(-8.5541695e-05)
    log_phi = log_phi * a + np.float32(-0.00020527613)
    log_phi = log_phi * a + np.float32(0.0050504375)
    log_phi = log_phi * a + np.float32(-0.036506094)
    log_phi = log_phi * a + np.float32(-0.31825247)
    log_phi = log_phi * a + np.float32(-0.79789305)
    log_phi = log_phi * a + np.float32(-0.69314688)
    return (h if h > np.float32(0) else np.float32(0)) - a * exp_bounded(log_phi)


@exact
def _gelu_slope(h):
    a = abs(h)
    a = FAR if a > FAR else a
    p = np.float32(1.6316903e-06) * a + np.float32(-3.5207791e-05)
    p = p * a + np.float32(0.0003397385)
    p = p * a + np.float32(-0.0019746276)
    p = p * a + np.float32(0.0079393908)
    p = p * a + np.float32(-0.02431393)
    p = p * a + np.float32(0.061154887)
    p = p * a + np.float32(-0.13251379)
    p = p * a + np.float32(0.24991679)
    p = p * a + np.float32(-0.7978788)
    p = p * a + np.float32(0.49999994)
    d = exp_bounded(-HALF * a * a) * p
    return d if h < np.float32(0) else ONE - d


@exact
def _gelu_tanh(h):
    return h / (ONE + exp_bounded(-SLOPE * (h + CUBIC * h * h * h)))


@exact
def _gelu_tanh_slope(h):
    a = abs(h)
    e = exp_bounded(-SLOPE * (a + CUBIC * a * a * a))
    high = ONE / (ONE + e)  # sigmoid(2 s(a)), and e * high = 1 - high without cancellation
    p = e * high if h < np.float32(0) else high
    return p + h * (high * (e * high)) * (SLOPE * (ONE + np.float32(3) * CUBIC * h * h))


@jit
def _forward(worker, begin, end, y, x, bias, tanh):
    for t in range(begin, end):
        if tanh:
            for i in range(bias.size):
                y[t, i] = _gelu_tanh(x[t, i] + bias[i])
        else:
            for i in range(bias.size):
                y[t, i] = _gelu(x[t, i] + bias[i])


@jit
def _backward(worker, begin, end, dx, partials, dy, x, bias, tanh):
    for chunk in range(begin, end):
        partials[chunk] = 0
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            if tanh:
                for i in range(bias.size):
                    dx[t, i] = dy[t, i] * _gelu_tanh_slope(x[t, i] + bias[i])
            else:
                for i in range(bias.size):
                    dx[t, i] = dy[t, i] * _gelu_slope(x[t, i] + bias[i])
            for i in range(bias.size):
                partials[chunk, i] += dx[t, i]
