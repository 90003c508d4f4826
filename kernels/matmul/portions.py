"""The linear layer in float32 from products of packed operands, whose K is cut in portions that are added up.

`by` multiplies: common/split.py on the matrix unit, common/fma.py in vector registers. Such a module has three products
over a portion of K, from a multiple of 32 on; of LONG at most here, all of it where GELU wants whole sums (fused.py):

    times_transposed    y = x wᵀ       times    dx = dy w       transposed_times    dw = dyᵀ x

Each takes a kernel that its `product` has made for what is to happen to the sums. Portions keep a task's operands in
L2, and the scratch small; and errors of sums of some hundred are smaller than those of thousands.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from minibert.kernels.common import packing, products
from minibert.kernels.common.packing import LINE, SIDE, Room


class Linear:
    """What a kernel module has for the layer."""

    def __init__(self, by: ModuleType):
        self._by, self._add = by, by.product(products.fetch_result, products.float_row)

    def workspace(self, t: int, f: int, c: int) -> int:
        """Bytes of scratch: zeros for a bias, and what a product needs."""
        sizes = [
            self._by.workspace(m, n, last - first)
            for m, n, k in ((t, f, c), (t, c, f), (f, c, t))
            for first, last in self._portions(k)
        ]
        return packing.whole_lines(4 * max(f, c)) + max(sizes, default=0) + LINE

    def forward(
        self, y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, scratch: np.ndarray
    ) -> None:
        f, room = len(w), Room(scratch)
        places = y, room.zeros(f) if bias is None else bias, 0
        for first, last in self._portions(x.shape[1]):
            self._by.times_transposed(self._add, places, x, w, first, last, room.rest)
            places = y, y.reshape(-1), f

    def backward(
        self,
        dx: np.ndarray | None,
        dw: np.ndarray,
        dbias: np.ndarray | None,
        dy: np.ndarray,
        x: np.ndarray,
        w: np.ndarray,
        add: bool,
        scratch: np.ndarray,
    ) -> None:
        (t, f), c, room = dy.shape, x.shape[1], Room(scratch)
        if t == 0:
            products.clear(add, dw)
            return
        zeros = room.zeros(c)
        if dx is not None:
            places = dx, zeros, 0
            for first, last in self._portions(f):
                self._by.times(self._add, places, dy, w, first, last, room.rest)
                places = dx, dx.reshape(-1), c
        places, sums = (dw, dw.reshape(-1), c) if add else (dw, zeros, 0), zeros[:0] if dbias is None else dbias
        for first, last in self._portions(t):
            self._by.transposed_times(self._add, places, dy, x, first, last, sums, room.rest)
            places = dw, dw.reshape(-1), c

    def _portions(self, k: int) -> list[tuple[int, int]]:
        """From where to where: even, in steps of 32."""
        steps, count = packing.panels(k), max(1, -(-k // self._by.LONG))
        ends = [min(i * steps // count * SIDE, k) for i in range(count + 1)]
        return list(zip(ends, ends[1:], strict=False))
