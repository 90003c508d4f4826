"""Bias and GELU in NumPy: the definition."""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def workspace(t: int, f: int) -> int:
    return 0


def forward(y: np.ndarray, x: np.ndarray, bias: np.ndarray, tanh: bool) -> None:
    h = x + bias
    y[...] = h * _cdf(h, tanh)


def backward(
    dx: np.ndarray,
    dbias: np.ndarray,
    dy: np.ndarray,
    x: np.ndarray,
    bias: np.ndarray,
    tanh: bool,
    scratch: np.ndarray,
) -> None:
    h = x + bias
    p = _cdf(h, tanh)
    if tanh:
        density = 2 * p * (1 - p) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * h * h)
    else:
        density = np.exp(-h * h / 2) / math.sqrt(2 * math.pi)
    dx[...] = dy * (p + h * density)
    dbias += dx.sum(0)


def _cdf(h: np.ndarray, tanh: bool) -> np.ndarray:
    """What GELU multiplies h by: the normal distribution function, or what Google's code takes for it."""
    if tanh:
        return (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2
    return (1 + _erf(h / math.sqrt(2)).astype(h.dtype)) / 2
