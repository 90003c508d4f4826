"""The instructions on tiles as Intel's matrix unit has them (AMX): the code that Numba generates for tiles.py.

Its tiles are registers of a core. `dot` (tdpbf16ps) takes 16 cycles; it sums the 32 products of an element in float32
before they are added to c, takes subnormal numbers for zeros, and rounds to the nearest. `configure` turns the unit on,
and what it returns is looked at by nobody. Until it is released, the system saves 8 KiB at every switch of threads.

Intel's Software Developer's Manual, volume 1, chapter 18, and volume 2 (TILELOADD, TDPBF16PS) define all this.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

_I8, _I64 = ir.IntType(8), ir.IntType(64)


def configure(context, builder, signature, arguments):
    _call(builder, "ldtilecfg", [_pointer(builder, arguments[0])])
    return ir.Constant(_I64, 0)


def _instruction(name, tiles):
    """An instruction's generator: the unit, the numbers of `tiles` tiles, and perhaps an address and a stride."""

    def generate(context, builder, signature, arguments):
        operands = [ir.Constant(_I8, tile.literal_value) for tile in signature.args[1 : 1 + tiles]]
        rest = arguments[1 + tiles :]
        operands += [_pointer(builder, rest[0]), *rest[1:]] if rest else []
        _call(builder, name, operands)
        return context.get_dummy_value()

    return generate


release = _instruction("tilerelease", 0)
zero = _instruction("tilezero", 1)
load = _instruction("tileloadd64", 1)
load_once = _instruction("tileloaddt164", 1)
store = _instruction("tilestored64", 1)
dot = _instruction("tdpbf16ps", 3)


def _pointer(builder, address):
    return builder.inttoptr(address, _I8.as_pointer())


def _call(builder, name, operands):
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), operands)
