"""A sum of squares in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def workspace(n: int) -> int:
    return 0


def forward(total: np.ndarray, x: np.ndarray, scratch: np.ndarray) -> None:
    total[0] = (x.astype(np.float64) ** 2).sum()
