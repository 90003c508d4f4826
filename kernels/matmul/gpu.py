"""The linear layer by cuBLAS; the bias stands in y before the product is added to it. In bf16 w is the weights' copy in
bf16, and x and dy, should they be float32 as the few rows of the head are, are rounded first.
"""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks, multiply, opened
from minibert.kernels.common.sums_gpu import add_rows, partials_bytes

THREADS, FEW, ROWS = 256, 64, 16  # of a block; of one that fills rows, and these
MOST = 4096  # rows that are rounded at a time, so that a large batch takes no scratch for what only its head needs
LINE = 256  # bytes
_kernels = Kernels(__file__)


def prepared_bytes(f: int, c: int) -> int:
    return 0


def prepare(prepared: Any, w: Any) -> None:
    """Rounds weights of any shape to their copy in bf16."""
    _kernels.launch("round_to_bf16", blocks(w.size, 4 * THREADS), THREADS, prepared, w, w.size)


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: MOST rows of x and dy rounded, each from a line on; the partial sums of dbias."""
    return rounded_bytes(min(t, MOST), c) + rounded_bytes(min(t, MOST), f) + partials_bytes(t, f)


def forward(y: Any, x: Any, w: Any, bias: Any, scratch: Any) -> None:
    if bias is not None:
        fill_rows(y, bias)
    for r in _pieces(w, x):
        multiply(y[r], like(w, x[r], scratch), w, transposed="b", add=bias is not None)


def backward(dx: Any, dw: Any, dbias: Any, dy: Any, x: Any, w: Any, add: bool, scratch: Any) -> None:
    rows, driver = min(len(x), MOST), opened()
    room = scratch[rounded_bytes(rows, x.shape[1]) :]
    if dbias is not None:
        with driver.aside():
            add_rows(dbias, dy, room[rounded_bytes(rows, dy.shape[1]) :])
    for r in _pieces(w, dy, x):
        slopes, inputs = like(w, dy[r], room), like(w, x[r], scratch)
        with driver.aside():
            multiply(dw, slopes, inputs, transposed="a", add=add)
        if dx is not None:
            multiply(dx[r], slopes, w)
        driver.join()
        add = True


def _pieces(w: Any, *operands: Any) -> list[slice]:
    """The rows that are multiplied at a time: all, unless some of the operands have to be rounded."""
    t = len(operands[0])
    step = t if all(x.dtype == w.dtype for x in operands) else MOST
    return [slice(start, start + step) for start in range(0, t, step)] if t else [slice(0, 0)]


def fill_rows(y: Any, bias: Any) -> None:
    """y[t] = bias for each row t."""
    t, f = y.shape
    _kernels.launch("fill_rows", (blocks(t, ROWS), blocks(f, 8 * FEW)), FEW, y, bias, t, f)


def rounded_bytes(t: int, c: int) -> int:
    """Bytes of (t, c) in bf16, up to the next line."""
    return -(-2 * t * c // LINE) * LINE


def like(w: Any, x: Any, room: Any) -> Any:
    """x as a product with w takes it: itself, or rounded to bf16 at the beginning of `room`."""
    if x.dtype == w.dtype:
        return x
    copy = room[: 2 * x.size].view("uint16").reshape(x.shape)
    prepare(copy, x)
    return copy
