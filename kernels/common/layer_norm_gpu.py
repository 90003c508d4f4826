"""The geometry of LayerNorm's kernels on the GPU (layer_norm.cuh), and their blocks' sums of dgamma and dbeta."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.errors import BackendError

LEAST = 4  # rows of a block
LONGEST = 5120  # columns, 8 for each of a block's 640 threads
# An H200's, each of whose multiprocessors holds 20 warps of 96 registers a thread: five a quarter. There are as many
# blocks as run at once, where rows are many: a few more would wait for all others to end.
MULTIPROCESSORS, WARPS = 132, 20


def threads(c: int, groups: int = 1) -> int:
    """A thread for so many groups of eight columns, whole warps; BackendError if a row of c is too long."""
    if c > LONGEST:
        raise BackendError(f"LayerNorm on the GPU has rows of at most {LONGEST} columns, got {c}")
    return max(1, -(-c // (256 * groups))) * 32


def chunk_rows(t: int, c: int) -> int:
    """Rows that a block of backward sums up: the same on every device, so that the sums' bits are, too."""
    return max(LEAST, -(-t // resident(c)))


def resident(c: int, groups: int = 1) -> int:
    """Blocks that run at once."""
    return MULTIPROCESSORS * (WARPS // (threads(c, groups) // 32))


def chunks(t: int, c: int) -> int:
    """Blocks of backward, each with its sums of dgamma and dbeta."""
    return -(-t // chunk_rows(t, c))


def partials_bytes(t: int, c: int) -> int:
    """Bytes of scratch for the partial sums of dgamma and dbeta; no fewer for more rows."""
    return 2 * min(resident(c), -(-t // LEAST)) * c * 4


def partials(scratch: Any, t: int, c: int) -> Any:
    """Scratch as partial sums (2, chunks, c)."""
    return scratch[: 2 * chunks(t, c) * c * 4].view(np.float32).reshape(2, chunks(t, c), c)
