"""Dropout, residual sum and LayerNorm in CUDA, one pass each way."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels.common import layer_norm_gpu as norm
from minibert.kernels.common.cuda import Kernels, blocks
from minibert.kernels.common.philox import scale, threshold
from minibert.kernels.common.sums_gpu import add_partials

# Forward in bf16 gives a thread up to so many groups of eight columns, so that a row of 1,024 is a warp's: what it
# costs to sum over threads and to find a row is shared by more elements.
MOST_GROUPS = 4
MOST_ROWS = 16  # of a block of forward
_kernels = Kernels(__file__)


def workspace(t: int, c: int) -> int:
    """Bytes of scratch for backward: the partial sums of dgamma and dbeta."""
    return norm.partials_bytes(t, c)


def forward(
    y: Any, mean: Any, rstd: Any, x: Any, residual: Any, gamma: Any, beta: Any, positions: Any, examples: Any,
    eps: float, rate: float, seed: int, stream: int,
) -> None:  # fmt: skip
    t, c = x.shape
    groups = min(MOST_GROUPS, blocks(c, 256)) if x.dtype == np.uint16 and c % 8 == 0 else 1
    rows = min(MOST_ROWS, max(1, blocks(t, norm.resident(c, groups))))
    _kernels.launch(
        "forward", blocks(t, rows), norm.threads(c, groups), y, mean, rstd, x, residual, gamma, beta, positions,
        examples, eps, threshold(rate), scale(rate), seed, stream, groups, rows, t, c,
    )  # fmt: skip


def backward(
    dx: Any, dresidual: Any, dgamma: Any, dbeta: Any, dy: Any, dy2: Any, x: Any, residual: Any, mean: Any, rstd: Any,
    gamma: Any, positions: Any, examples: Any, rate: float, seed: int, stream: int, scratch: Any,
) -> None:  # fmt: skip
    t, c = x.shape
    partials = norm.partials(scratch, t, c)
    _kernels.launch(
        "backward", norm.chunks(t, c), norm.threads(c), dx, dresidual, partials, dy, dy2, x, residual, mean, rstd,
        gamma, positions, examples, threshold(rate), scale(rate), seed, stream, norm.chunk_rows(t, c), t, c,
    )  # fmt: skip
    add_partials(dgamma, partials, dbeta)
