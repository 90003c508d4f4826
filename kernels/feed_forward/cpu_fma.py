"""The feed-forward half in float32 in vector registers, on cores with AVX2."""

from __future__ import annotations

from minibert.kernels.common import fma
from minibert.kernels.matmul import cpu_fma as matmul

from .fused import FeedForward

_half = FeedForward(fma, matmul)
workspace, forward, backward = _half.workspace, _half.forward, _half.backward
