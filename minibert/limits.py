"""What this machine can do at best, measured: what kernels are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np

from minibert.kernels import devices
from minibert.kernels.common import peak, tiles, unit
from minibert.kernels.devices import cpu

PIECE = 1 << 12  # elements that a worker copies at a time
LEAST = 0.02  # seconds that a measurement lasts


@cache
def product_rate(precision: str) -> float:
    """Floating-point operations a second of matrix products on all workers: tiles multiplied again and again, on the
    matrix unit a sixth of that in fp32 (three parts a number, six products); elsewhere BLAS at its best size."""
    if precision == "fp32" and unit.mode() == "amx":
        return product_rate("bf16") / 6
    if precision == "bf16":
        operands = devices.open("cpu").array(
            np.resize(np.array([0.37, -1.2, 2.1, -0.6, 1.7], np.float32), 1024), "workspace"
        )
        count, rounds = 4 * cpu.threads(), 2000
        return (
            count
            * rounds
            * peak.PRODUCTS
            / _best(lambda: cpu.run(peak.multiply, count, operands, tiles.configuration(), rounds))
        )
    side = 1024
    a, b = (np.full((cpu.threads(), side, side), 0.7, np.float32) for _ in range(2))

    def product(worker: int, begin: int, end: int) -> None:
        for i in range(begin, end):
            np.matmul(a[i], b[i], out=out[i])

    out = np.empty_like(a)
    with devices.open("cpu").session():
        return 2 * side**3 * cpu.threads() / _best(lambda: cpu.run(product, cpu.threads()))


@cache
def copy_rate(nbytes: int) -> float:
    """Bytes a second, read and written, of copying on all workers where `nbytes` are read and written in all."""
    size = max(1, nbytes // 8 // PIECE) * PIECE
    device = devices.open("cpu")
    source, to = device.zeros((size,), "float32", "workspace"), device.zeros((size,), "float32", "workspace")
    return 8 * size / _best(lambda: cpu.run(peak.copy, size // PIECE, to, source, PIECE))


def _best(call: Callable[[], None]) -> float:
    """Seconds of the fastest call, of as many as fit into a short time: a limit is what is reached undisturbed."""
    call()  # compiles, touches the memory
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < LEAST or best == float("inf"):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
