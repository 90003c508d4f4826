"""Kernels bound to their arguments: all that a thread needs to compute a part of a launch without the interpreter.

A kernel that is called with a worker below 0 computes nothing. It writes to the ROOM bytes at address `begin` where
its code is and what it was called with, as the machine has it; `call` goes on from there, on any thread:

    kernel(-1, room, 0, *arguments)             # from Python, which knows the arguments' types
    call(room, worker, begin, end)              # from compiled code, as often as need be: kernel(worker, begin, ...)

The arguments must live until then. To this end the compiler gives every kernel a few instructions at its entry, by
the pass that Numba's manual describes under "Customizing the compiler", and a function that calls it so.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core import ir as numba_ir
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.untyped_passes import IRProcessing
from numba.extending import intrinsic

ROOM = 4096  # bytes; a kernel that needs more does not compile

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BOUND = ir.FunctionType(_I32, [_I64] * 4)  # (room, worker, begin, end), to Numba's status, 0 where nothing was raised
_OWN = 5  # of a kernel's machine arguments the first: result, exception, worker, begin, end; the rest is bound


@intrinsic
def _bind_here(typing):
    """What stands at a kernel's entry."""

    def generate(context, builder, signature, arguments):
        kernel = builder.function
        rest = kernel.args[_OWN:]
        form = ir.LiteralStructType([_I64, *(argument.type for argument in rest)])
        if form.get_abi_size(context.target_data) > ROOM:
            raise ValueError(f"{kernel.name}: its arguments take more than {ROOM} bytes")
        counted = [counted for kind in context.fndesc.argtypes[3:] for counted in _counted(kind)]
        with builder.if_then(builder.icmp_signed("<", kernel.args[2], ir.Constant(_I64, 0)), likely=False):
            room = builder.inttoptr(kernel.args[3], form.as_pointer())
            code = builder.ptrtoint(_bound_form(kernel, form), _I64)
            builder.store(code, cgutils.gep_inbounds(builder, room, 0, 0))
            for i, (value, is_counted) in enumerate(zip(rest, counted, strict=True), start=1):
                value = ir.Constant(value.type, None) if is_counted else value
                builder.store(value, cgutils.gep_inbounds(builder, room, 0, i))
            builder.ret(ir.Constant(_I32, 0))
        return context.get_dummy_value()

    return types.void(), generate


def _counted(kind):
    """For each machine argument that a type comes to, whether references are counted by it: an array's first two. The
    count is over when the call that binds returns; without it an array is memory that somebody else looks after.
    """
    if isinstance(kind, types.BaseTuple):
        return [counted for part in kind for counted in _counted(part)]
    if isinstance(kind, types.Array):
        return [place < 2 for place in range(5 + 2 * kind.ndim)]
    if isinstance(kind, (types.Number, types.Boolean, types.NoneType)):
        return [False]
    raise TypeError(f"a kernel's arguments are numbers, arrays and tuples of these, and not {kind}")


def _bound_form(kernel, form):
    """The function that calls a kernel with what is bound."""
    function = ir.Function(kernel.module, _BOUND, f"{kernel.name}.bound")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    room = builder.inttoptr(function.args[0], form.as_pointer())
    rest = [builder.load(cgutils.gep_inbounds(builder, room, 0, i)) for i in range(1, len(form.elements))]
    result, exception = (builder.alloca(argument.type.pointee) for argument in kernel.args[:2])
    status = builder.call(kernel, [result, exception, *function.args[1:], *rest])
    status.attributes.add("noinline")  # or there would be the kernel's code twice
    builder.ret(status)
    return function


@register_pass(mutates_CFG=False, analysis_only=False)
class _BindAtEntry(FunctionPass):
    """Puts `_bind_here` before everything else, the counting of references to arguments included."""

    _name = "minibert_bind_at_entry"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state) -> bool:
        function = state.func_ir
        entry = function.blocks[min(function.blocks)]
        callee, nothing = (entry.scope.redefine(name, entry.loc) for name in ("$bind_here", "$bound"))
        entry.body[:0] = [
            numba_ir.Assign(numba_ir.Global("_bind_here", _bind_here, entry.loc), callee, entry.loc),
            numba_ir.Assign(numba_ir.Expr.call(callee, (), (), entry.loc), nothing, entry.loc),
        ]
        for assignment in entry.body[:2]:
            function._definitions[assignment.target.name].append(assignment.value)
        return True


class Bindable(CompilerBase):
    """The compiler for kernels that can be bound."""

    def define_pipelines(self):
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_BindAtEntry, IRProcessing)
        passes.finalize()
        return [passes]


def is_bindable(kernel: object) -> bool:
    """Whether a function was compiled so."""
    return getattr(getattr(kernel, "_compiler", None), "pipeline_class", None) is Bindable


@intrinsic
def call(typing, room, worker, begin, end):
    """kernel(worker, begin, end, ...) with what is bound in a room: the status, 0 where it ended as it should."""

    def generate(context, builder, signature, arguments):
        code = builder.load(builder.inttoptr(arguments[0], _I64.as_pointer()))
        return builder.call(builder.inttoptr(code, _BOUND.as_pointer()), arguments)

    return types.int32(*[types.int64] * 4), generate
