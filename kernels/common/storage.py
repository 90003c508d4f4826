"""Storage: arrays that hold float32, or bf16 as uint16, read and written 16 elements at a time, as float32 lanes.

An operation has one kernel for both: Numba compiles it for the arrays that it is called with, and these two functions
are all that differs. The arrays are C-contiguous and of any shape, an index counts elements from the first one on, and
lanes beyond an array's end are left alone:

    for i in range(0, n, 16):
        inside = storage.inside(i, n)
        storage.store(y, i, storage.load(x, i, inside), inside)
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from minibert.kernels.devices.compiling import inlined

from . import halves, lanes, masks

_I16, _I32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
_TRUTHS = ir.VectorType(ir.IntType(1), 16)
_BYTES = ir.VectorType(ir.IntType(8), 16)
_UPPER = ir.Constant(ir.VectorType(_I32, 16), [16] * 16)


def _place(context, builder, kind, array, index):
    """A pointer to the array's element, and the type of 16 of them."""
    data = arrayobj.make_array(kind)(context, builder, array).data
    return builder.gep(data, [index]), ir.VectorType(_I16 if kind.dtype == types.uint16 else _FLOAT, 16)


def _check(array):
    if not (isinstance(array, types.Array) and array.layout == "C" and array.dtype in (types.float32, types.uint16)):
        raise TypeError(f"not a C-contiguous array of float32 or uint16 (bf16): {array}")


@inlined
def inside(i, n):
    """Which of the 16 elements from i on are below n, for i a multiple of 16 below n.

    Where n is a multiple of 16, too, all are: LLVM makes a loop of its own of that case, without masks.
    """
    if n % 16 == 0:
        return masks.all_lanes()
    return masks.first(n - i)


@intrinsic
def load(typing, array, index, inside):
    """The 16 elements from `index` on where they are `inside` the array, else 0."""
    _check(array)

    def generate(context, builder, sig, args):
        place, kind = _place(context, builder, sig.args[0], *args[:2])
        loaded = masks.masked_load(builder, place, args[2], kind)
        if sig.args[0].dtype == types.float32:
            return loaded
        return builder.bitcast(builder.shl(builder.zext(loaded, _UPPER.type), _UPPER), ir.VectorType(_FLOAT, 16))

    return lanes.FLOATS(array, types.int64, lanes.TRUTHS), generate


@intrinsic
def store(typing, array, index, x, inside):
    """The 16 elements from `index` on = x where they are `inside` the array; bf16 as `halves.rounded_to_bf16` says."""
    _check(array)

    def generate(context, builder, sig, args):
        place, _ = _place(context, builder, sig.args[0], *args[:2])
        x = args[2] if sig.args[0].dtype == types.float32 else halves.rounded_to_bf16(builder, args[2])
        masks.masked_store(builder, x, place, args[3])
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes.FLOATS, lanes.TRUTHS), generate


@intrinsic
def fetch(typing, array, index):
    """Asks for the line of element `index` to be brought near; no index is wrong.

    A kernel that computes much on a row asks for the next one meanwhile: memory is busy all the time.
    """
    _check(array)

    def generate(context, builder, sig, args):
        place = builder.bitcast(_place(context, builder, sig.args[0], *args)[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [place, _I32(0), _I32(3), _I32(1)])  # for reading, into L1, data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _sixteen_bytes(context, builder, kind, array, index):
    """A pointer to 16 elements of a uint8 array."""
    data = arrayobj.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _BYTES.as_pointer())


def _check_bytes(array):
    if not (isinstance(array, types.Array) and array.layout == "C" and array.dtype == types.uint8):
        raise TypeError(f"not a C-contiguous array of uint8: {array}")


@intrinsic
def load_bytes(typing, array, index):
    """The 16 elements of a uint8 array from `index` on, all of them inside it, as words."""
    _check_bytes(array)

    def generate(context, builder, sig, args):
        place = _sixteen_bytes(context, builder, sig.args[0], *args)
        return builder.zext(builder.load(place, align=1), _UPPER.type)

    return lanes.WORDS(array, types.int64), generate


@intrinsic
def store_bytes(typing, array, index, words):
    """The 16 elements of a uint8 array from `index` on, all of them inside it, = the lowest bytes of the words."""
    _check_bytes(array)

    def generate(context, builder, sig, args):
        place = _sixteen_bytes(context, builder, sig.args[0], *args[:2])
        builder.store(builder.trunc(args[2], _BYTES), place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes.WORDS), generate
