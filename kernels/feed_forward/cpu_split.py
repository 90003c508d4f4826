"""The feed-forward half in float32 on the matrix unit: GELU and its slope are computed on products' way out.

Forward: h and gelu(h + b1) leave the first product together. Backward: so do (dy w2) gelu'(h + b1) and gelu(h + b1),
which dw2 needs. The other products are matmul's.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, masks, packing, products, tiles
from minibert.kernels.common.gelu import gelu_and_slope_lanes, gelu_lanes
from minibert.kernels.common.packing import LINE, Room, address, finishing, panels
from minibert.kernels.devices import cpu
from minibert.kernels.devices.cpu import run
from minibert.kernels.matmul import cpu_split as matmul
from minibert.kernels.matmul.cpu_split import PARTS, pack_pairs, pack_rows, pack_transposed


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: gelu and the gradient of h, (T, F) each, and what a product needs."""
    fused = packing.packed_bytes(f, c, PARTS) + cpu.threads() * _own_bytes(t, f, c) + LINE
    parts = matmul.workspace(t, f, c), matmul.workspace(t, c, f)
    return 2 * packing.whole_lines(4 * t * f) + max(fused, *parts) + LINE


def forward(
    y: np.ndarray,
    h: np.ndarray,
    x: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    b2: np.ndarray,
    tanh: bool,
    scratch: np.ndarray,
) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    (t, f), c, room = h.shape, x.shape[1], Room(scratch)
    g, rest = room.floats(t, f), room.rest
    b, own = _operands(rest, t, f, c)
    run(pack_transposed, panels(f), b, w1, 0)
    products.multiply(_gelu_product, (h, g, b1, tanh), pack_rows, (x, 0), b, own)
    matmul.forward(y, g, w2, b2, rest)


def backward(
    dx: np.ndarray,
    dw1: np.ndarray,
    db1: np.ndarray,
    dw2: np.ndarray,
    db2: np.ndarray,
    dy: np.ndarray,
    x: np.ndarray,
    h: np.ndarray,
    w1: np.ndarray,
    b1: np.ndarray,
    w2: np.ndarray,
    tanh: bool,
    add: bool,
    scratch: np.ndarray,
) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    (t, f), c, room = h.shape, x.shape[1], Room(scratch)
    g, dh, rest = room.floats(t, f), room.floats(t, f), room.rest
    b, own = _operands(rest, t, f, c)
    run(pack_pairs, panels(c), b, w2, 0)
    products.multiply(_slope_product, (dh, g, h, b1, tanh), pack_rows, (dy, 0), b, own)
    matmul.backward(None, dw2, db2, dy, g, w2, add, rest)
    matmul.backward(dx, dw1, db1, dh, x, w1, add, rest)


def _operands(scratch: np.ndarray, t: int, f: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for the parts of a weight, b of h and of its gradient, and the workers' own: K is not cut as matmul's,
    because GELU wants the whole sum.
    """
    room = Room(scratch)
    return room.packed(f, c, PARTS), room.own(_own_bytes(t, f, c))


def _own_bytes(t: int, f: int, c: int) -> int:
    return products.task_bytes(panels(t), panels(f), PARTS * panels(c))


@finishing
def _gelu_row(places, row, m, n, mask):
    """h[m, n] = sum, g[m, n] = gelu(sum + b1[n])"""
    h, g, b1, tanh = places
    place, plus = 4 * (m * h.shape[1] + n), address(b1) + 4 * n
    for half in range(2):
        off, some, total = half * LINE, mask >> (16 * half), lanes.load(row + half * LINE)
        masks.store_some(address(h) + place + off, total, some)
        biased = total + masks.load_some(plus + off, some)
        masks.store_some(address(g) + place + off, gelu_lanes(biased, tanh), some)


@finishing
def _slope_row(places, row, m, n, mask):
    """dh[m, n] = sum gelu'(h[m, n] + b1[n]), g[m, n] = gelu(h[m, n] + b1[n])"""
    dh, g, h, b1, tanh = places
    place, plus = 4 * (m * h.shape[1] + n), address(b1) + 4 * n
    for half in range(2):
        off, some = half * LINE, mask >> (16 * half)
        biased = masks.load_some(address(h) + place + off, some) + masks.load_some(plus + off, some)
        value, slope = gelu_and_slope_lanes(biased, tanh)
        masks.store_some(address(dh) + place + off, lanes.load(row + off) * slope, some)
        masks.store_some(address(g) + place + off, value, some)


@finishing
def _fetch_two(places, m, n):
    products.fetch_block(places[0], m, n)
    products.fetch_block(places[1], m, n)


@finishing
def _fetch_three(places, m, n):
    _fetch_two(places, m, n)
    products.fetch_block(places[2], m, n)


_gelu_product = products.product(_fetch_two, _gelu_row, products.SPLIT)
_slope_product = products.product(_fetch_three, _slope_row, products.SPLIT)
