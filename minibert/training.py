"""A model in training: the stages of its data, gradients in micro-batches, updates. loop.py goes through the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from minibert import batch, optim, policies
from minibert.autograd import Tape
from minibert.batch import Batch
from minibert.bert import Bert
from minibert.errors import ConfigError, RunError, counted
from minibert.evaluation import Split
from minibert.kernels.devices.recording import Recorder
from minibert.optimizers import OPTIMIZERS
from minibert.parameters import Group
from minibert.random import Key, order
from minibert.replay import Replay
from minibert.settings import TrainConfig

HALF_UPDATED = (
    "memory ran out during an update: some weights are updated, others are not; go on from the last saved state"
)


@dataclass(frozen=True)
class Step:
    """What one update did: the mean loss of its batch, its learning rate, the gradients' norm, real tokens."""

    loss: float
    rate: float
    norm: float
    tokens: int


Read = Callable[[], np.ndarray]  # Device.read_later's: waits for an array on its way to the host


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite; nothing has been updated with it."""


def count_steps(examples: int, epochs: float, settings: TrainConfig) -> tuple[int, int]:
    """The updates on so many examples in all, and those of warm-up. ConfigError where the examples make no batch."""
    total, warmup = optim.step_counts(examples, settings.batch_size, epochs, settings.warmup)
    if not total:
        raise ConfigError(
            f"{counted(examples, 'example')} for {counted(epochs, 'epoch')} make no batch of {settings.batch_size}; "
            "make batches smaller, or train for more epochs"
        )
    return total, warmup


class Stage:
    """A data set that a model is trained on for some epochs: which examples a step takes, and its learning rate."""

    def __init__(self, data: Split, epochs: float, settings: TrainConfig):
        self.data, self.settings = data, settings
        self.total, self.warmup = count_steps(data.count, epochs, settings)
        self._order = lru_cache(maxsize=2)(lambda epoch: order(len(data.features), settings.seed, epoch))

    def numbers(self, step: int) -> np.ndarray:
        """The features of a batch: epochs are shuffled one by one and run into each other, none is cut short."""
        count, size = len(self.data.features), self.settings.batch_size
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), count)
        return np.concatenate(
            [self._order(epoch)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
        )

    def rate(self, step: int) -> float:
        s = self.settings
        return optim.learning_rate(s.schedule, step, s.learning_rate, self.total, self.warmup)


class Trainer:
    """One model in training; `step(n)` depends on nothing but the weights, the moments and n.

    `data` for the settings' epochs, then each of `later`, a data set and its epochs: every stage has a warm-up and a
    decay of its own, and begins with moments of zero.
    """

    def __init__(self, bert: Bert, data: Split, settings: TrainConfig, later: Sequence[tuple[Split, float]] = ()):
        self.bert, self.settings = bert, settings
        self.stages = [Stage(part, epochs, settings) for part, epochs in ((data, settings.epochs), *later)]
        for stage in self.stages:
            bert.check(stage.data.features)
        self.optimizer = OPTIMIZERS[settings.optimizer](bert.groups, settings.bias_correction)
        self.micro_tokens = settings.micro_tokens  # fewer, once memory has run out
        if settings.lean:
            longest = max(int(np.diff(stage.data.features.offsets).max()) for stage in self.stages)
            self.evaluate_by(settings.micro_tokens or settings.micro_batch * longest)
        self.policy = policies.parse(settings.recompute, len(bert.layers))
        self.total = sum(stage.total for stage in self.stages)
        device = bert.device
        record = not policies.hosted(settings.recompute)  # copies beside the kernels are no part of a recording
        self.replay = Replay(bert, device, self._pass, record) if isinstance(device, Recorder) else None

    def agreed(self, wish: bool) -> bool:
        """Whether this process or one that computes with it wishes to end; all of them ask after each step."""
        return wish

    def fetch(self) -> None:
        """Brings weights and moments into `bert` and `optimizer`, for a trainer that has them elsewhere meanwhile."""

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage that update number `step` belongs to, and its number there."""
        for stage in self.stages[:-1]:
            if step < stage.total:
                return stage, step
            step -= stage.total
        return self.stages[-1], step

    def gradients(self, numbers: np.ndarray, key: Key | None, data: Split | None = None) -> Any:
        """Adds the gradients of the mean loss over these examples, in micro-batches; returns their losses (N,), on the
        device.

        The examples are those of `data`, or of the first stage.

        Each example weighs 1/len(numbers) whichever micro-batch it is in, so that ragged ones add up exactly.
        """
        data, device, done = data or self.stages[0].data, self.bert.device, 0
        losses = device.empty((len(numbers),), device.float_type, "activations")
        for part in self._parts(numbers, data):
            losses[done : done + len(part)] = self._losses(part, data, key, 1 / len(numbers))
            done += len(part)
        return losses

    def _losses(self, numbers: np.ndarray, data: Split, key: Key | None, share: float) -> Any:
        """The losses of a micro-batch, each of whose gradients is added times `share`."""
        if self.replay and self.replay.suits(count_tokens(numbers, data)):
            return self.replay.losses(data.features, numbers, data.labels, key, share)
        device = self.bert.device
        shares = device.array(np.full(len(numbers), share, device.float_type))
        return self._pass(batch.pack(device, data.features, numbers, data.labels), key, shares)

    def _pass(self, micro: Batch, key: Key | None, shares: Any) -> Any:
        """Forward and back with a micro-batch on the device: its losses."""
        with Tape() as tape:
            losses = self.bert.loss(self.bert.logits(micro, key, self.policy), micro)
        tape.backward(losses, [shares])
        return losses.data

    def _parts(self, numbers: np.ndarray, data: Split) -> list[np.ndarray]:
        """The examples of a batch in micro-batches."""
        lengths = data.features.offsets[numbers + 1] - data.features.offsets[numbers]
        return [numbers[part] for part in batch.cut(lengths, self.settings.micro_batch, self.micro_tokens)]

    def step(self, step: int) -> Step:
        """Update number `step`, from 0. Raises NotFinite, with the weights as they were and no gradients left."""
        return self.begin(step)()

    def begin(self, step: int) -> Callable[[], Step]:
        """Asks the device for update number `step`; the function that is returned waits for it and raises NotFinite.

        Further steps may be asked for meanwhile: they update nothing where this one was not finite.

        Where memory runs out before the update the step is taken again: first as it was, because what the device had
        kept for later is free now, then in micro-batches of half the tokens.
        """
        stage, number = self.at(step)
        numbers, key = stage.numbers(number), Key(self.settings.seed, step)
        again = False
        while True:
            try:
                return self.update(stage, number, numbers, key)
            except MemoryError:
                pass  # out of here first: the frames of the error hold the arrays that are in the way
            self.rest()
            if self.replay:
                self.replay.give_up()
            if again:
                self._halve(numbers, stage.data)
            again = True

    def rest(self) -> None:
        """Gives back what stays from step to step: gradients, which the next step begins anew, and recordings."""
        for group in self.bert.groups:
            group.free_gradients()
        if self.replay:
            self.replay.forget()
        self.bert.device.release()

    def evaluate_by(self, tokens: int) -> None:
        """Computes no more tokens at a time outside training than in it, so that this takes no more memory."""
        self.bert.at_once = min(self.bert.at_once, tokens)

    def _halve(self, numbers: np.ndarray, data: Split) -> None:
        """Micro-batches of half the tokens from now on. RunError if they cannot be smaller."""
        offsets = data.features.offsets
        sizes = [(int((offsets[part + 1] - offsets[part]).sum()), len(part)) for part in self._parts(numbers, data)]
        tokens, examples = max(sizes)
        if examples == 1 or self.settings.layerwise_update:
            raise RunError(
                "memory does not suffice, not even in the smallest parts; go on from the last saved state with more of "
                "it, or train anew on shorter sequences"
            )
        self.micro_tokens = tokens // 2
        self.evaluate_by(self.micro_tokens)

    def update(self, stage: Stage, number: int, numbers: np.ndarray, key: Key) -> Callable[[], Step]:
        """Asks for update number `number` of a stage, with these of its examples, as `begin` does."""
        ask = self._layerwise if self.settings.layerwise_update else self._whole
        try:
            read = ask(stage, number, numbers, key)
        except BaseException:
            self.rest()  # of some gradients a part has come, of others nothing
            raise

        def wait() -> Step:
            losses, norm, scale = (array() for array in read)
            loss, tokens = float(losses.mean(dtype=np.float64)), count_tokens(numbers, stage.data)
            try:
                done = finite(Step(loss, stage.rate(number), float(norm[0]), tokens))
                if math.isnan(scale[0]):
                    raise NotFinite("an earlier step was not finite")
                return done
            except NotFinite:
                self.optimizer.scale.fill(1)  # it has been looked at
                self.rest()  # gradients, which no update has taken
                raise

        return wait

    def _clip(self, losses: Any) -> list[Read]:
        """Clips the gradients of these losses; returns losses, norm and scale on their way to the host: now, because
        nothing may fail for want of memory once the update has begun.
        """
        self.optimizer.clip(losses)
        return [self.bert.device.read_later(array) for array in (losses, self.optimizer.norm, self.optimizer.scale)]

    def _whole(self, stage: Stage, number: int, numbers: np.ndarray, key: Key) -> list[Read]:
        """All gradients, their norm, and then the update of everything."""
        losses, optimizer = self.gradients(numbers, key, stage.data), self.optimizer
        optimizer.measure()
        told = self._clip(losses)
        if number == 0:
            optimizer.forget()
        try:
            optimizer.update(number, stage.rate(number))
        except MemoryError:  # arrays need none, but a card loads its kernels when they are first launched
            raise RunError(HALF_UPDATED) from None
        return told

    def _layerwise(self, stage: Stage, number: int, numbers: np.ndarray, key: Key) -> list[Read]:
        """The gradients twice, each group's for as long as it is needed: for the norm, then for the update."""
        optimizer, rate, begun = self.optimizer, stage.rate(number), False

        def update(i: int) -> None:
            nonlocal begun
            begun = True
            optimizer.update_group(i, number, rate)

        told = self._clip(self._group_by_group(numbers, key, stage.data, optimizer.measure_group))
        if number == 0:
            optimizer.forget()
        try:
            self._group_by_group(numbers, key, stage.data, update)
        except MemoryError:
            if begun:
                raise RunError(HALF_UPDATED) from None
            raise
        return told

    def _group_by_group(self, numbers: np.ndarray, key: Key, data: Split, use: Callable[[int], None]) -> Any:
        """As `gradients`, in one micro-batch; calls use(i) when group i's are complete, and frees them after it."""
        places = {group.name: i for i, group in enumerate(self.optimizer.groups)}

        def complete(group: Group, back: bool) -> None:
            if back:
                use(places[group.name])
                group.free_gradients()

        self.bert.watchers.append(complete)
        try:
            losses = self.gradients(numbers, key, data)
            complete(self.bert.embeddings, True)
        finally:
            self.bert.watchers.remove(complete)
        return losses


def trainer(bert: Bert, data: Split, settings: TrainConfig, later: Sequence[tuple[Split, float]] = ()) -> Trainer:
    """The trainer for a model on its device."""
    if bert.device.backend == "tpu":
        from minibert.tpu.trainer import TpuTrainer

        return TpuTrainer(bert, data, settings, later)
    return Trainer(bert, data, settings, later)


def count_tokens(numbers: np.ndarray, data: Split) -> int:
    """How many tokens these examples have."""
    return int((data.features.offsets[numbers + 1] - data.features.offsets[numbers]).sum())


def finite(step: Step) -> Step:
    """The step; NotFinite if it is none that weights could have been updated by."""
    for what, value in (("loss", step.loss), ("gradients' norm", step.norm)):
        if not math.isfinite(value):
            raise NotFinite(f"the {what} is {value}")
    return step
