"""Attention in CUDA: a block has some rows of one sequence and head, and finds out which on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels.common.cuda import Kernels, opened
from minibert.kernels.common.philox import scale, threshold

ROWS = 64  # of a block, as in gpu.cu
COLUMNS = 64  # of its results
THREADS = 128
TENSOR_WIDTHS = 64, 32  # head sizes that gpu_bf16.cu has
_plain = Kernels(__file__)
_tensor = Kernels(__file__.replace("gpu.py", "gpu_bf16.py"))


def workspace(t: int, longest: int, heads: int, c: int) -> int:
    """Bytes of scratch for backward: for each row and head the sum of p dp, which is subtracted from dp."""
    return 4 * t * heads


def forward(
    y: Any, lse: Any, qkv: Any, offsets: Any, examples: Any, heads: int, rate: float, seed: int, stream: int,
    scratch: Any,
) -> None:  # fmt: skip
    d, arrays, dropout = _width(qkv, heads), (y, lse, qkv, offsets, examples), _dropout(rate, seed, stream)
    sequences = len(offsets) - 1
    if not _on_tensor_cores(qkv, d):
        _plain.launch("forward", _grid(qkv, sequences, heads, d), THREADS, *arrays, sequences, heads, d, *dropout)
        return
    rows = 2 * ROWS if len(qkv) > ROWS * sequences else ROWS  # a thread each: long sequences share keys more widely
    grid = _grid(qkv, sequences, heads, d, rows)
    _tensor.launch(f"forward_{d}", grid, rows, *arrays, sequences, heads, *dropout, shared=_stages(d))


def backward(
    dqkv: Any, dy: Any, y: Any, lse: Any, qkv: Any, offsets: Any, examples: Any, heads: int, rate: float, seed: int,
    stream: int, scratch: Any,
) -> None:  # fmt: skip
    d, sequences, dropout = _width(qkv, heads), len(offsets) - 1, _dropout(rate, seed, stream)
    moments = scratch[: 4 * len(qkv) * heads].view(np.float32)
    of_queries = dqkv, moments, dy, y, lse, qkv, offsets, examples
    of_keys = dqkv, moments, dy, lse, qkv, offsets, examples
    grid = _grid(qkv, sequences, heads, d)
    if not _on_tensor_cores(qkv, d):
        _plain.launch("backward_queries", grid, THREADS, *of_queries, sequences, heads, d, *dropout)
        _plain.launch("backward_keys", grid, THREADS, *of_keys, sequences, heads, d, *dropout)
        return
    tail, shared = (sequences, heads, *dropout), _stages(d)
    _tensor.launch(f"backward_queries_{d}", grid, THREADS, *of_queries, *tail, shared=shared)
    _tensor.launch(f"backward_keys_{d}", grid, THREADS, *of_keys, *tail, shared=shared + 16 * ROWS)


def _width(qkv: Any, heads: int) -> int:
    return qkv.shape[1] // (3 * heads)


def _dropout(rate: float, seed: int, stream: int) -> tuple[int, float, int, int]:
    return threshold(rate), scale(rate), seed, stream


def _on_tensor_cores(qkv: Any, d: int) -> bool:
    return qkv.dtype == np.uint16 and d in TENSOR_WIDTHS and opened().capability >= (8, 0)


def _grid(qkv: Any, sequences: int, heads: int, d: int, rows: int = ROWS) -> tuple[int, int, int]:
    """Enough slots of so many rows for any S lengths that add up to T (attention.cuh), heads, blocks of columns."""
    return len(qkv) and len(qkv) // rows + sequences, heads, -(-d // COLUMNS)


def _stages(d: int) -> int:
    """Bytes of shared memory: two stages of two tiles in bf16."""
    return 2 * 2 * 2 * ROWS * d
