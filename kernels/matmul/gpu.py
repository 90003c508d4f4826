"""The linear layer by cuBLAS; the bias stands in y before the product is added to it."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks, multiply
from minibert.kernels.common.sums_gpu import add_rows, partials_bytes

THREADS = 256
_kernels = Kernels(__file__)


def prepared_bytes(f: int, c: int) -> int:
    return 0


def prepare(prepared: Any, w: Any) -> None:
    """The products take w itself."""


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch for backward: the partial sums of dbias."""
    return partials_bytes(t, f)


def forward(y: Any, x: Any, w: Any, bias: Any, scratch: Any) -> None:
    if bias is not None:
        fill_rows(y, bias)
    multiply(y, x, w, transposed="b", add=bias is not None)


def backward(dx: Any, dw: Any, dbias: Any, dy: Any, x: Any, w: Any, scratch: Any) -> None:
    if dx is not None:
        multiply(dx, dy, w)
    multiply(dw, dy, x, transposed="a", add=True)
    if dbias is not None:
        add_rows(dbias, dy, scratch)


def fill_rows(y: Any, bias: Any) -> None:
    """y[t] = bias for each row t."""
    _kernels.launch("fill_rows", blocks(y.size, THREADS), THREADS, y, bias, y.size, y.shape[1])
