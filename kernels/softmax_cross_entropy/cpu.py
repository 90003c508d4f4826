"""Softmax and cross entropy in Numba, a row at a time."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import exp_bounded
from minibert.kernels.devices.compiling import exact, jit
from minibert.kernels.devices.cpu import run


def forward(loss: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
    run(_forward, len(loss), loss, logits, labels, grain=256)


def backward(dlogits: np.ndarray, dloss: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
    run(_backward, len(dloss), dlogits, dloss, logits, labels, grain=256)


@exact
def _loss(total, logit, largest):
    """Its own function, because reassociation would add `largest`, however huge, to the logarithm first."""
    return np.log(total) - (logit - largest)


@jit
def _largest(row):
    largest = row[0]
    for value in row:
        largest = max(largest, value)
    return largest


@jit
def _forward(worker, begin, end, loss, logits, labels):
    for s in range(begin, end):
        largest = _largest(logits[s])
        total = np.float32(0)
        for i in range(logits.shape[1]):
            total += exp_bounded(logits[s, i] - largest)
        loss[s] = _loss(total, logits[s, labels[s]], largest)


@jit
def _backward(worker, begin, end, dlogits, dloss, logits, labels):
    for s in range(begin, end):
        largest = _largest(logits[s])
        total = np.float32(0)
        for i in range(logits.shape[1]):
            e = exp_bounded(logits[s, i] - largest)
            dlogits[s, i] = e
            total += e
        scale = dloss[s] / total
        for i in range(logits.shape[1]):
            dlogits[s, i] *= scale
        dlogits[s, labels[s]] -= dloss[s]
