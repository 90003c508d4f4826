"""Adafactor in Numba: three passes over the gradients; the last moves the parameters."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common.sums import CHUNK, add_partials, chunks
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


def workspace(f: int, c: int) -> int:
    """Bytes of scratch: of each chunk of rows the sum of u^2 and each column's sum of squares; each column's factor."""
    return chunks(f) * (8 + 4 * c) + 4 * c


def update(
    p: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    g: np.ndarray,
    scale: np.ndarray,
    lr: float,
    beta2: float,
    eps: float,
    clip: float,
    decay: float,
    scratch: np.ndarray,
) -> None:
    if not p.size or np.isnan(scale[0]):
        return  # what is empty has no mean
    (f, c), count = p.shape, chunks(len(p))
    sums, floats = scratch[: 8 * count].view(np.float64), scratch[8 * count : workspace(f, c)].view(np.float32)
    factors, partials = floats[:c], floats[c:].reshape(count, c)
    moved = (*map(np.float32, (beta2, 1 - beta2, eps)),)
    run(_squares, count, rows, partials, g, scale[0], *moved)
    factors.fill(0)
    add_partials(factors, partials)
    mean = _finish(columns, factors, rows, *moved)
    run(_lengths, count, sums, g, rows, factors, scale[0], mean)
    clipped = lr / max(1.0, (sums.sum() / p.size) ** 0.5 / clip)
    run(_move, count, p, g, rows, factors, np.float32(scale[0] * clipped), np.float32(lr * decay), mean)


@jit
def _squares(worker, begin, end, rows, partials, g, scale, keep, new, eps):
    """Rows, moved towards the means of their squares; each chunk's sums of squares by column."""
    share = np.float32(1) / np.float32(g.shape[1])
    for chunk in range(begin, end):
        sums = partials[chunk]
        sums[:] = 0
        for f in range(chunk * CHUNK, min((chunk + 1) * CHUNK, g.shape[0])):
            row, total = g[f], np.float32(0)
            for c in range(row.size):
                gradient = row[c] * scale
                sums[c] += gradient * gradient
                total += gradient * gradient
            rows[f] = keep * rows[f] + new * (total * share + eps)


@jit
def _finish(columns, factors, rows, keep, new, eps):
    """Columns, moved towards the means of their squares, whose sums are in `factors`: then 1 / the columns' roots.
    Returns the mean of the rows.
    """
    share = np.float32(1) / np.float32(rows.size)
    for c in range(columns.size):
        columns[c] = keep * columns[c] + new * (factors[c] * share + eps)
        factors[c] = np.float32(1) / np.sqrt(columns[c])
    total = 0.0
    for f in range(rows.size):
        total += rows[f]
    return np.float32(total / rows.size)


@jit
def _lengths(worker, begin, end, sums, g, rows, factors, scale, mean):
    """The sum of u^2 of each chunk."""
    for chunk in range(begin, end):
        total = 0.0
        for f in range(chunk * CHUNK, min((chunk + 1) * CHUNK, g.shape[0])):
            row, squares = g[f], np.float32(0)
            for c in range(row.size):
                u = row[c] * scale * factors[c]
                squares += u * u
            total += np.float64(squares) * (mean / rows[f])
        sums[chunk] = total


@jit
def _move(worker, begin, end, p, g, rows, factors, rate, decay, mean):
    for chunk in range(begin, end):
        for f in range(chunk * CHUNK, min((chunk + 1) * CHUNK, g.shape[0])):
            to, row, step = p[f], g[f], rate * np.sqrt(mean / rows[f])
            for c in range(row.size):
                to[c] -= step * row[c] * factors[c] + decay * to[c]
