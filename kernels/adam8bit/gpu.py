"""Adam with moments of 8 bits in CUDA."""

from __future__ import annotations

from typing import Any

from minibert.kernels.common.cuda import Kernels, blocks

WARPS = 4  # blocks of 256 elements, a block of threads
_kernels = Kernels(__file__)


def update(
    p: Any, m: Any, root: Any, m_largest: Any, root_largest: Any, g: Any, scale: Any, lr: float, beta1: float,
    beta2: float, eps: float, decay: float, correction1: float, correction2: float,
) -> None:  # fmt: skip
    # 1 - beta and the like in double, as in cpu.py.
    scalars = lr, beta1, 1 - beta1, beta2, 1 - beta2, eps, decay, 1 / correction1, correction2**-0.5
    arrays = p, m, root, m_largest, root_largest, g, scale
    _kernels.launch("update", blocks(len(m), WARPS), 32 * WARPS, *arrays, *scalars, p.size)
