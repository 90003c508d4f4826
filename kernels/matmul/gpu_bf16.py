"""The linear layer in bf16 by cuBLAS, sums in float32. Weights have a copy in bf16, made after each update."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks, multiply
from minibert.kernels.common.sums_gpu import add_rows, partials_bytes
from minibert.kernels.matmul.gpu import fill_rows

THREADS = 256
_kernels = Kernels(__file__.replace("gpu_bf16", "gpu"))


def prepared_bytes(f: int, c: int) -> int:
    return 2 * f * c


def prepare(prepared: Any, w: Any) -> None:
    round_to_bf16(prepared.view("uint16"), w)


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: x or dy rounded, should it be float32, each on a line; the partial sums of dbias."""
    return rounded_bytes(t, c) + rounded_bytes(t, f) + partials_bytes(t, f)


def forward(y: Any, x: Any, w: Any, bias: Any, scratch: Any) -> None:
    if bias is not None:
        fill_rows(y, bias)
    multiply(y, rounded(x, scratch), operand(w, *_shape(y, x)), transposed="b", add=bias is not None)


def backward(dx: Any, dw: Any, dbias: Any, dy: Any, x: Any, w: Any, scratch: Any) -> None:
    if dbias is not None:
        add_rows(dbias, dy, scratch[rounded_bytes(*x.shape) + rounded_bytes(*dy.shape) :])
    dy, x, (f, c) = rounded(dy, scratch[rounded_bytes(*x.shape) :]), rounded(x, scratch), _shape(dy, x)
    if dx is not None:
        multiply(dx, dy, operand(w, f, c))
    multiply(dw, dy, x, transposed="a", add=True)


def operand(w: Any, f: int, c: int) -> Any:
    """A prepared weight as bf16 (f, c)."""
    return w.view("uint16").reshape(f, c)


def rounded_bytes(t: int, c: int) -> int:
    return -(-2 * t * c // 256) * 256


def rounded(x: Any, room: Any) -> Any:
    """x in bf16: itself, or, float32 as the few rows of the head are, rounded at the beginning of `room`."""
    if x.dtype == "uint16":
        return x
    copy = room[: 2 * x.size].view("uint16").reshape(x.shape)
    round_to_bf16(copy, x)
    return copy


def round_to_bf16(y: Any, x: Any) -> None:
    """y, of any shape with x's elements, = x."""
    _kernels.launch("round_to_bf16", blocks(x.size, THREADS), THREADS, y, x, x.size)


def _shape(y: Any, x: Any) -> tuple[int, int]:
    return y.shape[1], x.shape[1]
