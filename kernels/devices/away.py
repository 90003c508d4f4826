"""Arrays of a pass that wait in the host's memory while the device needs its own for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import Device


@dataclass(slots=True)
class Absent:
    """An array that waits: what the device has sent, and where it comes back to, once that has begun."""

    shape: tuple[int, ...]
    dtype: Any
    sent: Any
    array: Any = None


class Away:
    """The arrays of one forward and backward pass that are away. Copies run beside the kernels: one there is given the
    time of what is computed until `left`, and one back begins when the array before it has been asked for.

    All of it belongs to the pass: where that breaks, nothing stays.
    """

    def __init__(self, device: Device):
        self.device = device
        self._waiting: list[Absent] = []  # the last one comes back first

    def leave(self, array: Any) -> Callable[[], Any]:
        """Begins to copy an array there; what is returned gives it back, in a new one."""
        absent = Absent(array.shape, array.dtype, self.device.send(array))
        self._waiting.append(absent)
        return partial(self._back, absent)

    def left(self) -> None:
        """From here on, what is leaving may be dropped."""
        self.device.await_copies()

    def _back(self, absent: Absent) -> Any:
        last = self._waiting.pop()
        assert last is absent, "arrays come back in reverse order"
        self._begin(absent)
        self.device.await_copies()
        if self._waiting:
            self._begin(self._waiting[-1])
        return absent.array

    def _begin(self, absent: Absent) -> None:
        if absent.array is None:
            absent.array = self.device.empty(absent.shape, absent.dtype, "activations")
            self.device.fetch(absent.array, absent.sent)
