"""`minibert bench` at a very small size: it checks before it times, and what it prints can be read and parsed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import emulator
import gpus
from commands import minibert_in_process
from minibert import benchmarks
from minibert.kernels import devices

PRECISIONS = ("fp32", "bf16")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(benchmarks.SIZES, "minilm", (24, 3, 40))
    monkeypatch.setattr(benchmarks, "WINDOW", 20)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kernel_is_checked_timed_and_compared(precision):
    done = minibert_in_process("bench", "--shape", "minilm", "--precision", precision, "--json")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    names = {row["name"].split()[0] for row in rows}
    assert {"matmul.backward", "attention.forward", "adam.update", "adam8bit.update", "adafactor.update"} <= names
    assert all(row["seconds"] > 0 and row["share"] > 0 and row["precision"] == precision for row in rows)


@pytest.mark.parametrize("precision", PRECISIONS)
@gpus.needs_compiler
def test_full_windows_are_checked_on_a_card(precision):
    with emulator.emulated():
        device = emulator.device(precision)
        names = [case.name for case in benchmarks.full_cases("minilm", 5) if case.prepare(device).nbytes]
    assert "attention.forward 40x72, no dropout" in names and "bias_gelu.backward 40x40" in names


def test_the_table_has_a_bar_for_each_kernel():
    done = minibert_in_process("bench", "--shape", "minilm", "--precision", "fp32")
    lines = done.out.splitlines()
    assert len(lines) == 2 + len(list(benchmarks.cases("minilm"))) and lines[1].endswith("of its limit")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_wrong_kernel_is_not_timed(precision):
    device = devices.open("cpu", precision=precision)

    class Wrong:
        @staticmethod
        def forward(y, a, b):
            y[...] = np.zeros_like(y)

    device.add = Wrong
    case = next(case for case in benchmarks.cases("minilm") if case.operation == "add")
    with pytest.raises(AssertionError, match="not timed"):
        case.prepare(device)
