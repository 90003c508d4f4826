"""The feed-forward half in float32 on the CPU's matrix unit: each number as the sum of three bf16."""

from __future__ import annotations

from minibert.kernels.common import split
from minibert.kernels.matmul import cpu_split as matmul

from .fused import FeedForward

_half = FeedForward(split, matmul)
workspace, forward, backward = _half.workspace, _half.forward, _half.backward
