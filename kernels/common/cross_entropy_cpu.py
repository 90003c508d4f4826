"""Cross entropy of a row of scores and a label, for the kernels of the losses."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.elementary import exp_bounded
from minibert.kernels.devices.compiling import exact, inlined


@inlined
def loss(row, label):
    """-log softmax(row)[label]"""
    largest = _largest(row)
    total = np.float32(0)
    for i in range(row.size):
        total += exp_bounded(row[i] - largest)
    return _difference(total, row[label], largest)


@inlined
def gradient(drow, row, label, dloss):
    """drow = dloss (softmax(row) - one at the label)"""
    largest = _largest(row)
    total = np.float32(0)
    for i in range(row.size):
        e = exp_bounded(row[i] - largest)
        drow[i] = e
        total += e
    scale = dloss / total
    for i in range(row.size):
        drow[i] *= scale
    drow[label] -= dloss


@inlined
def _largest(row):
    largest = row[0]
    for value in row:
        largest = max(largest, value)
    return largest


@exact
def _difference(total, score, largest):
    """Its own function, because reassociation would add `largest`, however huge, to the logarithm first."""
    return np.log(total) - (score - largest)
