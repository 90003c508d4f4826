"""Reads the pickles of PyTorch files with a machine that knows few opcodes and calls only what it is given.

pickletools.genops says which opcodes a pickle has and runs none of them; each that a state dict needs is a
method here, and any other is refused. Objects are built of None, bool, int, float, str, tuple, list and dict
only, without recursion, and nobody may ask for their hash, their repr or whether two are equal: a pickle can
nest them a million deep or make them contain themselves. The opcodes: https://peps.python.org/pep-0307/,
https://peps.python.org/pep-3154/ and the standard library's pickletools.py.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from minibert.errors import CheckpointError

# PyTorch's pickles have some 150 bytes per tensor; a hostile one's few bytes can each cost a hundred of memory.
LIMIT = 1 << 20
_UNSET = object()


def load(stream: io.BytesIO, names: Mapping[str, object], persistent: Callable[[object], object], where: str) -> object:
    """The object of the pickle that begins at the stream's position and ends at its new one.

    `names` are the globals that it may name, as "module.name": what is callable there takes the tuple of its
    arguments. `persistent` takes a persistent id; both raise ValueError for what they cannot take. Raises
    CheckpointError for any other global, and for what is no pickle or needs other opcodes.
    """
    machine = _Machine(names, persistent, where, stream.getbuffer().nbytes)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in _STEPS:
                raise CheckpointError(f"{where}: refused: its pickle has the opcode {opcode.name}, unlike state dicts")
            _STEPS[opcode.name](machine, argument)
        return machine.stack.pop()
    # pickletools warns of odd escapes in the texts of protocol 0, which are refused anyway.
    except (ValueError, IndexError, DeprecationWarning) as reason:
        said = ascii(str(reason))[1:-1][:200]  # it may quote what no terminal should get
        raise CheckpointError(f"{where}: its pickle is malformed ({said}): get the file again") from None


def put(target: dict[str, object], key: object, value: object) -> None:
    """target[key] = value as a pickle may ask for it; raises ValueError."""
    # State dicts have no numbers for keys, optimizers' states have. Those are let go: who may choose the numbers
    # can make them collide in the dict, and then ten thousand of them take minutes.
    if type(key) is int:
        return
    if type(key) is not str:
        raise ValueError(f"a dict's key is a {type(key).__name__}")
    if key in target:
        raise ValueError(f"the key {key[:200]!r} stands twice in a dict")
    target[key] = value


class _Machine:
    """The stack, the stacks below each mark, and the memo."""

    def __init__(
        self, names: Mapping[str, object], persistent: Callable[[object], object], where: str, length: int
    ) -> None:
        self.names = names
        self.persistent = persistent
        self.where = where
        self.length = length
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: list[object] = []

    def skip(self, argument: Any) -> None:
        pass

    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    def push_text(self, argument: str) -> None:
        argument.encode()  # pickletools lets half a surrogate pair pass, which nobody can print: a ValueError here
        self.stack.append(argument)

    def push_int(self, argument: int) -> None:
        # Sixteen bytes: the longest of PyTorch, its magic number, has ten.
        if argument.bit_length() > 128:
            raise ValueError("a number of over 128 bits")
        self.stack.append(argument)

    def mark(self, argument: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.below.pop()
        return above

    def tuple_of_mark(self, argument: Any) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("a tuple of more than the stack has")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError(f"append to a {type(target).__name__}")
        target.extend(items)

    def set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"{len(items)} keys and values for a {type(target).__name__}")
        for i in range(0, len(items), 2):
            put(target, items[i], items[i + 1])

    def set_one(self, argument: Any) -> None:
        value = self.stack.pop()
        self.set([self.stack.pop(), value])

    def keep(self, index: int) -> None:
        # Picklers count from 0 or 1, so that no index is larger than the pickle; a dict would not bound it, and
        # its keys could be chosen to collide.
        if not 0 <= index < self.length:
            raise ValueError(f"memo index {index}")
        if index >= len(self.memo):
            self.memo.extend([_UNSET] * (index + 1 - len(self.memo)))
        self.memo[index] = self.stack[-1]

    def keep_next(self, argument: Any) -> None:
        self.keep(len(self.memo))

    def recall(self, index: int) -> None:
        if not 0 <= index < len(self.memo) or self.memo[index] is _UNSET:
            raise ValueError(f"memo index {index} was never set")
        self.stack.append(self.memo[index])

    def name(self, argument: str) -> None:
        """`argument`: the module, a space and the name."""
        wanted = argument.replace(" ", ".")
        if wanted not in self.names:
            raise CheckpointError(
                f"{self.where}: refused: the file wants to call {wanted[:200]!r}, and it may only make tensors: "
                "save its state_dict() alone"
            )
        self.stack.append(self.names[wanted])

    def name_from_stack(self, argument: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a global whose name is no text")
        self.name(f"{module} {name}")

    def call(self, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not callable(function) or type(arguments) is not tuple:
            raise ValueError(f"call of a {type(function).__name__} with a {type(arguments).__name__}")
        self.stack.append(function(arguments))

    def build(self, argument: Any) -> None:
        # An OrderedDict's attributes: state_dict() keeps the modules' versions in one, _metadata.
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError(f"state for a {type(self.stack[-1]).__name__}")

    def refer(self, argument: Any) -> None:
        self.stack.append(self.persistent(self.stack.pop()))


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _Machine.skip),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push_text),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine.push_text),  # Python 2's str
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push_int),
    "BINFLOAT": _Machine.push,
    "NONE": _Machine.push,  # whose argument is None
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": _Machine.set_one,
    "SETITEMS": lambda machine, _: machine.set(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.keep),
    "MEMOIZE": _Machine.keep_next,
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
}
