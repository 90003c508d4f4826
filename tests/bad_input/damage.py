"""The commands that read something, and what is done to what they read: shared by all tests of bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from commands import Done, minibert_in_process

QUICK = ("--batch-size", "8", "--epochs", "1", "--max-seq-length", "32")


def finetune(here: Path, *more: str | Path, output: str = "run") -> Done:
    return minibert_in_process(
        "finetune", "mrpc", "--checkpoint", here / "checkpoint", "--data-dir", here / "glue",
        "--output-dir", here / output, *QUICK, *more,
    )  # fmt: skip


def evaluate(here: Path) -> Done:
    return minibert_in_process("evaluate", here / "run", "--data-dir", here / "glue")


def predict(here: Path) -> Done:
    data, target = here / "glue" / "MRPC" / "dev.tsv", here / "predictions.tsv"
    return minibert_in_process("predict", here / "run", "--input", data, "--output", target)


# What each command reads: the folder with the model, and the file with the data.
COMMANDS: dict[str, tuple[Callable[[Path], Done], str, str]] = {
    "finetune": (lambda here: finetune(here, output="new"), "checkpoint", "train.tsv"),
    "finetune, dev": (lambda here: finetune(here, output="new"), "checkpoint", "dev.tsv"),
    "evaluate": (evaluate, "run", "dev.tsv"),
    "predict": (predict, "run", "dev.tsv"),
}
LABELLED = ("finetune", "finetune, dev", "evaluate")


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def rows(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def third(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Changes the row on line 3."""
    return lambda path: rows(path, lambda all: [*all[:2], change(all[2]), *all[3:]])


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Changes the tensors in a checkpoint's folder; they have the names that the file has."""

    def damage(folder: Path) -> None:
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
        change(arrays)
        safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})

    return damage


def unfinish(run: Path) -> None:
    """Makes a finished run one that was killed before its first saved state."""
    raw = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(raw | {"finished": False}))
