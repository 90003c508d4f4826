"""Products in bf16 on the CPU's matrix unit: packed operands, sums in float32, and what is done with them.

A product is out (M, N) = a (M, K) b (K, N), its operands rounded to bf16 and packed as packing.py says.

**Tasks.** A worker takes some panels of `a`, as many as leave room in its L2 cache and fewer towards the end, packed by
itself or by whoever made them, and multiplies them by all of b, which is packed before, or, where `a` is short and at
the end, by a part. It goes over b panel by panel, and a block's 32 x 32 sums stay in the unit's registers over all of
K. The first 32 KiB of b's panel stay in L1, the rest of it and a's panels come from L2 each time, by loads that leave
L1 to others: that is what L2 gives while the unit multiplies. (Chunks of K that have room in L1, their sums stored and
loaded again between them, were 9 % slower at K = 768 and 5 % at 1,700.) Every step also asks for a few lines of b's
next panel. Each element is summed over K in order by one worker, so the number of threads changes no bit.

**A long K** is taken in portions, one after the other over all of a task's blocks, whose sums are kept between: L2
then has room for the portions of more panels, and b, which comes from L3 for every task, does so less often. Where L3
adds its time to the unit's, whatever is asked for ahead, K = 3,072 in halves takes 0.85 of the time, elsewhere as long
as whole; 1,700 as long anywhere.

**Finishing.** What happens to a row of sums is a function given to `product`, such as `_round_row`. The rows of a block
leave between the unit's instructions while the next block is multiplied. Before that the block's place in the result is
asked for: its rows lie in as many pages, and a store that finds its page's address untranslated waits. (With
one core, 1,681 x 768 by 768 x 3,072: 12.1 ms without asking, 6.2 with, 5.6 where blocks lie whole, 5.0 for no result.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from minibert.kernels.common import halves, lanes, masks, tiles
from minibert.kernels.common.packing import (
    ALL,
    BLOCK,
    LINE,
    SIDE,
    STEP,
    TILE,
    address,
    columns,
    finishing,
    own_place,
    panels,
    strip_row,
)  # fmt: skip
from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.workers import Tasks

TALL = 8  # panels of a that are worth packing
FEWEST = 8  # panels of the last tasks, if there are enough: b is read from L3 or memory for each
LAST = 2  # tasks that are cut in two, for each worker but one
NEAR = 1 << 15  # bytes of a panel of b that stay in L1
KEPT = 3 << 18  # bytes of packed rows that a worker keeps in its L2 cache, if one panel is no more
DEEP = 144 << 10  # bytes of a panel in a portion of K
AWAKE = 6  # turns after which a tile is stored for nothing: a store that comes 2,600 cycles after the last costs 1,000

# Turns of a step: which parts of a and of b are multiplied, and whether each is another than before. Three parts take
# this path because every turn but the first then loads one operand only; tiles from L2 cost as much time as products.
ONCE = ((0, 0, True, True),)
SPLIT = (
    (2, 0, True, True), (1, 0, True, False), (1, 1, False, True),
    (0, 1, True, False), (0, 2, False, True), (0, 0, False, True),
)  # fmt: skip


def linear(out: np.ndarray) -> Callable:
    """The kernel of out (M, N) = a b + addend[m * stride + n]; places: (unstripped(out), addend, stride)."""
    if out.ndim == 3:
        return _strips_product
    return _rounded_product if out.dtype == np.uint16 else _float_product


def gradient(dw: np.ndarray, add: bool) -> tuple[Callable, tuple]:
    """The kernel of dw += a b or dw = a b, and its places."""
    return (_float_product, (dw, dw.reshape(-1), dw.shape[1])) if add else (_streamed_product, (dw,))


def clear(add: bool, *gradients: np.ndarray) -> None:
    """These without a token: as they are, or zero."""
    if not add:
        for dw in gradients:
            dw.fill(0)


def multiply(
    kernel: Callable,
    places: tuple,
    pack: Callable | None,
    source: tuple,
    b: np.ndarray,
    own: np.ndarray,
) -> None:
    """All of a product by a `kernel` made by `product`. pack(worker, task, ..., tasks, own, kept, steps, *source) packs
    a task's panels of a into what is the worker's `own` from byte `kept` on; None: source[0] is a, packed.
    """
    (wide, steps, size), tall = b.shape, panels(places[0].shape[0])
    most = min(tall, _most(size // BLOCK * steps))
    tasks, table = _tasks(tall, wide, most, cpu.threads())
    kept = _sums_bytes(most, wide, size // BLOCK * steps)
    a = 0 if pack else source[0].ctypes.data
    multiplies = kernel, (table, places, a, b, own, kept, tiles.configuration())
    if pack:
        cpu.launch(tasks, (pack, (table, own, kept, steps, *source)), multiplies)
    else:
        cpu.launch(tasks, multiplies)


@lru_cache(256)
def _tasks(tall: int, wide: int, most: int, workers: int) -> tuple[Tasks, np.ndarray]:
    """Tasks, each by its number, and a table (top, bottom, left, right): a's panels top to bottom times b's left to
    right. All of b but where `a` is short, and for the last tasks, whose end the other workers wait for.
    """
    short = tall < TALL * workers
    fewest = max(1, min(FEWEST, tall // (3 * workers)))
    pieces = cpu.helpings(tall, 1 if short and wide > 1 else workers, fewest, most)
    whole = 0 if short else len(pieces) - LAST * (workers - 1)
    cuts = [1 if n < whole else min(workers if short else 2, workers, wide) for n in range(len(pieces))]
    table = [
        (*piece, cut * wide // many, (cut + 1) * wide // many)
        for piece, many in zip(pieces, cuts, strict=True)
        for cut in range(many)
    ]
    return Tasks([(n, n + 1) for n in range(len(table))]), np.array(table, np.int64).reshape(-1, 4)


def _portions(steps: int) -> int:
    """How many K is taken in."""
    return max(1, -(-steps * STEP // DEEP))


def _most(steps: int) -> int:
    """How many panels of a make a task at most."""
    return max(1, KEPT * _portions(steps) // (STEP * max(steps, 1)))


def _sums_bytes(tall: int, wide: int, steps: int) -> int:
    """What a worker needs for sums: those of one block, or, between portions of K, of all; and the tile for nothing."""
    return TILE + 4 * BLOCK * (1 if _portions(steps) == 1 else tall * wide)


@lru_cache(256)
def own_bytes(t: int, f: int, c: int) -> int:
    """What a worker needs for a layer's products."""
    return max(task_bytes(*map(panels, sizes)) for sizes in ((t, f, c), (t, c, f), (f, c, t)))


