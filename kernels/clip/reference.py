"""Clipping by the global norm in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def forward(scale: np.ndarray, norm: np.ndarray, totals: np.ndarray, losses: np.ndarray, most: float) -> None:
    norm[0] = np.sqrt(totals.sum())
    sound = np.isfinite(norm[0]) and np.isfinite(losses).all() and not np.isnan(scale[0])
    scale[0] = most / max(norm[0], most) if sound else np.nan
