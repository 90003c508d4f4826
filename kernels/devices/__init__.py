"""Devices: who hands out the arrays of a step, counts their bytes by kind and finds the kernels.

A device is opened by name, `devices.open("cpu")`; `reference` runs the NumPy definitions in any float type.
"""

from __future__ import annotations

import importlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from threading import RLock
from types import ModuleType
from typing import Any

import numpy as np

from minibert import kernels
from minibert.errors import BackendError

from . import host

PROCESS = 320 << 20  # bytes allowed for Python, NumPy, Numba and the compiled kernels themselves
KINDS = ("weights", "gradients", "moments", "activations", "workspace")
PASSING = KINDS[3:]  # those whose arrays come and go, and are kept for one of like size; the others have their own
GRAIN, LARGE = 512, 2 << 20  # bytes in whose multiples a card's memory comes, from half of a large one on by these
ALIGNMENT = 64  # a cache line: matrix-unit tiles whose rows straddle two lines load three times slower


class Block:
    """Memory for one array at a time. `touched`: how much of it arrays have had, which is what the system has given;
    `apart`: whether it is kept for recordings (recording.py); `address`: where its array stands, once it is known.
    """

    __slots__ = ("address", "apart", "memory", "size", "touched")

    def __init__(self, size: int, memory: Any):
        self.size, self.memory, self.touched, self.apart, self.address = size, memory, 0, False, 0


class Lease:
    """One block behind an array; its device hears when the last array over it dies."""

    __slots__ = ("__array_interface__", "block", "device", "kind", "nbytes")

    __array_interface__: dict[str, Any]  # of arrays in the host's memory

    def __init__(self, device: Device, block: Block, kind: str, nbytes: int):
        self.device, self.block, self.kind, self.nbytes = device, block, kind, nbytes

    def __del__(self) -> None:
        with self.device._lock:
            self.device._give_back(self)


class Device:
    """Host memory with its accounting: the `reference` device, and what `cpu` and `gpu` start from.

    `process` is what training takes beside arrays, in bytes: the interpreter and compiled kernels, or a GPU's context.

    `in_use` and `peak` are the bytes of arrays by kind; `peak` is the reading at the moment when their sum was highest.
    Freed blocks are kept for the next array of like size, so that a steady loop asks for no memory; blocks in use and
    kept together never exceed the most that were in use, but for some pages that the CPU has to spare (devices/cpu.py).
    Several threads of Python may ask for arrays at the same time.

    `resident` is what of all these the system has given, and `resident_peak` the most of it: what to compare with a
    process's own peak. While `log` is a list, it gets (kind, bytes) for each array handed out, and for each that dies
    the same with the bytes below zero.
    """

    process = PROCESS
    ahead = 0  # training steps that the host may have asked for beyond the one whose result it waits for
    piece = 4096  # tokens that the feed-forward half computes at a time: its scratch (T, F) stays small, at no cost
    gives_blocks = False  # whether memory is taken by the block, and not by pages as they are touched
    host_apart = False  # whether the host has memory beside the device's

    def __init__(self, backend: str, float_type: str = "float32", variants: Mapping[str, str] | None = None):
        self.backend, self.precision = backend, "fp32"
        self._variants = variants or {}  # operations that another module than `backend` has for this device
        self.float_type = np.dtype(float_type)
        self.activation_type = self.float_type  # of activations and their gradients, one row a token
        self.operand_type: np.dtype | None = None  # of weights' copies for products, where these take a whole group's
        self.in_use: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.resident = self.resident_peak = 0
        self.log: list[tuple[str, int]] | None = None
        self._lock = RLock()  # an array may die while its own thread asks for another
        self._total = self._peak_total = 0  # of in_use and peak
        self._kept: dict[int, list[Block]] = {}
        self._kept_bytes = self._used_bytes = self._most_used = 0  # of blocks

    def __getattr__(self, operation: str) -> ModuleType:
        if operation.startswith("_"):
            raise AttributeError(operation)
        module = kernels.load(operation, self._variants.get(operation, self.backend))
        setattr(self, operation, module)  # found once
        return module

    def empty(self, shape: tuple[int, ...], dtype: Any, kind: str) -> np.ndarray:
        """An array on a 64-byte line, its content undefined; `kind` is one of KINDS."""
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
        dtype = np.dtype(dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        with self._lock:
            block = self._block(nbytes, kind)
            touched = on_card(block.size) if self.gives_blocks else nbytes
            if touched > block.touched:
                self.resident += touched - block.touched
                block.touched = touched
            self.resident_peak = max(self.resident_peak, self.resident)
            self._count(kind, nbytes)
            if self._total > self._peak_total:
                self._peak_total, self.peak = self._total, self.in_use.copy()
        return self._array(Lease(self, block, kind, nbytes), tuple(shape), dtype)

    def empty_like(self, array: np.ndarray, kind: str = "activations") -> np.ndarray:
        return self.empty(array.shape, array.dtype, kind)

    def zeros(self, shape: tuple[int, ...], dtype: Any, kind: str) -> np.ndarray:
        array = self.empty(shape, dtype, kind)
        self.clear(array)
        return array

    def clear(self, array: Any) -> None:
        """Zeros for all that is in a contiguous array."""
        array.fill(0)

    def scratch(self, nbytes: int) -> np.ndarray:
        """Bytes for a kernel that told its need by `workspace`."""
        return self.empty((nbytes,), np.uint8, "workspace")

    def array(self, host: np.ndarray, kind: str = "activations") -> np.ndarray:
        """A copy of a host array in the device's memory."""
        array = self.empty(host.shape, host.dtype, kind)
        self.write(array, host)
        return array

    def projected_shape(self, t: int, c: int, heads: int) -> tuple[int, ...]:
        """Of an array with queries, keys and values, (T, 3C), as the device's attention takes it."""
        return t, 3 * c

    def release(self) -> None:
        """Gives the system everything that is kept for later."""
        with self._lock:
            self._drop(0)

    def forget_peaks(self) -> None:
        """Counts anew, from what is in use now."""
        with self._lock:
            self._most_used = self._used_bytes
            self._drop(0)
            self.peak, self._peak_total, self.resident_peak = self.in_use.copy(), self._total, self.resident

    def free_memory(self) -> int | None:
        """Bytes that could still be allocated; None where nobody knows."""
        return host.available()

    def taken(self) -> int:
        """Of `process` what is no part of `free_memory` any more."""
        return host.resident() or self.process

    def limit(self, nbytes: int) -> None:
        """Holds the process to so many bytes, where the device can; a plan keeps to them anyway."""

    @property
    def threads(self) -> int:
        """How many threads of the host compute."""
        return 1

    @property
    def description(self) -> str:
        """What computes, as a run tells its user."""
        return "the CPU"

    def seconds(self, call: Callable[[], None]) -> float:
        """How long a call takes, its work on the device included."""
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Until everything asked of the device is done."""

    def session(self) -> AbstractContextManager[None]:
        """Held while kernels run, by training and prediction: a device sets up here what it changes globally."""
        return nullcontext()

    def numpy(self, array: Any) -> np.ndarray:
        """A device array as the host sees it: on the CPU itself, elsewhere a copy, made when all before it is done."""
        return array

    def read_later(self, array: Any) -> Callable[[], np.ndarray]:
        """Begins to bring a device array to the host, as it is now; the function that is returned waits for it."""
        copy = array.copy()
        return lambda: copy

    def write(self, array: Any, host: np.ndarray) -> None:
        """Fills a device array from one of the host, of its shape and type."""
        array[...] = host

    def send(self, array: Any) -> Any:
        """Begins to copy a device array to the host's memory; what is returned is what `fetch` takes."""
        return array.copy()

    def fetch(self, array: Any, sent: Any) -> None:
        """Begins to fill a device array with what was sent."""
        array[...] = sent

    def await_copies(self) -> None:
        """Whatever is asked of the device from now on comes after the copies that `send` and `fetch` have begun."""

    def _array(self, lease: Lease, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """The array in a leased block, which keeps the lease alive."""
        lease.__array_interface__ = self._interface(lease.block, shape, dtype)
        return np.asarray(lease)

    def _interface(self, block: Block, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
        """An array in a block, as NumPy's array interface describes it."""
        if not block.address:
            start = block.memory.ctypes.data
            block.address = start + -start % ALIGNMENT
        return {"shape": shape, "typestr": dtype.str, "data": (block.address, False), "version": 3}

    def _memory(self, size: int) -> Any:
        """New memory; MemoryError where the system has none."""
        return np.empty(size + ALIGNMENT, np.uint8)

    def _block(self, nbytes: int, kind: str) -> Block:
        size = size_class(nbytes) if kind in PASSING else max(ALIGNMENT, nbytes)
        self._used_bytes += size
        self._most_used = max(self._most_used, self._used_bytes)
        if self._kept.get(size):
            self._kept_bytes -= size
            return self._kept[size].pop()
        self._drop(self._most_used - self._used_bytes)
        try:
            return Block(size, self._memory(size))
        except MemoryError:
            self._drop(0)
        try:
            return Block(size, self._memory(size))
        except MemoryError:
            self._used_bytes -= size
            raise

    def _drop(self, room: int) -> None:
        """Gives the largest kept blocks back to the system until no more than `room` bytes are kept."""
        while self._kept_bytes > room:
            largest = max(filter(self._kept.get, self._kept))
            self.resident -= self._kept[largest].pop().touched
            self._kept_bytes -= largest

    def _give_back(self, lease: Lease) -> None:
        block = lease.block
        self._count(lease.kind, -lease.nbytes)
        self._used_bytes -= block.size
        self._kept.setdefault(block.size, []).append(block)
        self._kept_bytes += block.size

    def _count(self, kind: str, nbytes: int) -> None:
        self.in_use[kind] += nbytes
        self._total += nbytes
        if self.log is not None:
            self.log.append((kind, nbytes))


@lru_cache(4096)
def size_class(nbytes: int) -> int:
    """The next size that blocks come in: eight steps to each power of two, at least a cache line."""
    step = max(ALIGNMENT, 1 << max(0, nbytes.bit_length() - 4))
    return max(1, -(-nbytes // step)) * step


def on_card(nbytes: int) -> int:
    """What a card gives for so many bytes: small blocks share its pages, large ones have whole ones."""
    grain = LARGE if nbytes >= LARGE // 2 else GRAIN
    return -(-nbytes // grain) * grain


def open(name: str, **options: Any) -> Device:  # noqa: A001 - devices.open reads best
    """The device of that name; BackendError where this version has none."""
    if name == "reference":
        return Device("reference", **options)
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise BackendError(f"there is no {name!r} device in this version; use --device cpu") from None
    return module.open(**options)
