"""What this machine can do at best, measured: what kernels are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np

from minibert.kernels import devices
from minibert.kernels.common import peak, tiles
from minibert.kernels.devices import Device, cpu

PIECE = 1 << 12  # elements that a worker copies at a time
COPIED = 1 << 30  # bytes
LEAST = 0.02  # seconds that a measurement lasts


SIDE = 8192  # of the matrices whose product shows what a card can do


def product_rate(precision: str, device: Device) -> float:
    """Floating-point operations a second of matrix products at best."""
    return _cores_product_rate(precision) if device.backend == "cpu" else _card_product_rate(device)


def copy_rate(nbytes: int, device: Device) -> float:
    """Bytes a second, read and written, of copying where `nbytes` are read and written in all."""
    return _cores_copy_rate(nbytes) if device.backend == "cpu" else _card_copy_rate(device, nbytes)


@cache
def _card_product_rate(device: Device) -> float:
    """Of cuBLAS, on random numbers: zeros take less power, and so less time."""
    numbers = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    if device.operand_type is not None:
        numbers = (numbers.view(np.uint32) >> 16).astype(device.operand_type)
    x, w = device.array(numbers, "workspace"), device.array(numbers, "workspace")
    y, room = device.empty_like(x, "workspace"), device.scratch(device.matmul.workspace(SIDE, SIDE, SIDE))
    return 2 * SIDE**3 / min(device.seconds(lambda: device.matmul.forward(y, x, w, None, room)) for _ in range(3))


@cache
def _card_copy_rate(device: Device, nbytes: int) -> float:
    """The device's copies, of at least COPIED bytes: what fits into the cache is no limit of memory."""
    size = max(nbytes, COPIED) // 2
    source, to = (device.zeros((size,), "uint8", "workspace") for _ in range(2))
    return 2 * size / min(device.seconds(lambda: to.__setitem__(..., source)) for _ in range(5))


@cache
def _cores_product_rate(precision: str) -> float:
    """Floating-point operations a second of matrix products on all workers: tiles, or blocks in vector registers,
    multiplied again and again; on the matrix unit a sixth of that in fp32 (three parts a number, six products). Where
    BLAS multiplies, at its best size.
    """
    if precision == "bf16":
        arguments = _numbers(1024), tiles.configuration()
        return _rate(peak.multiply, peak.PRODUCTS, *arguments)
    by = cpu.in_fp32()
    if by is cpu.SPLIT:
        return _cores_product_rate("bf16") / 6
    return _rate(peak.multiply_floats, peak.PRODUCTS_OF_FLOATS, _numbers(16 * peak.BLOCK_OF)) if by else _blas_rate()


def _numbers(count: int) -> np.ndarray:
    """On a line; no zeros, which are faster on AMX."""
    return devices.open("cpu").array(np.resize(np.array([0.37, -1.2, 2.1, -0.6, 1.7], np.float32), count), "workspace")


def _rate(kernel: Callable, operations: int, *arguments: np.ndarray) -> float:
    """Of a kernel that takes a number of rounds last."""
    count, rounds = 4 * cpu.threads(), 2000
    return count * rounds * operations / _best(lambda: cpu.run(kernel, count, *arguments, rounds))


def _blas_rate() -> float:
    side = 1024
    a, b = (np.full((cpu.threads(), side, side), 0.7, np.float32) for _ in range(2))

    def product(worker: int, begin: int, end: int) -> None:
        for i in range(begin, end):
            np.matmul(a[i], b[i], out=out[i])

    out = np.empty_like(a)
    with devices.open("cpu").session():
        return 2 * side**3 * cpu.threads() / _best(lambda: cpu.run(product, cpu.threads()))


@cache
def _cores_copy_rate(nbytes: int) -> float:
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
