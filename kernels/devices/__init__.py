"""Devices: who hands out the arrays of a step, counts their bytes by kind and finds the kernels.

A device is opened by name, `devices.open("cpu")`; `reference` runs the NumPy definitions in any float type.
"""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np

from minibert import kernels
from minibert.errors import BackendError

KINDS = ("weights", "gradients", "moments", "activations", "workspace")
PASSING = KINDS[3:]  # those whose arrays come and go, and are kept for one of like size; the others have their own
ALIGNMENT = 64  # a cache line: matrix-unit tiles whose rows straddle two lines load three times slower


class Lease:
    """One block of host memory behind an array; its device hears when the last array over it dies."""

    __slots__ = ("__array_interface__", "block", "device", "kind", "size")

    def __init__(self, device: Device, block: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, kind: str):
        self.device, self.block, self.kind = device, block, kind
        self.size = block.nbytes - ALIGNMENT
        start = block.ctypes.data + -block.ctypes.data % ALIGNMENT
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (start, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self.device._give_back(self)


class Device:
    """Host memory with its accounting: the `reference` device, and what `cpu` and `gpu` start from.

    `in_use` and `peak` are bytes by kind; `peak` is the reading at the moment when the sum was highest.
    Freed blocks are kept for the next array of like size, so that a steady loop touches no fresh pages; in use
    and kept together never exceed the highest sum in use.
    """

    def __init__(self, backend: str, float_type: str = "float32", variants: Mapping[str, str] | None = None):
        self.backend = backend
        self._variants = variants or {}  # operations that another module than `backend` has for this device
        self.float_type = np.dtype(float_type)
        self.activation_type = self.float_type  # of activations and their gradients, one row a token
        self.in_use: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._kept: dict[int, list[np.ndarray]] = {}
        self._kept_bytes = 0

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
        block = self._block(size_class(nbytes) if kind in PASSING else max(ALIGNMENT, nbytes))
        self.in_use[kind] += block.nbytes - ALIGNMENT
        if self.in_use.total() > self.peak.total():
            self.peak = self.in_use.copy()
        return np.asarray(Lease(self, block, tuple(shape), dtype, kind))

    def empty_like(self, array: np.ndarray, kind: str = "activations") -> np.ndarray:
        return self.empty(array.shape, array.dtype, kind)

    def zeros(self, shape: tuple[int, ...], dtype: Any, kind: str) -> np.ndarray:
        array = self.empty(shape, dtype, kind)
        array.fill(0)
        return array

    def scratch(self, nbytes: int) -> np.ndarray:
        """Bytes for a kernel that told its need by `workspace`."""
        return self.empty((nbytes,), np.uint8, "workspace")

    def array(self, host: np.ndarray, kind: str = "activations") -> np.ndarray:
        """A copy of a host array in the device's memory."""
        array = self.empty(host.shape, host.dtype, kind)
        array[...] = host
        return array

    @property
    def threads(self) -> int:
        """How many threads of the host compute."""
        return 1

    def session(self) -> AbstractContextManager[None]:
        """Held while kernels run, by training and prediction: a device sets up here what it changes globally."""
        return nullcontext()

    def numpy(self, array: np.ndarray) -> np.ndarray:
        """A device array as the host sees it."""
        return array

    def _block(self, size: int) -> np.ndarray:
        if self._kept.get(size):
            self._kept_bytes -= size
            return self._kept[size].pop()
        room = max(self.peak.total(), self.in_use.total() + size) - self.in_use.total() - size
        while self._kept_bytes > room:
            largest = max(other for other, blocks in self._kept.items() if blocks)
            self._kept[largest].pop()
            self._kept_bytes -= largest
        return np.empty(size + ALIGNMENT, np.uint8)

    def _give_back(self, lease: Lease) -> None:
        self.in_use[lease.kind] -= lease.size
        self._kept.setdefault(lease.size, []).append(lease.block)
        self._kept_bytes += lease.size


def size_class(nbytes: int) -> int:
    """The next size that blocks come in: eight steps to each power of two, at least a cache line."""
    step = max(ALIGNMENT, 1 << max(0, nbytes.bit_length() - 4))
    return max(1, -(-nbytes // step)) * step


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
