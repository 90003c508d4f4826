"""Halves: numbers of 16 bits, bf16 among them; a row is 32 of them in 16 words, as they lie in memory.

A pair is two numbers of a row in a word, the first below. Cores with AVX512-BF16 have an instruction that rounds to
bf16; elsewhere it is spelled out here, to the same bits.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import FLOATS, LINE, TRUTHS, WORDS, Lanes, compiles, operates, pointer, shuffled, spread
from .masks import load_elements, masked_load, masked_store, store_elements


class _Bfloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self):
        return "bfloat"


BFLOAT = _Bfloat()
HALVES = Lanes(ir.IntType(16))
_HALVES, _UNITS, _WORDS = HALVES.vector, ir.VectorType(ir.IntType(16), 32), WORDS.vector

operates(operator.ge, HALVES, types.uint16, TRUTHS, lambda builder, a, b: builder.icmp_unsigned(">=", a, b))


@intrinsic
def load_halves(typing, address):
    """The 16 halves of words at `address`."""
    return HALVES(types.int64), lambda context, builder, sig, args: builder.load(
        pointer(builder, args[0], _HALVES), align=2
    )


def _widened(builder, halves):
    """16 bf16 as float32."""
    upper = ir.Constant(ir.VectorType(WORDS.element, 16), [16] * 16)
    bits = builder.shl(builder.zext(halves, upper.type), upper)
    return builder.bitcast(bits, ir.VectorType(FLOATS.element, 16))


def rounded_to_bf16(builder, x):
    """The code that makes 16 bf16 of float32 lanes: those nearest, ties to even. Subnormal numbers become zeros, and
    every NaN a quiet one.
    """
    if not compiles("avx512bf16"):
        return _rounded_by_bits(builder, x)
    kind = ir.FunctionType(ir.VectorType(BFLOAT, 16), [x.type])
    convert = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
    return builder.bitcast(builder.call(convert, [x]), _HALVES)


def _rounded_by_bits(builder, x):
    """What the instruction does: half a unit is added to the bits, less the last one where the number is even."""

    def all_of(word):
        return ir.Constant(_WORDS, [word] * 16)

    bits = builder.bitcast(x, _WORDS)
    upper = builder.lshr(bits, all_of(16))
    half = builder.add(builder.and_(upper, all_of(1)), all_of(0x7FFF))
    nearest = builder.lshr(builder.add(bits, half), all_of(16))
    small = builder.icmp_unsigned("==", builder.and_(bits, all_of(0x7F800000)), all_of(0))
    nearest = builder.select(small, builder.and_(upper, all_of(0x8000)), nearest)
    nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(nan, builder.or_(upper, all_of(0x40)), nearest), _HALVES)


@intrinsic
def load_row(typing, address, count):
    """The first `count` numbers of a row at `address`, any, and zeros; nothing else is read."""
    return WORDS(types.int64, types.int64), lambda context, builder, sig, args: _load_row(builder, *args)


@intrinsic
def store_row(typing, address, row, count):
    """The first `count` numbers of a row to `address`, any; nothing else is written."""

    def generate(context, builder, sig, args):
        at, mask = pointer(builder, args[0], _UNITS), _before(builder, args[2])
        masked_store(builder, builder.bitcast(args[1], _UNITS), at, mask)
        return context.get_dummy_value()

    return types.void(types.int64, WORDS, types.int64), generate


def _load_row(builder, address, count):
    row = masked_load(builder, pointer(builder, address, _UNITS), _before(builder, count), _UNITS)
    return builder.bitcast(row, _WORDS)


def _before(builder, count):
    """Which of a row's places are before `count`."""
    counts = spread(builder, builder.trunc(count, ir.IntType(16)), types.uint16, 32)
    return builder.icmp_signed("<", ir.Constant(_UNITS, list(range(32))), counts)


@intrinsic
def load_some_bf16(typing, address, mask):
    """Of the 32 bf16 at `address` those whose bit is set in `mask`, else 0, two a word; nothing else is read."""

    def generate(context, builder, sig, args):
        return builder.bitcast(load_elements(builder, *args, _UNITS), _WORDS)

    return WORDS(types.int64, types.int64), generate


@intrinsic
def store_some_bf16(typing, address, words, mask):
    """Of the 32 bf16 at `address` those whose bit is set in `mask` = those in `words`, two a word"""

    def generate(context, builder, sig, args):
        store_elements(builder, args[0], builder.bitcast(args[1], _UNITS), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, WORDS, types.int64), generate