def task_bytes(tall: int, wide: int, steps: int) -> int:
    """What a worker needs for its panels of a, which is not less for more of them so that scratch finds room where a
    smaller batch's was, and for their sums.
    """
    most, panel = min(tall, _most(steps)), STEP * steps
    return min(tall * panel, max(panel, KEPT * _portions(steps))) + _sums_bytes(most, wide, steps)


def product(fetch: Callable, finish: Callable, turns: tuple[tuple[int, int, bool, bool], ...] = ONCE) -> Callable:
    """The kernel out = finish(a b), for one of `_tasks`: `finish(places, row, m, n, mask)` gets the address of 32 sums,
    on a line, which are those of row m and the columns from n on that have a bit in mask; `fetch(places, m, n)` is
    called before a 32 x 32 block is multiplied and asks for what `finish` will read and write. `places`, a tuple, is
    theirs, places[0] being (M, N). `turns` are those of a step. The kernel's `a` is where all of it is packed, or 0:
    then its panels are in the worker's `own` from byte `kept` on, where the sums end.
    """
    parts, count = 1 + max(turn[0] for turn in turns), len(turns)
    step_bytes = parts * STEP
    near, awake = NEAR // step_bytes, max(1, AWAKE // count)

    @jit
    def multiply(worker, begin, end, tasks, places, a, b, own, kept, config):
        top, bottom, left, right = tasks[begin]
        steps = b.shape[1]
        tall, panel = bottom - top, step_bytes * steps
        nowhere = own_place(own, worker)
        sums = nowhere + TILE
        a_from = nowhere + kept if a == 0 else a + top * panel
        lines, portions = -(-parts * SIDE // (count * tall)), max(1, -(-panel // DEEP))
        # The block before: its sums' address, its rows that have not left, the first of them, its columns.
        done, rows, m, n, mask = sums, 0, 0, 0, 0
        unit = tiles.configure(address(config))
        for portion in range(portions):
            first, last = portion * steps // portions, (portion + 1) * steps // portions
            at, turns_here = sums, count * (last - first)
            for j in range(left, right):
                b_from = address(b) + j * panel + first * step_bytes
                ahead = b_from + panel
                for i in range(tall):
                    if last == steps:
                        fetch(places, (top + i) * SIDE, j * SIDE)
                    if first == 0:
                        _zero_sums(unit)
                    else:
                        _load_sums(unit, at)
                    a_at, b_at, leaving, due = a_from + i * panel + first * step_bytes, b_from, rows, 0
                    for step in range(last - first):
                        for part_a, part_b, new_a, new_b in turns:
                            _turn(unit, a_at + part_a * STEP, b_at + part_b * STEP, new_a, new_b, step < near)
                            due += leaving
                            while due >= turns_here:
                                due -= turns_here
                                finish(places, done, m, n, mask)
                                done, rows, m = done + 4 * SIDE, rows - 1, m + 1
                            for line in range(lines):
                                tiles.prefetch(ahead + line * LINE)
                            ahead += lines * LINE
                        if step % awake == awake - 1:
                            tiles.store(unit, 4, nowhere, LINE)
                        a_at += step_bytes
                        b_at += step_bytes
                    _store_sums(unit, at)
                    if last == steps:
                        done, m, n, mask = at, (top + i) * SIDE, j * SIDE, columns(places[0], j)
                        rows = min(SIDE, places[0].shape[0] - m)
                    if portions > 1:
                        at += 4 * BLOCK
        for row in range(rows):
            finish(places, done + row * 4 * SIDE, m + row, n, mask)
        tiles.fence()  # for what has left past the caches
        tiles.release(unit)

    return multiply


@inlined
def _turn(unit, a, b, new_a, new_b, near):
    """The sums += a block of a times a block of b, which are in tiles already unless new; b's stays in L1 if `near`."""
    if new_a:
        tiles.load_once(unit, 4, a, LINE)
    if new_b:
        if near:
            tiles.load(unit, 6, b, LINE)
        else:
            tiles.load_once(unit, 6, b, LINE)
    tiles.dot(unit, 0, 4, 6)
    if new_b:
        if near:
            tiles.load(unit, 7, b + TILE, LINE)
        else:
            tiles.load_once(unit, 7, b + TILE, LINE)
    tiles.dot(unit, 1, 4, 7)
    if new_a:
        tiles.load_once(unit, 5, a + TILE, LINE)
    tiles.dot(unit, 2, 5, 6)
    tiles.dot(unit, 3, 5, 7)


@inlined
def _zero_sums(unit):
    tiles.zero(unit, 0)
    tiles.zero(unit, 1)
    tiles.zero(unit, 2)
    tiles.zero(unit, 3)


@inlined
def _load_sums(unit, at):
    tiles.load(unit, 0, at, 4 * SIDE)
    tiles.load(unit, 1, at + LINE, 4 * SIDE)
    tiles.load(unit, 2, at + STEP, 4 * SIDE)
    tiles.load(unit, 3, at + STEP + LINE, 4 * SIDE)


@inlined
def _store_sums(unit, at):
    tiles.store(unit, 0, at, 4 * SIDE)
    tiles.store(unit, 1, at + LINE, 4 * SIDE)
    tiles.store(unit, 2, at + STEP, 4 * SIDE)
    tiles.store(unit, 3, at + STEP + LINE, 4 * SIDE)


@finishing
def fetch_block(x, m, n):
    """Asks for the 32 x 32 elements of x from (m, n) on."""
    at, row = address(x) + x.itemsize * (m * x.shape[1] + n), x.itemsize * x.shape[1]
    tiles.prefetch_rows(at, row, SIDE, SIDE * x.itemsize // LINE)


@finishing
def fetch_nothing(places, m, n):
    pass


@finishing
def fetch_result(places, m, n):
    fetch_block(places[0], m, n)


@finishing
def _plus(places, row, m, n, mask):
    """32 sums + addend[m * stride + n]: the first 16, the last 16."""
    _, addend, stride = places
    plus = address(addend) + 4 * (m * stride + n)
    lower = lanes.load(row) + masks.load_some(plus, mask)
    return lower, lanes.load(row + LINE) + masks.load_some(plus + LINE, mask >> 16)


@finishing
def _round_row(places, row, m, n, mask):
    """out[m, n] = sum + addend, in bf16"""
    out = places[0]
    lower, upper = _plus(places, row, m, n, mask)
    halves.store_some_bf16(address(out) + 2 * (m * out.shape[1] + n), halves.to_row(lower, upper), mask)


@finishing
def _strip_row(places, row, m, n, mask):
    """The same where out is in strips, past the caches: nobody has to read what is overwritten"""
    lower, upper = _plus(places, row, m, n, mask)
    lanes.stream(strip_row(places[0], m, n), halves.to_row(lower, upper))


@finishing
def float_row(places, row, m, n, mask):
    """out[m, n] = sum + addend"""
    out = places[0]
    lower, upper = _plus(places, row, m, n, mask)
    at = address(out) + 4 * (m * out.shape[1] + n)
    masks.store_some(at, lower, mask)
    masks.store_some(at + LINE, upper, mask >> 16)


@finishing
def _stream_row(places, row, m, n, mask):
    """out[m, n] = sum, past the caches where these are lines of memory: nobody reads it soon"""
    out = places[0]
    at = address(out) + 4 * (m * out.shape[1] + n)
    if mask == ALL and at % LINE == 0:
        lanes.stream(at, lanes.load_words(row))
        lanes.stream(at + LINE, lanes.load_words(row + LINE))
    else:
        masks.store_some(at, lanes.load(row), mask)
        masks.store_some(at + LINE, lanes.load(row + LINE), mask >> 16)


_rounded_product = product(fetch_result, _round_row)
_strips_product = product(fetch_nothing, _strip_row)
_float_product = product(fetch_result, float_row)
_streamed_product = product(fetch_nothing, _stream_row)
