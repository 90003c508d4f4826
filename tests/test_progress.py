"""What is seen of long work, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re

import pytest

from minibert.errors import counted
from minibert.progress import Progress, Reporter, Transfer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its last entry, that progress goes by."""
    now = [100.0]
    monkeypatch.setattr("minibert.progress.time.perf_counter", lambda: now[-1])
    return now


def show_transfers(transfer: Transfer, clock: list[float]) -> None:
    with transfer as shown:
        for done in range(1, 4):
            clock.append(clock[-1] + 6)
            shown("QQP.zip", done * 10**6, 3 * 10**6)
        shown("RTE.zip", 10**6, None)


def test_transfers_on_a_terminal_are_one_line_a_file(clock: list[float]) -> None:
    show_transfers(Transfer(stream=(terminal := Terminal())), clock)
    steps = "\rQQP.zip  1.0 MB of 3.0\rQQP.zip  2.0 MB of 3.0\rQQP.zip  3.0 MB of 3.0\n"
    assert terminal.getvalue() == steps + "\rRTE.zip  1.0 MB\n"
    with Transfer(stream=(terminal := Terminal())):
        pass
    assert terminal.getvalue() == "", "nothing came, nothing is said"


def test_transfers_elsewhere_are_plain_lines_now_and_then(clock: list[float]) -> None:
    show_transfers(Transfer(stream=(pipe := io.StringIO())), clock)
    assert pipe.getvalue() == "QQP.zip  1.0 MB of 3.0\nQQP.zip  3.0 MB of 3.0\nRTE.zip  1.0 MB\n"


@pytest.mark.parametrize("quiet, said", [(True, ""), (False, "QQP.zip  1.0 MB of 3.0\n")])
def test_a_reporter_shows_transfers(
    quiet: bool, said: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    show_transfers(Reporter(quiet).transfer(), clock)
    err = capsys.readouterr().err
    assert err.startswith(said) and (err == "") == quiet


def test_what_is_counted_is_shown_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def counted(quiet: bool) -> list[int]:
        found = []
        for item in Reporter(quiet).counted([100, 200, 300], "text", size=int):
            clock.append(clock[-1] + 8)
            found.append(item)
        return found

    assert counted(quiet=False) == [100, 200, 300] == counted(quiet=True)
    assert capsys.readouterr().err == "300 texts, 19 per second\n"


def test_a_count_that_is_broken_off_ends_its_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    counted = Reporter(quiet=False).counted(["a", "b", "c"], "text")
    next(counted)
    clock.append(clock[-1] + 2)
    next(counted)
    assert terminal.getvalue() == "\r1 text"
    counted.close()
    assert terminal.getvalue() == "\r1 text\n"


def test_a_quiet_count_needs_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert list(Reporter().counted([1, 2], "text")) == [1, 2]


def test_a_shorter_line_covers_a_longer_one() -> None:
    transfer = Transfer(stream=(terminal := Terminal()))
    transfer("a", 10**7, None)
    transfer.show("a 1")
    assert terminal.getvalue() == "\ra  10.0 MB\ra 1       "


@pytest.mark.parametrize(
    ("width", "shown", "cut"),
    [
        (100, ["loss 0.5000", "rate 1.00e-05", "tokens/s"], []),
        (80, ["loss 0.5000", "rate 1.00e-05", "tokens/s"], []),
        (50, ["loss 0.5000", "rate 1.00e-05"], ["tokens"]),
        (40, ["loss 0.5000"], ["rate", "tokens"]),
        (34, ["loss 0.5000"], ["rate", "tokens"]),
        (24, [], ["loss", "rate", "tokens"]),
    ],
)
def test_a_narrow_terminal_keeps_step_and_time_left(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], width: int, shown: list[str], cut: list[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    with Progress(total=343, done=10, stream=(terminal := Terminal())) as progress:
        for _ in range(3):
            clock.append(clock[-1] + 1)
            progress.step(0.5, 1e-5, 1234)
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").rstrip().splitlines()[-1]
    assert re.search(r" 13/343 .*(\d:\d\d:\d\d|-:--:--)$", line.rstrip()) and len(line) <= width, line
    assert re.match("[━╸╺]{4}", line), "a bar"
    assert all(part in line for part in shown) and not any(part in line for part in cut), line


def test_the_first_step_which_compiles_is_not_counted(clock: list[float]) -> None:
    with Progress(total=14, done=10, stream=(pipe := io.StringIO())) as progress:
        for seconds, tokens in ((30, 100), (10, 200), (10, 400), (10, 600)):
            clock.append(clock[-1] + seconds)
            progress.step(0.5, 1e-5, tokens)
    assert pipe.getvalue().splitlines() == [
        "step 11/14  loss 0.5000  rate 1.00e-05",
        "step 12/14  loss 0.5000  rate 1.00e-05  20 tokens/s  0:20 left",
        "step 13/14  loss 0.5000  rate 1.00e-05  30 tokens/s  0:10 left",
        "step 14/14  loss 0.5000  rate 1.00e-05  40 tokens/s  0:00 left",
    ]


def test_one_of_a_thing_is_no_plural():
    assert [counted(n, "step") for n in (1, 2300, 0)] == ["1 step", "2,300 steps", "0 steps"]
    assert [counted(n, "epoch") for n in (1.0, 3.0, 0.5)] == ["1 epoch", "3 epochs", "0.5 epochs"]
