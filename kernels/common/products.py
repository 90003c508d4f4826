"""Products in bf16 on the CPU's matrix unit: operands packed into tiles, sums in float32, and what is done with them.

A product is out (M, N) = a (M, K) b (K, N). Its operands are rounded to bf16 and packed as common/tiles.py says.

**Packed** is an operand as uint16 (panels, steps, 1024): 32 of its rows, or columns, make a panel, 32 of K make a step,
and what a panel needs for a step is two tiles of 1 KiB, one after the other. Element (m, k) of `a` stands at
[m // 32, k // 32, m % 32 * 32 + k % 32]: 32 x 32 blocks, each in its natural order. Element (k, n) of `b` stands at
[n // 32, k // 32, n % 32 // 16 * 512 + k % 32 // 2 * 32 + n % 16 * 2 + k % 2]: 16 columns a tile, rows two by two.
Edges are filled with zeros, which change no sum. Operands start on 64-byte lines. Of an operand that is a sum of
several bf16, such as a float32 (matmul/cpu_split.py), every step has the blocks of all parts one after the other.

**Tasks.** A worker takes some panels of `a`, as many as leave room in its L2 cache and fewer towards the end, packed by
itself or by whoever made them, and multiplies them by all of b, which is packed before, or by a part where `a` is
short. It goes over b panel by panel and over K in chunks of about sixteen steps: a chunk of one of b's panels (32 KiB)
stays in L1 while a's stream past it from L2, by loads that leave L1 to others. That alone makes 96 % of what the unit
does from registers; sums that go to L2 and come back between chunks take it to 75 %, longer chunks, whose b has no room
in L1, as far. Every step also asks for a few lines of b's next panel. Each element is summed over K in order by one
worker, so the number of threads changes no bit.

**Finishing.** What happens to a row of sums is a function given to `product`, such as `_round_row`. It runs a row or
two a step between the unit's instructions: half of a block's rows as soon as the block is done, half when b's next
panel has come to it, so that all steps but those of a long K's middle have some. Before that the block's place in the
result is asked for: its rows lie in as many pages, and a store that finds its page's address untranslated waits. (With
one core, 1,681 x 768 by 768 x 3,072: 12.1 ms without asking, 6.2 with, 5.6 where blocks lie whole, 5.0 for no result.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numba.extending import register_jitable

from minibert.kernels.common import halves, lanes, masks, tiles
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices import cpu
from minibert.kernels.devices.cpu import inlined, jit, run

SIDE = 32  # rows of a panel; K of a step
BLOCK = SIDE * SIDE  # elements of a panel's step, and of the sums that the registers hold
STEP = 2 * BLOCK  # bytes of a panel's step
TILE = STEP // 2  # bytes of a tile
LINE = 64  # bytes
NEAR = 16  # panels whose columns are read together
TALL = 8  # panels of a that are worth packing
FEWEST = 4  # panels of the last tasks, if there are enough: b is read from memory for each
DEEP = 16  # steps of a chunk, about
KEPT = 1 << 20  # bytes of packed rows that a worker keeps in its L2 cache, if one panel is no more
ALL = (1 << SIDE) - 1  # a bit for each column of a panel

# Turns of a step: which parts of a and of b are multiplied, and whether each is another than before. Three parts take
# this path because every turn but the first then loads one operand only; tiles from L2 cost as much time as products.
ONCE = ((0, 0, True, True),)
SPLIT = (
    (2, 0, True, True), (1, 0, True, False), (1, 1, False, True),
    (0, 1, True, False), (0, 2, False, True), (0, 0, False, True),
)  # fmt: skip


def panels(n: int) -> int:
    """How many panels n rows make, or how many steps a K of n."""
    return -(-n // SIDE)


def packed_bytes(n: int, k: int, parts: int = 1) -> int:
    """Bytes of an operand with n rows (`a`) or columns (`b`)."""
    return parts * STEP * panels(n) * panels(k)


def linear(out: np.ndarray) -> Callable:
    """The kernel of out (M, N) = a b + addend[m * stride + n]; places: (out, addend, stride)."""
    return _rounded_product if out.dtype == np.uint16 else _float_product


def multiply(
    kernel: Callable,
    places: tuple,
    pack: Callable | None,
    source: tuple,
    b: np.ndarray,
    own: np.ndarray,
) -> None:
    """All of a product by a `kernel` made by `product`. pack(a, top, once, *source) packs a's panels from `top` on,
    and is told whether it is the only one to see them; None: source[0] is a, packed.
    """
    (wide, steps, size), tall, config = b.shape, panels(places[0].shape[0]), tiles.configuration()
    parts, workers = size // BLOCK, cpu.threads()
    cuts = min(workers, wide) if tall < TALL * workers else 1
    fewest = max(1, min(FEWEST, tall // (FEWEST * workers)))
    pieces = cpu.helpings(tall, 1 if cuts > 1 else workers, fewest, _most(parts * steps))

    def work(worker: int, top: int, bottom: int, cut: int) -> None:
        room = Room(own[worker])
        sums = room.floats(bottom - top, BLOCK)
        if pack is None:
            a = source[0][top:bottom]
        else:
            a = room.packed(SIDE * (bottom - top), SIDE * steps, parts)
            pack(a, top, cut == 0, *source)
        kernel(places, top, cut * wide // cuts, (cut + 1) * wide // cuts, a, b, sums, config)

    cpu.share([(*piece, cut) for piece in pieces for cut in range(cuts)], work)


def _most(steps: int) -> int:
    """How many panels of a make a task at most."""
    return max(1, KEPT // (STEP * max(steps, 1)))


def own_bytes(t: int, f: int, c: int) -> int:
    """What a worker needs for a layer's products."""
    return max(task_bytes(panels(m), panels(k)) for m, k in ((t, c), (t, f), (f, t)))


