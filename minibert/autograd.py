"""A tape of fused operations: record, walk back, recompute.

An operation computes its result, closes over exactly what its gradient needs, and calls `record`; what the closure
captured is what is stored. There is no operator overloading and no layer class: the operations are functions
(minibert/ops.py) and knowledge of kernels and devices stays with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_serials = itertools.count()


class Tensor:
    """An array on a device.

    Operations capture tensors, not arrays, so that one may be forgotten after the forward pass: whoever asks for
    its data in the backward pass has it computed again.
    """

    __slots__ = ("_again", "_data", "device", "serial")

    def __init__(self, data: Any, device: Any):
        self._data, self.device = data, device
        self._again: Callable[[], Tensor] | None = None
        self.serial = next(_serials)

    @property
    def data(self) -> Any:
        if self._data is None:
            assert self._again is not None, "forgotten for good, and asked for"
            with untaped():
                self._data = self._again()._data
        return self._data

    def forget(self, again: Callable[[], Tensor] | None = None) -> None:
        """Lets go of the array; `again` computes the same bits, if anybody is going to ask."""
        self._data, self._again = None, again


# A gradient is an array, or a list of one or two arrays that are meant as their sum. `vjp(dy)` gets an array; that of
# an operation recorded with `two` gets such a list and empties it, so that nobody up the stack keeps what is done with.
Vjp = Callable[[Any], Sequence[Any]]


@dataclass(slots=True)
class Node:
    """One operation on the tape; it holds its output by serial number only, so as not to keep it alive."""

    output: int
    inputs: tuple[Tensor, ...]
    vjp: Vjp
    device: Any
    two: bool


class Tape:
    """Operations in the order they ran, while `with tape:` is open.

    `vjp(dy)` returns one gradient for each input, of arrays freshly allocated (they are added into in place), and adds
    the gradients of parameters where those live, if anything has come there before.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __enter__(self) -> Tape:
        self._outer = _current.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _current.reset(self._outer)

    def backward(self, y: Tensor, dy: list[Any], wrt: Sequence[Tensor] = ()) -> list[list[Any]]:
        """Walks back from `y` with its gradient; returns the gradients of `wrt`.

        Nodes are dropped as they are passed, and with them what they stored: a tape serves once.
        """
        gradients: dict[int, list[Any]] = {y.serial: dy}
        while self.nodes:
            node = self.nodes.pop()
            if (parts := gradients.pop(node.output, None)) is None:
                continue  # nothing that `y` depends on
            serials = [x.serial for x in node.inputs]  # no name for an input that would keep it until the next node
            for serial, dx in zip(serials, node.vjp(parts if node.two else _sum(node.device, parts)), strict=True):
                have, more = gradients.setdefault(serial, []), dx if isinstance(dx, list) else [dx]
                while more:
                    have.append(more.pop() if len(have) < 2 else _sum(node.device, [have.pop(), more.pop()]))
        return [gradients[x.serial] for x in wrt]


def _sum(device: Any, parts: list[Any]) -> Any:
    """One array for one or two, which are taken out of the list."""
    total = parts.pop()
    if parts:
        device.add.forward(total, total, parts.pop())
    return total


_current: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def untaped() -> Iterator[None]:
    """Operations inside leave no trace, so that their inputs can be freed."""
    outer = _current.set(None)
    try:
        yield
    finally:
        _current.reset(outer)


def record(device: Any, y: Any, inputs: tuple[Tensor, ...], vjp: Vjp, two: bool = False) -> Tensor:
    """The result of an operation, an array or already a Tensor, as a Tensor; on the open tape, if there is one, with
    its gradient.

    `two`: its vjp takes a gradient in one part or two and adds them on the way, which spares a pass and a rounding
    where a result is used twice, as every sum of a residual network is.
    """
    out = y if isinstance(y, Tensor) else Tensor(y, device)
    tape = _current.get()
    if tape is not None:
        tape.nodes.append(Node(out.serial, inputs, vjp, device, two))
    return out


def passed(x: Tensor, hear: Callable[[], None]) -> Tensor:
    """x. On the way back `hear` is called when everything that was computed from this x has been passed."""

    def vjp(dy: list[Any]) -> list[list[Any]]:
        hear()
        return [dy]

    return record(x.device, x.data, (x,), vjp, two=True)


def recompute(function: Callable[[Tensor], Tensor], x: Tensor, away: Any = None) -> Tensor:
    """function(x) that stores only `x`: the backward pass runs `function` again, this time with a tape.

    Bitwise equal to storing everything, because randomness is an argument that `function` has closed over. The
    function may recompute parts of itself. `away`: x lets go of its array, which waits there (kernels/devices/away.py).
    """
    back = away.leave(x.data) if away is not None and _current.get() is not None else None
    with untaped():
        y = function(x)
    if back is not None:
        away.left()
        device = x.device  # not x, which would keep itself alive
        x.forget(lambda: Tensor(back(), device))

    def vjp(dy: list[Any]) -> list[list[Any]]:
        start = Tensor(x.data, x.device)
        with Tape() as tape:
            again = function(start)
        again.forget()
        return tape.backward(again, dy, wrt=(start,))

    return record(x.device, y, (x,), vjp, two=True)
