"""Progress of long work on stderr: a live line on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Self, TextIO, TypeVar

from minibert.errors import counted

T = TypeVar("T")
PLAIN_SECONDS = 10.0  # between two plain lines
LIVE_SECONDS = 0.2  # between two states of a live one
LEAST_BAR = 5  # columns of a terminal
TIME_LEFT = 8  # 12:34:56


class _Lasting:
    """A stream whose reader may go, as a terminal does that is closed: what nobody can be told ends no run."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Progress:
    """Shows the steps of one run: loss, learning rate, real tokens a second, time left.

    Speed and time left are known from the second step on: the first one compiles kernels and is not counted.
    Used as a context manager; `quiet` shows nothing, which is what library callers want.
    """

    def __init__(self, total: int, done: int = 0, quiet: bool = False, stream: TextIO | None = None):
        self.total, self.done, self.first = total, done, done
        self.quiet = quiet
        self.stream: Any = _Lasting(stream or sys.stderr)
        self.tokens, self.loss = 0, float("nan")
        self._began, self._shown = 0.0, float("-inf")
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self.quiet and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            columns = (  # of which the bar alone gives way
                BarColumn(),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("{task.description}"),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
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
        parts, left = [f"loss {self.loss:.4f}", f"rate {rate:.2e}"], ""
        if timed := self.done - self.first - 1:
            taken = max(now - self._began, 1e-9)
            parts.append(f"{self.tokens / taken:,.0f} tokens/s")
            minutes, seconds = divmod(round(taken / timed * (self.total - self.done)), 60)
            left = f"  {minutes}:{seconds:02d} left"
        else:
            self._began, self.tokens = now, 0
        if self._bar:
            self._bar.update(self._task, completed=self.done, description=self._fitting(parts))
        elif now - self._shown >= PLAIN_SECONDS or self.done == self.total:
            self._shown = now
            print(f"step {self.done}/{self.total}  {'  '.join(parts)}{left}", file=self.stream, flush=True)

    def _fitting(self, parts: list[str]) -> str:
        """As many of the parts as leave a narrow terminal room for step, time left and a short bar."""
        gaps = 3
        room = self._bar.console.width - len(f"{self.total}/{self.total}") - TIME_LEFT - LEAST_BAR - gaps
        return next((text for n in range(len(parts), 0, -1) if len(text := "  ".join(parts[:n])) <= room), "")


class Reporter:
    """What a long job tells its user on stderr; a quiet one, which library callers get, says nothing."""

    def __init__(self, quiet: bool = True):
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def steps(self, total: int, done: int) -> Progress:
        return Progress(total, done, self.quiet)

    def transfer(self) -> Transfer:
        return Transfer(self.quiet)

    def counted(self, items: Iterable[T], what: str, size: Callable[[T], int] = lambda item: 1) -> Generator[T]:
        """The same items; how many of `what` are done is shown once that takes long. An item, which has `size` of them,
        is done when the next one is asked for. Closing it ends the line.
        """
        began, done = time.perf_counter(), 0
        with _Line(self.quiet) as line:
            for item in items:
                yield item
                done += size(item)
                if line.due:
                    rate = done / (time.perf_counter() - began)
                    line.show(f"{counted(done, what)}, {rate:,.0f} per second" if rate >= 1 else counted(done, what))


class _Line:
    """A line that a terminal shows again and again, and others now and then; as a context manager it ends the line.

    `quiet` shows nothing.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self.quiet, self.stream = quiet, stream or sys.stderr
        self._shown, self._open, self._width = time.perf_counter(), False, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @property
    def due(self) -> bool:
        """Whether the last showing is long enough ago."""
        if self.quiet:
            return False
        return time.perf_counter() - self._shown >= (LIVE_SECONDS if self.stream.isatty() else PLAIN_SECONDS)

    def show(self, text: str) -> None:
        self._open, self._shown = self.stream.isatty(), time.perf_counter()
        start, end = ("\r", "") if self._open else ("", "\n")
        print(f"{start}{text:<{self._width}}", end=end, file=self.stream, flush=True)
        self._width = len(text) if self._open else 0  # which the next one covers

    def end(self) -> None:
        if self._open:
            print(file=self.stream, flush=True)
        self._open, self._width = False, 0


class Transfer(_Line):
    """Shows downloads: called with a file's name, the bytes that came and the bytes in all, if known."""

    name = ""

    def __call__(self, name: str, done: int, total: int | None) -> None:
        if self.quiet or not (self.due or name != self.name or done == total):
            return
        if name != self.name:
            self.end()
        self.name = name
        self.show(f"{name}  {done / 1e6:,.1f} MB" + (f" of {total / 1e6:,.1f}" if total else ""))
        if done == total:
            self.end()
