"""Parameters: one flat buffer a group for weights and one for gradients, decayed parameters first.

Optimizers, norms and all-reduces take whole groups; operations take the named views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from threading import Lock
from typing import Any

from minibert.kernels.devices import ALIGNMENT, Device

NOT_DECAYED = ("LayerNorm", "layer_norm", "bias")  # substrings of names, as in Google's optimizer


def is_decayed(name: str) -> bool:
    return not any(part in name for part in NOT_DECAYED)


class Param:
    """A named view of its group's buffers: `data` and `grad` have the parameter's shape.

    `fresh`: nothing has come to its gradient yet, and what stands there is of no meaning: see Group.
    """

    __slots__ = ("_prepared", "data", "fresh", "group", "name", "offset", "shape", "stale")

    def __init__(self, group: Group, name: str, shape: tuple[int, ...], offset: int):
        self.group, self.name, self.shape, self.offset = group, name, shape, offset
        self.data: Any = None
        self._prepared: Any = None
        self.stale, self.fresh = True, False

    @property
    def grad(self) -> Any:
        """To be read or added to."""
        self.clear_if_fresh()
        return self.raw_grad

    @property
    def raw_grad(self) -> Any:
        """The same, to be overwritten if it is `fresh`."""
        return self.group.raw_gradients[self.span].reshape(self.shape)

    def clear_if_fresh(self) -> None:
        """Zeros, where there is nothing else."""
        if self.fresh:
            self.group.device.clear(self.raw_grad)
            self.fresh = False

    @property
    def operand(self) -> Any:
        """The weight (F, C) as the device's products take it: its own copy in their form, where they have one.

        That copy is made when it is first asked for after a change (`Group.changed`).
        """
        device, matmul = self.group.device, self.group.device.matmul
        if device.operand_type is not None:
            return self.group.copy[self.span].reshape(self.shape)
        size = matmul.prepared_bytes(*self.shape)
        if not size:
            return self.data
        if self.stale:
            with self.group.preparing:  # several threads may predict
                if self.stale:
                    prepared = device.empty((size,), "uint8", "weights") if self._prepared is None else self._prepared
                    matmul.prepare(prepared, self.data)
                    self._prepared, self.stale = prepared, False
        return self._prepared

    @property
    def span(self) -> slice:
        return slice(self.offset, self.offset + math.prod(self.shape))


class Group:
    """Parameters that are kept, updated and communicated together.

    `weights` and `gradients` are flat; `decayed` is how many leading elements weight decay applies to. Every
    parameter starts on a 64-byte line; the padding between holds zeros, which no optimizer moves.

    Gradients are allocated when they are first asked for: inference never does. They begin as zeros, and do so again
    after an update, but for those of `products`, the weights of products: the first product that has something for them
    overwrites what it finds, so that nobody has to write and to read zeros in the place of most of a model's gradients.
    """

    def __init__(self, device: Device, name: str, shapes: dict[str, tuple[int, ...]], products: bool = False):
        self.device, self.name, self.preparing = device, name, Lock()
        line = ALIGNMENT // device.float_type.itemsize
        names = sorted(shapes, key=lambda name: not is_decayed(name))  # stable: keeps the order within each half
        self.params: dict[str, Param] = {}
        self.decayed = size = 0
        for param in names:
            self.params[param] = Param(self, param, shapes[param], size)
            size += -(-math.prod(shapes[param]) // line) * line
            if is_decayed(param):
                self.decayed = size
        self.weights = device.zeros((size,), device.float_type, "weights")
        self._gradients: Any = None
        self.rounded: Any = None  # `copy`, once it has been asked for
        self._stale = True
        for p in self:
            p.data = self.weights[p.span].reshape(p.shape)
        self.products = tuple(p for p in self if products and is_decayed(p.name))
        self.renew_gradients()

    def __getitem__(self, name: str) -> Param:
        return self.params[name]

    def __iter__(self) -> Iterator[Param]:
        return iter(self.params.values())

    @property
    def nbytes(self) -> int:
        """Of the weights, and of what products take in place of them."""
        copies = (self.rounded, *(p._prepared for p in self))
        return self.weights.nbytes + sum(copy.nbytes for copy in copies if copy is not None)

    def changed(self, rounded: bool = False) -> None:
        """Called by whoever has written to the weights, or gives them away for it; `rounded`: and to the copy, too."""
        self._stale = not rounded
        for p in self:
            p.stale = True

    @property
    def copy(self) -> Any:
        """The weights in the device's `operand_type`; made when it is first asked for after a change."""
        if self.rounded is None:
            self.rounded = self.device.empty(self.weights.shape, self.device.operand_type, "weights")
        self.refresh()
        return self.rounded

    def refresh(self) -> None:
        """Makes the copy anew if there is one and the weights have changed."""
        if self.rounded is not None and self._stale:
            self.device.matmul.prepare(self.rounded, self.weights)
            self._stale = False

    @property
    def raw_gradients(self) -> Any:
        """The gradients, those that are fresh as they are."""
        if self._gradients is None:
            self._gradients = self.device.empty(self.weights.shape, self.weights.dtype, "gradients")
            self._clear_padding()
            self.renew_gradients()
        return self._gradients

    @property
    def gradients(self) -> Any:
        for p in self.products:
            p.clear_if_fresh()
        return self.raw_gradients

    def renew_gradients(self) -> None:
        """They have been used: what comes next begins from nothing."""
        if self._gradients is not None:
            self.device.clear(self._gradients[self.decayed if self.products else 0 :])
        for p in self.products:
            p.fresh = True

    def free_gradients(self) -> None:
        """Gives their memory back; what was in them is lost."""
        self._gradients = None
        self.renew_gradients()

    def _clear_padding(self) -> None:
        ends = [*(p.offset for p in self), self.weights.size]
        for p, end in zip(self, ends[1:], strict=True):
            if p.span.stop < end:
                self.device.clear(self._gradients[p.span.stop : end])
