"""Dropout in Numba."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import storage
from minibert.kernels.common.philox_cpu import dropped, hidden_room, hidden_words, settings, stack_words
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


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
    c = x.shape[1]
    bits = stack_words(hidden_room(c)).ctypes.data
    for t in range(begin, end):
        hidden_words(bits, c, positions[t], examples[t], dropout)
        for i in range(0, c, 16):
            inside = storage.inside(i, c)
            storage.store(y, t * c + i, dropped(storage.load(x, t * c + i, inside), bits + 2 * i, dropout), inside)
