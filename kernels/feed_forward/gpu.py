"""The feed-forward half on the GPU: two products by cuBLAS each way, and GELU with its slope in one pass. What a small
batch's product leaves free of the card, gradients of weights can have: they are computed aside.
"""

from __future__ import annotations

from typing import Any

from minibert.kernels.bias_gelu import gpu as bias_gelu
from minibert.kernels.common.cuda import multiply, opened
from minibert.kernels.common.sums_gpu import add_rows, partials_bytes
from minibert.kernels.matmul.gpu import LINE, fill_rows, like, rounded_bytes


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch, in fp32's sizes: gelu and the gradient of h; x and dy rounded; sums of db1 and db2."""
    return 2 * _line(4 * t * f) + 2 * rounded_bytes(t, c) + _line(partials_bytes(t, f)) + partials_bytes(t, c)


def forward(y: Any, h: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, tanh: bool, scratch: Any) -> None:
    g, scratch = _half(scratch, h)
    multiply(h, like(w1, x, scratch), w1, transposed="b")
    bias_gelu.forward(g, h, b1, tanh)
    fill_rows(y, b2)
    multiply(y, g, w2, transposed="b", add=True)


def backward(
    dx: Any, dw1: Any, db1: Any, dw2: Any, db2: Any, dy: Any, x: Any, h: Any, w1: Any, b1: Any, w2: Any, tanh: bool,
    add: bool, scratch: Any,
) -> None:  # fmt: skip
    g, scratch = _half(scratch, h)
    dh, scratch = _half(scratch, h)
    x, scratch = like(w1, x, scratch), scratch[rounded_bytes(*x.shape) :]
    rounded, sums = like(w2, dy, scratch), scratch[rounded_bytes(*dy.shape) :]
    driver = opened()
    with driver.aside():
        add_rows(db2, dy, sums[_line(partials_bytes(*h.shape)) :])
    multiply(dh, rounded, w2)
    bias_gelu.differentiate(dh, g, db1, dh, h, b1, tanh, sums)
    with driver.aside():
        multiply(dw1, dh, x, transposed="a", add=add)
        multiply(dw2, rounded, g, transposed="a", add=add)
    multiply(dx, dh, w1)
    driver.join()


def _half(scratch: Any, h: Any) -> tuple[Any, Any]:
    """An array like h at the beginning of scratch, and the rest of it."""
    return scratch[: h.nbytes].view(h.dtype).reshape(h.shape), scratch[_line(h.nbytes) :]


def _line(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
