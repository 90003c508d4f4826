"""Words of 64 bits that threads share, from Numba: each access whole, and all in one order that every thread sees."""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import lanes

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_PAUSES = 16  # of some 40 to 140 cycles each


def _word(builder, address):
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def load(typing, address):
    """The word at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_word(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def store(typing, address, value):
    """The word at an address = value"""

    def generate(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def add(typing, address, value):
    """The word at an address += value; returns what it was before."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def exchange(typing, address, value):
    """The word at an address = value; returns what it was before."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("xchg", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def relax(typing):
    """A moment, about a microsecond, in which this thread leaves its core to others: to the core's other thread, and to
    whatever the system would run.
    """

    def generate(context, builder, signature, arguments):
        if lanes.compiles("sse2"):
            pause = ir.FunctionType(ir.VoidType(), [])
            for _ in range(_PAUSES):
                builder.call(cgutils.get_or_insert_function(builder.module, pause, "llvm.x86.sse2.pause"), [])
        name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"
        builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I32, []), name), [])
        return context.get_dummy_value()

    return types.void(), generate
