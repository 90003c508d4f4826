"""Lanes: 16 float32, 16 words or 16 truth values in a vector register, as values that Numba's code computes with.

LLVM leaves loops as short as that, or over many arrays, in scalar code: attention's softmax took 9.9 microseconds a
block so, and takes 0.74 with lanes. Addresses are integers, as in tiles.py. It needs what numba.extending is built on.

Everything is LLVM's own vector code but two things that cores with AVX-512 have instructions for: rounding to bf16, and
reading or writing some of an array's halves of words. Elsewhere they are spelled out here, to the same bits.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic

LINE = 64  # bytes of a vector register


def compiles(feature: str) -> bool:
    """Whether LLVM compiles for cores with this feature, such as `avx512bf16`: NUMBA_CPU_FEATURES counts."""
    return f"+{feature}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


class Lanes(types.Type):
    def __init__(self, element: ir.Type, count: int = 16):
        self.vector = ir.VectorType(element, count)
        self.element = element
        super().__init__(f"{count} lanes of {element}")


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, lanes.vector)


FLOATS, WORDS, TRUTHS = Lanes(ir.FloatType()), Lanes(ir.IntType(32)), Lanes(ir.IntType(1))
LONGS = Lanes(ir.IntType(64), 8)  # the one kind of eight lanes


def _all(builder, value, kind, count=16):
    """`count` times a scalar; lanes as they are."""
    if not isinstance(kind, types.Number):
        return value
    return in_all(builder, value, count)


def in_all(builder, scalar, count=16):
    """The code that puts a scalar into all lanes."""
    vector = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def _operator(function, lanes, scalar, result, emit):
    """Teaches Numba an operator on lanes; its right operand may be a scalar."""
    for right in (lanes, scalar):
        infer_global(function)(type("Lanewise", (ConcreteTemplate,), {"cases": [signature(result, lanes, right)]}))
        lower_builtin(function, lanes, right)(
            lambda context, builder, sig, args: emit(
                builder,
                *(_all(builder, value, kind, lanes.vector.count) for value, kind in zip(args, sig.args, strict=True)),
            )
        )


def _instruction(name):
    return lambda builder, *operands: getattr(builder, name)(*operands)


for _function, _name in {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul"}.items():
    _operator(_function, FLOATS, types.float32, FLOATS, _instruction(_name))
for _function, _name in {operator.add: "add", operator.sub: "sub", operator.and_: "and_", operator.or_: "or_"}.items():
    _operator(_function, WORDS, types.uint32, WORDS, _instruction(_name))
for _function, _name in {operator.lshift: "shl", operator.rshift: "lshr"}.items():
    _operator(_function, WORDS, types.uint32, WORDS, _instruction(_name))
_operator(operator.eq, FLOATS, types.float32, TRUTHS, lambda builder, a, b: builder.fcmp_ordered("==", a, b))
_operator(operator.ge, WORDS, types.uint32, TRUTHS, lambda builder, a, b: builder.icmp_unsigned(">=", a, b))


def _pointer(builder, address, to):
    return builder.inttoptr(address, to.as_pointer())


@intrinsic
def splat(typing, x):
    """16 times a float32 or a uint32."""
    result = FLOATS if x == types.float32 else WORDS
    return result(x), lambda context, builder, sig, args: _all(builder, args[0], x)


def _loader(lanes):
    def generate(context, builder, sig, args):
        return builder.load(_pointer(builder, args[0], ir.VectorType(lanes.element, 16)), align=4)

    return lanes(types.int64), generate


@intrinsic
def load(typing, address):
    """The 16 float32 at `address`."""
    return _loader(FLOATS)


@intrinsic
def load_words(typing, address):
    """The 16 words at `address`."""
    return _loader(WORDS)


@intrinsic
def store(typing, address, lanes):
    """The line at `address` = lanes"""

    def generate(context, builder, sig, args):
        builder.store(args[1], _pointer(builder, args[0], args[1].type), align=LINE)
        return context.get_dummy_value()

    return types.void(types.int64, lanes), generate


def masked_load(builder, place, mask, kind):
    """The code that reads the elements at a place where the mask is set, and zeros: nothing else is read."""
    place = builder.bitcast(place, kind.as_pointer())
    if _has_masks(kind):
        return _masked(builder, "load", kind, [place, mask])
    with builder.if_else(_all_set(builder, mask)) as (whole, part):
        with whole:
            first = builder.load(place, align=2), builder.block
        with part:
            second = _in_function(builder, "load", kind, [place, mask]), builder.block
    loaded = builder.phi(kind)
    loaded.add_incoming(*first)
    loaded.add_incoming(*second)
    return loaded


def masked_store(builder, value, place, mask):
    """The code that writes the elements of a vector to a place where the mask is set: nothing else is written."""
    place = builder.bitcast(place, value.type.as_pointer())
    if _has_masks(value.type):
        _masked(builder, "store", value.type, [value, place, mask])
        return
    with builder.if_else(_all_set(builder, mask)) as (whole, part):
        with whole:
            builder.store(value, place, align=2)
        with part:
            _in_function(builder, "store", value.type, [value, place, mask])


def _has_masks(kind):
    """Whether the cores have an instruction for it. Where there is none, LLVM writes a branch for each element: in vain
    for whole vectors, which come most often, and half a minute of compiling in attention, but for `_in_function`.
    """
    return compiles("avx512bw") or (kind.element == FLOATS.element and compiles("avx"))


def _all_set(builder, mask):
    bits = ir.IntType(mask.type.count)
    return builder.icmp_unsigned("==", builder.bitcast(mask, bits), ir.Constant(bits, -1))


def _masked(builder, name, kind, operands):
    """Masked `load` or `store`, whose last operand is the mask."""
    single = kind.element == FLOATS.element
    operands = [*operands[:-1], ir.Constant(ir.IntType(32), 4 if single else 2), operands[-1]]
    operands += [ir.Constant(kind, None)] if name == "load" else []
    function = ir.FunctionType(_result(name, kind), [operand.type for operand in operands])
    name = f"llvm.masked.{name}.v{kind.count}{'f32' if single else 'i16'}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), operands)


def _in_function(builder, name, kind, operands):
    """`_masked` in a function of the module."""
    mask, bits = operands[-1].type, ir.IntType(kind.count)
    operands = [*operands[:-1], builder.bitcast(operands[-1], bits)]
    function = builder.module.globals.get(f"{name}_{kind.element}_{kind.count}")
    if function is None:
        signature = ir.FunctionType(_result(name, kind), [operand.type for operand in operands])
        function = ir.Function(builder.module, signature, f"{name}_{kind.element}_{kind.count}")
        function.linkage = "internal"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        result = _masked(inner, name, kind, [*function.args[:-1], inner.bitcast(function.args[-1], mask)])
        inner.ret(result) if name == "load" else inner.ret_void()
    return builder.call(function, operands)


def _result(name, kind):
    return kind if name == "load" else ir.VoidType()


class _Bfloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self):
        return "bfloat"


BFLOAT = _Bfloat()
_HALVES, _WORDS = ir.VectorType(ir.IntType(16), 16), ir.VectorType(ir.IntType(32), 16)


def _widened(builder, halves):
    """16 bf16 as float32."""
    upper = ir.Constant(ir.VectorType(WORDS.element, 16), [16] * 16)
    bits = builder.shl(builder.zext(halves, upper.type), upper)
    return builder.bitcast(bits, ir.VectorType(FLOATS.element, 16))


@intrinsic
def load_bf16(typing, address):
    """The 16 bf16 at `address`, as float32."""

    def generate(context, builder, sig, args):
        return _widened(builder, builder.load(_pointer(builder, args[0], _HALVES), align=2))

    return FLOATS(types.int64), generate


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
def store_bf16(typing, address, x):
    """The 16 bf16 at `address` = those nearest to x: see `rounded_to_bf16`."""

    def generate(context, builder, sig, args):
        builder.store(rounded_to_bf16(builder, args[1]), _pointer(builder, args[0], _HALVES), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS), generate


@intrinsic
def select(typing, which, a, b):
    """a where `which`, else b"""
    return a(TRUTHS, a, a), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def maximum(typing, a, b):
    """a where it is greater, else b, also where either is NaN"""
    return FLOATS(FLOATS, FLOATS), lambda context, builder, sig, args: builder.select(
        builder.fcmp_ordered(">", *args), *args
    )


@intrinsic
def minimum(typing, a, b):
    """a where it is less, else b, also where either is NaN"""
    return FLOATS(FLOATS, FLOATS), lambda context, builder, sig, args: builder.select(
        builder.fcmp_ordered("<", *args), *args
    )


@intrinsic
def absolute(typing, x):
    """|x|"""

    def generate(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.VectorType(WORDS.element, 16))
        cleared = builder.and_(bits, ir.Constant(bits.type, [0x7FFFFFFF] * 16))
        return builder.bitcast(cleared, args[0].type)

    return FLOATS(FLOATS), generate


@intrinsic
def negative(typing, x):
    """Where x < 0."""
    return TRUTHS(FLOATS), lambda context, builder, sig, args: builder.fcmp_ordered(
        "<", args[0], ir.Constant(args[0].type, [0.0] * 16)
    )


@intrinsic
def where(typing, which, x):
    """x where `which`, else 0"""
    return FLOATS(TRUTHS, FLOATS), lambda context, builder, sig, args: builder.select(
        *args, ir.Constant(args[1].type, [0.0] * 16)
    )


@intrinsic
def words(typing, x):
    """The bits of 16 float32."""
    return WORDS(FLOATS), lambda context, builder, sig, args: builder.bitcast(args[0], ir.VectorType(WORDS.element, 16))


@intrinsic
def floats_of(typing, words):
    """The float32 of these bits."""
    return FLOATS(WORDS), lambda context, builder, sig, args: builder.bitcast(
        args[0], ir.VectorType(FLOATS.element, 16)
    )


for _function, _name in {operator.xor: "xor", operator.rshift: "lshr", operator.and_: "and_"}.items():
    _operator(_function, LONGS, types.uint64, LONGS, _instruction(_name))
_operator(operator.truediv, FLOATS, types.float32, FLOATS, _instruction("fdiv"))


@intrinsic
def longs(typing, base, step):
    """base, base + step, ...: eight integers of 64 bits from uint64."""

    def generate(context, builder, sig, args):
        base, step = (_all(builder, value, types.uint64, 8) for value in args)
        return builder.add(base, builder.mul(step, ir.Constant(LONGS.vector, list(range(8)))))

    return LONGS(types.uint64, types.uint64), generate


@intrinsic
def product(typing, a, b):
    """The 64 bits of the products of the lower halves of a and of a uint32: one instruction."""

    def generate(context, builder, sig, args):
        low = builder.and_(args[0], ir.Constant(LONGS.vector, [0xFFFFFFFF] * 8))
        return builder.mul(low, _all(builder, builder.zext(args[1], ir.IntType(64)), types.uint64, 8))

    return LONGS(LONGS, types.uint32), generate


def _shuffled(builder, a, b, lanes, places):
    """Lanes of this kind, chosen by place out of a's and then b's."""
    a, b = builder.bitcast(a, lanes), builder.bitcast(b, lanes)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


_UNITS = ir.VectorType(ir.IntType(16), 32)


@intrinsic
def lower_halves(typing, a, b):
    """The lower halves of a's eight, then of b's, as words."""
    return WORDS(LONGS, LONGS), lambda context, builder, sig, args: _shuffled(
        builder, *args, _WORDS, list(range(0, 32, 2))
    )


def _multiply_add(context, builder, sig, args):
    operands = [_all(builder, value, kind) for value, kind in zip(args, sig.args, strict=True)]
    kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.v16f32"), operands)


@intrinsic
def fma(typing, a, b, c):
    """a b + c, rounded once; b and c may be scalars."""
    return FLOATS(a, b, c), _multiply_add


@intrinsic
def apart(typing, x):
    """x, which is rounded before it is used: `contract` and `reassoc` do not reach through."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.arithmetic.fence.v16f32"), args)

    return FLOATS(FLOATS), generate


