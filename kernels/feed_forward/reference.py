"""The feed-forward half in NumPy: the definition, put together from those of its parts."""

from __future__ import annotations

import numpy as np

from minibert.kernels.bias_gelu import reference as bias_gelu
from minibert.kernels.matmul import reference as matmul


def workspace(t: int, f: int, c: int) -> int:
    return 0


def forward(
    y: np.ndarray,
    h: np.ndarray,
    x: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    tanh: bool,
    scratch: np.ndarray,
) -> None:
    g = np.empty_like(h)
    matmul.forward(h, x, w1, None, scratch)
    bias_gelu.forward(g, h, b1, tanh)
    matmul.forward(y, g, w2, b2, scratch)


def backward(
    dx: np.ndarray,
    dw1: np.ndarray,
    db1: np.ndarray,
    dw2: np.ndarray,
    db2: np.ndarray,
    dy: np.ndarray,
    x: np.ndarray,
    h: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    tanh: bool,
    add: bool,
    scratch: np.ndarray,
) -> None:
    g, dg = np.empty_like(h), np.empty_like(h)
    bias_gelu.forward(g, h, b1, tanh)
    matmul.backward(dg, dw2, db2, dy, g, w2, add, scratch)
    bias_gelu.backward(dg, db1, dg, h, b1, tanh, scratch)
    matmul.backward(dx, dw1, None, dg, x, w1, add, scratch)
