"""The training loop: micro-batches, updates, saving and resuming; and the evaluation it is judged by."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minibert import batch, optim
from minibert.autograd import Tape
from minibert.bert import Bert
from minibert.errors import ConfigError, RunError
from minibert.evaluation import Split, evaluate
from minibert.optimizers import OPTIMIZERS
from minibert.progress import Reporter
from minibert.random import Key, order
from minibert.runs import RunDirectory
from minibert.settings import TrainConfig
from minibert.tasks import Task

SAVE_EVERY = 1000  # steps, as Google's save_checkpoints_steps


@dataclass(frozen=True)
class Step:
    """What one update did: the mean loss of its batch, its learning rate, the gradients' norm, real tokens."""

    loss: float
    rate: float
    norm: float
    tokens: int


class NotFinite(Exception):
    """A loss or gradient that is NaN or infinite; nothing has been updated with it."""


class Stage:
    """A data set that a model is trained on for some epochs: which examples a step takes, and its learning rate."""

    def __init__(self, data: Split, epochs: float, settings: TrainConfig):
        self.data, self.settings = data, settings
        count = len(data.features)
        self.total, self.warmup = optim.step_counts(count, settings.batch_size, epochs, settings.warmup)
        if not self.total:
            raise ConfigError(
                f"{count} examples for {epochs:g} epochs make no batch of {settings.batch_size}; "
                "give a smaller --batch-size or more --epochs"
            )
        self._order = lru_cache(maxsize=2)(lambda epoch: order(count, settings.seed, epoch))

    def numbers(self, step: int) -> np.ndarray:
        """The examples of a batch: epochs are shuffled one by one and run into each other, none is cut short."""
        count, size = len(self.data.features), self.settings.batch_size
        places = np.arange(step * size, (step + 1) * size)
        return np.array([self._order(place // count)[place % count] for place in places])

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
        self.total = sum(stage.total for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage that update number `step` belongs to, and its number there."""
        for stage in self.stages[:-1]:
            if step < stage.total:
                return stage, step
            step -= stage.total
        return self.stages[-1], step

    def gradients(self, numbers: np.ndarray, key: Key | None, data: Split | None = None) -> tuple[float, int]:
        """Adds the gradients of the mean loss over these examples, in micro-batches; returns that loss and the tokens.

        The examples are those of `data`, or of the first stage.

        Each example weighs 1/len(numbers) whichever micro-batch it is in, so that ragged ones add up exactly.
        """
        device, size, data = self.bert.device, self.settings.micro_batch, data or self.stages[0].data
        loss, tokens = 0.0, 0
        for start in range(0, len(numbers), size):
            part = batch.pack(device, data.features, numbers[start : start + size], data.labels)
            with Tape() as tape:
                logits = self.bert.logits(part, key, self.settings.recompute == "layers")
                losses = self.bert.loss(logits, part)
            loss += float(device.numpy(losses.data).sum(dtype=np.float64)) / len(numbers)
            if not math.isfinite(loss):
                raise NotFinite(f"the loss is {loss}")
            share = np.full(len(part), 1 / len(numbers), device.float_type)
            tape.backward(losses, device.array(share))
            tokens += part.tokens
        return loss, tokens

    def step(self, step: int) -> Step:
        """Update number `step`, from 0. Raises NotFinite, with the weights as they were."""
        stage, number = self.at(step)
        loss, tokens = self.gradients(stage.numbers(number), Key(self.settings.seed, step), stage.data)
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(norm):
            raise NotFinite(f"the gradients' norm is {norm}")
        if number == 0:
            self.optimizer.forget()
        rate = stage.rate(number)
        self.optimizer.update(number, rate, norm)
        return Step(loss, rate, norm, tokens)


def train(
    trainer: Trainer,
    run: RunDirectory,
    task: Task | None,
    dev: Split | None,
    eval_every: int | None,
    save_every: int,
    report: Reporter,
) -> None:
    """Takes the run from its saved state to its last step; Ctrl-C saves the state after the step that it meets."""
    first = run.load_state(trainer.optimizer)
    if first:
        report.say(f"going on after step {first}")
    step = first
    with (
        trainer.bert.device.session(),
        run.metrics(first) as log,
        report.steps(trainer.total, first) as progress,
        _interrupts() as interrupted,
    ):
        try:
            for step in range(first, trainer.total):
                done = trainer.step(step)
                log.write(
                    step + 1,
                    loss=done.loss,
                    learning_rate=done.rate,
                    gradient_norm=done.norm,
                    tokens=done.tokens,
                )
                progress.step(done.loss, done.rate, done.tokens)
                if task and dev and eval_every and (step + 1) % eval_every == 0:
                    log.write(step + 1, eval=evaluate(trainer.bert, task, dev))
                if (step + 1) % save_every == 0 or step + 1 == trainer.total or interrupted:
                    run.save_state(step + 1, trainer.optimizer)
                if interrupted:
                    raise KeyboardInterrupt(
                        f"{run.path}: stopped after step {step + 1} of {trainer.total}; add --resume to go on"
                    )
        except NotFinite as error:
            run.save_state(step, trainer.optimizer)
            raise RunError(
                f"{run.path}: {error} at step {step + 1} of {trainer.total}; the state before it is kept; "
                "train again with a lower --learning-rate"
            ) from None


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C fills, instead of breaking an update in the middle; a second Ctrl-C stops at once."""
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    try:
        if callable(before):  # else somebody has switched Ctrl-C off, as shells do for background jobs
            signal.signal(signal.SIGINT, receive)
    except ValueError:  # not the main thread, which alone hears Ctrl-C
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
