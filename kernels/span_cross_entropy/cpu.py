"""The loss of answer spans in Numba, a window at a time."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import exp_bounded
from minibert.kernels.devices.compiling import exact, inlined, jit
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


@exact
def _loss(total, logit, largest):
    """Its own function, because reassociation would add `largest`, however huge, to the logarithm first."""
    return np.log(total) - (logit - largest)


@inlined
def _largest(column):
    largest = column[0]
    for value in column:
        largest = max(largest, value)
    return largest


@inlined
def _column_loss(column, label):
    largest = _largest(column)
    total = np.float32(0)
    for i in range(column.size):
        total += exp_bounded(column[i] - largest)
    return _loss(total, column[label], largest)


@inlined
def _column_gradient(dcolumn, column, label, g):
    largest = _largest(column)
    total = np.float32(0)
    for i in range(column.size):
        e = exp_bounded(column[i] - largest)
        dcolumn[i] = e
        total += e
    scale = g / total
    for i in range(column.size):
        dcolumn[i] *= scale
    dcolumn[label] -= g


@jit
def _forward(worker, begin, end, loss, logits, offsets, starts, ends):
    for s in range(begin, end):
        window = logits[offsets[s] : offsets[s + 1]]
        if len(window):
            both = _column_loss(window[:, 0], starts[s]) + _column_loss(window[:, 1], ends[s])
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
            _column_gradient(dwindow[:, 0], window[:, 0], starts[s], g)
            _column_gradient(dwindow[:, 1], window[:, 1], ends[s], g)
