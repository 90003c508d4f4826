"""Adam in NumPy: the definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def update(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    scale: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
    copy: np.ndarray | None = None,
) -> None:
    if np.isnan(scale[0]):
        return
    scaled = g * scale
    m[...] = beta1 * m + (1 - beta1) * scaled
    v[...] = beta2 * v + (1 - beta2) * scaled * scaled
    p -= lr * (m / correction1 / (np.sqrt(v / correction2) + eps) + decay * p)
    if copy is not None:
        copy[...] = p.astype(ml_dtypes.bfloat16).view(np.uint16)
