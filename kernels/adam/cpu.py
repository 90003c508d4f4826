"""Adam in Numba: one pass over the four arrays, 28 bytes of traffic a parameter."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes, storage
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run

PIECE = 1 << 14
AHEAD = 1 << 8  # elements; the processor itself looks no further than to the end of a page


def update(
    p: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    g: np.ndarray,
    scale: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
    copy: None = None,
) -> None:
    if np.isnan(scale[0]):
        return
    # 1 - beta and the like in double: 1 - float32(0.999) is off by 2e-5 of itself.
    scalars = scale[0], lr, beta1, 1 - beta1, beta2, 1 - beta2, eps, decay, 1 / correction1, 1 / correction2
    flat = (array.reshape(-1) for array in (p, m, v, g))
    run(_update, -(-p.size // PIECE), *flat, *map(np.float32, scalars))


@jit
def _update(worker, begin, end, p, m, v, g, scale, lr, keep1, new1, keep2, new2, eps, decay, unbias1, unbias2):
    first, last = begin * PIECE, end * PIECE
    p, m, v, g = p[first:last], m[first:last], v[first:last], g[first:last]
    n = p.size
    for i in range(0, n, 16):
        for array in (p, m, v, g):
            storage.fetch(array, i + AHEAD)
        inside = storage.inside(i, n)
        gradient = storage.load(g, i, inside) * scale
        moment = storage.load(m, i, inside) * keep1 + gradient * new1
        square = storage.load(v, i, inside) * keep2 + gradient * gradient * new2
        at = storage.load(p, i, inside)
        step = moment * unbias1 / (lanes.root(square * unbias2) + eps) + at * decay
        storage.store(m, i, moment, inside)
        storage.store(v, i, square, inside)
        storage.store(p, i, at - step * lr, inside)
