"""Adam in Numba: one pass over the four arrays, 32 bytes of traffic a parameter, zeroing the gradient included."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.cpu import jit, run

PIECE = 1 << 14


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
    # Views, because an index that does not start from 0 may be negative for all LLVM knows, and costs its vectors.
    first, last = begin * PIECE, end * PIECE
    p, m, v, g = p[first:last], m[first:last], v[first:last], g[first:last]
    for i in range(p.size):
        gradient = g[i] * scale
        m[i] = keep1 * m[i] + new1 * gradient
        v[i] = keep2 * v[i] + new2 * (gradient * gradient)
        p[i] -= lr * (m[i] * unbias1 / (np.sqrt(v[i] * unbias2) + eps) + decay * p[i])
        g[i] = 0
