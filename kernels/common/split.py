"""Products in float32 on the CPU's matrix unit: each number as the sum of three bf16.

A float32 has 24 bits and a bf16 has 8, so with roundings to nearest

    x = x1 + x2 + x3,    x1 = bf16(x),    x2 = bf16(x - x1),    x3 = x - x1 - x2        exactly

    x y = x1 y1 + (x1 y2 + x2 y1) + (x1 y3 + x2 y2 + x3 y1) + at most about 2^-24 |x y|

A product of two bf16 is exact in float32, so what the six lose is the rounding of their sums, as in any product of
float32; and they take half of BLAS's time. Parts are packed for each call, three blocks one after the other where
packing.py has one: those of a weight, kept for both of its products, would take three times its bytes.

With a K of no more than LONG several panels of `a`, in parts, fit into L2, and errors stay those of short sums: in one
piece 3,072 gave twice the error of NumPy, in portions of 768 less than NumPy's.

**Range.** Parts and products below 2^-126, the smallest normal number, count as zero: x has all its bits from 2^-103
on, and so has its product with y where |x y| >= 2^-102. Finite numbers stay finite; an infinite one has no remainder
and becomes NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minibert.kernels.common import halves, lanes, masks, packing, products, tiles
from minibert.kernels.common.packing import LINE, NEAR, SIDE, STEP, TILE, Room, address, columns, own_place, panels
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run

PARTS = 3
LONG = 768  # of K in a product
LARGEST = np.uint32(0x7F7F0000).view(np.float32)  # of bf16


def workspace(m: int, n: int, k: int) -> int:
    """Bytes of scratch for a product."""
    return packing.packed_bytes(n, k, PARTS) + cpu.threads() * _own_bytes(m, n, k) + 2 * LINE


def times_transposed(
    kernel: Callable, places: tuple, x: np.ndarray, w: np.ndarray, first: int, last: int, scratch: np.ndarray
) -> None:
    """The product x wᵀ over the columns first to last of both."""
    b, own = _operands(places[0].shape, last - first, scratch)
    run(_pack_transposed, len(b), b, w, first // SIDE)
    products.multiply(kernel, places, _pack_rows, (x, first // SIDE), b, own)


def times(
    kernel: Callable, places: tuple, x: np.ndarray, w: np.ndarray, first: int, last: int, scratch: np.ndarray
) -> None:
    """The product x w over x's columns, w's rows first to last."""
    b, own = _operands(places[0].shape, last - first, scratch)
    run(pack_pairs, b.shape[1], b, w, first // SIDE)
    products.multiply(kernel, places, _pack_rows, (x, first // SIDE), b, own)


def transposed_times(
    kernel: Callable,
    places: tuple,
    x: np.ndarray,
    y: np.ndarray,
    first: int,
    last: int,
    sums: np.ndarray,
    scratch: np.ndarray,
) -> None:
    """The product xᵀ y over the rows first to last of both; `sums`, unless empty, += those rows of x."""
    b, own = _operands(places[0].shape, last - first, scratch)
    run(pack_pairs, b.shape[1], b, y, first // SIDE)
    products.multiply(kernel, places, _pack_columns, (x, first // SIDE, sums), b, own)


def product(fetch: Callable, finish: Callable) -> Callable:
    """The kernel out = finish(a b) of operands in parts; see products.py."""
    return products.product(fetch, finish, products.SPLIT)


def _operands(shape: tuple[int, int], k: int, scratch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Room for b and for the workers' own."""
    tiles.configuration()  # or BackendError, before anything is compiled
    room = Room(scratch)
    return room.packed(shape[1], k, PARTS), room.own(_own_bytes(*shape, k))


def _own_bytes(m: int, n: int, k: int) -> int:
    """What a worker needs."""
    return products.task_bytes(panels(m), panels(n), PARTS * panels(k))


@jit
def _pack_rows(worker, begin, end, tasks, own, kept, steps, x, first):
    """Rows of x, those of a task of products.py, columns from step `first` on, as they lie."""
    top, bottom, _, _ = tasks[begin]
    a = own_place(own, worker) + kept
    for panel in range(bottom - top):
        for step in range(steps):
            to = a + (panel * steps + step) * PARTS * STEP
            _split_rows(to, x, top + panel, first + step)


@jit
def _pack_transposed(worker, begin, end, b, w, first):
    """Rows of w, panels begin to end, columns from step `first` on, as columns of b."""
    for panel in range(begin, end):
        for step in range(b.shape[1]):
            to = address(b) + (panel * b.shape[1] + step) * PARTS * STEP
            _split_rows(to, w, panel, first + step)
            _transpose(to)


@jit
def pack_pairs(worker, begin, end, b, x, first):
    """Steps begin to end: rows of x from step `first` on, two by two."""
    for step in range(begin, end):
        for panel in range(b.shape[0]):
            _split_pairs(address(b) + (panel * b.shape[1] + step) * PARTS * STEP, x, first + step, panel, 4 * LINE)


@jit
def _pack_columns(worker, begin, end, tasks, own, kept, steps, dy, first, dbias):
    """Columns of dy, a task's panels, rows from step `first` on, transposed; dbias += their sums, if it is wanted, in
    the first task of those panels.
    """
    top, bottom, left, _ = tasks[begin]
    adds, a = left == 0 and dbias.size > 0, own_place(own, worker) + kept
    sums = stack_words(NEAR * SIDE)
    for near in range(0, bottom - top, NEAR):
        last = min(near + NEAR, bottom - top)
        sums[:] = 0
        for step in range(steps):
            for panel in range(near, last):
                to = a + (panel * steps + step) * PARTS * STEP
                lower, upper = _split_pairs(to, dy, first + step, top + panel, 4 * SIDE * dy.shape[1])
                sum_at = address(sums) + (panel - near) * 2 * LINE
                lanes.store(sum_at, lanes.load(sum_at) + lower)
                lanes.store(sum_at + LINE, lanes.load(sum_at + LINE) + upper)
                _transpose(to)
        for panel in range(near, last if adds else near):
            packing.add_sums(dbias, top + panel, address(sums) + (panel - near) * 2 * LINE)


@inlined
def _split_rows(to, x, panel, step):
    """The parts of a block, its rows as they lie."""
    mask = columns(x, step)
    for r in range(SIDE):
        first, second, third, _, _ = _parts(x, panel * SIDE + r, step, mask, 4 * SIDE * x.shape[1])
        at = to + r * LINE
        lanes.store(at, first)
        lanes.store(at + STEP, second)
        lanes.store(at + 2 * STEP, third)


@inlined
def _split_pairs(to, x, step, panel, ahead):
    """The parts of a block, its rows two by two; returns the sums of its columns. See `_parts` for `ahead`."""
    mask = columns(x, panel)
    lower = upper = lanes.splat(np.float32(0))
    for pair in range(SIDE // 2):
        even1, even2, even3, even_lower, even_upper = _parts(x, step * SIDE + 2 * pair, panel, mask, ahead)
        odd1, odd2, odd3, odd_lower, odd_upper = _parts(x, step * SIDE + 2 * pair + 1, panel, mask, ahead)
        at = to + pair * LINE
        lanes.store(at, halves.lower_pairs(even1, odd1))
        lanes.store(at + TILE, halves.upper_pairs(even1, odd1))
        lanes.store(at + STEP, halves.lower_pairs(even2, odd2))
        lanes.store(at + STEP + TILE, halves.upper_pairs(even2, odd2))
        lanes.store(at + 2 * STEP, halves.lower_pairs(even3, odd3))
        lanes.store(at + 2 * STEP + TILE, halves.upper_pairs(even3, odd3))
        lower, upper = lower + even_lower + odd_lower, upper + even_upper + odd_upper
    return lower, upper


@inlined
def _parts(x, row, panel, mask, ahead):
    """Of 32 columns of a row the three parts, and the numbers themselves; beyond x's edges zeros. Asks for what lies
    `ahead` bytes after them.
    """
    mask = mask if row < x.shape[0] else 0
    at = address(x) + 4 * row * x.shape[1] + 2 * panel * LINE
    tiles.prefetch(at + ahead)
    tiles.prefetch(at + LINE + ahead)
    lower, upper = masks.load_some(at, mask), masks.load_some(at + LINE, mask >> 16)
    first = halves.to_row(_bounded(lower), _bounded(upper))
    lower2, upper2 = lower - halves.lower_floats(first), upper - halves.upper_floats(first)
    second = halves.to_row(lower2, upper2)
    third = halves.to_row(lower2 - halves.lower_floats(second), upper2 - halves.upper_floats(second))
    return first, second, third, lower, upper


@inlined
def _bounded(x):
    """x, where a finite one would round to infinity the largest bf16; NaN stays."""
    return lanes.maximum(lanes.splat(-LARGEST), lanes.minimum(lanes.splat(LARGEST), x))


@inlined
def _transpose(at):
    """The six tiles of a block's parts."""
    for tile in range(2 * PARTS):
        tiles.transpose(at + tile * TILE)
