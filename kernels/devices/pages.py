"""Pages: the host's memory for large arrays, cut from long mappings wherever an array fits, and found there again.

The system clears each page that it hands out, which takes a virtual machine longer than most kernels need to fill it.
So what one step leaves the next one should find, though no two batches have as many tokens: an array takes the
smallest hole that is large enough, whatever was there before. Where a kept block served arrays of its size alone, half
of the pages of a step of MRPC's batches were new.
"""

from __future__ import annotations

import contextlib
import mmap
from bisect import bisect_right

import numpy as np

from . import Block, host

PAGE = mmap.PAGESIZE
LEAST = 1 << 26  # bytes of a mapping, where the system has them: short ones leave ends that nothing fits into
# Private: limits count nothing else, and only that becomes huge pages and is let go of by `madvise`.
FLAGS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Span(Block):
    """Whole pages, numbered from `start` on. Mappings are numbered one after the other, with a page between that is in
    none, so that no span reaches from one into the next.
    """

    __slots__ = ("start",)

    def __init__(self, start: int, memory: np.ndarray):
        super().__init__(memory.size, memory)
        self.start = start


class Pages:
    """All mappings, and the holes in them. A page is touched once it was part of a span, until the system has it back;
    `idle` is how many bytes of holes are.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []  # the mappings' first pages
        self._mappings: list[mmap.mmap] = []
        self._memory: list[np.ndarray] = []  # the same as bytes
        self._holes: dict[int, int] = {}  # from the first page to the one after the last
        self._starts: dict[int, int] = {}  # and the other way round
        self._touched = np.zeros(0, bool)
        self.idle = 0

    def take(self, nbytes: int) -> Span:
        """Memory for so many bytes; `touched` says how many of them were. MemoryError where the system has none."""
        count = -(-nbytes // PAGE)
        fitting = [(end - start, start) for start, end in self._holes.items() if end - start >= count]
        start = min(fitting)[1] if fitting else self._map(count)
        hole = self._fill(start)
        end = start + count
        if hole > end:
            self._dig(end, hole)
        which = self._mapping(start)
        at = (start - self._firsts[which]) * PAGE
        span = Span(start, self._memory[which][at : at + count * PAGE])
        touched = self._touched[start:end]
        span.touched = int(np.count_nonzero(touched)) * PAGE
        if span.touched < span.size:
            touched.fill(True)
        self.idle -= span.touched
        return span

    def give(self, span: Span) -> None:
        """A hole where the span was, as one with those beside it."""
        start, end = span.start, span.start + span.size // PAGE
        self.idle += span.size
        if end in self._holes:
            end = self._fill(end)
        if start in self._starts:
            start = self._starts[start]
            self._fill(start)
        self._dig(start, end)

    def shrink(self, idle: int) -> int:
        """Lets the system have touched pages of holes, the longest first, until `idle` bytes are; how many it got."""
        before = self.idle
        for start, end in sorted(self._holes.items(), key=lambda hole: hole[0] - hole[1]):
            if self.idle > idle and len(touched := np.flatnonzero(self._touched[start:end])):
                many = -(-(self.idle - idle) // PAGE)
                self._return(start + int(touched[-many:][0]), start + int(touched[-1]) + 1)
        return before - self.idle

    def unmap(self) -> None:
        """Lets go of mappings that nothing is in, once `shrink` has emptied them."""
        for which in reversed(range(len(self._mappings))):
            first, end = self._firsts[which], self._firsts[which] + len(self._mappings[which]) // PAGE
            if self._holes.get(first) == end:
                self._fill(first)
                del self._firsts[which], self._mappings[which], self._memory[which]

    def _map(self, count: int) -> int:
        """Another mapping: longer than `count` pages, where memory is not short."""
        nbytes = count * PAGE
        longer = max(LEAST, sum(len(mapping) for mapping in self._mappings) // 8 // PAGE * PAGE)
        if longer > nbytes and 8 * longer < (host.available() or 0):
            nbytes = longer
        try:
            mapping = mmap.mmap(-1, nbytes, **FLAGS)
        except OSError as error:
            raise MemoryError(f"no {nbytes} bytes more") from error
        with contextlib.suppress(AttributeError, OSError):  # where the system has huge pages: fewer to hand out
            mapping.madvise(mmap.MADV_HUGEPAGE)
        first, end = len(self._touched), len(self._touched) + nbytes // PAGE
        self._touched = np.append(self._touched, np.zeros(end + 1 - first, bool))
        self._firsts.append(first)
        self._mappings.append(mapping)
        self._memory.append(np.frombuffer(mapping, np.uint8))
        self._dig(first, end)
        return first

    def _return(self, start: int, end: int) -> None:
        which = self._mapping(start)
        at = (start - self._firsts[which]) * PAGE
        with contextlib.suppress(AttributeError, OSError):  # a system that does not take pages back
            self._mappings[which].madvise(mmap.MADV_DONTNEED, at, (end - start) * PAGE)
            self.idle -= int(np.count_nonzero(self._touched[start:end])) * PAGE
            self._touched[start:end] = False

    def _mapping(self, page: int) -> int:
        return bisect_right(self._firsts, page) - 1

    def _dig(self, start: int, end: int) -> None:
        self._holes[start], self._starts[end] = end, start

    def _fill(self, start: int) -> int:
        end = self._holes.pop(start)
        del self._starts[end]
        return end
