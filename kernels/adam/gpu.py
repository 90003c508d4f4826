"""Adam in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks

THREADS = 256
_kernels = Kernels(__file__)


def update(
    p: Any, m: Any, v: Any, g: Any, scale: Any, lr: float, beta1: float, beta2: float, eps: float, decay: float,
    correction1: float, correction2: float, copy: Any = None,
) -> None:  # fmt: skip
    # 1 - beta and the like in double, as in cpu.py.
    scalars = lr, beta1, 1 - beta1, beta2, 1 - beta2, eps, decay, 1 / correction1, 1 / correction2
    _kernels.launch("update", blocks(p.size, 4 * THREADS), THREADS, p, m, v, g, copy, scale, *scalars, p.size)
