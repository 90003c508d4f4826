"""Words of 64 bits that threads share, from Numba: each access whole, and all in one order that every thread sees."""

from __future__ import annotations

import sys
import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import lanes

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_PAUSES = 16  # of some 40 to 140 cycles each
_WINDOWS = sys.platform == "win32"


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
    """A moment in which this thread leaves its core to others: to the core's other thread, and to whatever the system
    would run. A microsecond where there is nothing.
    """

    def generate(context, builder, signature, arguments):
        if lanes.compiles("sse2"):
            for _ in range(_PAUSES):
                _call(builder, ir.VoidType(), "llvm.x86.sse2.pause")
        _call(builder, _I32, "SwitchToThread" if _WINDOWS else "sched_yield")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def nanoseconds(typing):
    """A clock that does not go back."""

    def generate(context, builder, signature, arguments):
        word = ir.Constant(_I64, 1)
        if _WINDOWS:
            ticks = cgutils.alloca_once(builder, _I64)
            _call(builder, _I32, "QueryPerformanceCounter", ticks)
            return builder.mul(builder.load(ticks), ir.Constant(_I64, 100))  # there are 10 million a second, as a rule
        now = cgutils.alloca_once(builder, _I64, 2)  # seconds and nanoseconds
        _call(builder, _I32, "clock_gettime", ir.Constant(_I32, time.CLOCK_MONOTONIC), now)
        seconds, rest = builder.load(now), builder.load(builder.gep(now, [word]))
        return builder.add(builder.mul(seconds, ir.Constant(_I64, 10**9)), rest)

    return types.int64(), generate


def _call(builder, result, name, *operands):
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)
