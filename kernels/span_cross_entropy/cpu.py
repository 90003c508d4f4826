"""The loss of answer spans in Numba, a window at a time."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import cross_entropy_cpu as cross_entropy
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


def forward(loss: np.ndarray, logits: np.ndarray, offsets: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    run(_forward, len(loss), loss, logits, offsets, starts, ends, grain=8)


def backward(
    dlogits: np.ndarray,
    dloss: np.ndarray,
    logits: np.ndarray,
    offsets: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
) -> None:
    run(_backward, len(dloss), dlogits, dloss, logits, offsets, starts, ends, grain=8)


@jit
def _forward(worker, begin, end, loss, logits, offsets, starts, ends):
    for s in range(begin, end):
        window = logits[offsets[s] : offsets[s + 1]]
        if len(window):
            both = cross_entropy.loss(window[:, 0], starts[s]) + cross_entropy.loss(window[:, 1], ends[s])
            loss[s] = np.float32(0.5) * both
        else:
            loss[s] = np.float32(0)


@jit
def _backward(worker, begin, end, dlogits, dloss, logits, offsets, starts, ends):
    for s in range(begin, end):
        window = logits[offsets[s] : offsets[s + 1]]
        dwindow = dlogits[offsets[s] : offsets[s + 1]]
        if len(window):
            g = np.float32(0.5) * dloss[s]
            cross_entropy.gradient(dwindow[:, 0], window[:, 0], starts[s], g)
            cross_entropy.gradient(dwindow[:, 1], window[:, 1], ends[s], g)
