"""The feed-forward half in float32, from the kernels of its parts."""

from __future__ import annotations

import numpy as np

from minibert.kernels.bias_gelu import cpu as bias_gelu
from minibert.kernels.devices import ALIGNMENT
from minibert.kernels.matmul import cpu as matmul


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: gelu and its gradient, (T, F) each, and what one of the parts needs."""
    parts = matmul.workspace(t, f, c), matmul.workspace(t, c, f), bias_gelu.workspace(t, f)
    return 2 * _bytes(t, f) + max(parts)


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
    g, _, rest = _cut(scratch, *h.shape)
    matmul.forward(h, x, w1, None, rest)
    bias_gelu.forward(g, h, b1, tanh)
    matmul.forward(y, g, w2, b2, rest)


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
    g, dg, rest = _cut(scratch, *h.shape)
    bias_gelu.forward(g, h, b1, tanh)
    matmul.backward(dg, dw2, db2, dy, g, w2, add, rest)
    bias_gelu.backward(dg, db1, dg, h, b1, tanh, rest)
    matmul.backward(dx, dw1, None, dg, x, w1, add, rest)


def _bytes(t: int, f: int) -> int:
    """Of a float32 array (T, F), rounded up to whole lines."""
    return -(-4 * t * f // ALIGNMENT) * ALIGNMENT


def _cut(scratch: np.ndarray, t: int, f: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = _bytes(t, f)
    g, dg = (scratch[i * size :][: 4 * t * f].view(np.float32).reshape(t, f) for i in range(2))
    return g, dg, scratch[2 * size :]