def task_bytes(tall: int, steps: int) -> int:
    """What a worker needs for its panels of a and their sums."""
    return min(tall, _most(steps)) * (STEP * steps + 4 * BLOCK)


@jit
def pack_rows(a, top, once, x):
    """Rows of x from panel `top` on, as they lie."""
    row = 2 * x.shape[1]
    for panel in range(a.shape[0]):
        for step in range(a.shape[1]):
            mask = columns(x, step)
            to = address(a) + (panel * a.shape[1] + step) * STEP
            at = address(x) + (top + panel) * SIDE * row + step * LINE
            rows = min(SIDE, x.shape[0] - (top + panel) * SIDE)
            for r in range(rows):
                tiles.prefetch(at + (SIDE + r) * row)  # of the next panel
                lanes.store(to + r * LINE, halves.load_some_bf16(at + r * row, mask))
            for r in range(rows, SIDE):
                lanes.store(to + r * LINE, lanes.splat(np.uint32(0)))


def _columns_packer(block: Callable) -> Callable:
    """The kernel that packs columns of dy (T, N) from panel `top` on, transposed, and adds their sums to dbias if it is
    wanted and `once`. block(dy, step, panel): where a block lies, the bytes from row to row, its columns and rows.
    """

    @jit
    def pack(a, top, once, dy, dbias):
        adds = once and dbias.size > 0
        sums = stack_words(NEAR * SIDE)
        for near in range(0, a.shape[0], NEAR):
            sums[:] = 0
            for step in range(a.shape[1]):
                for panel in range(near, min(near + NEAR, a.shape[0])):
                    to = address(a) + (panel * a.shape[1] + step) * STEP
                    at, row, mask, rows = block(dy, step, top + panel)
                    _pack_block(to, at, row, mask, rows, SIDE * row)
                    if adds:
                        _add_tokens(address(sums) + (panel - near) * 2 * LINE, to)
                    tiles.transpose(to)
                    tiles.transpose(to + TILE)
            for panel in range(near, min(near + NEAR, a.shape[0]) if adds else near):
                add_sums(dbias, top + panel, address(sums) + (panel - near) * 2 * LINE)

    return pack


