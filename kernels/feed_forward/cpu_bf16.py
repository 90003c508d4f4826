"""The feed-forward half on the matrix unit: GELU and its slope are computed on products' way out, while the unit works.

Forward: h and g = gelu(h + b1) leave the first product together. Backward: g, computed again, leaves the product of dy
together with dh = (dy w2) gelu'(h + b1). So there is no pass over (T, F) but those of products.

All three leave as the next product takes them, in blocks of 32 x 32, and h, which none takes, too (`_of_h`): rows of
(T, F) lie a page apart or more, and to write 64 bytes into each of a block's pages took as long as to multiply it. h,
which is not read again before the backward pass, leaves past the caches: 0.92 of that product's time.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import halves, lanes, masks, packing, products, tiles
from minibert.kernels.common.gelu import gelu_and_slope_lanes, gelu_lanes
from minibert.kernels.common.packing import ALL, LINE, SIDE, Room, address, finishing, packed_row, panels, store_pairs
from minibert.kernels.devices import cpu
from minibert.kernels.devices.cpu import run
from minibert.kernels.matmul.cpu_bf16 import forms


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: gelu or the gradient of h; an operand in pairs, zeros for a bias, x and dy rounded, should they
    be float32; the workers' own.
    """
    operands = packing.packed_bytes(t, f) + packing.packed_bytes(max(f, c), t) + 2 * packing.whole_lines(2 * t * c)
    return operands + packing.whole_lines(4 * max(f, c)) + cpu.threads() * _own(t, f, c) + LINE


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
    own, g = room.own(_own(t, f, c)), room.packed(t, f)
    products.multiply(_gelu_product, (h, g, b1, tanh), packing.pack_rows, (room.bf16(x),), forms(w1, f, c)[0], own)
    products.multiply(products.linear(y), (y, b2, 0), None, (g,), forms(w2, c, f)[0], own)


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
    if t == 0:
        products.clear(add, dw1, dw2)
        return
    own, dh, pairs = room.own(_own(t, f, c)), room.packed(t, f), room.packed(max(f, c), t)
    g, x_pairs = pairs[: panels(f)], pairs[: panels(c)]  # one after the other
    dy, x = room.bf16(dy), room.bf16(x)
    products.multiply(_slope_product, (h, dh, g, b1, tanh), packing.pack_rows, (dy,), forms(w2, c, f)[1], own)
    packing.clear_rows(dh, t)
    packing.clear_pairs(g, t)
    products.multiply(*products.gradient(dw2, add), packing.pack_columns, (dy, db2), g, own)
    products.multiply(products.linear(dx), (dx, room.zeros(c), 0), None, (dh,), forms(w1, f, c)[1], own)
    run(packing.pack_pairs, panels(t), x_pairs, x)
    products.multiply(*products.gradient(dw1, add), packing.pack_packed_columns, (dh, db1), x_pairs, own)


def _own(t: int, f: int, c: int) -> int:
    return max(products.own_bytes(t, f, c), products.own_bytes(t, c, f))


@finishing
def _of_h(h, m, n):
    """Where row m of a block of h begins, that of the columns from n on, and how many bytes it has."""
    rows, width = min(SIDE, h.shape[0] - m // SIDE * SIDE), min(SIDE, h.shape[1] - n)
    return address(h) + 2 * (m // SIDE * SIDE * h.shape[1] + n * rows + m % SIDE * width), 2 * width


@finishing
def _stream(at, row, mask):
    """32 numbers of a row, past the caches where they are a line of memory."""
    if mask == ALL and at % LINE == 0:
        lanes.stream(at, row)
    else:
        halves.store_some_bf16(at, row, mask)


@finishing
def _fetch_h(places, m, n):
    at, row = _of_h(places[0], m, n)
    tiles.prefetch_rows(at, row, SIDE, 1)


@finishing
def _gelu_row(places, row, m, n, mask):
    """h[m, n] = sum, g[m, n] = gelu(sum + b1[n])"""
    h, g, b1, tanh = places
    lower, upper, plus = lanes.load(row), lanes.load(row + LINE), address(b1) + 4 * n
    _stream(_of_h(h, m, n)[0], halves.to_row(lower, upper), mask)
    lower = gelu_lanes(lower + masks.load_some(plus, mask), tanh)
    upper = gelu_lanes(upper + masks.load_some(plus + LINE, mask >> 16), tanh)
    lanes.store(packed_row(g, m, n), halves.to_row(lower, upper))


@finishing
def _slope_row(places, row, m, n, mask):
    """dh[m, n] = sum gelu'(h[m, n] + b1[n]), g[m, n] = gelu(h[m, n] + b1[n])"""
    h, dh, g, b1, tanh = places
    words, plus = halves.load_some_bf16(_of_h(h, m, n)[0], mask), address(b1) + 4 * n
    g0, slope0 = gelu_and_slope_lanes(halves.lower_floats(words) + masks.load_some(plus, mask), tanh)
    g1, slope1 = gelu_and_slope_lanes(halves.upper_floats(words) + masks.load_some(plus + LINE, mask >> 16), tanh)
    lanes.store(packed_row(dh, m, n), halves.to_row(lanes.load(row) * slope0, lanes.load(row + LINE) * slope1))
    store_pairs(g, m, n, halves.to_row(g0, g1))


_gelu_product = products.product(products.fetch_nothing, _gelu_row)
_slope_product = products.product(_fetch_h, _slope_row)
