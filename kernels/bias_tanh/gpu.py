"""Bias and tanh in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks

THREADS = 256
WARPS = 16  # as in gpu.cu
_kernels = Kernels(__file__)


def forward(y: Any, x: Any, bias: Any) -> None:
    _kernels.launch("forward", blocks(x.size, THREADS), THREADS, y, x, bias, x.size, x.shape[1])


def backward(dx: Any, dbias: Any, dy: Any, y: Any) -> None:
    s, c = y.shape
    _kernels.launch("backward", blocks(c, 32), 32 * WARPS, dx, dbias, dy, y, s, c)
