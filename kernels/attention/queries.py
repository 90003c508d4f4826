"""What attention on the CPU does alike in float32 and bf16: scratch, tasks, and dropout's bits of 16 queries."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import lanes
from minibert.kernels.common.packing import LINE
from minibert.kernels.common.philox_lanes import philox4x32
from minibert.kernels.devices.compiling import inlined
from minibert.kernels.devices.cpu import threads

from .blocks import BLOCK


def shares(scratch: np.ndarray, share: int) -> np.ndarray:
    """Each worker's `share` bytes of the scratch, on a line: uint8 (threads, share). ValueError if there are fewer."""
    lines = scratch[-scratch.ctypes.data % LINE :]
    if lines.size < threads() * share:
        raise ValueError(f"{lines.size} bytes of scratch, {threads() * share} needed: was `workspace` asked before?")
    return lines[: threads() * share].reshape(threads(), share)


def longest_of(offsets: np.ndarray) -> int:
    """The longest sequence's tokens."""
    return int(np.diff(offsets).max(initial=0))


@inlined
def task_of(task, heads, offsets):
    """The head, the sequence's first row, and its length."""
    first, end = np.intp(offsets[task // heads]), np.intp(offsets[task // heads + 1])
    return task % heads, first, end - first


@inlined
def draw(words, first, length, head, example, dropout):
    """For 16 queries from `first` on a word each for every pair of keys, at `pair_at`, the even key's bits below.
    `words` is on a line; as many blocks as keys take get their first tile filled, or part of it.

    One call of Philox has those of the queries q and q + 8 and of the keys k, k + 1, k + 8 and k + 9 (philox.py).
    """
    _, _, key0, key1, stream = dropout
    example = lanes.longs(np.uint64(example), np.uint64(0))
    stream = lanes.longs(np.uint64(stream), np.uint64(0))
    queries = lanes.longs(np.uint64(head << 16 | first // 2), np.uint64(1))
    for call in range((length + 15) // 16 * 4):
        keys = lanes.longs(np.uint64(call), np.uint64(0))
        near, near8, far, far8 = philox4x32(keys, queries, example, stream, key0, key1)
        to = pair_at(words, call // 4 * 8 + call % 4)
        lanes.store(to, lanes.lower_halves(near, near8))
        lanes.store(to + 4 * LINE, lanes.lower_halves(far, far8))


@inlined
def pair_at(tile, pair):
    """Where a pair of keys stands, in the tile at `tile` or in that of a later block."""
    return tile + pair // 16 * BLOCK + pair % 16 * LINE
