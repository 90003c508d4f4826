"""The matrix unit of Intel's cores (AMX), from Numba: tiles, the bf16 product, and the form that it wants numbers in.

**A tile** is a register of 16 rows of 64 bytes; a core has eight, numbered 0 to 7. Every row holds 16 units of 32 bits,
and a unit is either one float32 or a pair of bf16. Instructions name their tiles by constants.

**`dot(c, a, b)`** (tdpbf16ps) is the whole arithmetic, 16,384 operations in 16 cycles:

    c[m, n] += sum over k of a[m, k] . b[k, n]        c float32 16 x 16;  a and b 16 x 16 pairs; "." of two pairs

So `a` holds 16 rows of its matrix, 32 bf16 of each as they lie in memory; and `b` holds 32 rows of its matrix, two by
two: b[k, n] is the pair of elements (2k, n) and (2k + 1, n). Seen in units, the tile of X as `a` is the transpose of
the tile of Xᵀ as `b`: `transpose` turns one form into the other. The 32 products of an element are summed in float32
before they are added to c; subnormal numbers count as zero; rounding is to the nearest.

**Configuration.** `configure(address)` reads 64 bytes that say how many rows and bytes each tile has (`configuration()`
says: all full), and turns the unit on for this thread. `release()` turns it off: until then the system must save
8 KiB at every switch of threads.

**Permission.** Linux grants that state to a process on request, `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`,
and to all of its threads, older and later ones (Documentation/arch/x86/xstate.rst). A kernel can only get its
configuration here, which asks. The addresses are arguments, never constants of a cached kernel.

**Alignment.** `load` reads 16 rows: on 64-byte lines that is 16 accesses, astride of them 32, three times slower.

Intel's Software Developer's Manual, volume 1, chapter 18, and volume 2 (TILELOADD, TDPBF16PS) define all this.
"""

from __future__ import annotations

import ctypes
import functools
import sys

import numba.core.config
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from minibert.errors import BackendError

_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def available() -> bool:
    """Whether compiled kernels may use the matrix unit: the cores have it, LLVM compiles for it, Linux grants it."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]  # NUMBA_CPU_FEATURES and the like counted in
    compiles = not numba.core.config.DISABLE_JIT  # type: ignore[attr-defined]
    needed = {"+amx-tile", "+amx-bf16", "+avx512bf16"}
    if sys.platform != "linux" or not compiles or not needed <= set(features.split(",")):
        return False
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


@functools.cache
def configuration() -> np.ndarray:
    """The 64 bytes for `configure`: eight tiles of 16 rows of 64 bytes. BackendError where there is no matrix unit."""
    if not available():
        raise BackendError("bf16 products need a CPU with AMX, and a system that permits its use: use fp32")
    config = np.zeros(64, np.uint8)
    config[0] = 1  # palette 1: eight tiles
    config[16:32].view(np.uint16)[:] = 64  # bytes of a row
    config[48:56] = 16  # rows
    return config


_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_FLOATS, _UNITS = ir.VectorType(ir.FloatType(), 16), ir.VectorType(_I32, 16)


def _pointer(builder, address, to=_I8):
    return builder.inttoptr(address, to.as_pointer())


def _call(context, builder, name, *operands):
    kinds = [operand.type for operand in operands]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), f"llvm.{name}")
    builder.call(function, operands)
    return context.get_dummy_value()


def _instruction(name, tiles):
    """An instruction's generator: its first `tiles` arguments are numbers of tiles, then an address and a stride."""

    def generate(context, builder, signature, arguments):
        operands = [ir.Constant(_I8, tile.literal_value) for tile in signature.args[:tiles]]
        rest = arguments[tiles:]
        operands += [_pointer(builder, rest[0]), *rest[1:]] if rest else []
        return _call(context, builder, f"x86.{name}", *operands)

    return generate


@intrinsic
def configure(typing, address):
    """Turns the unit on for this thread, its tiles shaped as the 64 bytes at `address` say."""
    return types.void(types.int64), _instruction("ldtilecfg", 0)


@intrinsic
def release(typing):
    """Turns the unit off."""
    return types.void(), _instruction("tilerelease", 0)


@intrinsic(prefer_literal=True)
def zero(typing, tile):
    """tile = 0"""
    return types.void(tile), _instruction("tilezero", 1)


@intrinsic(prefer_literal=True)
def load(typing, tile, address, stride):
    """tile = 16 rows of 64 bytes, the first at `address`, each `stride` bytes after the one before."""
    return types.void(tile, types.int64, types.int64), _instruction("tileloadd64", 1)


@intrinsic(prefer_literal=True)
def load_once(typing, tile, address, stride):
    """Like `load`, for what will not be read again soon: leaves L1 to others."""
    return types.void(tile, types.int64, types.int64), _instruction("tileloaddt164", 1)


@intrinsic(prefer_literal=True)
def store(typing, tile, address, stride):
    """16 rows of 64 bytes at `address`, `stride` bytes apart = tile"""
    return types.void(tile, types.int64, types.int64), _instruction("tilestored64", 1)


@intrinsic(prefer_literal=True)
def dot(typing, c, a, b):
    """Tile c += tile a times tile b: see above."""
    return types.void(c, a, b), _instruction("tdpbf16ps", 3)


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
        return _call(context, builder, "x86.sse.sfence")

    return types.void(), generate


@intrinsic
def prefetch(typing, address):
    """Asks for a line to be brought into the L2 cache; no address is wrong."""

    def generate(context, builder, signature, arguments):
        read, l2, data = (ir.Constant(_I32, n) for n in (0, 2, 1))
        return _call(context, builder, "prefetch.p0", _pointer(builder, arguments[0]), read, l2, data)

    return types.void(types.int64), generate
