"""Bias and GELU in Numba, one pass each way."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.gelu import gelu, gelu_slope, gelu_tanh, gelu_tanh_slope
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


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


@jit
def _forward(worker, begin, end, y, x, bias, tanh):
    for t in range(begin, end):
        if tanh:
            for i in range(bias.size):
                y[t, i] = gelu_tanh(x[t, i] + bias[i])
        else:
            for i in range(bias.size):
                y[t, i] = gelu(x[t, i] + bias[i])


@jit
def _backward(worker, begin, end, dx, partials, dy, x, bias, tanh):
    slopes = stack_words(bias.size).view(np.float32)  # dx may be dy: one loop over both would not become vector code
    for chunk in range(begin, end):
        partials[chunk] = 0
        for t in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            if tanh:
                for i in range(bias.size):
                    slopes[i] = gelu_tanh_slope(x[t, i] + bias[i])
            else:
                for i in range(bias.size):
                    slopes[i] = gelu_slope(x[t, i] + bias[i])
            for i in range(bias.size):
                dx[t, i] = dy[t, i] * slopes[i]
            for i in range(bias.size):
                partials[chunk, i] += dx[t, i]
