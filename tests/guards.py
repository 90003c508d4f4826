"""Copies of arrays for a kernel that is played, where it is found if it touches what lies beyond them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

VECTOR = 16  # bytes of the widest access; copies stand as the arrays do towards it
NOBODY = 0  # PROT_NONE
_LIBC = ctypes.CDLL(None)


class Place(NamedTuple):
    """Where an array is, without keeping it there."""

    low: int
    size: int
    writeable: bool

    @classmethod
    def of(cls, array: np.ndarray) -> Place:
        return cls(array.ctypes.data, array.nbytes, array.flags.writeable)


@contextmanager
def guarded(places: Sequence[Place]) -> Iterator[list[int]]:
    """The addresses of copies, which go back to their places at the end; where places overlap, so do the copies.

    Touching anything 16 bytes past the end of a place, or further, ends the process with SIGSEGV. AssertionError at
    the end if something was written less far from it, or before it.
    """
    spans: list[tuple[int, int]] = []
    for low, size, _ in sorted(places):
        if spans and low < spans[-1][1]:
            spans[-1] = spans[-1][0], max(low + size, spans[-1][1])
        else:
            spans.append((low, low + size))
    rooms = [_Room(*span) for span in spans]
    copies = [p.low + next(room.shift for room in rooms[::-1] if room.low <= p.low) for p in places]
    yield copies
    assert all(room.clean() for room in rooms), "wrote outside of its arrays"
    for place, copy in zip(places, copies, strict=True):
        if place.writeable:
            ctypes.memmove(place.low, copy, place.size)


class _Room:
    """Pages of its own with a copy of what lies between two addresses, up to a page that cannot be touched."""

    def __init__(self, low: int, high: int):
        self.low = low
        self.end = -(-(high - low + VECTOR) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.stop = self.end - (self.end - high) % VECTOR
        self.start = self.stop - (high - low)
        self.memory = mmap.mmap(-1, self.end + mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        assert _LIBC.mprotect(ctypes.c_void_p(base + self.end), ctypes.c_size_t(mmap.PAGESIZE), NOBODY) == 0
        self.shift = base + self.start - low
        ctypes.memmove(base + self.start, low, high - low)

    def clean(self) -> bool:
        """Whether nothing was written around the copy."""
        return not (self.memory[: self.start] + self.memory[self.stop : self.end]).strip(b"\0")
