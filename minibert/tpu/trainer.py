"""The engine's trainer, with its updates computed by XLA on all devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from minibert.bert import Bert
from minibert.optim import Adam
from minibert.random import Key
from minibert.settings import TrainConfig
from minibert.squad.reader import Reader
from minibert.tpu import batches, dropout, model, sharding, training
from minibert.tpu.device import Tpu, any_process, check_agreement
from minibert.training import Stage, Step, Trainer, finite

ADVICE = "train anew with --recompute layers, a smaller --micro-batch, --shard-parameters or a smaller --max-seq-length"


class TpuTrainer(Trainer):
    """While it trains, weights and moments are on the devices; `fetch` brings them into `bert` and `optimizer`."""

    def __init__(self, bert: Bert, *arguments: Any):
        super().__init__(bert, *arguments)
        assert isinstance(bert.device, Tpu)
        self._device, self.mesh, s = bert.device, bert.device.mesh, self.settings
        layout = self.mesh, bert.config, head_of(bert)
        self._program = training.program(*layout, s.recompute == "layers", s.precision, s.shard_parameters)
        self._places = training.places(*layout, s.shard_parameters)
        self._begin = jax.jit(training.state_of, donate_argnums=0, out_shardings=self._places)
        self._state: training.State | None = None

    def evaluate_by(self, tokens: int) -> None:
        """Nothing: a program takes what it takes, however few examples it gets."""

    def update(self, stage: Stage, number: int, numbers: np.ndarray, key: Key) -> Callable[[], Step]:
        """As the engine's; it has ended when the devices have computed it."""
        self._device.forget(self.bert)
        with self._device.memory(ADVICE):
            state = self._state or self._put(key, training.STATE[:1] if number == 0 else training.STATE)
            if number == 0:
                state = self._begin(state["params"])
            batch, tokens = self._batch(stage, numbers)
            rate, corrections = stage.rate(number), np.array(self.optimizer.corrections(number), np.float32)
            scalars = sharding.put((dropout.pack(key), np.float32(rate), corrections), sharding.everywhere(self.mesh))
            self._state, told = self._program(state, batch, *scalars)
            loss, norm = map(float, sharding.get(told))
        return lambda: finite(Step(loss, rate, norm, tokens))

    def agreed(self, wish: bool) -> bool:
        return any_process(wish)

    def _batch(self, stage: Stage, numbers: np.ndarray) -> tuple[Any, int]:
        """These examples in micro-batches on the devices, and how many tokens they have."""
        features = stage.data.features
        lengths = features.offsets[numbers + 1] - features.offsets[numbers]
        length = batches.bucket(int(lengths.max()), self.bert.config.max_position_embeddings)
        micros, rows = split(len(numbers), length, self.settings, self.mesh.size)
        flat = batches.pad(features, numbers, stage.data.labels, length, micros * rows)
        batch = {name: array.reshape(micros, rows, *array.shape[1:]) for name, array in flat.items()}
        return sharding.put(batch, sharding.rows(self.mesh, 1)), int(lengths.sum())

    def fetch(self) -> None:
        if self._state is not None:
            with self._device.memory(ADVICE):
                state = sharding.get(self._state)
            for kind, views in self._views().items():
                for name, array in model.to_arrays(state[kind]).items():
                    views[name][...] = array

    def _put(self, key: Key, kinds: Sequence[str]) -> training.State:
        """Weights, and of `kinds` also moments, as `bert` and `optimizer` have them, on the devices."""
        state = {kind: model.from_arrays(views) for kind, views in self._views().items() if kind in kinds}
        features = [(stage.data.features.ids, stage.data.labels) for stage in self.stages]
        check_agreement(key.stream, repr(self.settings), state, features)
        return sharding.put(state, {kind: self._places[kind] for kind in kinds})

    def _views(self) -> dict[str, dict[str, np.ndarray]]:
        assert isinstance(self.optimizer, Adam)
        moments = {"m": self.bert.views(self.optimizer.m), "v": self.bert.views(self.optimizer.v)}
        return {"params": self.bert.arrays(), **moments}


def head_of(bert: Bert) -> int | str:
    return model.SPANS if isinstance(bert, Reader) else bert.outputs


def split(count: int, length: int, settings: TrainConfig, devices: int) -> tuple[int, int]:
    """How many micro-batches `count` examples of `length` tokens make, and how many rows each has: as even as can be,
    a multiple of the devices, at least one for each: with fewer they would compute no less, but more often.
    """
    most = settings.micro_batch
    if settings.micro_tokens:
        most = min(most, settings.micro_tokens // length)
    micros = -(-count // max(devices, most // devices * devices))
    return micros, batches.multiple(-(-count // micros), devices)
