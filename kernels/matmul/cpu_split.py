"""The linear layer in float32 on the CPU's matrix unit: each number as the sum of three bf16."""

from __future__ import annotations

from minibert.kernels.common import split

from .cpu import prepare, prepared_bytes
from .portions import Linear

__all__ = ["backward", "forward", "prepare", "prepared_bytes", "workspace"]

_layer = Linear(split)
workspace, forward, backward = _layer.workspace, _layer.forward, _layer.backward
