"""Attention in CUDA: a block has some rows of one sequence and head, and finds out which on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels.common.cuda import Kernels
from minibert.kernels.common.philox import scale, threshold

ROWS = 64  # of a block, as in gpu.cu
COLUMNS = 64  # of its results
THREADS = 128
_plain = Kernels(__file__)


def workspace(t: int, longest: int, heads: int, c: int) -> int:
    """Bytes of scratch for backward: for each row and head the sum of p dp, which is subtracted from dp."""
    return 4 * t * heads


def forward(
    y: Any, lse: Any, qkv: Any, offsets: Any, examples: Any, heads: int, rate: float, seed: int, stream: int, scratch: Any
) -> None:
    tail = offsets, examples, *_scalars(qkv, offsets, heads, rate, seed, stream)
    _plain.launch("forward", _grid(qkv, offsets, heads), THREADS, y, lse, qkv, *tail)


def backward(
    dqkv: Any, dy: Any, y: Any, lse: Any, qkv: Any, offsets: Any, examples: Any, heads: int, rate: float, seed: int,
    stream: int, scratch: Any,
) -> None:  # fmt: skip
    moments = scratch[: workspace(len(qkv), 0, heads, 0)].view(np.float32)
    tail = offsets, examples, *_scalars(qkv, offsets, heads, rate, seed, stream)
    grid = _grid(qkv, offsets, heads)
    _plain.launch("backward_queries", grid, THREADS, dqkv, moments, dy, y, lse, qkv, *tail)
    _plain.launch("backward_keys", grid, THREADS, dqkv, moments, dy, lse, qkv, *tail)


def _scalars(qkv: Any, offsets: Any, heads: int, rate: float, seed: int, stream: int) -> tuple[Any, ...]:
    """What kernels take behind the arrays."""
    return len(offsets) - 1, heads, _width(qkv, heads), threshold(rate), scale(rate), seed, stream


def _grid(qkv: Any, offsets: Any, heads: int, rows: int = ROWS) -> tuple[int, int, int]:
    """Enough slots of so many rows for any S lengths that add up to T (attention.cuh), heads, blocks of columns."""
    t, sequences = len(qkv), len(offsets) - 1
    return t and t // rows + sequences, heads, -(-_width(qkv, heads) // COLUMNS)


def _width(qkv: Any, heads: int) -> int:
    return qkv.shape[1] // (3 * heads)
