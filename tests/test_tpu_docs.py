"""docs/tpu.md: its commands are minibert's, its table is whole. docs/tpu.ipynb runs, with JAX on the CPU."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from commands import ROOT, parsed

DOC = (ROOT / "docs" / "tpu.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Every call of minibert in the page's shell blocks, whole."""
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", DOC, re.S)).replace("\\\n", " ").splitlines()
    calls = [re.search(r"(?:^|[ /])minibert ([a-z][^\"#<]*)", line) for line in lines if not line.startswith("gcloud")]
    return [call[1].replace("$THRESH", "-2") for call in calls if call]


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str) -> None:
    parsed(*shlex.split(command))


def test_there_are_commands_and_none_of_the_chapter_s_flags_is_lost() -> None:
    assert len(commands()) >= 15
    assert {"--use_tpu=True", "--tpu_name=$TPU_NAME", "--version_2_with_negative=True"} <= set(
        " ".join(commands()).split()
    )


def test_the_table_has_every_slice_and_recipe() -> None:
    rows = re.findall(r"^\| (v\w+-\d+) \| (\S+ \S+) \|.*\| (yes|no) \|", DOC, re.M)
    slices, recipes = ("v2-8", "v3-8", "v4-8", "v5e-4", "v6e-4"), ("MRPC Base", "SQuAD Base", "SQuAD Large")
    assert set(rows) >= {(name, recipe, "yes") for name in slices for recipe in recipes}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax")
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason="notebooks need: pip install '.[test]'")
    import nbclient
    import nbformat

    notebook = nbformat.read(ROOT / "docs" / "tpu.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not to be committed"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # programs are compiled in half the time
    monkeypatch.setenv("EPOCHS", "0.03")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    devices, results, _, losses, answers = (
        cell.outputs[-1] for cell in notebook.cells if cell.cell_type == "code" and cell.outputs
    )
    assert "CpuDevice" in devices.data["text/plain"] and "'global_step': 2" in results.data["text/plain"]
    assert len(eval(losses.data["text/plain"])) == 2 and answers.text.count("{") == 2
    assert (tmp_path / "mrpc" / "model.safetensors").is_file()
