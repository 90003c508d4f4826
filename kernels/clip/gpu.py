"""Clipping by the global norm in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels

THREADS = 256
_kernels = Kernels(__file__)


def forward(scale: Any, norm: Any, totals: Any, losses: Any, most: float) -> None:
    _kernels.launch("clip", 1, THREADS, scale, norm, totals, losses, most, totals.size, losses.size)