@intrinsic
def below(typing, a, bound):
    """Which lanes are < bound; NaN is not."""
    return TRUTHS(FLOATS, types.float32), lambda context, builder, sig, args: builder.fcmp_ordered(
        "<", args[0], _all(builder, args[1], types.float32)
    )


# Rows: 32 numbers of 16 bits in 16 words, as they lie in memory; a pair is two such numbers in a word, the first below.


def _before(builder, count):
    """Which of a row's places are before `count`."""
    counts = _all(builder, builder.trunc(count, ir.IntType(16)), types.uint16, 32)
    return builder.icmp_signed("<", ir.Constant(_UNITS, list(range(32))), counts)


def _load_row(builder, address, count):
    row = masked_load(builder, _pointer(builder, address, _UNITS), _before(builder, count), _UNITS)
    return builder.bitcast(row, _WORDS)


@intrinsic
def load_row(typing, address, count):
    """The first `count` numbers of a row at `address`, any, and zeros; nothing else is read."""
    return WORDS(types.int64, types.int64), lambda context, builder, sig, args: _load_row(builder, *args)


@intrinsic
def store_row(typing, address, row, count):
    """The first `count` numbers of a row to `address`, any; nothing else is written."""

    def generate(context, builder, sig, args):
        at, mask = _pointer(builder, args[0], _UNITS), _before(builder, args[2])
        masked_store(builder, builder.bitcast(args[1], _UNITS), at, mask)
        return context.get_dummy_value()

    return types.void(types.int64, WORDS, types.int64), generate


