"""The instructions on tiles in vector registers, where there is no matrix unit: the code that Numba generates.

The tiles are 8 KiB of the kernel's own stack, and `configure` returns their address: they are there until the kernel
returns. Loading and storing copy, which takes little beside a product: 512 cycles at best, in software.

`dot` sums some rows of the product at a time, as many as keep the multipliers busy and fit into registers: for each k
the products of a row's pair of `a`, in all lanes, and of 16 pairs of `b`. As on the unit, 32 products make a sum before
it is added to c, which keeps the errors of long sums small. A product of two bf16 is exact in float32, so additions are
all that rounds, fused or not: in the order of k, the even element's before the odd one's. AVX512-BF16's instruction
(vdpbf16ps) adds the odd one's first, and takes subnormal numbers for zeros; software does not.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from . import halves, lanes, unit

_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_WORDS, _FLOATS = lanes.WORDS.vector, lanes.FLOATS.vector
LINE, TILE, ROWS = 64, 1024, 16


def configure(context, builder, signature, arguments):
    with builder.goto_entry_block():
        tiles = builder.alloca(ir.ArrayType(_I8, 8 * TILE))
    tiles.align = LINE
    return builder.ptrtoint(tiles, _I64)


def release(context, builder, signature, arguments):
    return context.get_dummy_value()


def zero(context, builder, signature, arguments):
    for line in _lines(builder, _tile(builder, signature, arguments, 1), LINE):
        builder.store(ir.Constant(_WORDS, None), _pointer(builder, line, _WORDS), align=LINE)
    return context.get_dummy_value()


def load(context, builder, signature, arguments):
    _copy(builder, _tile(builder, signature, arguments, 1), LINE, *arguments[2:])
    return context.get_dummy_value()


load_once = load


def store(context, builder, signature, arguments):
    _copy(builder, *arguments[2:], _tile(builder, signature, arguments, 1), LINE)
    return context.get_dummy_value()


def dot(context, builder, signature, arguments):
    c, a, b = (_tile(builder, signature, arguments, i) for i in (1, 2, 3))
    rows = together()
    with cgutils.for_range(builder, ir.Constant(_I64, ROWS // rows)) as group:
        first = builder.mul(group.index, ir.Constant(_I64, rows * LINE))
        _add_to_rows(builder, builder.add(c, first), builder.add(a, first), b, rows)
    return context.get_dummy_value()


def together():
    """As many rows of c as stay in registers: eight, each in one of 32, or four, each in two of 16."""
    return 8 if lanes.compiles("avx512f") else 4


def _add_to_rows(builder, c, a, b, rows):
    """Rows of c += those of a times b."""
    sums = [cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, None)) for _ in range(rows)]
    with cgutils.for_range(builder, ir.Constant(_I64, 16)) as k:
        line = builder.add(b, builder.mul(k.index, ir.Constant(_I64, LINE)))
        pairs = builder.load(_pointer(builder, line, _WORDS), align=LINE)
        at = builder.add(a, builder.mul(k.index, ir.Constant(_I64, 4)))
        for total, place in zip(sums, _lines(builder, at, LINE), strict=False):
            pair = lanes.in_all(builder, builder.load(_pointer(builder, place, _I32)))
            builder.store(_plus_products(builder, builder.load(total), pair, pairs), total)
    for total, line in zip(sums, _lines(builder, c, LINE), strict=False):
        place = _pointer(builder, line, _FLOATS)
        builder.store(builder.fadd(builder.load(place, align=LINE), builder.load(total)), place, align=LINE)


def _plus_products(builder, sums, a, b):
    """sums + the products of a's and b's bf16, two in each of 16 words"""
    if unit.mode() == "dot":
        pairs = ir.VectorType(halves.BFLOAT, 32)
        kind = ir.FunctionType(_FLOATS, [_FLOATS, pairs, pairs])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
        return builder.call(function, [sums, builder.bitcast(a, pairs), builder.bitcast(b, pairs)])
    for half in (_even, _odd):
        product = builder.fmul(half(builder, a), half(builder, b), flags=["contract"])
        sums = builder.fadd(sums, product, flags=["contract"])
    return sums


def _even(builder, pairs):
    """The lower bf16 of each word as float32."""
    return builder.bitcast(builder.shl(pairs, ir.Constant(_WORDS, [16] * 16)), _FLOATS)


def _odd(builder, pairs):
    """The upper bf16 of each word as float32."""
    return builder.bitcast(builder.and_(pairs, ir.Constant(_WORDS, [0xFFFF0000] * 16)), _FLOATS)


def _copy(builder, to, to_stride, source, stride):
    for place, line in zip(_lines(builder, to, to_stride), _lines(builder, source, stride), strict=True):
        row = builder.load(_pointer(builder, line, _WORDS), align=1)
        builder.store(row, _pointer(builder, place, _WORDS), align=1)


def _tile(builder, signature, arguments, which):
    """The address of the tile whose number is that argument."""
    return builder.add(arguments[0], ir.Constant(_I64, signature.args[which].literal_value * TILE))


def _lines(builder, address, stride):
    """The addresses of 16 rows, `stride` bytes apart."""
    stride = ir.Constant(_I64, stride) if isinstance(stride, int) else stride
    return [builder.add(address, builder.mul(ir.Constant(_I64, row), stride)) for row in range(ROWS)]


def _pointer(builder, address, to):
    return builder.inttoptr(address, to.as_pointer())
