"""Bias and GELU in Numba, one pass each way."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import erf, exp_bounded, helper
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.cpu import jit, run

HALF, ONE = np.float32(0.5), np.float32(1)
SQRT_HALF = np.float32(np.sqrt(0.5))
PHI_0 = np.float32(1 / np.sqrt(2 * np.pi))  # the normal density at 0
SLOPE = np.float32(2 * np.sqrt(2 / np.pi))  # of 2 s at 0
CUBIC = np.float32(0.044715)


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


@helper
def _sigmoid_2s(h):
    return ONE / (ONE + exp_bounded(-SLOPE * (h + CUBIC * h * h * h)))


@helper
def _gelu_slope(h):
    return HALF * (ONE + erf(h * SQRT_HALF)) + h * (PHI_0 * exp_bounded(-HALF * h * h))


@helper
def _gelu_tanh_slope(h):
    p = _sigmoid_2s(h)
    return p + h * (p * (ONE - p)) * (SLOPE * (ONE + np.float32(3) * CUBIC * h * h))


@jit
def _forward(worker, begin, end, y, x, bias, tanh):
    for t in range(begin, end):
        if tanh:
            for i in range(bias.size):
                h = x[t, i] + bias[i]
                y[t, i] = h * _sigmoid_2s(h)
        else:
            for i in range(bias.size):
                h = x[t, i] + bias[i]
                y[t, i] = h * (HALF * (ONE + erf(h * SQRT_HALF)))


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
