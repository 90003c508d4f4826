"""Devices that record what is asked of them, and do it again as one: a launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import Block, Device, Lease


class Refused(Exception):
    """The device does not record a call, of which nothing has been done."""


class Recording(NamedTuple):
    """`launch()` does again what was recorded, on the arrays that it was recorded with; `result` is theirs."""

    launch: Callable[[], None]
    result: Any


class Recorder(Device):
    """What a call takes while it is recorded is kept for recordings alone: later launches write there unannounced. They
    share it, since one runs after the other; what has to outlive the call is part of its result.
    """

    def __init__(self, backend: str):
        super().__init__(backend)
        self._apart_kept: dict[int, list[Block]] = {}
        self._apart_bytes = 0
        self._recording = False
        self.generation = 0  # of recordings: those of an earlier one have lost their memory

    def record(self, call: Callable[[], Any]) -> Recording:
        """Records what call() asks of the device, without doing it. Refused, where the device does not take it."""
        with self._apart():
            return self._capture(call)

    @property
    def recorded_bytes(self) -> int:
        """What is kept for recordings."""
        return self._apart_bytes

    @property
    def recording_takes(self) -> int:
        """What one of the last calls may take beyond that: what they have left behind."""
        return max(0, self._kept_bytes - self._apart_bytes)

    def forget_recordings(self) -> None:
        """Gives back what was kept for them; none of this generation may be launched any more."""
        self.generation += 1
        self.resident -= sum(block.touched for blocks in self._apart_kept.values() for block in blocks)
        self._apart_kept, self._apart_bytes = {}, 0

    def _capture(self, call: Callable[[], Any]) -> Recording:
        raise NotImplementedError

    @contextmanager
    def _apart(self) -> Iterator[None]:
        self._swap()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            self._swap()

    def _swap(self) -> None:
        self._kept, self._apart_kept = self._apart_kept, self._kept
        self._kept_bytes, self._apart_bytes = self._apart_bytes, self._kept_bytes

    def _block(self, nbytes: int, kind: str) -> Block:
        block = super()._block(nbytes, kind)
        block.apart = self._recording
        return block

    def _give_back(self, lease: Lease) -> None:
        if lease.block.apart == self._recording:
            super()._give_back(lease)
            return
        self._swap()  # an array that has outlived its recording, or dies during another one
        super()._give_back(lease)
        self._swap()

    def _drop(self, room: int) -> None:
        if not self._recording:
            super()._drop(room)