@intrinsic
def to_row(typing, a, b):
    """The row of the 32 bf16 nearest to a's and b's numbers: see `rounded_to_bf16`."""

    def generate(context, builder, sig, args):
        if not compiles("avx512bf16"):
            halves = [rounded_to_bf16(builder, x) for x in args]
            return builder.bitcast(_shuffled(builder, *halves, _HALVES, list(range(32))), _WORDS)
        kind = ir.FunctionType(ir.VectorType(BFLOAT, 32), [FLOATS.vector] * 2)
        convert = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtne2ps2bf16.512")
        return builder.bitcast(builder.call(convert, args[::-1]), _WORDS)

    return WORDS(FLOATS, FLOATS), generate


@intrinsic
def pairs(typing, row):
    """A row's first and 17th number, its second and 18th, and so on."""
    places = [i // 2 + i % 2 * 16 for i in range(32)]
    return WORDS(WORDS), lambda context, builder, sig, args: builder.bitcast(
        _shuffled(builder, args[0], args[0], _UNITS, places), _WORDS
    )


@intrinsic
def lower_pairs(typing, a, b):
    """The first 16 numbers of two rows, in pairs: a's below."""
    places = [i // 2 + i % 2 * 32 for i in range(32)]
    return WORDS(WORDS, WORDS), lambda context, builder, sig, args: builder.bitcast(
        _shuffled(builder, *args, _UNITS, places), _WORDS
    )


@intrinsic
def upper_pairs(typing, a, b):
    """The last 16 numbers of two rows, in pairs: a's below."""
    places = [16 + i // 2 + i % 2 * 32 for i in range(32)]
    return WORDS(WORDS, WORDS), lambda context, builder, sig, args: builder.bitcast(
        _shuffled(builder, *args, _UNITS, places), _WORDS
    )


@intrinsic
def kept(typing, row, bits, threshold):
    """A row's numbers where the unsigned numbers of another row reach the threshold, a uint16; zeros elsewhere."""

    def generate(context, builder, sig, args):
        row, bits = (builder.bitcast(words, _UNITS) for words in args[:2])
        which = builder.icmp_unsigned(">=", bits, _all(builder, args[2], types.uint16, 32))
        return builder.bitcast(builder.select(which, row, ir.Constant(_UNITS, [0] * 32)), _WORDS)

    return WORDS(WORDS, WORDS, types.uint16), generate


@intrinsic
def store_halves(typing, first, second, row):
    """The first 16 numbers of a row to one address, the last 16 to another, both on half a line."""

    def generate(context, builder, sig, args):
        for at, place in zip(args[:2], (0, 16), strict=True):
            half = _shuffled(builder, args[2], args[2], _UNITS, list(range(place, place + 16)))
            builder.store(half, _pointer(builder, at, half.type), align=LINE // 2)
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
                _shuffled(builder, lines[i], lines[i + 8], _WORDS, [first + j // 2 + j % 2 * 16 for j in range(16)])
                for i in range(8)
                for first in (0, 8)
            ]
        for i, line in enumerate(lines):
            at = builder.add(to, ir.Constant(to.type, LINE * i))
            builder.store(line, _pointer(builder, at, line.type), align=LINE)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


HALVES, DOUBLES = Lanes(ir.IntType(16)), Lanes(ir.DoubleType())
_NUMBERS = ir.Constant(ir.VectorType(WORDS.element, 16), list(range(16)))

_operator(operator.ge, HALVES, types.uint16, TRUTHS, lambda builder, a, b: builder.icmp_unsigned(">=", a, b))


@intrinsic
def first(typing, n):
    """The first n lanes, or all: those that an array still has, n elements before its end."""

    def generate(context, builder, sig, args):
        most = ir.Constant(args[0].type, 16)
        n = builder.select(builder.icmp_signed("<", args[0], most), args[0], most)
        return builder.icmp_signed(">", _all(builder, builder.trunc(n, WORDS.element), types.int32), _NUMBERS)

    return TRUTHS(types.int64), generate


@intrinsic
def all_lanes(typing):
    """Every lane."""
    return TRUTHS(), lambda context, builder, sig, args: ir.Constant(ir.VectorType(TRUTHS.element, 16), [1] * 16)


@intrinsic
def load_halves(typing, address):
    """The 16 halves of words at `address`."""
    return HALVES(types.int64), lambda context, builder, sig, args: builder.load(
        _pointer(builder, args[0], _HALVES), align=2
    )


@intrinsic
def total(typing, x):
    """The sum of 16 float32 or float64: of halves, quarters and so on, always in the same order."""

    def generate(context, builder, sig, args):
        x = args[0]
        for step in (8, 4, 2, 1):
            moved = ir.Constant(ir.VectorType(ir.IntType(32), 16), [(i + step) % 16 for i in range(16)])
            x = builder.fadd(x, builder.shuffle_vector(x, x, moved))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return (types.float32 if x == FLOATS else types.float64)(x), generate


@intrinsic
def add_squares(typing, sums, x):
    """sums + x * x, float64 from 16 float32"""

    def generate(context, builder, sig, args):
        wide = builder.fpext(args[1], args[0].type)
        return builder.fadd(args[0], builder.fmul(wide, wide))  # the product is exact: fused or not, the same bits

    return DOUBLES(DOUBLES, FLOATS), generate


@intrinsic
def splat_double(typing, x):
    """16 times a float64."""
    return DOUBLES(types.float64), lambda context, builder, sig, args: _all(builder, args[0], x)


@intrinsic
def store_words(typing, address, a, b, c, d):
    """The 32 words at `address`, on a line, = the lower halves of a[0], b[0], c[0], d[0], a[1], ..."""

    def generate(context, builder, sig, args):
        even = [i // 2 * 2 + i % 2 * 16 for i in range(16)]
        ab, cd = (_shuffled(builder, *two, _WORDS, even) for two in (args[1:3], args[3:5]))
        pairs = _shuffled(builder, ab, cd, LONGS.vector, [i // 2 + i % 2 * 8 for i in range(16)])
        builder.store(pairs, _pointer(builder, args[0], pairs.type), align=LINE)
        return context.get_dummy_value()

    return types.void(types.int64, LONGS, LONGS, LONGS, LONGS), generate


def _which(builder, mask, count):
    """The `count` low bits of an integer as truth values."""
    return builder.bitcast(builder.trunc(mask, ir.IntType(count)), ir.VectorType(ir.IntType(1), count))


def _load_some(builder, address, mask, kind):
    return masked_load(builder, _pointer(builder, address, kind), _which(builder, mask, kind.count), kind)


def _store_some(builder, address, value, mask):
    kind = value.type
    masked_store(builder, value, _pointer(builder, address, kind), _which(builder, mask, kind.count))


@intrinsic
def load_some(typing, address, mask):
    """Of the 16 float32 at `address` those whose bit is set in `mask`, else 0; nothing else is read."""

    def generate(context, builder, sig, args):
        return _load_some(builder, *args, FLOATS.vector)

    return FLOATS(types.int64, types.int64), generate


@intrinsic
def store_some(typing, address, x, mask):
    """Of the 16 float32 at `address` those whose bit is set in `mask` = x"""

    def generate(context, builder, sig, args):
        _store_some(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS, types.int64), generate


@intrinsic
def load_some_bf16(typing, address, mask):
    """Of the 32 bf16 at `address` those whose bit is set in `mask`, else 0, two a word; nothing else is read."""

    def generate(context, builder, sig, args):
        return builder.bitcast(_load_some(builder, *args, _UNITS), _WORDS)

    return WORDS(types.int64, types.int64), generate


@intrinsic
def store_some_bf16(typing, address, words, mask):
    """Of the 32 bf16 at `address` those whose bit is set in `mask` = those in `words`, two a word"""

    def generate(context, builder, sig, args):
        _store_some(builder, args[0], builder.bitcast(args[1], _UNITS), args[2])
        return context.get_dummy_value()

    return types.void(types.int64, WORDS, types.int64), generate


def _half_floats(first):
    """Of 32 bf16 the 16 from `first` on, as float32."""

    def generate(context, builder, sig, args):
        halves = _shuffled(builder, args[0], args[0], _UNITS, list(range(first, first + 16)))
        return _widened(builder, halves)

    return FLOATS(WORDS), generate


@intrinsic
def lower_floats(typing, words):
    """The first 16 of 32 bf16, two a word, as float32."""
    return _half_floats(0)


@intrinsic
def upper_floats(typing, words):
    """The last 16 of 32 bf16."""
    return _half_floats(16)


@intrinsic
def stream(typing, address, words):
    """The line at `address` = words, past the caches: nothing is read before it is overwritten."""

    def generate(context, builder, sig, args):
        written = builder.store(args[1], _pointer(builder, args[0], args[1].type), align=LINE)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, WORDS), generate


_operator(operator.mul, WORDS, types.uint32, WORDS, _instruction("mul"))


@intrinsic
def numbers(typing, words):
    """Words below 2^31 as float32."""
    return FLOATS(WORDS), lambda context, builder, sig, args: builder.sitofp(args[0], FLOATS.vector)


@intrinsic
def root(typing, x):
    """The square root, correctly rounded."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v16f32"), args)

    return FLOATS(FLOATS), generate


@intrinsic
def largest(typing, x):
    """The largest of 16 float32 of which none is NaN."""

    def generate(context, builder, sig, args):
        x = args[0]
        for step in (8, 4, 2, 1):
            moved = ir.Constant(ir.VectorType(ir.IntType(32), 16), [(i + step) % 16 for i in range(16)])
            moved = builder.shuffle_vector(x, x, moved)
            x = builder.select(builder.fcmp_ordered(">", x, moved), x, moved)
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return types.float32(FLOATS), generate