@intrinsic
def to_row(typing, a, b):
    """The row of the 32 bf16 nearest to a's and b's numbers: see `rounded_to_bf16`."""

    def generate(context, builder, sig, args):
        if not compiles("avx512bf16"):
            halves = [rounded_to_bf16(builder, x) for x in args]
            return builder.bitcast(shuffled(builder, *halves, _HALVES, list(range(32))), _WORDS)
        kind = ir.FunctionType(ir.VectorType(BFLOAT, 32), [FLOATS.vector] * 2)
        convert = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")
        return builder.bitcast(builder.call(convert, args[::-1]), _WORDS)

    return WORDS(FLOATS, FLOATS), generate


@intrinsic
def lower_floats(typing, words):
    """The first 16 of 32 bf16, two a word, as float32."""
    return _half_floats(0)


@intrinsic
def upper_floats(typing, words):
    """The last 16 of 32 bf16."""
    return _half_floats(16)


def _half_floats(first):
    """Of 32 bf16 the 16 from `first` on, as float32."""

    def generate(context, builder, sig, args):
        halves = shuffled(builder, args[0], args[0], _UNITS, list(range(first, first + 16)))
        return _widened(builder, halves)

    return FLOATS(WORDS), generate


@intrinsic
def pairs(typing, row):
    """A row's first and 17th number, its second and 18th, and so on."""
    places = [i // 2 + i % 2 * 16 for i in range(32)]
    return WORDS(WORDS), lambda context, builder, sig, args: builder.bitcast(
        shuffled(builder, args[0], args[0], _UNITS, places), _WORDS
    )


@intrinsic
def lower_pairs(typing, a, b):
    """The first 16 numbers of two rows, in pairs: a's below."""
    places = [i // 2 + i % 2 * 32 for i in range(32)]
    return WORDS(WORDS, WORDS), lambda context, builder, sig, args: builder.bitcast(
        shuffled(builder, *args, _UNITS, places), _WORDS
    )


@intrinsic
def upper_pairs(typing, a, b):
    """The last 16 numbers of two rows, in pairs: a's below."""
    places = [16 + i // 2 + i % 2 * 32 for i in range(32)]
    return WORDS(WORDS, WORDS), lambda context, builder, sig, args: builder.bitcast(
        shuffled(builder, *args, _UNITS, places), _WORDS
    )


@intrinsic
def kept(typing, row, bits, threshold):
    """A row's numbers where the unsigned numbers of another row reach the threshold, a uint16; zeros elsewhere."""

    def generate(context, builder, sig, args):
        row, bits = (builder.bitcast(words, _UNITS) for words in args[:2])
        which = builder.icmp_unsigned(">=", bits, spread(builder, args[2], types.uint16, 32))
        return builder.bitcast(builder.select(which, row, ir.Constant(_UNITS, [0] * 32)), _WORDS)

    return WORDS(WORDS, WORDS, types.uint16), generate


@intrinsic
def store_halves(typing, first, second, row):
    """The first 16 numbers of a row to one address, the last 16 to another, both on half a line."""

    def generate(context, builder, sig, args):
        for at, place in zip(args[:2], (0, 16), strict=True):
            half = shuffled(builder, args[2], args[2], _UNITS, list(range(place, place + 16)))
            builder.store(half, pointer(builder, at, half.type), align=LINE // 2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, WORDS), generate


@intrinsic
def transpose_rows(typing, to, address, step, rows, count):
    """A tile of 16 lines at `to` = the transpose, in units of 32 bits, of the first `count` numbers of 16 bits of up to
    16 rows at `address`, `step` bytes apart, and zeros. Nothing else is read.
    """

    def generate(context, builder, sig, args):
        to, address, step, rows, count = args
        constant = [ir.Constant(to.type, i) for i in range(16)]
        lines = []
        for i in constant:
            numbers = builder.select(builder.icmp_signed("<", i, rows), count, constant[0])
            at = builder.add(address, builder.mul(i, step))
            lines.append(_load_row(builder, at, numbers))
        # As in tiles.transpose.
        for _ in range(4):
            lines = [
                shuffled(builder, lines[i], lines[i + 8], _WORDS, [first + j // 2 + j % 2 * 16 for j in range(16)])
                for i in range(8)
                for first in (0, 8)
            ]
        for i, line in enumerate(lines):
            at = builder.add(to, ir.Constant(to.type, LINE * i))
            builder.store(line, pointer(builder, at, line.type), align=LINE)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
