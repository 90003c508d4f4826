"""The linear layer in float32 on the CPU's matrix unit: each number as the sum of three bf16.

A float32 has 24 bits and a bf16 has 8, so with roundings to nearest

    x = x1 + x2 + x3,    x1 = bf16(x),    x2 = bf16(x - x1),    x3 = x - x1 - x2        exactly

    x y = x1 y1 + (x1 y2 + x2 y1) + (x1 y3 + x2 y2 + x3 y1) + at most about 2^-24 |x y|

A product of two bf16 is exact in float32, so what the six lose is the rounding of their sums, as in any product of
float32; and they take half of BLAS's time. Parts are packed for each call, three blocks one after the other where
common/packing.py has one: those of a weight, kept for both of its products, would take three times its bytes.

A long K is cut in portions that are added one after the other. Several panels of `a`, in parts, then fit into L2, and
errors stay those of short sums: in one piece 3,072 gave twice the error of NumPy, in portions of 768 less than NumPy's.

**Range.** Parts and products below 2^-126, the smallest normal number, count as zero: x has all its bits from 2^-103
on, and so has its product with y where |x y| >= 2^-102. Finite numbers stay finite; an infinite one has no remainder
and becomes NaN.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import halves, lanes, masks, packing, products, tiles
from minibert.kernels.common.packing import LINE, NEAR, SIDE, STEP, TILE, Room, address, columns, own_place, panels
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.cpu import run

PARTS = 3
LONG = 24  # steps of a portion of K
LARGEST = np.uint32(0x7F7F0000).view(np.float32)  # of bf16


def prepared_bytes(f: int, c: int) -> int:
    return 0


def prepare(prepared: np.ndarray, w: np.ndarray) -> None:
    """The products take w itself."""


def workspace(t: int, f: int, c: int) -> int:
    """Bytes of scratch: the parts of w or x, zeros for a bias, the workers' own."""
    packed = max(packing.packed_bytes(n, min(k, LONG * SIDE), PARTS) for n, k in ((f, c), (c, f), (c, t)))
    return packed + packing.whole_lines(4 * max(f, c)) + cpu.threads() * _own_bytes(t, f, c) + LINE


def _own_bytes(t: int, f: int, c: int) -> int:
    """What a worker needs."""
    products_of = ((m, n, portion) for m, n, k in ((t, f, c), (t, c, f), (f, c, t)) for portion in _portions(k))
    return max(products.task_bytes(panels(m), panels(n), PARTS * (last - first)) for m, n, (first, last) in products_of)


def forward(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None, scratch: np.ndarray) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    (t, f), c, room = y.shape, x.shape[1], Room(scratch)
    own = room.own(_own_bytes(t, f, c))
    places = y, room.zeros(f) if bias is None else bias, 0
    for first, last in _portions(c):
        b = Room(room.rest).packed(f, SIDE * (last - first), PARTS)
        run(pack_transposed, panels(f), b, w, first)
        products.multiply(split_product, places, pack_rows, (x, first), b, own)
        places = y, y.reshape(-1), f


def backward(
    dx: np.ndarray | None,
    dw: np.ndarray,
    dbias: np.ndarray | None,
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    add: bool,
    scratch: np.ndarray,
) -> None:
    tiles.configuration()  # or BackendError, before anything is compiled
    (t, f), c, room = dy.shape, x.shape[1], Room(scratch)
    if t == 0:
        products.clear(add, dw)
        return
    own, zeros = room.own(_own_bytes(t, f, c)), room.zeros(c)
    if dx is not None:
        places = dx, zeros, 0
        for first, last in _portions(f):
            b = Room(room.rest).packed(c, SIDE * (last - first), PARTS)
            run(pack_pairs, last - first, b, w, first)
            products.multiply(split_product, places, pack_rows, (dy, first), b, own)
            places = dx, dx.reshape(-1), c
    sums = zeros[:0] if dbias is None else dbias
    places = (dw, dw.reshape(-1), c) if add else (dw, zeros, 0)
    for first, last in _portions(t):
        b = Room(room.rest).packed(c, SIDE * (last - first), PARTS)
        run(pack_pairs, last - first, b, x, first)
        products.multiply(split_product, places, pack_columns, (dy, first, sums), b, own)
        places = dw, dw.reshape(-1), c


def _portions(k: int) -> list[tuple[int, int]]:
    """The steps of a K of k in even portions, none longer than LONG."""
    steps, count = panels(k), max(1, -(-panels(k) // LONG))
    return [(i * steps // count, (i + 1) * steps // count) for i in range(count)]


split_product = products.product(products.fetch_result, products.float_row, products.SPLIT)


@jit
def pack_rows(worker, begin, end, tasks, own, kept, steps, x, first):
    """Rows of x, those of a task of products.py, columns from step `first` on, as they lie."""
    top, bottom, _, _ = tasks[begin]
    a = own_place(own, worker) + kept
    for panel in range(bottom - top):
        for step in range(steps):
            to = a + (panel * steps + step) * PARTS * STEP
            _split_rows(to, x, top + panel, first + step)


@jit
def pack_transposed(worker, begin, end, b, w, first):
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
def pack_columns(worker, begin, end, tasks, own, kept, steps, dy, first, dbias):
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
