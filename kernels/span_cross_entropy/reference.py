"""The loss of answer spans in NumPy, a window at a time: the definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def forward(loss: np.ndarray, logits: np.ndarray, offsets: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
    loss.fill(0)
    for s, window in _windows(offsets):
        x = logits[window]
        shifted = x - x.max(0)
        chosen = shifted[[starts[s], ends[s]], [0, 1]]
        loss[s] = (np.log(np.exp(shifted).sum(0)) - chosen).mean()


def backward(
    dlogits: np.ndarray,
    dloss: np.ndarray,
    logits: np.ndarray,
    offsets: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
) -> None:
    for s, window in _windows(offsets):
        e = np.exp(logits[window] - logits[window].max(0))
        dx = e / e.sum(0)
        dx[[starts[s], ends[s]], [0, 1]] -= 1
        dlogits[window] = dx * (dloss[s] / 2)


def _windows(offsets: np.ndarray) -> Iterator[tuple[int, slice]]:
    """The number and the rows of each window that has any."""
    spans = enumerate(zip(offsets[:-1], offsets[1:], strict=True))
    return ((s, slice(begin, end)) for s, (begin, end) in spans if begin < end)
