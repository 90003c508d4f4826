"""The largest logits of each window in Numba: a sorted list of n, into which few of a window's logits are inserted."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run


def forward(values: np.ndarray, places: np.ndarray, logits: np.ndarray, offsets: np.ndarray) -> None:
    if values.size:
        run(_forward, len(values), values, places, logits, offsets, grain=8)


@inlined
def _before(a, b):
    """Whether a must stand before b, which has the lower row: not where they are equal, nor both NaN."""
    return a > b or (np.isnan(a) and not np.isnan(b))


@inlined
def _keep_largest(values, places, column):
    n, kept = len(values), 0
    for row in range(len(column)):
        value = column[row]
        if kept < n:
            kept += 1
        elif not _before(value, values[n - 1]):
            continue
        at = kept - 1
        while at > 0 and _before(value, values[at - 1]):
            values[at], places[at] = values[at - 1], places[at - 1]
            at -= 1
        values[at], places[at] = value, row
    values[kept:] = -np.inf
    places[kept:] = -1


@jit
def _forward(worker, begin, end, values, places, logits, offsets):
    for s in range(begin, end):
        window = logits[offsets[s] : offsets[s + 1]]
        for c in range(2):
            _keep_largest(values[s, c], places[s, c], window[:, c])
