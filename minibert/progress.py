"""Progress of long work on stderr: a live line on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

PLAIN_SECONDS = 10.0  # between two plain lines


class Progress:
    """Shows the steps of one run: loss, learning rate, real tokens a second, time left.

    Used as a context manager; `quiet` shows nothing, which is what library callers want.
    """

    def __init__(self, total: int, done: int = 0, quiet: bool = False, stream: TextIO | None = None):
        self.total, self.done, self.first = total, done, done
        self.quiet, self.stream = quiet, stream or sys.stderr
        self.tokens, self.loss = 0, float("nan")
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self.began = time.perf_counter()
        self._shown = self.began - PLAIN_SECONDS
        if not self.quiet and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(file=self.stream))
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, loss: float, rate: float, tokens: int) -> None:
        self.done += 1
        self.tokens += tokens
        # The loss of one small batch jumps about; a running mean over some ten steps can be read.
        self.loss = loss if self.loss != self.loss else 0.9 * self.loss + 0.1 * loss
        if self.quiet:
            return
        now = time.perf_counter()
        speed = self.tokens / max(now - self.began, 1e-9)
        text = f"loss {self.loss:.4f}  rate {rate:.2e}  {speed:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=self.done, description=text)
        elif now - self._shown >= PLAIN_SECONDS or self.done == self.total:
            self._shown = now
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            minutes, seconds = divmod(round(left), 60)
            print(
                f"step {self.done}/{self.total}  {text}  {minutes}:{seconds:02d} left",
                file=self.stream,
                flush=True,
            )


class Reporter:
    """What a long job tells its user on stderr; a quiet one, which library callers get, says nothing."""

    def __init__(self, quiet: bool = True):
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def steps(self, total: int, done: int) -> Progress:
        return Progress(total, done, self.quiet)


class Transfer:
    """Shows downloads: called with a file's name, the bytes that came and the bytes in all, if known."""

    def __enter__(self) -> Transfer:
        self._shown = (float("-inf"), "")
        return self

    def __exit__(self, *error: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def __call__(self, name: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        every = 0.2 if sys.stderr.isatty() else PLAIN_SECONDS
        if now - self._shown[0] < every and self._shown[1] == name and done != total:
            return
        self._shown = (now, name)
        size = f"{done / 1e6:,.1f} MB" + (f" of {total / 1e6:,.1f}" if total else "")
        print(f"\r{name}  {size}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
