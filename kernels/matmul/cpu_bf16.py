"""The linear layer in bf16 on the CPU's matrix unit: operands rounded to bf16 (nearest even), sums in float32.

Its products, as common/products.py computes them, of operands packed as common/packing.py says:

    y = x wᵀ + bias      a: rows of x                    b: rows of w, transposed: `prepared`
    dx = dy w            a: rows of dy                   b: rows of w, two by two: `prepared`
    dw += dyᵀ x          a: columns of dy, transposed    b: rows of x, two by two

The weights are packed after each update, and whoever computes a part of a product packs its part of `a`: only dw's b
is packed in a pass of its own. x, y and their gradients are bf16 (uint16), or float32 and then rounded first; y and dy
may be strips (common/packing.py).
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import halves, lanes, packing, products, tiles
from minibert.kernels.common.packing import (
    BLOCK,
    LINE,
    SIDE,
    STEP,
    TILE,
    Room,
    address,
    columns,
    panels,
    rounded,
    unstripped,
)  # fmt: skip
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


def prepared_bytes(f: int, c: int) -> int:
    """Bytes of a weight (F, C) as both products of activations take it: b of y, then b of dx."""
    return 2 * packing.packed_bytes(f, c)


def prepare(prepared: np.ndarray, w: np.ndarray) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    f, c = w.shape
    run(_prepare, panels(f), *forms(prepared, f, c), w)


def forms(prepared: np.ndarray, f: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """What `prepare` filled for a weight (F, C): b of y, and b of dx."""
    room = Room(prepared)
    return room.packed(f, c), room.packed(c, f)


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: x in pairs, zeros for a bias, the workers' own; x and dy rounded, should they be float32."""
    own = cpu.threads() * products.own_bytes(t, f, c)
    rounded = packing.whole_lines(2 * t * c) + packing.whole_lines(2 * t * f)
    return packing.packed_bytes(c, t) + packing.whole_lines(4 * max(f, c)) + own + rounded + LINE


def forward(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, scratch: np.ndarray) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    out, c, room = unstripped(y), x.shape[1], Room(scratch)
    t, f = out.shape
    own = room.own(products.own_bytes(t, f, c))
    bias = room.zeros(f) if bias is None else bias
    products.multiply(products.linear(y), (out, bias, 0), packing.pack_rows, (room.bf16(x),), forms(w, f, c)[0], own)


def backward(
    dx: np.ndarray | None,
    dw: np.ndarray,
    dbias: np.ndarray | None,
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    add: bool,
    scratch: np.ndarray,
) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    in_rows, dy, c, room = dy.ndim == 2, unstripped(dy), x.shape[1], Room(scratch)
    t, f = dy.shape
    if t == 0:
        products.clear(add, dw)
        return
    own, dy, x, pairs = room.own(products.own_bytes(t, f, c)), room.bf16(dy), room.bf16(x), room.packed(c, t)
    if dx is not None:
        places = dx, room.zeros(c), 0
        pack = packing.pack_rows if in_rows else packing.pack_strips
        products.multiply(products.linear(dx), places, pack, (dy,), forms(w, f, c)[1], own)
    run(packing.pack_pairs, panels(t), pairs, x)
    sums = room.zeros(0) if dbias is None else dbias
    pack = packing.pack_columns if in_rows else packing.pack_strip_columns
    products.multiply(*products.gradient(dw, add), pack, (dy, sums), pairs, own)


@jit
def _prepare(worker, begin, end, for_y, for_dx, w):
    """w's rows of panels begin to end, as b of y and as b of dx, past the caches: a layer is more than they hold."""
    block = stack_words(BLOCK // 2)
    at = address(block)
    for panel in range(begin, end):
        for step in range(for_y.shape[1]):
            mask = columns(w, step)
            to = address(for_dx) + (step * for_dx.shape[1] + panel) * STEP
            for pair in range(SIDE // 2):
                row = panel * SIDE + 2 * pair
                even, odd = rounded(w, row, step, mask), rounded(w, row + 1, step, mask)
                lanes.store(at + 2 * pair * LINE, even)
                lanes.store(at + 2 * pair * LINE + LINE, odd)
                lanes.stream(to + pair * LINE, halves.lower_pairs(even, odd))
                lanes.stream(to + TILE + pair * LINE, halves.upper_pairs(even, odd))
            tiles.transpose(at)
            tiles.transpose(at + TILE)
            to = address(for_y) + (panel * for_y.shape[1] + step) * STEP
            for line in range(SIDE):
                lanes.stream(to + line * LINE, lanes.load_words(at + line * LINE))
    tiles.fence()
