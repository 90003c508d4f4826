"""The CPU: one team of threads for compiled kernels and BLAS alike, and the machine's memory.

Kernels compute a range of chunks, `kernel(worker, begin, end, *arguments)`; `run` covers [0, count) with them. A team
of our own (workers.py) instead of Numba's `prange`: kernels compile three times faster, need no OpenMP at run time, and
BLAS calls share it, so nothing fights for cores.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from _thread import allocate_lock
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import numpy as np

from minibert.kernels.common import clearing, lanes, unit

from . import Block, Device, Lease, compiling, host
from .binding import is_bindable
from .pages import Pages
from .workers import Bound, Tasks, Workers

PAGED = 1 << 20  # bytes from which on an array is cut from pages
SPARE = 32 << 20  # bytes of holes that stay beyond the most that was used: part of what PROCESS allows
SPARE_IN_TRAINING = 8 << 20  # so that a plan is within three percent of what a process grows by

_told = False


def _tell() -> None:
    """Warns, once, that kernels are not kept: when a device is opened, since to import this module is no use of it."""
    global _told
    if compiling.not_kept and not _told:
        _told = True
        warnings.warn(compiling.not_kept, stacklevel=3)


_workers = Workers(host.cores())


def threads() -> int:
    """How many workers `run` uses; kernels size their scratch per worker by it."""
    return _workers.count


def set_threads(count: int) -> None:
    """Nothing may compute meanwhile whose scratch is for fewer."""
    global _workers
    before, _workers = _workers, Workers(count)
    before.end()


def _after_fork() -> None:
    """A forked process has the team's memory but none of its threads."""
    global _workers, _blas
    _workers = Workers(_workers.count)
    _blas = _blas.renewed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(kernel: Callable, count: int, *arguments: Any, grain: int = 1) -> None:
    """Calls kernel(worker, begin, end, *arguments) on all threads until [0, count) is covered.

    `kernel`: compiled so that it can be launched, or any function. `grain` is the least number of chunks worth a call.
    Which worker computes a chunk varies from run to run, so a kernel's result must not depend on it.
    """
    least = max(grain, -(-count // (16 * _workers.count)))  # the last helpings: what one may have to wait for
    if is_bindable(kernel):
        _workers.launch(_helpings(count, _workers.count, least), (kernel, arguments))
    else:
        share(helpings(count, _workers.count, least), lambda worker, begin, end: kernel(worker, begin, end, *arguments))


def launch(tasks: Tasks, first: Bound, second: Bound | None = None) -> None:
    """As Workers.launch says."""
    _workers.launch(tasks, first, second)


@lru_cache(256)
def _helpings(count: int, workers: int, least: int) -> Tasks:
    return Tasks(helpings(count, workers, least))


@lru_cache(256)
def helpings(count: int, workers: int, least: int = 1, most: int = sys.maxsize) -> tuple[tuple[int, int], ...]:
    """[0, count) in pieces of `least` to `most`, the larger ones first: few calls, and workers that end together
    though one be slower, as the cores of a machine with other guests are.
    """
    pieces, begin = [], 0
    while begin < count:
        end = min(begin + min(max(-(-(count - begin) // (2 * workers - 1)), least), most), count)
        pieces.append((begin, end))
        begin = end
    return tuple(pieces)


def share(tasks: Sequence[tuple], work: Callable[..., None]) -> None:
    """Calls work(worker, *task) for every task, on all threads; tasks begin in their order."""
    _workers.share(tasks, work)


# Modules that operations have for products of their own instead of BLAS's: in bf16, and in fp32 where it is slower.
IN_BF16 = dict.fromkeys(("matmul", "attention", "feed_forward"), "cpu_bf16")
SPLIT, BY_FMA = (dict.fromkeys(("matmul", "feed_forward"), name) for name in ("cpu_split", "cpu_fma"))


class Cpu(Device):
    """The machine's cores and memory. Matrix products run on the matrix unit, or on what stands in for it (unit.py): in
    bf16 attention's too; in fp32 on the unit itself only, with each number as the sum of three bf16, elsewhere in
    vector registers, or by BLAS.
    """

    def __init__(self, precision: str = "fp32") -> None:
        super().__init__("cpu", variants=IN_BF16 if precision == "bf16" else in_fp32())
        self.precision = precision
        self._pages, self._returned = Pages(), list[Block]()
        if precision == "bf16":
            self.activation_type = np.dtype(np.uint16)  # the bits

    @property
    def threads(self) -> int:
        return threads()

    def _block(self, nbytes: int, kind: str) -> Block:
        """From its pages, if it is large. Of these some to spare are kept beyond what blocks may be: without them holes
        that the next batch's arrays do not fit would cost it thousands of new pages.
        """
        if nbytes < PAGED:
            return super()._block(nbytes, kind)
        self._collect()
        try:
            block = self._pages.take(nbytes)
        except MemoryError:
            self.release()
            block = self._pages.take(nbytes)
        self.resident, block.touched = self.resident + block.size - block.touched, block.size
        self._used_bytes += block.size
        self._most_used = max(self._most_used, self._used_bytes)
        room = self._most_used - self._used_bytes
        if self._kept_bytes + self._pages.idle > room + self._spare:
            self._drop(room)
        return block

    @property
    def _spare(self) -> int:
        return SPARE_IN_TRAINING if self.in_use["moments"] else SPARE

    def _give_back(self, lease: Lease) -> None:
        if not isinstance(lease.block.memory, int):
            super()._give_back(lease)
            return
        self._count(lease.kind, -lease.nbytes)
        self._used_bytes -= lease.block.size
        self._returned.append(lease.block)

    def _collect(self) -> None:
        """Makes holes where arrays have died: here, since they may die anywhere, in the midst of taking pages too."""
        while self._returned:
            self._pages.give(self._returned.pop())

    def _drop(self, room: int) -> None:
        super()._drop(room)
        self._collect()
        self.resident -= self._pages.shrink(room + self._spare - self._kept_bytes)

    def clear(self, array: np.ndarray) -> None:
        """By all threads, if it is large; else, and at its end, by the C library."""
        assert array.flags.c_contiguous
        at, nbytes, pieces = array.ctypes.data, array.nbytes, 0
        if nbytes >= PAGED and at % lanes.LINE == 0:
            pieces = nbytes // clearing.PIECE
            run(clearing.clear, pieces, array.reshape(-1).view(np.uint8))
        done = pieces * clearing.PIECE
        ctypes.memset(at + done, 0, nbytes - done)

    def projected_shape(self, t: int, c: int, heads: int) -> tuple[int, ...]:
        """In strips (common/packing.py), in bf16, where a head's columns are whole ones."""
        width = lanes.LINE // 2  # of a strip: a line of bf16
        if self.precision == "bf16" and c // heads % width == 0:
            return 3 * c // width, t, width
        return super().projected_shape(t, c, heads)

    def release(self) -> None:
        with self._lock:
            super().release()
            self.resident -= self._pages.shrink(0) + self._pages.unmap()

    def session(self) -> AbstractContextManager[None]:
        """BLAS on one thread a call, since our workers share the rows out; restored when the last thread leaves."""
        return _blas


def in_fp32() -> dict[str, str]:
    """Modules for products in fp32. Vector registers are for AVX2: of AVX-512's BLAS makes more. Nothing: by BLAS."""
    if unit.mode() == "amx":
        return SPLIT
    return BY_FMA if lanes.compiles("fma") and not lanes.compiles("avx512f") else {}


class _Blas(AbstractContextManager):
    """BLAS on one thread a call while anybody is inside."""

    def __init__(self) -> None:
        self._lock, self._inside = allocate_lock(), 0

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if not self._inside:
                self._limits = threadpool_limits(1, user_api="blas")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limits.restore_original_limits()

    def renewed(self) -> _Blas:
        """One that nobody is inside."""
        if self._inside:
            self._limits.restore_original_limits()
        return _Blas()


_blas = _Blas()


def open(threads: int | None = None, precision: str = "fp32") -> Cpu:  # noqa: A001 - devices.open reads best
    _tell()
    if threads:
        set_threads(threads)
    return Cpu(precision)
