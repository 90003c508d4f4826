"""Tiles, from Numba: eight registers of 1 KiB, the bf16 product of two of them, and the form that it wants numbers in.

**A tile** has 16 rows of 64 bytes; there are eight, numbered 0 to 7. Every row holds 16 units of 32 bits, and a unit is
either one float32 or a pair of bf16. Instructions name their tiles by constants.

**`dot(unit, c, a, b)`** is the whole arithmetic, 16,384 operations:

    c[m, n] += sum over k of a[m, k] . b[k, n]        c float32 16 x 16;  a and b 16 x 16 pairs; "." of two pairs

So `a` holds 16 rows of its matrix, 32 bf16 of each as they lie in memory; and `b` holds 32 rows of its matrix, two by
two: b[k, n] is the pair of elements (2k, n) and (2k + 1, n). Seen in units, the tile of X as `a` is the transpose of
the tile of Xᵀ as `b`: `transpose` turns one form into the other.

**The unit** is what has the tiles. `configure` gets it ready for this thread and returns it, every other instruction
takes it first, and `release` ends its use. A kernel calls `configure` in its own body, not in a helper's. unit.py says
which unit it is, amx.py and vector_tiles.py what the instructions are there, and how they round.

**Alignment.** `load` reads 16 rows: on 64-byte lines 16 accesses, astride of them 32, for which AMX takes three times
as long.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minibert.errors import BackendError

from . import amx, lanes, vector_tiles
from .unit import NEEDS, available, mode

_I8, _I32, _I64, _UNITS = ir.IntType(8), ir.IntType(32), ir.IntType(64), lanes.WORDS.vector


@functools.cache
def configuration() -> np.ndarray:
    """The 64 bytes for `configure`: eight tiles of 16 rows of 64 bytes. BackendError where nothing multiplies them."""
    if not available():
        raise BackendError(f"a bf16 product {NEEDS}: use fp32, or set MINIBERT_TILES=software")
    config = np.zeros(64, np.uint8)
    config[0] = 1  # palette 1: eight tiles
    config[16:32].view(np.uint16)[:] = 64  # bytes of a row
    config[48:56] = 16  # rows
    return config


def _spelling():
    return amx if mode() == "amx" else vector_tiles


@intrinsic
def configure(typing, address):
    """The unit, for this thread, its tiles shaped as the 64 bytes at `address` say; what they hold is undefined."""
    return types.int64(types.int64), _spelling().configure


@intrinsic
def release(typing, unit):
    """Done with the unit."""
    return types.void(unit), _spelling().release


@intrinsic(prefer_literal=True)
def zero(typing, unit, tile):
    """tile = 0"""
    return types.void(unit, tile), _spelling().zero


@intrinsic(prefer_literal=True)
def load(typing, unit, tile, address, stride):
    """tile = 16 rows of 64 bytes, the first at `address`, each `stride` bytes after the one before."""
    return types.void(unit, tile, types.int64, types.int64), _spelling().load


@intrinsic(prefer_literal=True)
def load_once(typing, unit, tile, address, stride):
    """Like `load`, for what will not be read again soon: leaves L1 to others."""
    return types.void(unit, tile, types.int64, types.int64), _spelling().load_once


@intrinsic(prefer_literal=True)
def store(typing, unit, tile, address, stride):
    """16 rows of 64 bytes at `address`, `stride` bytes apart = tile"""
    return types.void(unit, tile, types.int64, types.int64), _spelling().store


@intrinsic(prefer_literal=True)
def dot(typing, unit, c, a, b):
    """Tile c += tile a times tile b: see above."""
    return types.void(unit, c, a, b), _spelling().dot


@intrinsic
def transpose(typing, address):
    """Transposes the 16 x 16 units of 32 bits at `address` in place: the form `a` becomes `b`, and back."""

    def generate(context, builder, signature, arguments):
        lines = [builder.add(arguments[0], ir.Constant(_I64, 64 * i)) for i in range(16)]
        rows = [builder.load(_pointer(builder, line, _UNITS), align=64) for line in lines]
        # Row i shuffled into row i + 8, four times: each shuffle rotates the eight bits of a unit's place (row, column)
        # by one, and after four the row's bits and the column's have changed places.
        low, high = (ir.Constant(_UNITS, [first + i // 2 + i % 2 * 16 for i in range(16)]) for first in (0, 8))
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[i], rows[i + 8], half) for i in range(8) for half in (low, high)]
        for line, row in zip(lines, rows, strict=True):
            builder.store(row, _pointer(builder, line, _UNITS), align=64)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def fence(typing):
    """What was streamed is visible to other threads before anything that is written later."""

    def generate(context, builder, signature, arguments):
        if lanes.compiles("sse"):
            _call(builder, "x86.sse.sfence")
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def prefetch(typing, address):
    """Asks for a line to be brought into the L2 cache; no address is wrong."""

    def generate(context, builder, signature, arguments):
        ask(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def prefetch_rows(typing, address, stride, rows, lines):
    """`prefetch` of so many lines of so many rows, `stride` bytes apart. It is a function in each kernel: loops, which
    LLVM unrolls wherever they stand, were a third of a kernel's code and most of the time to compile one.
    """

    def generate(context, builder, signature, arguments):
        builder.call(_rows_function(builder.module), arguments)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def _rows_function(module):
    name = "minibert.prefetch_rows"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_I64] * 4), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    first, stride, rows, lines = function.args
    with cgutils.for_range(builder, rows) as row, cgutils.for_range(builder, lines) as line:
        off = builder.add(builder.mul(row.index, stride), builder.mul(line.index, ir.Constant(_I64, lanes.LINE)))
        ask(builder, builder.add(first, off))
    builder.ret_void()
    return function


def ask(builder, address):
    """The code of `prefetch`."""
    read, l2, data = (ir.Constant(_I32, n) for n in (0, 2, 1))
    _call(builder, "prefetch.p0", _pointer(builder, address, _I8), read, l2, data)


def _pointer(builder, address, to):
    return builder.inttoptr(address, to.as_pointer())


def _call(builder, name, *operands):
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), operands)
