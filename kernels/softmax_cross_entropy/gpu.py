"""Softmax and cross entropy in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks

WARPS = 4  # rows, a block
_kernels = Kernels(__file__)


def forward(loss: Any, logits: Any, labels: Any) -> None:
    s, k = logits.shape
    _kernels.launch("forward", blocks(s, WARPS), 32 * WARPS, loss, logits, labels, s, k)


def backward(dlogits: Any, dloss: Any, logits: Any, labels: Any) -> None:
    s, k = logits.shape
    _kernels.launch("backward", blocks(s, WARPS), 32 * WARPS, dlogits, dloss, logits, labels, s, k)
