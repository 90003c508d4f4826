"""minibert doctor: what it says of this machine, and which extra it recommends for a card."""

from __future__ import annotations

import json
import stat

import pytest

from commands import minibert_in_process
from minibert import doctor

CARD = "NVIDIA H200, 580.65.06, 143771 MiB, 9.0\n"


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a command nvidia-smi on the path that prints a text."""

    def place(text, code=0):
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    return place


def test_the_table_names_every_operation_and_its_backends():
    done = minibert_in_process("doctor")
    assert done.code == 0, done.err
    assert "threads" in done.out and "\ngpu " in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("  attention")]
    assert lines and lines[0].split(None, 1)[1] == "reference, cpu, gpu"


def test_json_has_the_same():
    found = json.loads(minibert_in_process("doctor", "--json").out)
    assert found["cpu"]["threads"] >= 1 and found["packages"]["numpy"]
    assert all("reference" in backends for backends in found["operations"].values())


@pytest.mark.parametrize(
    ("capability", "driver", "extra"),
    [("9.0", "580.65.06", "gpu"), ("9.0", "550.54", "gpu12"), ("6.1", "580.65", "gpu12"), ("7.5", "590", "gpu"),
     ("[N/A]", "580", "gpu")],
)  # fmt: skip
def test_the_extra_that_fits_a_card(capability, driver, extra):
    assert doctor.extra({"compute_cap": capability, "driver_version": driver}) == extra


def test_cards_are_found_and_told(smi):
    smi(CARD)
    found = doctor.cards()
    assert [card["name"] for card in found] == ["NVIDIA H200"] and found[0]["extra"] == "gpu"
    assert "NVIDIA H200" in minibert_in_process("doctor").out


@pytest.mark.parametrize(("text", "code"), [("", 0), ("no devices were found", 6), (CARD, 9), ("a, b\n", 0)])
def test_no_cards_no_crash(smi, text, code):
    smi(text, code)
    assert doctor.cards() == []


def test_a_card_without_cupy_gets_advice(smi, monkeypatch):
    from minibert.kernels.devices import gpu

    smi(CARD.replace("9.0", "6.1"))
    monkeypatch.setattr(gpu, "missing", lambda: True)
    monkeypatch.setattr(gpu, "precision", lambda: gpu.library())
    monkeypatch.setattr(gpu, "library", _raise)
    assert doctor.examine()["gpu"]["advice"] == 'CuPy is not installed: pip install ".[gpu12]"'


def _raise():
    from minibert.errors import BackendError

    raise BackendError("not there")
