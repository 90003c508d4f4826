"""Dropout in Numba."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.philox_cpu import hidden_words, settings, stack_words
from minibert.kernels.devices.cpu import jit, run


def forward(
    y: np.ndarray, x: np.ndarray, positions: np.ndarray, examples: np.ndarray, rate: float, seed: int, stream: int
) -> None:
    run(_forward, len(x), y, x, positions, examples, settings(rate, seed, stream), grain=16)


def backward(
    dx: np.ndarray, dy: np.ndarray, positions: np.ndarray, examples: np.ndarray, rate: float, seed: int, stream: int
) -> None:
    forward(dx, dy, positions, examples, rate, seed, stream)


@jit
def _forward(worker, begin, end, y, x, positions, examples, dropout):
    threshold, scale = dropout[:2]
    c = x.shape[1]
    drawn = stack_words((c + 7) // 8 * 4)
    bits = drawn.view(np.uint16)
    for t in range(begin, end):
        hidden_words(drawn, positions[t], examples[t], dropout)
        for i in range(c):
            y[t, i] = x[t, i] * (scale if bits[i] >= threshold else np.float32(0))
