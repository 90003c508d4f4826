"""Masks: which of a vector's elements are there, and reading and writing those alone.

AVX-512 has instructions for it, and AVX for float32. For other cores LLVM spells it out, to the same bits.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .lanes import FLOATS, TRUTHS, WORDS, compiles, pointer, spread

_NUMBERS = ir.Constant(ir.VectorType(WORDS.element, 16), list(range(16)))


@intrinsic
def first(typing, n):
    """The first n lanes, or all: those that an array still has, n elements before its end."""

    def generate(context, builder, sig, args):
        most = ir.Constant(args[0].type, 16)
        n = builder.select(builder.icmp_signed("<", args[0], most), args[0], most)
        return builder.icmp_signed(">", spread(builder, builder.trunc(n, WORDS.element), types.int32), _NUMBERS)

    return TRUTHS(types.int64), generate


@intrinsic
def all_lanes(typing):
    """Every lane."""
    return TRUTHS(), lambda context, builder, sig, args: ir.Constant(ir.VectorType(TRUTHS.element, 16), [1] * 16)


@intrinsic
def load_some(typing, address, mask):
    """Of the 16 float32 at `address` those whose bit is set in `mask`, else 0; nothing else is read."""

    def generate(context, builder, sig, args):
        return load_elements(builder, *args, FLOATS.vector)

    return FLOATS(types.int64, types.int64), generate


@intrinsic
def store_some(typing, address, x, mask):
    """Of the 16 float32 at `address` those whose bit is set in `mask` = x"""

    def generate(context, builder, sig, args):
        store_elements(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, FLOATS, types.int64), generate


def _which(builder, mask, count):
    """The `count` low bits of an integer as truth values."""
    return builder.bitcast(builder.trunc(mask, ir.IntType(count)), ir.VectorType(ir.IntType(1), count))


def load_elements(builder, address, mask, kind):
    """The code that reads the elements at an address whose bit is set in an integer, and zeros."""
    place, mask = pointer(builder, address, kind), _which(builder, mask, kind.count)
    return _masked(builder, "load", kind, [place, mask]) if _free() else _load_all_or_some(builder, place, mask, kind)


def store_elements(builder, address, value, mask):
    """The code that writes the elements of a vector whose bit is set in an integer to an address."""
    kind = value.type
    masked_store(builder, value, pointer(builder, address, kind), _which(builder, mask, kind.count))


def masked_load(builder, place, mask, kind):
    """The code that reads the elements at a place where the mask is set, and zeros: nothing else is read."""
    place = builder.bitcast(place, kind.as_pointer())
    if _has_masks(kind):  # without a branch, around which Numba would count references to the array each time
        return _masked(builder, "load", kind, [place, mask])
    return _load_all_or_some(builder, place, mask, kind)


def _load_all_or_some(builder, place, mask, kind):
    """The same by a branch: a whole vector, or what the mask says."""
    with builder.if_else(_all_set(builder, mask)) as (all_of_it, some):
        with all_of_it:
            first = builder.load(place, align=2), builder.block
        with some:
            second = _of_some(kind)(builder, "load", kind, [place, mask]), builder.block
    loaded = builder.phi(kind)
    loaded.add_incoming(*first)
    loaded.add_incoming(*second)
    return loaded


def masked_store(builder, value, place, mask):
    """The code that writes the elements of a vector to a place where the mask is set: nothing else is written."""
    place = builder.bitcast(place, value.type.as_pointer())
    if _free():
        _masked(builder, "store", value.type, [value, place, mask])
        return
    with builder.if_else(_all_set(builder, mask)) as (all_of_it, some):
        with all_of_it:
            builder.store(value, place, align=2)
        with some:
            _of_some(value.type)(builder, "store", value.type, [value, place, mask])


def _free():
    """Whether masks cost nothing. Elsewhere whole vectors, which come most often, are read and written without: to
    make a mask of an integer takes long, and a masked store of AVX takes Zen 3 a dozen cycles.
    """
    return compiles("avx512bw")


def _has_masks(kind):
    """Whether the cores have an instruction for it."""
    return _free() or (kind.element == FLOATS.element and compiles("avx"))


def _of_some(kind):
    """What reads or writes parts of vectors. Without an instruction for it LLVM writes a branch for each element: half
    a minute of compiling in attention, but for `_in_function`.
    """
    return _masked if _has_masks(kind) else _in_function


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
