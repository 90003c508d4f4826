"""Lanes: 16 float32, 16 words or 16 truth values in a vector register, as values that Numba's code computes with.

LLVM leaves loops as short as that, or over many arrays, in scalar code: attention's softmax took 9.9 microseconds a
block so, and takes 0.74 with lanes. Addresses are integers, as in amx.py. It needs what numba.extending is built on.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic

LINE = 64  # bytes of a vector register


class Lanes(types.Type):
    def __init__(self, element: ir.Type):
        self.element = element
        super().__init__(f"16 lanes of {element}")


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(lanes.element, 16))


FLOATS, WORDS, TRUTHS = Lanes(ir.FloatType()), Lanes(ir.IntType(32)), Lanes(ir.IntType(1))


def _all(builder, value, kind):
    """16 times a scalar; lanes as they are."""
    if not isinstance(kind, types.Number):
        return value
    vector = ir.VectorType(value.type, 16)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), 16), [0] * 16))


def _operator(function, lanes, scalar, result, emit):
    """Teaches Numba an operator on lanes; its right operand may be a scalar."""
    for right in (lanes, scalar):
        infer_global(function)(type("Lanewise", (ConcreteTemplate,), {"cases": [signature(result, lanes, right)]}))
        lower_builtin(function, lanes, right)(
            lambda context, builder, sig, args: emit(builder, *(map(_all, [builder] * 2, args, sig.args)))
        )


def _instruction(name):
    return lambda builder, *operands: getattr(builder, name)(*operands)


for _function, _name in {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul"}.items():
    _operator(_function, FLOATS, types.float32, FLOATS, _instruction(_name))
for _function, _name in {operator.add: "add", operator.and_: "and_", operator.or_: "or_"}.items():
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


class _Bfloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self):
        return "bfloat"


_HALVES = ir.VectorType(ir.IntType(16), 16)


@intrinsic
def load_bf16(typing, address):
    """The 16 bf16 at `address`, as float32."""

    def generate(context, builder, sig, args):
        halves = builder.load(_pointer(builder, args[0], _HALVES), align=2)
        upper = ir.Constant(ir.VectorType(WORDS.element, 16), [16] * 16)
        bits = builder.shl(builder.zext(halves, upper.type), upper)
        return builder.bitcast(bits, ir.VectorType(FLOATS.element, 16))

    return FLOATS(types.int64), generate


@intrinsic
def store_bf16(typing, address, x):
    """The 16 bf16 at `address` = those nearest to x, ties to even: the cores' own instruction, which takes subnormal
    numbers for zeros and makes every NaN a quiet one (AVX512-BF16: wherever there is a matrix unit).
    """

    def generate(context, builder, sig, args):
        kind = ir.FunctionType(ir.VectorType(_Bfloat(), 16), [args[1].type])
        convert = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.cvtneps2bf16.512")
        halves = builder.bitcast(builder.call(convert, [args[1]]), _HALVES)
        builder.store(halves, _pointer(builder, args[0], _HALVES), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS), generate


@intrinsic
def row(typing, left, right):
    """The upper halves of 16 words, then those of 16 others."""

    def generate(context, builder, sig, args):
        left, right = (builder.bitcast(words, ir.VectorType(ir.IntType(16), 32)) for words in args)
        upper = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(1, 64, 2)))
        return builder.bitcast(builder.shuffle_vector(left, right, upper), args[0].type)

    return WORDS(WORDS, WORDS), generate


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
