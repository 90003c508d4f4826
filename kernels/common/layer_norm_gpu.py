"""The geometry of LayerNorm's kernels on the GPU (layer_norm.cuh), and their blocks' sums of dgamma and dbeta."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.errors import BackendError

from .sums_gpu import add_partials

FORWARD_ROWS = 4  # a block, which then reads gamma and beta once
MOST_CHUNKS = 1024  # of backward: what an H200 holds at once, about eight blocks each on 132 multiprocessors
LONGEST = 4096  # columns, 8 for each of a block's 512 threads


def threads(c: int) -> int:
    """A thread for eight columns, whole warps; BackendError if a row of c is too long."""
    if c > LONGEST:
        raise BackendError(f"LayerNorm on the GPU has rows of at most {LONGEST} columns, got {c}")
    return max(32, -(-c // 256) * 32)


def chunk_rows(t: int) -> int:
    """Rows that a block of backward sums up: a function of t alone, so that the sums' bits are, too."""
    return max(4, -(-t // MOST_CHUNKS))


def chunks(t: int) -> int:
    return -(-t // chunk_rows(t))


def partials_bytes(t: int, c: int) -> int:
    """Bytes of scratch for the partial sums of dgamma and dbeta."""
    return 2 * chunks(t) * c * 4


def partials(scratch: Any, t: int, c: int) -> Any:
    """Scratch as partial sums (2, chunks, c)."""
    return scratch[: partials_bytes(t, c)].view(np.float32).reshape(2, chunks(t), c)


def add(dgamma: Any, dbeta: Any, partials: Any) -> None:
    """dgamma and dbeta += their partial sums."""
    add_partials(dgamma, partials[0])
    add_partials(dbeta, partials[1])
