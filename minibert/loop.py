"""The loop over a run's steps: from its saved state to the last, telling, evaluating and saving on the way."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from minibert.errors import RunError, Stopped
from minibert.progress import Progress, Reporter
from minibert.runs import Metrics, RunDirectory
from minibert.training import NotFinite, Step, Trainer

SAVE_EVERY = 1000  # steps, as Google's save_checkpoints_steps
# What asks a run to end: Ctrl-C; kill, schedulers, docker stop and shutdown; a terminal that is closed.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
TWICE = 1.0  # seconds within which the same wish may come twice: timeout(1) and closed terminals send two signals


class UnderWay:
    """The steps that the device has been asked for and that nobody has been told of."""

    def __init__(self, log: Metrics, progress: Progress):
        self.log, self.progress = log, progress
        self.steps: deque[tuple[int, Callable[[], Step]]] = deque()

    def add(self, step: int, wait: Callable[[], Step]) -> None:
        self.steps.append((step, wait))

    @property
    def oldest(self) -> int:
        return self.steps[0][0]

    def settle(self, most: int = 0) -> None:
        """Waits for all but the last `most` and tells of them. NotFinite, that of the oldest."""
        while len(self.steps) > most:
            step, wait = self.steps[0]
            done = wait()
            self.log.write(
                step + 1, loss=done.loss, learning_rate=done.rate, gradient_norm=done.norm, tokens=done.tokens
            )
            self.progress.step(done.loss, done.rate, done.tokens)
            self.steps.popleft()


def train(
    trainer: Trainer,
    run: RunDirectory,
    save_every: int,
    report: Reporter,
    eval_every: int | None = None,
    measure: Callable[[], dict[str, Any]] | None = None,
    observe: Callable[[Trainer, int], Callable[[], Step]] | None = None,
) -> None:
    """Takes the run from its saved state to its last step. Ctrl-C, SIGTERM and SIGHUP save the state after the step
    that they meet, and end it by KeyboardInterrupt or Stopped.

    `measure` evaluates the model as it is, for metrics.jsonl. `observe` begins one step in place of the trainer: the
    second, by which time everything is there that stays.
    """
    first = run.load_state(trainer.optimizer)
    if first:
        report.say(f"going on after step {first}")
    elif run.resumed:
        report.say(f"{run.name}: no step of it had been saved: the run begins anew")
    with (
        trainer.bert.device.session(),
        run.metrics(first) as log,
        report.steps(trainer.total, first) as progress,
        _interrupts() as interrupted,
    ):
        under_way = UnderWay(log, progress)
        try:
            for step in range(first, trainer.total):
                if trainer.at(step)[1] == 0:
                    under_way.settle()  # a stage begins by forgetting moments, but not after a step that was not finite
                before = trainer.micro_tokens
                second = step == min(first + 1, trainer.total - 1)
                try:
                    under_way.add(step, observe(trainer, step) if observe and second else trainer.begin(step))
                except RunError:
                    under_way.settle()  # the steps before it are done, or were not finite, which is what to tell then
                    raise
                if trainer.micro_tokens != before:
                    _note_smaller(trainer, run, report)
                evaluating = eval_every and (step + 1) % eval_every == 0
                ending = trainer.agreed(bool(interrupted))
                saving = (step + 1) % save_every == 0 or step + 1 == trainer.total or ending
                under_way.settle(0 if evaluating or saving else trainer.bert.device.ahead)
                if evaluating and measure:
                    trainer.fetch()
                    trainer.rest()
                    log.write(step + 1, eval=measure())
                if saving:
                    trainer.fetch()
                    run.save_state(step + 1, trainer.optimizer)
                if saving and (ending or trainer.agreed(bool(interrupted))):  # it may have come while that was done
                    text = f"{run.name}: stopped after step {step + 1} of {trainer.total}; {run.go_on}"
                    number = interrupted[0] if interrupted else signal.SIGTERM  # which another process has got
                    raise KeyboardInterrupt(text) if number == signal.SIGINT else Stopped(text, number)
        except NotFinite as error:
            raise _unsound(error, under_way.oldest, trainer, run) from None


def _unsound(error: NotFinite, step: int, trainer: Trainer, run: RunDirectory) -> RunError:
    """Saves the state before a step that was not finite: with what to end."""
    trainer.fetch()
    run.save_state(step, trainer.optimizer)
    return RunError(
        f"{run.name}: {error} at step {step + 1} of {trainer.total}; the state before it is kept; "
        "train again with a lower learning rate"
    )


def _note_smaller(trainer: Trainer, run: RunDirectory, report: Reporter) -> None:
    """Memory has run out: says so, and records what a resume has to go on with."""
    report.say(f"memory ran out: from here on micro-batches have at most {trainer.micro_tokens} tokens, same updates")
    if settings := run.description.get("settings"):
        run.describe(settings=settings | {"micro_tokens": trainer.micro_tokens})


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that the first of SIGNALS fills with its number, instead of breaking an update in the middle; a second one
    does at once what it would do without us.
    """
    received: list[int] = []
    began = 0.0

    def receive(number: int, frame: object) -> None:
        nonlocal began
        if not received:
            began = time.monotonic()
            received.append(number)
        elif number == signal.SIGINT or time.monotonic() - began > TWICE:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in _heard()}
    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


def _heard() -> list[signal.Signals]:
    """Those of SIGNALS that are ours to hear: in the main thread alone, and not what somebody has switched off, as
    shells do with Ctrl-C for background jobs and nohup with SIGHUP, nor what the program has a handler of its own for.
    """
    if threading.current_thread() is not threading.main_thread():
        return []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return [n for n, h in handlers.items() if (callable(h) if n == signal.SIGINT else h == signal.SIG_DFL)]
