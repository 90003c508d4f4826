"""A sum in NumPy: the definition."""

from __future__ import annotations

import numpy as np


def forward(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    y[...] = a + b
