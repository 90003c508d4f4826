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
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import Block, host

PAGE = mmap.PAGESIZE
HUGE = (1 << 21) // PAGE
LEAST = (1 << 26) // PAGE  # of a mapping, where memory is not short: short ones leave ends that nothing fits into
# Private: limits count nothing else, and only that becomes huge pages and is let go of by `madvise`.
FLAGS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


@dataclass
class Mapping:
    """Pages from `first` up to `end`, and which of them are touched. A page's number is its address in pages."""

    first: int
    end: int
    memory: mmap.mmap
    touched: np.ndarray


class Pages:
    """All mappings, and the holes in them, which reach across mappings that lie side by side, as Linux places them,
    each below the one before. A page is touched once it was part of a block, until the system has it back; `idle` is
    how many bytes of holes are.
    """

    def __init__(self) -> None:
        self._mappings: list[Mapping] = []  # by their addresses
        self._holes: dict[int, int] = {}  # from the first page to the one after the last
        self._starts: dict[int, int] = {}  # and the other way round
        self._returns = hasattr(mmap, "MADV_DONTNEED")  # whether the system takes pages back
        self.idle = 0

    def take(self, nbytes: int) -> Block:
        """Whole pages for so many bytes: `memory` is their address, `touched` how much of them was. MemoryError where
        the system has none.
        """
        count = -(-nbytes // PAGE)
        fitting = [(end - start, start) for start, end in self._holes.items() if end - start >= count]
        start = min(fitting)[1] if fitting else self._map(count)
        end = self._fill(start)
        if end - count > start:  # from the end, so that what is left lies beside the next mapping
            self._dig(start, end - count)
        block, idle = Block(count * PAGE, (end - count) * PAGE), 0
        block.address = block.memory
        for mapping, low, high in self._pieces(end - count, end):
            touched = mapping.touched[low:high]
            idle += (before := int(np.count_nonzero(touched)))
            if before < high - low:
                touched.fill(True)
                _enlarge(mapping, low, high)
        block.touched = idle * PAGE
        self.idle -= block.touched
        return block

    def give(self, block: Block) -> None:
        """A hole where the block was, as one with those beside it."""
        self.idle += block.size
        self._open(block.memory // PAGE, (block.memory + block.size) // PAGE)

    def shrink(self, idle: int) -> int:
        """Lets the system have touched pages of holes, the longest first, until `idle` bytes are; how many it got."""
        before = self.idle
        for start, end in sorted(self._holes.items(), key=lambda hole: hole[0] - hole[1]):
            if self.idle > idle and self._returns:
                touched = np.concatenate([mapping.touched[low:high] for mapping, low, high in self._pieces(start, end)])
                many = -(-(self.idle - idle) // PAGE)
                if touched[-many:].all():  # as most often, and a long hole's numbers take long to list
                    self._return(max(start, end - many), end)
                elif len(which := np.flatnonzero(touched)):
                    self._return(start + int(which[-many:][0]), start + int(which[-1]) + 1)
        return before - self.idle

    def unmap(self) -> int:
        """Lets go of mappings that nothing is in; of how many touched bytes."""
        before = self.idle
        for mapping in list(self._mappings):
            for start, end in list(self._holes.items()):
                if start <= mapping.first and mapping.end <= end:
                    self._fill(start)
                    for left, right in ((start, mapping.first), (mapping.end, end)):
                        if left < right:
                            self._dig(left, right)
                    self._mappings.remove(mapping)
                    self.idle -= int(np.count_nonzero(mapping.touched)) * PAGE
        return before - self.idle

    def _map(self, count: int) -> int:
        """Another mapping: longer than `count` pages, where memory is not short. Where its hole begins."""
        longer = max(LEAST, sum(mapping.end - mapping.first for mapping in self._mappings) // 8)
        lengths = [longer] if count < longer and 8 * PAGE * longer < (host.available() or 0) else []
        for length in (*lengths, count):
            with contextlib.suppress(OSError):
                memory = mmap.mmap(-1, length * PAGE, **FLAGS)
                break
        else:
            raise MemoryError(f"no {count * PAGE} bytes more")
        first = np.frombuffer(memory, np.uint8).ctypes.data // PAGE
        mapping = Mapping(first, first + length, memory, np.zeros(length, bool))
        self._mappings.insert(bisect_right(self._mappings, first, key=_first), mapping)
        return self._open(first, first + length)

    def _return(self, start: int, end: int) -> None:
        for mapping, low, high in self._pieces(start, end):
            try:
                mapping.memory.madvise(mmap.MADV_DONTNEED, low * PAGE, (high - low) * PAGE)
            except OSError:  # locked in memory
                self._returns = False
                return
            self.idle -= int(np.count_nonzero(mapping.touched[low:high])) * PAGE
            mapping.touched[low:high] = False

    def _pieces(self, start: int, end: int) -> Iterator[tuple[Mapping, int, int]]:
        """The mappings that these pages lie in, with where in each."""
        which = bisect_right(self._mappings, start, key=_first) - 1
        while start < end:
            mapping = self._mappings[which]
            yield mapping, start - mapping.first, min(end, mapping.end) - mapping.first
            start, which = mapping.end, which + 1

    def _open(self, start: int, end: int) -> int:
        """A hole here, as one with those beside it; where it begins."""
        if end in self._holes:
            end = self._fill(end)
        if start in self._starts:
            start = self._starts[start]
            self._fill(start)
        self._dig(start, end)
        return start

    def _dig(self, start: int, end: int) -> None:
        self._holes[start], self._starts[end] = end, start

    def _fill(self, start: int) -> int:
        end = self._holes.pop(start)
        del self._starts[end]
        return end


def _first(mapping: Mapping) -> int:
    return mapping.first


def _enlarge(mapping: Mapping, low: int, high: int) -> None:
    """Asks for huge pages, of which there are fewer to hand out, where they lie within these pages of a mapping: one
    that reached beyond would take more memory than is counted.
    """
    low, high = -(-(mapping.first + low) // HUGE) * HUGE, (mapping.first + high) // HUGE * HUGE
    if low < high:
        with contextlib.suppress(AttributeError, OSError):  # where the system has none
            mapping.memory.madvise(mmap.MADV_HUGEPAGE, (low - mapping.first) * PAGE, (high - low) * PAGE)
