"""Forward and backward passes that a device has recorded and launches again as one.

A card computes a small batch faster than Python can ask for its hundreds of kernels. So batches are filled up to one
of a few sizes, with a sequence whose loss weighs nothing, and of each size a pass is recorded: what is new in the next
one is written to where the recorded kernels read it. The filling adds zeros to sums and nothing else; but products and
sums of another size may be rounded otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minibert.batch import Batch, Layout, lay_out, on_device
from minibert.bert import Bert
from minibert.kernels.common import cuda
from minibert.kernels.devices.recording import Recorder, Recording, Refused
from minibert.parameters import Param
from minibert.random import Key
from minibert.tokenizer import Features

STEP = 64  # tokens: sizes are its multiples
MOST = 16384  # tokens of a batch worth recording: the kernels of a larger one take longer than asking for them
SIZES = 64  # that are kept: each has what it reads, and a graph of a thousand kernels in the driver's memory

Pass = Callable[[Batch, Key | None, Any], Any]
Size = tuple[int, int, bool, bool]  # of a layout: its integers and examples; whether there is dropout; fresh gradients


@dataclass
class Recorded:
    """One size: the batch and the shares that a pass reads in their places; the pass itself, once there has been one to
    record, and the parameters whose fresh gradients it overwrites."""

    batch: Batch
    integers: Any
    labels: Any
    shares: Any
    recording: Recording | None = None
    generation: int = 0
    overwritten: Sequence[Param] = ()


class Replay:
    """The passes of a model on a device that records. `run(batch, key, shares)` adds gradients, returns the losses."""

    def __init__(self, bert: Bert, device: Recorder, run: Pass, record: bool = True):
        self.bert, self.device, self.run = bert, device, run
        self.products = [p for group in bert.groups for p in group.products]
        self.sizes: dict[Size, Recorded] = {}  # that have been recorded, the last used last
        self.seen: set[Size] = set()
        self.given_up = not record  # batches are filled all the same, for the same roundings

    @staticmethod
    def suits(tokens: int) -> bool:
        """Whether batches of so many tokens are filled up and recorded."""
        return tokens < MOST

    @staticmethod
    def filling(tokens: int) -> int:
        """How many tokens fill up a batch of so many."""
        return STEP - tokens % STEP

    def losses(self, features: Features, numbers: np.ndarray, labels: np.ndarray, key: Key | None, share: float) -> Any:
        """The losses of these examples, each of whose gradients has been added times `share`: to be read or copied
        before the next call, which may write there.
        """
        tokens = int((features.offsets[numbers + 1] - features.offsets[numbers]).sum())
        layout = lay_out(features, numbers, labels, filling=self.filling(tokens))
        size = len(layout.integers), len(numbers), key is not None, self._first()
        found = self.sizes.pop(size, None)
        if found:
            self.sizes[size] = found
        else:
            found = self._place(layout)
        self.device.write(found.integers, layout.integers)
        self.device.write(found.labels, _labels(layout))
        self.device.write(found.shares, np.append(np.full(len(numbers), share), 0).astype(self.device.float_type))
        return self._losses(size, found, key)[: len(numbers)]

    def forget(self) -> None:
        """Drops all recordings and what they keep."""
        self.sizes.clear()
        self.seen.clear()  # what a pass takes is known again when one has been made
        self.device.forget_recordings()

    def give_up(self) -> None:
        """Makes no more recordings: memory has run out, or the device refuses."""
        self.given_up = True

    def _first(self) -> bool:
        """Whether a pass finds all gradients of products fresh, which it overwrites; else it adds to all of them."""
        if all(p.fresh for p in self.products):
            return True
        for p in self.products:
            p.clear_if_fresh()
        return False

    def _losses(self, size: Size, found: Recorded, key: Key | None) -> Any:
        for group in self.bert.groups:
            group.refresh()  # here, because a recording would do it each time or never
        cuda.opened().set_streams(key.stream if key else 0)
        try:
            return self._launched(size, found, key and replace(key, step=0))
        finally:
            cuda.opened().set_streams(0)

    def _launched(self, size: Size, found: Recorded, key: Key | None) -> Any:
        if found.recording and found.generation != self.device.generation:  # somebody else's memory has run out
            found.recording = None
            self.seen.discard(size)
        if self._watched() or (found.recording is None and not (size in self.seen and self._room())):
            self.seen.add(size)
            return self.run(found.batch, key, found.shares)  # the first pass compiles and allocates what stays
        if found.recording is None:
            fresh = [p for p in self.products if p.fresh]
            try:
                found.recording = self.device.record(lambda: self.run(found.batch, key, found.shares))
            except Refused as error:
                warnings.warn(f"no recordings, small batches will be slower: {error}", stacklevel=2)
                self.give_up()
                for p in fresh:  # nothing has been done
                    p.fresh = True
                return self.run(found.batch, key, found.shares)
            self.sizes[size] = found
            if len(self.sizes) > SIZES:
                del self.sizes[next(iter(self.sizes))]
            found.generation, found.overwritten = self.device.generation, [p for p in fresh if not p.fresh]
        found.recording.launch()
        for p in found.overwritten:
            p.fresh = False
        return found.recording.result

    def _watched(self) -> bool:
        """Whether somebody hears what Python does, which a recording would do only once."""
        return bool(self.bert.watchers) or self.device.log is not None

    def _room(self) -> bool:
        """Whether there is memory to spare for one more: recordings may have half of what is free, and what it takes
        must be there.
        """
        free, device = self.device.free_memory(), self.device
        return not self.given_up and (free is None or max(device.recorded_bytes, device.recording_takes) <= free)

    def _place(self, layout: Layout) -> Recorded:
        device = self.device
        integers, labels = device.array(layout.integers), device.array(_labels(layout))
        shares = device.empty((len(layout.numbers) + 1,), device.float_type, "activations")
        return Recorded(on_device(layout, integers, labels), integers, labels, shares)


def _labels(layout: Layout) -> np.ndarray:
    assert layout.labels is not None  # of training data, which have some
    return layout.labels
