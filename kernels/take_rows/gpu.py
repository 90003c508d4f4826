"""Chosen rows in CUDA: from float32 or bf16 to float32, and back."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks

THREADS = 128
_kernels = Kernels(__file__)


def forward(y: Any, x: Any, rows: Any) -> None:
    s, c = y.shape
    _kernels.launch("take", _grid(s, c), THREADS, y, x, rows, s, c)


def backward(dx: Any, dy: Any, rows: Any) -> None:
    (t, c), s = dx.shape, len(rows)
    _kernels.launch("clear", _grid(t, c), THREADS, dx, t, c)
    _kernels.launch("put_rows", _grid(s, c), THREADS, dx, dy, rows, s, c)


def _grid(rows: int, c: int) -> int:
    return blocks(rows * -(-c // 8), THREADS)
