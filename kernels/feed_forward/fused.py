"""The feed-forward half in float32 from products of packed operands: GELU and its slope are computed on their way out.

Forward: h and gelu(h + b1) leave the first product together. Backward: so do (dy w2) gelu'(h + b1) and gelu(h + b1),
which dw2 needs. K is not cut in these, because GELU wants the whole sum. The other products are matmul's.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from minibert.kernels.common import lanes, masks, packing, products
from minibert.kernels.common.gelu import gelu_and_slope_lanes, gelu_lanes
from minibert.kernels.common.packing import LINE, Room, address, finishing


class FeedForward:
    """What a kernel module has for the half; `by`: as matmul/portions.py describes it."""

    def __init__(self, by: ModuleType, matmul: ModuleType):
        self._by, self._matmul = by, matmul
        self._gelu, self._slope = by.product(_fetch_two, _gelu_row), by.product(_fetch_three, _slope_row)

    def workspace(self, t: int, f: int, c: int) -> int:
        """Bytes of scratch: gelu and the gradient of h, (T, F) each, and what a product needs."""
        parts = self._by.workspace(t, f, c), self._matmul.workspace(t, f, c), self._matmul.workspace(t, c, f)
        return 2 * packing.whole_lines(4 * t * f) + max(parts) + LINE

    def forward(
        self,
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
        room = Room(scratch)
        g = room.floats(*h.shape)
        self._by.times_transposed(self._gelu, (h, g, b1, tanh), x, w1, 0, x.shape[1], room.rest)
        self._matmul.forward(y, g, w2, b2, room.rest)

    def backward(
        self,
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
        room = Room(scratch)
        g, dh = room.floats(*h.shape), room.floats(*h.shape)
        self._by.times(self._slope, (dh, g, h, b1, tanh), dy, w2, 0, dy.shape[1], room.rest)
        self._matmul.backward(None, dw2, db2, dy, g, w2, add, room.rest)
        self._matmul.backward(dx, dw1, db1, dh, x, w1, add, room.rest)


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