@inlined
def add_sums(dbias, panel, sums):
    """A panel's numbers of dbias += 32 float32 at `sums`"""
    at = address(dbias) + panel * 2 * LINE
    for half in range(2):
        mask, off = _within(dbias.size, panel) >> (16 * half), half * LINE
        masks.store_some(at + off, masks.load_some(at + off, mask) + lanes.load(sums + off), mask)


@inlined
def _add_tokens(sums, block):
    """32 float32 at `sums` += the sums over the 32 tokens of a block in pairs."""
    for half in range(2):
        total = lanes.load(sums + half * LINE)
        for pair in range(SIDE // 2):
            both = lanes.load_words(block + half * TILE + pair * LINE)
            total = total + lanes.floats_of(both << np.uint32(16)) + lanes.floats_of(both & np.uint32(0xFFFF0000))
        lanes.store(sums + half * LINE, total)


@jit
def pack_pairs(worker, begin, end, b, x):
    """Steps begin to end: rows of x two by two."""
    for step in range(begin, end):
        for panel in range(b.shape[0]):
            at, row, mask, rows = _block_of_rows(x, step, panel)
            _pack_block(address(b) + (panel * b.shape[1] + step) * STEP, at, row, mask, rows, 4 * LINE)


@inlined
def _pack_block(to, at, row, mask, rows, ahead):
    """Two tiles = pairs of 32 columns of 32 rows, `row` bytes apart; zeros beyond `rows` and where mask has no bit.
    Asks for what is `ahead` bytes after.
    """
    for pair in range(SIDE // 2):
        even = halves.load_some_bf16(at, mask if 2 * pair < rows else 0)
        odd = halves.load_some_bf16(at + row, mask if 2 * pair + 1 < rows else 0)
        tiles.prefetch(at + ahead)
        tiles.prefetch(at + row + ahead)
        lanes.store(to + pair * LINE, halves.lower_pairs(even, odd))
        lanes.store(to + TILE + pair * LINE, halves.upper_pairs(even, odd))
        at += 2 * row


@jit
def _round(worker, begin, end, out, x):
    """Rows begin to end of x in bf16."""
    for row in range(begin, end):
        for step in range((x.shape[1] + SIDE - 1) // SIDE):
            mask = columns(x, step)
            halves.store_some_bf16(address(out) + 2 * row * x.shape[1] + step * LINE, rounded(x, row, step, mask), mask)


@inlined
def rounded(x, row, panel, mask):
    """32 columns of a row of float32 in bf16; beyond its edges zeros."""
    mask = mask if row < x.shape[0] else 0
    at = address(x) + 4 * row * x.shape[1] + 2 * panel * LINE
    return halves.to_row(masks.load_some(at, mask), masks.load_some(at + LINE, mask >> 16))


@inlined
def columns(x, panel):
    """A bit for each of the panel's 32 columns that x has."""
    return _within(x.shape[1], panel)


@inlined
def _within(n, panel):
    """A bit for each of the panel's 32 numbers that are below n."""
    return ALL >> (SIDE - min(SIDE, n - panel * SIDE))


@inlined
def address(x):
    """An array's address, signed: where uint64 and int64 meet, Numba computes in float64."""
    return np.intp(x.ctypes.data)


def product(fetch: Callable, finish: Callable, turns: tuple[tuple[int, int, bool, bool], ...] = ONCE) -> Callable:
    """The kernel out = finish(a b): `finish(places, row, m, n, mask)` gets the address of 32 sums, on a line, which
    are those of row m and the columns from n on that have a bit in mask; `fetch(places, m, n)` is called before the
    last steps of a 32 x 32 block and asks for what `finish` will read and write. `places`, a tuple, is theirs,
    places[0] being (M, N). `turns` are those of a step.
    """
    parts, count = 1 + max(turn[0] for turn in turns), len(turns)
    step_bytes = parts * STEP

    @jit
    def multiply(places, top, left, right, a, b, sums, config):
        tall, steps = a.shape[0], a.shape[1]
        panel, all_rows = step_bytes * steps, min(tall * SIDE, places[0].shape[0] - top * SIDE)
        done, ready, n = 0, 0, left * SIDE  # of the sums of the columns from n on: rows that have left, that may leave
        depth = max(1, (steps + DEEP // 2) // DEEP)
        half = SIDE // 2 if depth > 1 else SIDE
        lines = (parts * SIDE + count * tall - 1) // (count * tall)
        unit = tiles.configure(address(config))
        for j in range(left, right):
            for chunk in range(depth):
                first, last = chunk * steps // depth, (chunk + 1) * steps // depth
                b_chunk, turns_here = address(b) + j * panel + first * step_bytes, count * (last - first)
                if chunk > 0 and chunk + 1 == depth:
                    done, n = 0, j * SIDE
                for i in range(tall):
                    sum_at = address(sums) + i * 4 * BLOCK
                    if chunk == 0:
                        _zero_sums(unit)
                    else:
                        _load_sums(unit, sum_at)
                    if chunk + 1 == depth:
                        fetch(places, (top + i) * SIDE, j * SIDE)
                    # How many rows leave meanwhile: in the first chunk those of b's panel before, at least down to
                    # those that will be overwritten; in the last one, if it is another, those of a's panels before.
                    leaving = 0
                    if chunk == 0 and j > left:
                        ready, leaving = all_rows, max((i + 1) * SIDE - done, half)
                    elif chunk > 0 and chunk + 1 == depth:
                        ready, leaving = i * SIDE, half
                    a_at, b_at, due = address(a) + i * panel + first * step_bytes, b_chunk, 0
                    ahead = b_at + panel + i * (last - first) * count * lines * LINE
                    mask = columns(places[0], n // SIDE)
                    for _ in range(first, last):
                        for part_a, part_b, new_a, new_b in turns:
                            a_part, b_part = a_at + part_a * STEP, b_at + part_b * STEP
                            if new_a:
                                tiles.load_once(unit, 4, a_part, LINE)
                            if new_b:
                                tiles.load(unit, 6, b_part, LINE)
                            tiles.dot(unit, 0, 4, 6)
                            due += leaving
                            while due >= turns_here:
                                due -= turns_here
                                if done < ready:
                                    finish(places, address(sums) + done * 4 * SIDE, top * SIDE + done, n, mask)
                                    done += 1
                            if new_b:
                                tiles.load(unit, 7, b_part + TILE, LINE)
                            tiles.dot(unit, 1, 4, 7)
                            for line in range(lines):
                                tiles.prefetch(ahead + line * LINE)
                            if new_a:
                                tiles.load_once(unit, 5, a_part + TILE, LINE)
                            tiles.dot(unit, 2, 5, 6)
                            tiles.dot(unit, 3, 5, 7)
                            ahead += lines * LINE
                        a_at += step_bytes
                        b_at += step_bytes
                    _store_sums(unit, sum_at)
            if depth == 1:
                done, n = 0, j * SIDE
        for row in range(done, all_rows):
            finish(places, address(sums) + row * 4 * SIDE, top * SIDE + row, n, columns(places[0], n // SIDE))
        tiles.release(unit)

    return multiply


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


# A plain function for Numba's cache, which knows a kernel by what it closes over: compiled functions have random names.
finishing = register_jitable(forceinline=True, fastmath={"contract"})


@finishing
def _block_of_rows(x, step, panel):
    """Where a block of x (T, N) lies, the bytes from row to row, its columns and rows."""
    row = 2 * x.shape[1]
    return address(x) + step * SIDE * row + panel * LINE, row, columns(x, panel), x.shape[0] - step * SIDE


@finishing
def _block_of_panels(x, step, panel):
    """The same of what is packed as `a`, rows beyond T included."""
    return address(x) + (step * x.shape[1] + panel) * STEP, LINE, ALL, SIDE


pack_columns = _columns_packer(_block_of_rows)
pack_packed_columns = _columns_packer(_block_of_panels)  # of what is packed as another product's a


@finishing
def packed_row(a, m, n):
    """Where 32 numbers of row m, from column n on, stand in a packed operand `a`."""
    return address(a) + (m // SIDE * a.shape[1] + n // SIDE) * STEP + m % SIDE * LINE


@finishing
def store_pairs(b, m, n, row):
    """Row m, its 32 numbers from column n on, into a packed operand `b`; after the row before, if m is odd."""
    at = address(b) + (n // SIDE * b.shape[1] + m // SIDE) * STEP + m % SIDE // 2 * LINE
    nothing = lanes.splat(np.uint32(0))
    if m % 2 == 0:
        lanes.store(at, halves.lower_pairs(row, nothing))
        lanes.store(at + TILE, halves.upper_pairs(row, nothing))
    else:
        lanes.store(at, lanes.load_words(at) | halves.lower_pairs(nothing, row))
        lanes.store(at + TILE, lanes.load_words(at + TILE) | halves.upper_pairs(nothing, row))


@finishing
def fetch_block(x, m, n):
    """Asks for the 32 x 32 elements of x from (m, n) on."""
    at, row = address(x) + x.itemsize * (m * x.shape[1] + n), x.itemsize * x.shape[1]
    for _ in range(SIDE):
        for line in range(SIDE * x.itemsize // LINE):
            tiles.prefetch(at + line * LINE)
        at += row


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
def float_row(places, row, m, n, mask):
    """out[m, n] = sum + addend"""
    out = places[0]
    lower, upper = _plus(places, row, m, n, mask)
    at = address(out) + 4 * (m * out.shape[1] + n)
    masks.store_some(at, lower, mask)
    masks.store_some(at + LINE, upper, mask >> 16)


_rounded_product = product(fetch_result, _round_row)
_float_product = product(fetch_result, float_row)


class Room:
    """Cuts arrays off a scratch, each on a 64-byte line."""

    def __init__(self, scratch: np.ndarray):
        self.rest = scratch[-scratch.ctypes.data % LINE :]

    def _cut(self, nbytes: int) -> np.ndarray:
        piece, self.rest = self.rest[:nbytes], self.rest[whole_lines(nbytes) :]
        return piece

    def packed(self, n: int, k: int, parts: int = 1) -> np.ndarray:
        """An operand with n rows (`a`) or columns (`b`)."""
        return self._cut(packed_bytes(n, k, parts)).view(np.uint16).reshape(panels(n), panels(k), parts * BLOCK)

    def floats(self, *shape: int) -> np.ndarray:
        return self._cut(4 * math.prod(shape)).view(np.float32).reshape(shape)

    def halves(self, *shape: int) -> np.ndarray:
        return self._cut(2 * math.prod(shape)).view(np.uint16).reshape(shape)

    def zeros(self, n: int) -> np.ndarray:
        zeros = self.floats(n)
        zeros.fill(0)
        return zeros

    def own(self, each: int) -> np.ndarray:
        """The workers' own bytes."""
        return self._cut(cpu.threads() * each).reshape(cpu.threads(), each)

    def bf16(self, x: np.ndarray) -> np.ndarray:
        """x, rounded if it is float32."""
        if x.dtype == np.uint16:
            return x
        out = self.halves(*x.shape)
        run(_round, len(x), out, x)
        return out


def clear_rows(a: np.ndarray, m: int) -> None:
    """Zeros for the rows from m on of a packed operand `a`, which are rows of K in a product of its columns."""
    a[-1].reshape(-1, SIDE, SIDE)[:, (m - 1) % SIDE + 1 :] = 0


def clear_pairs(b: np.ndarray, k: int) -> None:
    """Zeros for the pairs of rows from k on of a packed operand `b`."""
    b[:, -1].reshape(-1, 2, SIDE // 2, SIDE)[:, :, (k - 1) % SIDE // 2 + 1 :] = 0


def whole_lines(nbytes: int) -> int:
    """nbytes, rounded up to whole lines."""
    return -(-nbytes // LINE) * LINE
