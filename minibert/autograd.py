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
from dataclasses import dataclass, field
from typing import Any

_serials = itertools.count()


@dataclass(eq=False, slots=True)
class Tensor:
    """An array on a device. `dtype` names the type where NumPy cannot: bfloat16 travels as uint16."""

    data: Any
    device: Any
    dtype: str = ""
    serial: int = field(default_factory=_serials.__next__)

    def __post_init__(self) -> None:
        self.dtype = self.dtype or self.data.dtype.name


Vjp = Callable[[Any], Sequence[Any]]


@dataclass(slots=True)
class Node:
    """One operation on the tape; it holds its output by serial number only, so as not to keep it alive."""

    output: int
    inputs: tuple[Tensor, ...]
    vjp: Vjp


class Tape:
    """Operations in the order they ran, while `with tape:` is open.

    `vjp(dy)` returns one array for each input, freshly allocated (they are added into in place), and adds the
    gradients of parameters where those live.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def __enter__(self) -> Tape:
        self._outer = _current.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        _current.reset(self._outer)

    def backward(self, y: Tensor, dy: Any, wrt: Sequence[Tensor] = ()) -> list[Any]:
        """Walks back from `y` with its gradient `dy`; returns the gradients of `wrt`.

        Nodes are dropped as they are passed, and with them what they stored: a tape serves once.
        """
        gradients = {y.serial: dy}
        while self.nodes:
            node = self.nodes.pop()
            d_output = gradients.pop(node.output, None)
            if d_output is None:
                continue  # nothing that `y` depends on
            for x, dx in zip(node.inputs, node.vjp(d_output), strict=True):
                if x.serial in gradients:
                    total = gradients[x.serial]
                    x.device.add.forward(total, total, dx)
                else:
                    gradients[x.serial] = dx
        return [gradients[x.serial] for x in wrt]


_current: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def untaped() -> Iterator[None]:
    """Operations inside leave no trace, so that their inputs can be freed."""
    outer = _current.set(None)
    try:
        yield
    finally:
        _current.reset(outer)


def record(device: Any, y: Any, inputs: tuple[Tensor, ...], vjp: Vjp) -> Tensor:
    """The result of an operation as a Tensor; on the open tape, if there is one, with its gradient."""
    out = Tensor(y, device)
    tape = _current.get()
    if tape is not None:
        tape.nodes.append(Node(out.serial, inputs, vjp))
    return out


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) that stores only `x`: the backward pass runs `function` again, this time with a tape.

    Bitwise equal to storing everything, because randomness is an argument that `function` has closed over.
    """
    with untaped():
        y = function(x)

    def vjp(dy: Any) -> list[Any]:
        start = Tensor(x.data, x.device, x.dtype)
        with Tape() as tape:
            again = function(start)
        return tape.backward(again, dy, wrt=(start,))

    return record(x.device, y.data, (x,), vjp)
