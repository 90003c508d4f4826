"""Bias and GELU in CUDA, one pass each way."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels
from minibert.kernels.common.sums_gpu import THREADS, add_partials, chunk_rows, grid, partials, partials_bytes

_kernels = Kernels(__file__)


def workspace(t: int, f: int) -> int:
    """Bytes of scratch for backward: the partial sums of dbias."""
    return partials_bytes(t, f)


def forward(y: Any, x: Any, bias: Any, tanh: bool) -> None:
    t, f = x.shape
    _kernels.launch("forward", grid(t, f), THREADS, y, x, bias, tanh, chunk_rows(t), t, f)


def backward(dx: Any, dbias: Any, dy: Any, x: Any, bias: Any, tanh: bool, scratch: Any) -> None:
    differentiate(dx, None, dbias, dy, x, bias, tanh, scratch)


def differentiate(dx: Any, y: Any, dbias: Any, dy: Any, x: Any, bias: Any, tanh: bool, scratch: Any) -> None:
    """`backward`, and where y is not None `forward` in the same pass. dx may be dy."""
    (t, f), room = x.shape, partials(scratch, *x.shape)
    _kernels.launch("backward", grid(t, f), THREADS, dx, y, room, dy, x, bias, tanh, chunk_rows(t), t, f)
    add_partials(dbias, room)
