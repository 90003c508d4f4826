"""The largest logits of each window in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels

TILE = 128  # as in gpu.cu
_kernels = Kernels(__file__)


def forward(values: Any, places: Any, logits: Any, offsets: Any) -> None:
    windows, columns, n = values.shape
    _kernels.launch("forward", (windows, columns), TILE, values, places, logits, offsets, n)
