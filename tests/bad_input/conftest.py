"""What every test of bad input begins with: a checkpoint, data and a finished run that are in order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import make_checkpoint, write_mrpc
from damage import finetune


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, data and a finished run, to be copied and damaged."""
    root = tmp_path_factory.mktemp("originals")
    make_checkpoint(root / "checkpoint")
    write_mrpc(root / "glue")
    done = finetune(root)
    assert done.code == 0, done.err
    return root


@pytest.fixture
def here(originals: Path, tmp_path: Path) -> Path:
    """A fresh copy of the originals, and predictions of an earlier day."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    (tmp_path / "predictions.tsv").write_text("earlier\n")
    return tmp_path
