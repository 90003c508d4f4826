"""The loss of answer spans in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels

THREADS = 32
_kernels = Kernels(__file__)


def forward(loss: Any, logits: Any, offsets: Any, starts: Any, ends: Any) -> None:
    _kernels.launch("forward", loss.size, THREADS, loss, logits, offsets, starts, ends)


def backward(dlogits: Any, dloss: Any, logits: Any, offsets: Any, starts: Any, ends: Any) -> None:
    _kernels.launch("backward", dloss.size, THREADS, dlogits, dloss, logits, offsets, starts, ends)
