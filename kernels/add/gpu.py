"""A sum in CUDA, for both types of storage."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks

THREADS = 256
_kernels = Kernels(__file__)


def forward(y: Any, a: Any, b: Any) -> None:
    _kernels.launch("add", blocks(y.size, 4 * THREADS), THREADS, y, a, b, y.size)
