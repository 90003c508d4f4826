"""Products in float32 in vector registers (AVX2): packed operands, blocks of sums, and what is done with them.

A product is out (M, N) = a (M, K) b (K, N). `a` is packed in panels of 6 rows, (k, 6) each, `b` in panels of 16
columns, (k, 16) each, two by two; edges are filled with zeros. A block of 6 x 16 sums fills 12 of 16 registers. For
each k two others hold a line of b, and the six numbers of `a` are multiplied into them one by one: 12 multiply-adds for
8 loads, where a core does two of those and two or three of these at a time.

The smaller operand is packed by all workers together, and comes from L3 once a task; of the other each task packs a few
panels, which stay in its worker's L2. What happens to a row of 32 sums is a function as products.py has them, such as
`float_row`. Each element is summed over K in order by one worker, so the number of threads changes no bit.

Of the multipliers of two Zen 3 cores this uses 89 to 94 % at BERT-Base's sizes, packing included. OpenBLAS uses as much
without any other guest on the machine, and 2 to 13 % less beside some.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minibert.kernels.common import lanes, masks, tiles
from minibert.kernels.common.packing import LINE, SIDE, Room, address, columns
from minibert.kernels.common.philox_cpu import stack_words
from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import inlined, jit
from minibert.kernels.devices.workers import Tasks

LONG = 1024  # of K in a product: panels of longer ones have no room in L2
SHORT = 256  # of K that make a sum before it is added to others: errors of long sums stay small
HIGH, WIDE = 6, 16  # rows of a's panels, columns of b's
ROWS, COLUMNS = 8, 2  # panels of a, pairs of panels of b, that a task packs at most
FEWEST = 4  # panels of a that are worth a task
UNROLLED = 4  # of K
EIGHT = 8  # numbers in a register
SUMS = 4 * HIGH * SIDE  # bytes of two blocks

_I64, _FLOAT = ir.IntType(64), ir.FloatType()
_EIGHT = ir.VectorType(_FLOAT, 8)


def workspace(m: int, n: int, k: int) -> int:
    """Bytes of scratch for a product."""
    return _shared_bytes(m, n, k) + cpu.threads() * _own_bytes(k) + 2 * LINE


def times_transposed(
    kernel: Callable, places: tuple, x: np.ndarray, w: np.ndarray, first: int, last: int, scratch: np.ndarray
) -> None:
    """The product x wᵀ over the columns first to last of both."""
    _multiply(kernel, places, (_pack_rows, (x, first)), (_pack_transposed, (w, first)), last - first, scratch)


def times(
    kernel: Callable, places: tuple, x: np.ndarray, w: np.ndarray, first: int, last: int, scratch: np.ndarray
) -> None:
    """The product x w over x's columns, w's rows first to last."""
    _multiply(kernel, places, (_pack_rows, (x, first)), (_pack, (w, first)), last - first, scratch)


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
    _multiply(kernel, places, (_pack_columns, (x, first, sums)), (_pack, (y, first)), last - first, scratch)


def _multiply(kernel: Callable, places: tuple, a: tuple, b: tuple, k: int, scratch: np.ndarray) -> None:
    """By a `kernel` made by `product`, of operands given as a function that packs them and its last arguments."""
    (m, n), room, each = places[0].shape, Room(scratch), _own_bytes(k)
    tall, wide, short = -(-m // HIGH), -(-n // SIDE), m < n
    shared, own = (room.floats(nbytes // 4) for nbytes in (_shared_bytes(m, n, k), cpu.threads() * each))
    (pack, source), (pack_own, own_source) = (a, b) if short else (b, a)
    cpu.run(pack, tall if short else wide, shared, 0, k, *source)
    tasks = _tasks(wide, 1, COLUMNS, cpu.threads()) if short else _tasks(tall, FEWEST, ROWS, cpu.threads())
    cpu.launch(tasks, (pack_own, (own, each, k, *own_source)), (kernel, (places, shared, own, each, k, short)))


@lru_cache(256)
def _tasks(count: int, least: int, most: int, workers: int) -> Tasks:
    return Tasks(cpu.helpings(count, workers, least, most))


def _shared_bytes(m: int, n: int, k: int) -> int:
    return 4 * k * (-(-m // HIGH) * HIGH if m < n else -(-n // SIDE) * SIDE)


def _own_bytes(k: int) -> int:
    return SUMS + 4 * k * max(ROWS * HIGH, COLUMNS * SIDE)


def product(fetch: Callable, finish: Callable) -> Callable:
    """The kernel out = finish(a b), for all of the shared operand and panels begin to end of the other one, which is b
    if `short`; `fetch` and `finish` are as products.py has them.
    """

    @jit
    def multiply(worker, begin, end, places, shared, own, each, k, short):
        if short:
            top, bottom, left, right = 0, (places[0].shape[0] + HIGH - 1) // HIGH, begin, end
            a_from, b_from = address(shared), address(own) + _first(each, worker, begin, 4 * SIDE * k)
        else:
            top, bottom, left, right = begin, end, 0, (places[0].shape[1] + SIDE - 1) // SIDE
            a_from, b_from = address(own) + _first(each, worker, begin, 4 * HIGH * k), address(shared)
        sums, shorts = address(own) + worker * each, (k + SHORT - 1) // SHORT
        pace = max(1, min(LINE // UNROLLED, LINE // max(1, bottom - top)))  # b's next panels come when they are due
        for j in range(left, right):
            b_at, mask = b_from + 4 * SIDE * k * j, columns(places[0], j)
            ahead = b_at + 4 * SIDE * k
            for panel in range(top, bottom):
                a_at, m = a_from + 4 * HIGH * k * panel, panel * HIGH
                if (panel - top) * HIGH % SIDE < HIGH:
                    fetch(places, m, j * SIDE)
                for half in range(2):
                    for i in range(shorts):
                        first, last = i * k // shorts, (i + 1) * k // shorts
                        b_first = b_at + 4 * WIDE * (half * k + first)
                        block(sums + half * LINE, a_at + 4 * HIGH * first, b_first, last - first, ahead, pace, i > 0)
                        ahead += (last - first) * pace
                for row in range(min(HIGH, places[0].shape[0] - m)):
                    finish(places, sums + row * 2 * LINE, m + row, j * SIDE, mask)
        tiles.fence()  # for what has left past the caches

    return multiply


@intrinsic
def block(typing, sums, a, b, k, ahead, pace, add):
    """6 x 16 sums, rows 2 lines apart, = a (k, 6) times b (k, 16), += if `add`. Asks for k * pace bytes at `ahead`."""

    def generate(context, builder, signature, arguments):
        to, a, b, k, ahead, pace, add = arguments
        sums = [[cgutils.alloca_once_value(builder, ir.Constant(_EIGHT, None)) for _ in range(2)] for _ in range(HIGH)]
        whole = builder.and_(k, ir.Constant(_I64, -UNROLLED))
        with cgutils.for_range(builder, builder.udiv(k, ir.Constant(_I64, UNROLLED))) as step:
            first = builder.mul(step.index, ir.Constant(_I64, UNROLLED))
            for i in range(UNROLLED):
                _add_products(builder, sums, a, b, builder.add(first, ir.Constant(_I64, i)))
            tiles.ask(builder, builder.add(ahead, builder.mul(first, pace)))
        with cgutils.for_range(builder, builder.sub(k, whole)) as step:
            _add_products(builder, sums, a, b, builder.add(whole, step.index))
        totals = [total for row in sums for total in row]
        places = [_at(builder, to, 2 * LINE * row + LINE // 2 * half, _EIGHT) for row in range(HIGH) for half in (0, 1)]
        with builder.if_then(add):
            for total, place in zip(totals, places, strict=True):
                builder.store(builder.fadd(builder.load(total), builder.load(place, align=32)), total)
        for total, place in zip(totals, places, strict=True):
            builder.store(builder.load(total), place, align=32)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.boolean), generate


def _add_products(builder, sums, a, b, k):
    """The code of sums += a[k] b[k]."""
    a = builder.add(a, builder.mul(k, ir.Constant(_I64, 4 * HIGH)))
    b = builder.add(b, builder.mul(k, ir.Constant(_I64, 4 * WIDE)))
    line = [builder.load(_at(builder, b, LINE // 2 * half, _EIGHT), align=32) for half in (0, 1)]
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_EIGHT, [_EIGHT] * 3), "llvm.fma.v8f32")
    for row in range(HIGH):
        number = lanes.in_all(builder, builder.load(_at(builder, a, 4 * row, _FLOAT), align=4), 8)
        for half in (0, 1):
            total = sums[row][half]
            builder.store(builder.call(fma, [number, line[half], builder.load(total)]), total)


def _at(builder, address, offset, kind):
    return lanes.pointer(builder, builder.add(address, ir.Constant(_I64, offset)), kind)


@inlined
def _first(each, worker, begin, panel):
    """Panels of so many bytes are packed one after the other: how far from the beginning panel 0 would be. Where each
    worker has so many bytes of its own, its first panel is `begin`; 0: they are shared.
    """
    return worker * each + SUMS - panel * begin if each else 0


@jit
def _pack_rows(worker, begin, end, to, each, k, x, first):
    """Panels of a: rows of x, their numbers from `first` on. The last few one by one: eight at a time would overwrite
    the next panel.
    """
    for panel in range(begin, end):
        place, m = _first(each, worker, begin, 4 * HIGH * k) + 4 * HIGH * k * panel, panel * HIGH
        at, stride = address(x) + 4 * (m * x.shape[1] + first), 4 * x.shape[1]
        whole = max(k - 1, 0) // EIGHT * EIGHT if m + HIGH <= x.shape[0] else 0
        for i in range(0, whole, EIGHT):
            _transpose(address(to) + place + 4 * HIGH * i, 4 * HIGH, at + 4 * i, stride, HIGH)
        for i in range(whole, k):
            for row in range(HIGH):
                to[place // 4 + HIGH * i + row] = x[m + row, first + i] if m + row < x.shape[0] else np.float32(0)


@jit
def _pack_columns(worker, begin, end, to, each, k, x, first, sums):
    """Panels of a: columns of x, their numbers from `first` on; `sums`, unless empty, += theirs. The last numbers one
    by one: eight at a time would overwrite the next panel.
    """
    total = stack_words(EIGHT * HIGH).view(np.float32)
    for group in range(begin, end, EIGHT):
        n, count = group * HIGH, min(EIGHT, end - group) * HIGH
        place = _first(each, worker, begin, 4 * HIGH * k) + 4 * HIGH * k * group
        at, whole = address(x) + 4 * (first * x.shape[1] + n), max(k - 1, 0) if n + EIGHT * HIGH <= x.shape[1] else 0
        left = middle = right = lanes.splat(np.float32(0))
        for i in range(whole):
            for panel in range(count // HIGH):
                _copy_eight(address(to) + place + 4 * HIGH * (k * panel + i), at + 4 * HIGH * panel)
            left = lanes.apart(left + lanes.load(at))  # in the order of i, as at the edges: tasks begin anywhere
            middle = lanes.apart(middle + lanes.load(at + LINE))
            right = lanes.apart(right + lanes.load(at + 2 * LINE))
            at += 4 * x.shape[1]
        lanes.store(address(total), left)
        lanes.store(address(total) + LINE, middle)
        lanes.store(address(total) + 2 * LINE, right)
        for i in range(whole, k):
            for m in range(count):
                number = x[first + i, n + m] if n + m < x.shape[1] else np.float32(0)
                to[place // 4 + HIGH * (m // HIGH * k + i) + m % HIGH] = number
                total[m] += number
        for m in range(min(count, x.shape[1] - n) if sums.size else 0):
            sums[n + m] += total[m]


@jit
def _pack_transposed(worker, begin, end, to, each, k, w, first):
    """Pairs of panels of b: rows of w, their numbers from `first` on."""
    for panel in range(2 * begin, 2 * end):
        place, n = _first(each, worker, begin, 4 * SIDE * k) + LINE * k * panel, panel * WIDE
        at, stride = address(w) + 4 * (n * w.shape[1] + first), 4 * w.shape[1]
        whole = k // EIGHT * EIGHT if n + WIDE <= w.shape[0] else 0
        for i in range(0, whole, EIGHT):
            to_eight = address(to) + place + LINE * i
            _transpose(to_eight, LINE, at + 4 * i, stride, EIGHT)
            _transpose(to_eight + LINE // 2, LINE, at + 4 * i + EIGHT * stride, stride, EIGHT)
        for i in range(whole, k):
            for row in range(WIDE):
                to[place // 4 + WIDE * i + row] = w[n + row, first + i] if n + row < w.shape[0] else np.float32(0)


@jit
def _pack(worker, begin, end, to, each, k, x, first):
    """Pairs of panels of b: columns of x, their numbers from `first` on."""
    start = address(to) + _first(each, worker, begin, 4 * SIDE * k)
    for top in range(0, k, WIDE):
        for panel in range(2 * begin, 2 * end):
            mask = (1 << max(0, min(WIDE, x.shape[1] - panel * WIDE))) - 1
            at = address(x) + 4 * ((first + top) * x.shape[1] + panel * WIDE)
            for i in range(top, min(top + WIDE, k)):
                lanes.store(start + (panel * k + i) * LINE, masks.load_some(at, mask))
                at += 4 * x.shape[1]


@intrinsic(prefer_literal=True)
def _transpose(typing, to, to_stride, source, stride, rows):
    """8 rows of 8 numbers, `to_stride` bytes apart, = the columns of `rows` rows: of fewer than 8 what is missing is
    undefined, and overwritten by the row after if these overlap.
    """

    def generate(context, builder, signature, arguments):
        to, to_stride, source, stride, _ = arguments
        rows = [ir.Constant(_EIGHT, ir.Undefined)] * EIGHT
        for row in range(signature.args[4].literal_value):
            rows[row] = builder.load(_row(builder, source, stride, row), align=4)
        for _ in range(3):  # as tiles.transpose does it
            rows = [
                lanes.shuffled(builder, rows[i], rows[i + 4], _EIGHT, [first + n // 2 + n % 2 * 8 for n in range(8)])
                for i in range(4)
                for first in (0, 4)
            ]
        for row, numbers in enumerate(rows):
            builder.store(numbers, _row(builder, to, to_stride, row), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, rows), generate


def _row(builder, address, stride, row):
    return lanes.pointer(builder, builder.add(address, builder.mul(stride, ir.Constant(_I64, row))), _EIGHT)


@intrinsic
def _copy_eight(typing, to, source):
    """8 float32 at `to` = those at `source`"""

    def generate(context, builder, signature, arguments):
        numbers = builder.load(lanes.pointer(builder, arguments[1], _EIGHT), align=4)
        builder.store(numbers, lanes.pointer(builder, arguments[0], _EIGHT), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate
