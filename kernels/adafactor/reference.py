"""Adafactor in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def workspace(f: int, c: int) -> int:
    return 0


def update(
    p: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    g: np.ndarray,
    scale: np.ndarray,
    lr: float,
    beta2: float,
    eps: float,
    clip: float,
    decay: float,
    scratch: np.ndarray,
) -> None:
    if not p.size or np.isnan(scale[0]):
        return  # what is empty has no mean
    scaled = g * scale
    rows[...] = beta2 * rows + (1 - beta2) * ((scaled**2).mean(1) + eps)
    columns[...] = beta2 * columns + (1 - beta2) * ((scaled**2).mean(0) + eps)
    # Root by root: the product of a row and a column without gradients is no float32.
    u = scaled * np.sqrt(rows.mean() / rows)[:, None] / np.sqrt(columns)
    p -= lr * (u / max(1, np.sqrt((u**2).mean()) / clip) + decay * p)
