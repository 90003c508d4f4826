"""Dropout in CUDA; backward is forward."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks
from minibert.kernels.common.philox import scale, threshold

THREADS = 256
_kernels = Kernels(__file__)


def forward(y: Any, x: Any, positions: Any, examples: Any, rate: float, seed: int, stream: int) -> None:
    t, c = x.shape
    _kernels.launch(
        "forward", blocks(t * -(-c // 8), THREADS), THREADS, y, x, positions, examples, threshold(rate), scale(rate),
        seed, stream, t, c,
    )  # fmt: skip


def backward(dx: Any, dy: Any, positions: Any, examples: Any, rate: float, seed: int, stream: int) -> None:
    forward(dx, dy, positions, examples, rate, seed, stream)
