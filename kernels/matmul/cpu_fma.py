"""The linear layer in float32 in vector registers, on cores with AVX2."""

from __future__ import annotations

from minibert.kernels.common import fma

from .cpu import prepare, prepared_bytes
from .portions import Linear

__all__ = ["backward", "forward", "prepare", "prepared_bytes", "workspace"]

_layer = Linear(fma)
workspace, forward, backward = _layer.workspace, _layer.forward, _layer.backward
