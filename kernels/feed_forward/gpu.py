"""The feed-forward half on the GPU, in fp32 or bf16: two products by cuBLAS each way, and GELU with its slope in one pass."""

from __future__ import annotations

from typing import Any

from minibert.kernels.bias_gelu import gpu as bias_gelu
from minibert.kernels.common.cuda import multiply
from minibert.kernels.common.sums_gpu import add_rows, partials_bytes
from minibert.kernels.matmul import gpu as in_fp32
from minibert.kernels.matmul import gpu_bf16 as in_bf16

LINE = 256  # bytes


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch, in fp32's sizes: gelu and the gradient of h; x and dy rounded; sums of db1 or db2."""
    return 2 * _line(4 * t * f) + 2 * in_bf16.rounded_bytes(t, c) + partials_bytes(t, max(f, c))


def forward(y: Any, h: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, tanh: bool, scratch: Any) -> None:
    g, _, x, _, _ = _room(scratch, h, x, x)
    w1, w2 = _weights(w1, w2, h, x)
    multiply(h, x, w1, transposed="b")
    bias_gelu.forward(g, h, b1, tanh)
    in_fp32.fill_rows(y, b2)
    multiply(y, g, w2, transposed="b", add=True)


def backward(
    dx: Any, dw1: Any, db1: Any, dw2: Any, db2: Any, dy: Any, x: Any, h: Any, w1: Any, b1: Any, w2: Any, tanh: bool,
    scratch: Any,
) -> None:  # fmt: skip
    g, dh, x, rounded, sums = _room(scratch, h, x, dy)
    w1, w2 = _weights(w1, w2, h, x)
    add_rows(db2, dy, sums)
    multiply(dh, rounded, w2)
    bias_gelu.differentiate(dh, g, db1, dh, h, b1, tanh, sums)
    multiply(dw2, rounded, g, transposed="a", add=True)
    multiply(dx, dh, w1)
    multiply(dw1, dh, x, transposed="a", add=True)


def _room(scratch: Any, h: Any, x: Any, dy: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Scratch as two arrays like h, x and dy in h's type, and what is left for partial sums."""
    size, start = _line(h.nbytes), 0
    halves = []
    for _ in range(2):
        halves.append(scratch[start : start + h.nbytes].view(h.dtype).reshape(h.shape))
        start += size
    for operand in (x, dy):
        halves.append(in_bf16.rounded(operand, scratch[start:]) if h.dtype == "uint16" else operand)
        start += in_bf16.rounded_bytes(*operand.shape)
    return halves[0], halves[1], halves[2], halves[3], scratch[start:]


def _weights(w1: Any, w2: Any, h: Any, x: Any) -> tuple[Any, Any]:
    """The weights as products take them: themselves, or their copies in bf16."""
    if h.dtype != "uint16":
        return w1, w2
    f, c = h.shape[1], x.shape[1]
    return in_bf16.operand(w1, f, c), in_bf16.operand(w2, c, f)


def _line(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
