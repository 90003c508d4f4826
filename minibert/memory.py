"""How much memory training takes: found by training on a device that computes nothing and counts everything.

So there is no second description of the engine that could be wrong: what the planner counts is what the engine does.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minibert import batch
from minibert.autograd import Tape, Tensor
from minibert.bert import Bert
from minibert.config import BertConfig
from minibert.errors import ConfigError
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.devices import Device
from minibert.policies import parse
from minibert.random import Key
from minibert.replay import Replay
from minibert.settings import TrainConfig
from minibert.squad.reader import Reader
from minibert.tokenizer import Features
from minibert.training import Stage, Trainer

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Use:
    """Bytes at the moment when a training step takes most: `kinds` of arrays, and of the whole process."""

    kinds: dict[str, int]
    process: int


@dataclass(frozen=True)
class Kept:
    """Bytes of one layer: what it keeps, its result included, and what its forward and its backward pass take for
    themselves on top of that.
    """

    stays: int
    forward: int
    backward: int


@dataclass(frozen=True)
class LayerUse:
    """Bytes of one layer: its input, and the rest when it keeps everything and with the cheap policy."""

    input: int
    full: Kept
    cheap: Kept


class Planner:
    """One model, shape and settings, on a dry device that stands for `device`."""

    def __init__(self, config: BertConfig, settings: TrainConfig, device: Device, spans: bool = False):
        self.device, self.spans = devices.open("dry", other=device), spans
        if spans:
            bert: Bert = Reader(dataclasses.replace(config, id2label=(), problem_type=None), self.device)
        else:
            config = dataclasses.replace(config, id2label=config.id2label or ("0", "1"))
            bert = Bert(config, len(config.id2label), self.device)
        self.settings = dataclasses.replace(settings, batch_size=1, micro_batch=1, micro_tokens=None, epochs=1)
        self.trainer = Trainer(bert, self._sequences([3]), self.settings)

    def use(self, lengths: Sequence[int], recompute: str, layerwise: bool = False) -> Use:
        """What a step with sequences of these lengths takes, as one micro-batch."""
        if self.device.records and Replay.suits(tokens := sum(lengths)):
            lengths = [*lengths, Replay.filling(tokens)]
        self._begin()
        trainer, data = self.trainer, self._sequences(lengths)
        trainer.policy = parse(recompute, len(trainer.bert.layers))
        trainer.settings = dataclasses.replace(
            self.settings, batch_size=len(lengths), micro_batch=len(lengths), layerwise_update=layerwise
        )
        for group in () if layerwise else trainer.bert.groups:
            _ = group.raw_gradients  # there from the second step on, when its forward pass begins
        stage = Stage(data, 1, trainer.settings)
        trainer.update(stage, 1, np.arange(len(lengths)), Key(0, 0))
        return Use(dict(self.device.peak), self.device.process + self.device.resident_peak)

    def layer(self, lengths: Sequence[int], last: bool = False) -> LayerUse:
        """What one layer in the middle takes, or the last one, of which a classifier needs little."""
        device, bert, data = self.device, self.trainer.bert, self._sequences(lengths)
        micro = batch.pack(device, data.features, np.arange(len(lengths)), data.labels)
        x = Tensor(device.empty((micro.tokens, bert.config.hidden_size), device.activation_type, "activations"), device)
        return LayerUse(x.data.nbytes, *(self._layer(micro, x, last, cheap) for cheap in (False, True)))

    def _layer(self, micro: batch.Batch, x: Tensor, last: bool, cheap: bool) -> Kept:
        device, bert = self.device, self.trainer.bert
        self._begin()
        _ = bert.layers[0].raw_gradients  # allocated, and not part of what a layer takes
        before = device.in_use["activations"]
        with Tape() as tape:
            y = bert.layer(0, micro, Key(0, 0), last and not self.spans, cheap, x)
        stays, after = device.in_use["activations"] - before, device.in_use.total()
        forward = device.peak.total() - after
        dy = [device.empty_like(y.data) for _ in range(1 if last else 2)]  # see autograd.Vjp
        y.forget()  # as it is when the backward pass comes here
        device.forget_peaks()
        tape.backward(y, dy)
        return Kept(stays, forward, device.peak.total() - after)

    def _begin(self) -> None:
        """As if nothing but weights and moments had ever been there."""
        for group in self.trainer.bert.groups:
            group.free_gradients()
        self.device.forget_peaks()

    def _sequences(self, lengths: Sequence[int]) -> Split:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids, labels = np.zeros(int(offsets[-1]), np.int32), np.zeros((len(lengths), 2), np.int32)
        return Split("", Features(ids, ids.astype(np.int8), offsets), labels if self.spans else labels[:, 0].copy())


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: 12GB, 11.5G, 800 MB; a thousand, not 1,024, to the next unit. ConfigError."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if not found or (found[3] and not found[2]):
        raise ConfigError(f"memory {text}: not a size; write it as 12GB or 800MB")
    if not found[2] and float(found[1]) < 10**6:
        raise ConfigError(f"memory {text}: that is {found[1]} bytes; write {found[1]}GB")
    unit = 1024 ** "kmgt".index(found[2]) * 1024 if found[3] else UNITS[found[2]]
    size = float(found[1]) * unit
    if math.isinf(size):
        raise ConfigError(f"memory {text:.40}...: no machine has that; write it as 12GB or 800MB")
    return int(size)
