"""Adafactor in CUDA: three passes over the gradients, and one over the sums of the first."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels.common.cuda import Kernels, blocks

COLUMNS, ROWS, LONG_ROWS, WARPS, FINISH_WARPS = 128, 64, 256, 8, 16  # as in gpu.cu
THREADS, FINISH_THREADS = 32 * WARPS, 32 * FINISH_WARPS
VECTOR_THREADS = 1024
LINE = 16  # bytes that an access may have
_kernels = Kernels(__file__)


def workspace(f: int, c: int) -> int:
    """Bytes of scratch: sums over rows and columns, each column's factor, the rows' total and the sums of u^2."""
    return sum(_parts(f, c))


def _parts(f: int, c: int) -> tuple[int, ...]:
    """Bytes of row_sums, column_sums, factors, rows_total and lengths."""
    tiles = blocks(c, COLUMNS)
    sizes = (
        4 * tiles * f,
        4 * blocks(f, ROWS) * c,
        4 * c,
        8 * blocks(f, FINISH_THREADS),
        8 * tiles * blocks(f, LONG_ROWS),
    )
    return tuple(-(-size // LINE) * LINE for size in sizes)


def update(
    p: Any, rows: Any, columns: Any, g: Any, scale: Any, lr: float, beta2: float, eps: float, clip: float,
    decay: float, scratch: Any,
) -> None:  # fmt: skip
    if not p.size:
        return  # it has no mean
    (f, c), keep, fresh, shrink = p.shape, beta2, 1 - beta2, lr * decay
    if f == 1:
        scalars = lr, keep, fresh, eps, clip, shrink
        _kernels.launch("update_vector", 1, VECTOR_THREADS, p, rows, columns, g, scale, *scalars, c)
        return
    tiles, rooms, start = blocks(c, COLUMNS), [], 0
    for size in _parts(f, c):
        rooms.append(scratch[start : start + size])
        start += size
    row_sums, column_sums, factors = (room.view(np.float32) for room in rooms[:3])
    rows_total, squares = (room.view(np.float64) for room in rooms[3:])
    _kernels.launch("squares", (tiles, blocks(f, ROWS)), THREADS, row_sums, column_sums, g, scale, f, c)
    _kernels.launch(
        "finish", blocks(c, 32) + blocks(f, FINISH_THREADS), FINISH_THREADS, rows, columns, factors, rows_total,
        row_sums, column_sums, scale, keep, fresh, eps, f, c,
    )  # fmt: skip
    found = rows, factors, rows_total
    _kernels.launch("lengths", (tiles, blocks(f, LONG_ROWS)), THREADS, squares, g, *found, scale, f, c)
    _kernels.launch(
        "move", (tiles, blocks(f, ROWS)), THREADS, p, g, *found, squares, scale, lr, clip, shrink, f, c
    )  # fmt: skip
