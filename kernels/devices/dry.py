"""A device that stands for another and computes nothing: for planning, arrays have shapes and are counted, no more.

The engine runs on it as on the other one, allocating and freeing in the same order, and the other's kernels say how
much scratch they need; so what it counts is what the other will, to the byte (whole pages aside, in which the CPU's
large arrays come), at hardly any cost in memory and time.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from . import ALIGNMENT, Block, Device
from .recording import Recorder

_MEMORY = np.zeros(2 * ALIGNMENT, np.uint8)
_ADDRESS = _MEMORY.ctypes.data + -_MEMORY.ctypes.data % ALIGNMENT
_SIZES = ("workspace", "prepared_bytes")  # what a kernel says about memory


class Dry(Device):
    """Stands for `other`. All elements of all arrays are one and the same, so that no shape costs memory."""

    def __init__(self, other: Device):
        super().__init__(other.backend, other.float_type.name, other._variants)
        self.activation_type, self._threads = other.activation_type, other.threads
        self.process, self.operand_type, self.piece = other.process, other.operand_type, other.piece
        self.host_apart, self.gives_blocks = other.host_apart, other.gives_blocks
        self.records = isinstance(other, Recorder)

    def __getattr__(self, operation: str) -> Any:
        real = super().__getattr__(operation)
        kernels = {name: value if name in _SIZES else _nothing for name, value in vars(real).items() if callable(value)}
        setattr(self, operation, SimpleNamespace(**kernels))
        return getattr(self, operation)

    @property
    def threads(self) -> int:
        return self._threads

    def clear(self, array: np.ndarray) -> None:
        """Nothing: to fill one element as often as there are any would take its time."""

    def array(self, host: np.ndarray, kind: str = "activations") -> np.ndarray:
        return self.empty(host.shape, host.dtype, kind)

    def send(self, array: np.ndarray) -> None:
        """Nothing, which takes no memory of the host either."""

    def fetch(self, array: np.ndarray, sent: None) -> None:
        """Nothing has been sent."""

    def _interface(self, block: Block, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
        strides = (0,) * len(shape)
        return {"shape": shape, "typestr": dtype.str, "data": (_ADDRESS, False), "strides": strides, "version": 3}

    def _memory(self, size: int) -> None:
        """None: all arrays stand in one place."""


def _nothing(*arguments: Any) -> None:
    """In place of a kernel."""


def open(other: Device) -> Dry:  # noqa: A001 - devices.open reads best
    return Dry(other)
