"""Lanes: 16 float32, 16 words or 16 truth values in a vector register, as values that Numba's code computes with.

LLVM leaves loops as short as that, or over many arrays, in scalar code: attention's softmax took 9.9 microseconds a
block so, and takes 0.74 with lanes. Addresses are integers, as in tiles.py. It needs what numba.extending is built on.
Everything here is LLVM's own vector code; parts of a vector are masks.py's, bf16 is halves.py's.
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
DOUBLES = Lanes(ir.DoubleType())


def spread(builder, value, kind, count=16):
    """`count` times a scalar; lanes as they are."""
    if not isinstance(kind, types.Number):
        return value
    return in_all(builder, value, count)


def in_all(builder, scalar, count=16):
    """The code that puts a scalar into all lanes."""
    vector = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def operates(function, lanes, scalar, result, emit):
    """Teaches Numba an operator on lanes; its right operand may be a scalar."""
    for right in (lanes, scalar):
        infer_global(function)(type("Lanewise", (ConcreteTemplate,), {"cases": [signature(result, lanes, right)]}))
        lower_builtin(function, lanes, right)(
            lambda context, builder, sig, args: emit(
                builder,
                *(spread(builder, value, kind, lanes.vector.count) for value, kind in zip(args, sig.args, strict=True)),
            )
        )


def _instruction(name):
    return lambda builder, *operands: getattr(builder, name)(*operands)


_FLOATING = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
_WHOLE = {operator.add: "add", operator.sub: "sub", operator.mul: "mul"}
_BITS = {operator.and_: "and_", operator.or_: "or_", operator.xor: "xor"}
_SHIFTS = {operator.lshift: "shl", operator.rshift: "lshr"}
for _lanes, _scalar, _operators in (
    (FLOATS, types.float32, _FLOATING),
    (WORDS, types.uint32, _WHOLE | _BITS | _SHIFTS),
    (LONGS, types.uint64, _BITS | _SHIFTS),
):
    for _function, _name in _operators.items():
        operates(_function, _lanes, _scalar, _lanes, _instruction(_name))
operates(operator.eq, FLOATS, types.float32, TRUTHS, lambda builder, a, b: builder.fcmp_ordered("==", a, b))
operates(operator.ge, WORDS, types.uint32, TRUTHS, lambda builder, a, b: builder.icmp_unsigned(">=", a, b))


def pointer(builder, address, to):
    return builder.inttoptr(address, to.as_pointer())


def shuffled(builder, a, b, lanes, places):
    """Lanes of this kind, chosen by place out of a's and then b's."""
    a, b = builder.bitcast(a, lanes), builder.bitcast(b, lanes)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


@intrinsic
def splat(typing, x):
    """16 times a float32 or a uint32."""
    result = FLOATS if x == types.float32 else WORDS
    return result(x), lambda context, builder, sig, args: spread(builder, args[0], x)


def _loader(lanes):
    def generate(context, builder, sig, args):
        return builder.load(pointer(builder, args[0], ir.VectorType(lanes.element, 16)), align=4)

    return lanes(types.int64), generate


@intrinsic
def load(typing, address):
    """The 16 float32 at `address`."""
    return _loader(FLOATS)


@intrinsic
def repeat(typing, address):
    """16 times the float32 at `address`."""

    def generate(context, builder, sig, args):
        return in_all(builder, builder.load(pointer(builder, args[0], FLOATS.element), align=4))

    return FLOATS(types.int64), generate


@intrinsic
def load_words(typing, address):
    """The 16 words at `address`."""
    return _loader(WORDS)


@intrinsic
def store(typing, address, lanes):
    """The line at `address` = lanes"""

    def generate(context, builder, sig, args):
        builder.store(args[1], pointer(builder, args[0], args[1].type), align=LINE)
        return context.get_dummy_value()

    return types.void(types.int64, lanes), generate


@intrinsic
def stream(typing, address, words):
    """The line at `address` = words, past the caches: nothing is read before it is overwritten."""

    def generate(context, builder, sig, args):
        written = builder.store(args[1], pointer(builder, args[0], args[1].type), align=LINE)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, WORDS), generate


@intrinsic
def select(typing, which, a, b):
    """a where `which`, else b"""
    return a(TRUTHS, a, a), lambda context, builder, sig, args: builder.select(*args)


@intrinsic
def where(typing, which, x):
    """x where `which`, else 0"""
    return FLOATS(TRUTHS, FLOATS), lambda context, builder, sig, args: builder.select(
        *args, ir.Constant(args[1].type, [0.0] * 16)
    )


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
def below(typing, a, bound):
    """Which lanes are < bound; NaN is not."""
    return TRUTHS(FLOATS, types.float32), lambda context, builder, sig, args: builder.fcmp_ordered(
        "<", args[0], spread(builder, args[1], types.float32)
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


@intrinsic
def numbers(typing, words):
    """Words below 2^31 as float32."""
    return FLOATS(WORDS), lambda context, builder, sig, args: builder.sitofp(args[0], FLOATS.vector)


def _multiply_add(context, builder, sig, args):
    operands = [spread(builder, value, kind) for value, kind in zip(args, sig.args, strict=True)]
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
def root(typing, x):
    """The square root, correctly rounded."""

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(FLOATS.vector, [FLOATS.vector])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.sqrt.v16f32"), args)

    return FLOATS(FLOATS), generate


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
    return DOUBLES(types.float64), lambda context, builder, sig, args: spread(builder, args[0], x)


@intrinsic
def longs(typing, base, step):
    """base, base + step, ...: eight integers of 64 bits from uint64."""

    def generate(context, builder, sig, args):
        base, step = (spread(builder, value, types.uint64, 8) for value in args)
        return builder.add(base, builder.mul(step, ir.Constant(LONGS.vector, list(range(8)))))

    return LONGS(types.uint64, types.uint64), generate


@intrinsic
def product(typing, a, b):
    """The 64 bits of the products of the lower halves of a and of a uint32: one instruction."""

    def generate(context, builder, sig, args):
        low = builder.and_(args[0], ir.Constant(LONGS.vector, [0xFFFFFFFF] * 8))
        return builder.mul(low, spread(builder, builder.zext(args[1], ir.IntType(64)), types.uint64, 8))

    return LONGS(LONGS, types.uint32), generate


@intrinsic
def lower_halves(typing, a, b):
    """The lower halves of a's eight, then of b's, as words."""
    return WORDS(LONGS, LONGS), lambda context, builder, sig, args: shuffled(
        builder, *args, WORDS.vector, list(range(0, 32, 2))
    )


@intrinsic
def store_words(typing, address, a, b, c, d):
    """The 32 words at `address`, on a line, = the lower halves of a[0], b[0], c[0], d[0], a[1], ..."""

    def generate(context, builder, sig, args):
        even = [i // 2 * 2 + i % 2 * 16 for i in range(16)]
        ab, cd = (shuffled(builder, *two, WORDS.vector, even) for two in (args[1:3], args[3:5]))
        pairs = shuffled(builder, ab, cd, LONGS.vector, [i // 2 + i % 2 * 8 for i in range(16)])
        builder.store(pairs, pointer(builder, args[0], pairs.type), align=LINE)
        return context.get_dummy_value()

    return types.void(types.int64, LONGS, LONGS, LONGS, LONGS), generate
