"""Labelled data, encoded, and how well a model does on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from minibert import datasets, metrics, remote, tasks
from minibert.begun import Begun
from minibert.bert import Bert
from minibert.errors import ConfigError, DataError, plain
from minibert.model import column_order, load, outputs
from minibert.runs import read_description
from minibert.tasks import Example, Task
from minibert.tasks.table import table
from minibert.tokenizer import Features, Tokenizer

GOOGLE_BATCH = 8  # its eval_batch_size


@dataclass(frozen=True)
class Split:
    """The examples of one part of a task, encoded: `labels` are class numbers (int32) or targets (float32). `examples`:
    how many they are where one has several features, as a question has windows.
    """

    name: str
    features: Features
    labels: np.ndarray
    examples: int | None = None

    @property
    def count(self) -> int:
        """How many examples: Google's scripts count steps by them, though what they draw is features."""
        return len(self.features) if self.examples is None else self.examples


def read_split(task: Task, name: str, folder: Path, tokenizer: Tokenizer, max_seq_length: int) -> Split:
    """Reads and encodes one part of a task, with labels."""
    return encode(task, name, read_examples(task, name, folder), tokenizer, max_seq_length)


def read_examples(task: Task, name: str, folder: Path) -> list[Example]:
    """One part of a task, with labels; DataError where they are missing."""
    examples = task.read(name, folder)
    if any(e.label is None for e in examples):
        raise DataError(
            f"{task.name}: the data have no labels; predict works without them, training and evaluation do not"
        )
    return examples


def encode(task: Task, name: str, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int) -> Split:
    """The labelled examples of one part of a task as a model takes them."""
    labels = [e.label for e in examples]
    features = tokenizer.encode([(e.text_a, e.text_b) for e in examples], max_seq_length)
    return Split(name, features, np.array(labels, np.float32 if task.regression else np.int32))


def evaluate(
    bert: Bert, task: Task, data: Split, columns: list[int] | None = None, loss_batch: int = GOOGLE_BATCH
) -> dict[str, Any]:
    """The task's metrics over a labelled split, with the majority class beside them; `loss` is per example.

    `batch_loss` is what Google's Estimator reports as "loss": the mean over batches of `loss_batch` of their means.

    `columns` gives, for each label of the task, the model's output of that name.
    """
    logits = outputs(bert, data.features)
    logits = logits if columns is None else logits[:, columns]
    losses = _losses(logits, data.labels)
    results = metrics.evaluate(task, logits, data.labels)
    results["notes"] = [*task.notes, *results["notes"]]
    batches = [losses[i : i + loss_batch].mean() for i in range(0, len(losses), loss_batch)]
    return results | {"loss": float(losses.mean()), "batch_loss": float(np.mean(batches))}


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f":
        return (logits[:, 0].astype(np.float64) - labels) ** 2
    logits = logits.astype(np.float64)
    top = logits.max(-1)
    return top + np.log(np.exp(logits - top[:, None]).sum(-1)) - logits[np.arange(len(labels)), labels]


def evaluate_run(
    source: str | PathLike[str],
    *,
    task: str | None = None,
    data_dir: str | Path | None = None,
    split: str | None = None,
    input_file: str | Path | None = None,
    threads: int | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """The metrics of the model in a run directory or checkpoint, on a labelled split of a task or on a file.

    Without `task` and `data_dir` they are the run's own; so is the file of a run on one's own files. Without `split`
    it is the task's development set; the results of a second one stand under its name. Outputs are matched to the
    task's labels by name.
    """
    source = fspath(remote.checkpoint(fspath(source)))
    model = load(source, device, threads, precision)
    description = read_description(Path(source)) or {"settings": {}}
    trained = description["settings"].get("task")
    if input_file is not None and (task or data_dir):
        raise ConfigError("--input brings its own columns and labels: leave --task and --data-dir out")
    name = trained if task is None or (trained and plain(task) == plain(trained)) else task
    begun = Begun(description, Path(source))
    if name == trained == "table":
        input_file = input_file or begun.dev_file()
    if input_file is not None:
        if data_dir:
            raise ConfigError("--data-dir is for tasks whose files have names of their own: give --input FILE")
        columns = description.get("columns") or {}
        labels = model.labels
        if not trained and all(re.fullmatch(r"LABEL_\d+", label) for label in labels):  # transformers': no names
            labels = tuple(label.removeprefix("LABEL_") for label in labels)
        chosen: Task = table(dev=input_file, labels=labels, regression=not labels, **columns)
    elif name is None or name == "table":
        raise ConfigError(f"{source}: does not say what it was trained on; add --task TASK or --input FILE")
    else:
        chosen = tasks.get(name)
    have = model.labels or ("score",)
    order = column_order(have, chosen.outputs)
    if order is None:
        if not (model.labels and chosen.labels):
            kinds = ("numbers", "classes") if chosen.labels else ("classes", "numbers")
            raise ConfigError(f"{source}: predicts {kinds[0]}, and {chosen.name} has {kinds[1]}; choose another task")
        raise ConfigError(
            f"{source}: has labels {', '.join(have)}, but {chosen.name} has {', '.join(chosen.labels)}; if these are "
            "its labels by other names, name them so in its config.json, id2label"
        )
    if model.pairs not in (None, chosen.pairs):
        was, has = ("pairs", "single texts") if model.pairs else ("single texts", "pairs")
        raise ConfigError(f"{source}: was trained on {was}, but {input_file or chosen.name} has {has}; give it {was}")
    if input_file is None:
        own = _own_folder(begun) if name == trained and not data_dir else None
        folder = Path(remote.local(data_dir or own or datasets.fetch_task(chosen.name), chosen.wants))
    else:
        folder = Path(input_file).parent
    splits = (split,) if split else chosen.dev_splits
    parts = [read_split(chosen, part, folder, model.tokenizer, model.max_seq_length) for part in splits]
    first, *others = (evaluate(model.bert, chosen, part, order) for part in parts)
    return first | {part.name: results for part, results in zip(parts[1:], others, strict=True)}


def _own_folder(begun: Begun) -> str | Path | None:
    """The data's folder that a run was given. The sample's is where this user has it now."""
    folder, is_sample = begun.data()
    if not is_sample:
        return folder
    from minibert.tasks import sample

    return sample.folder()
