"""The fuzzer: a few hundred cases of each reader, and that it would notice what a reader must not do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import fuzz
from commands import environment
from minibert.checkpoint import sources
from minibert.checkpoint.tensors import Entry, Stored
from minibert.errors import CheckpointError


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_few_cases_of_each_reader(reader: str) -> None:
    """All end as they must, in many ways: the mutations come to the checks behind the first."""
    result = fuzz.run(reader, range(300), seed=2)
    assert not result.findings
    assert 0.05 < result.loaded / result.cases < 0.6
    assert len(result.refused) > 20
    assert result.loaded + result.refused.total() == result.cases == 300


def test_a_case_has_one_outcome() -> None:
    once, again = (fuzz.run("tensorflow", [3, 1, 4], seed=5) for _ in range(2))
    assert (once.loaded, once.refused) == (again.loaded, again.refused)


def an_entry(array: np.ndarray, shape: tuple[int, ...]) -> Callable[[Path], sources.Source]:
    entry = Entry("x", "float32", shape, lambda: array)
    return lambda path: sources.Source(Stored("hf", path, {"x": entry}), path, {"x": entry}, {})


def refuse(said: str) -> Callable[[Path], NoReturn]:
    def find(path: Path) -> NoReturn:
        raise CheckpointError(said)

    return find


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another exception": (lambda path: int("x"), "ValueError: invalid literal"),
    "no memory": (lambda path: bytearray(1 << 60), "MemoryError"),
    "another file": (lambda path: Path(__file__).read_bytes(), "Finding: open of"),
    "a command": (lambda path: subprocess.run(["true"]), "Finding: (open|subprocess)"),
    "two lines": (refuse("x: is\nwrong"), r"Finding: said 'x: is\\nwrong'"),
    "a terminal's escape": (refuse("x: is \x1b[2J"), "Finding: said"),
    "a long line": (refuse("x" * 3000), "Finding: said 'xxx"),
    "no end": (lambda path: time.sleep(30), "Finding: still running"),
    "too long": (lambda path: time.sleep(0.1) or refuse("x")(path), r"Finding: took 0\.1 s"),
    "another shape": (an_entry(np.zeros(3, np.float32), (4,)), "Finding: x: .4,. float32 came as .3,. float32"),
    "another type": (an_entry(np.zeros(3), (3,)), "Finding: x: .3,. float32 came as .3,. float64"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_finding_is_noticed(harm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find, said = HARM[harm]
    monkeypatch.setattr(fuzz, "SECONDS", 0.05 if harm == "too long" else fuzz.SECONDS)
    monkeypatch.setattr(fuzz, "LONGEST", 0.2)
    monkeypatch.setattr(sources, "find", find)
    result = fuzz.run("safetensors", [7], seed=3)
    assert len(result.findings) == 1 and re.match(said, result.findings[0]), result.findings
    assert capsys.readouterr().out.startswith("FINDING: python tests/fuzz.py safetensors --seed 3 --only 7\n")


def test_nothing_is_left_of_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its files nor what a zip was unpacked to, and nothing is watched any more."""
    seen: list[Path] = []
    find = sources.find

    def record(path: Path) -> sources.Source:
        seen.append(path)
        return find(path)

    monkeypatch.setattr(sources, "find", record)
    fuzz.run("zip", range(20))
    assert seen and not any(path.parent.exists() for path in seen)
    assert Path(__file__).read_bytes()


def command(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, fuzz.__file__, *arguments],
        capture_output=True,
        text=True,
        env=environment({}),
        timeout=timeout,
    )


def test_the_command() -> None:
    done = command("torch", "shards", "--cases", "20", "--seed", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.findall(r"^(\S+): 20 cases, .* 0 findings", done.stdout, re.MULTILINE) == ["torch", "shards"]
    assert command("tensorflow", "--only", "12").stdout.startswith("tensorflow: 1 cases, ")
    assert "choose from safetensors" in command("nothing").stderr


@pytest.mark.slow
@pytest.mark.parametrize("reader", fuzz.READERS)
def test_a_hundred_thousand_cases(reader: str) -> None:
    done = command(reader, "--cases", "100000", timeout=3600)
    assert done.returncode == 0, done.stdout
