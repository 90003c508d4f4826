"""Sums over tokens on the GPU, in chunks that are added in order: sums.py's rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda import Kernels, blocks

ROWS, MOST = 16, 768  # tokens of a chunk, at least: enough blocks for few tokens, too; and chunks, at most
THREADS, COLUMNS = 128, 8  # of a block, and columns of a thread, in kernels that sum over chunks
WARPS = 16  # of a block that adds partial sums, as in sums.cu
_kernels = Kernels(__file__.replace("sums_gpu", "sums"))


def chunk_rows(t: int) -> int:
    """Tokens of a chunk: the same on every device, so that the sums' bits are, too."""
    return max(ROWS, -(-t // MOST))


def chunks(t: int) -> int:
    """How many chunks t tokens make."""
    return -(-t // chunk_rows(t))


def partials_bytes(t: int, f: int) -> int:
    """Bytes of scratch for the partial sums of f columns; no fewer for more tokens."""
    return min(MOST, -(-t // ROWS)) * f * 4


def partials(scratch: Any, t: int, f: int) -> Any:
    """Scratch as partial sums (chunks, f)."""
    return scratch[: chunks(t) * f * 4].view(np.float32).reshape(chunks(t), f)


def add_partials(total: Any, partials: Any, second: Any = None) -> None:
    """total (f,) += the partial sums (chunks, f), in order; with a `second` total partials are (2, chunks, f)."""
    *_, n, f = partials.shape
    if n:
        grid = blocks(f, 32), 1 if second is None else 2
        _kernels.launch("add_partials", grid, 32 * WARPS, total, second, partials, n, f)


def add_rows(total: Any, x: Any, scratch: Any) -> None:
    """total (f,) += the sum over t of x (t, f); scratch of `partials_bytes(t, f)`."""
    (t, f), room = x.shape, partials(scratch, *x.shape)
    _kernels.launch("sum_chunks", grid(t, f), THREADS, room, x, chunk_rows(t), t, f)
    add_partials(total, room)


def grid(t: int, f: int) -> tuple[int, int]:
    """Blocks for the chunks of t tokens, of which there may be many, and blocks of THREADS for f columns."""
    return chunks(t), blocks(f, COLUMNS * THREADS)
