"""What a task is: examples, label names in the order of the model's outputs, and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minibert.errors import ConfigError, did_you_mean, plain


@dataclass(frozen=True)
class Example:
    """One row: id is the file's own, else the row's number from 0; label is an index, a float or None."""

    id: str
    text_a: str
    text_b: str | None
    label: int | float | None


@dataclass(frozen=True)
class Task:
    """A sentence or sentence-pair task; a child says where its files are and how they are read.

    labels: names in the order of the outputs, () for regression; metrics: names in minibert.metrics.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    pairs: bool

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def num_outputs(self) -> int:
        return len(self.labels) or 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the model's outputs, by which a checkpoint's head is known as one for this task."""
        return self.labels or ("score",)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of the results, in words."""
        return ()

    @property
    def splits(self) -> tuple[str, ...]:
        """What read() takes: of train, dev, dev-..., test and test-... those that the task has."""
        raise NotImplementedError

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The splits that a trained model is evaluated on."""
        return tuple(split for split in self.splits if split.startswith("dev"))

    def path(self, split: str, data_dir: Path) -> Path:
        """The file that a split is read from."""
        raise NotImplementedError

    def wants(self, name: str) -> bool:
        """Whether a file of that name, in the folder that read() is given or with slashes below it, is the task's."""
        raise NotImplementedError

    def read(self, split: str, data_dir: Path) -> list[Example]:
        """The split's examples in the file's order; DataError names the file and the line of what is wrong.

        Labels are None where a test file has none.
        """
        raise NotImplementedError

    def _checked(self, split: str) -> str:
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return split


SQUAD = ("squad", "squad2")  # the tasks of minibert/squad, which are no Task


def get(name: str, to_train: bool = False) -> Task:
    """The task of that name; case, "-" and "_" do not count. ConfigError for an unknown one.

    `to_train`: it is to be fine-tuned, so that of the known ones those are named that can be, SQuAD's among them.
    """
    from minibert.tasks.glue import TASKS

    for task in TASKS:
        if plain(task.name) == plain(name):
            return task
    if plain(name) in (*SQUAD, "table", "triviaqa"):
        raise ConfigError(f"{name}: {_elsewhere(plain(name))}")
    choice = [task.name for task in TASKS if not to_train or "train" in task.splits] + [*SQUAD] * to_train
    meant = did_you_mean(name, choice)
    raise ConfigError(f"no task {name!r}{meant} (known: {', '.join(choice)}, and table for your own files)")


def _elsewhere(name: str) -> str:
    """What to do about a name that is a task, but not one of those that get() knows."""
    if name == "table":
        return 'is made of your own files: give train and dev, in Python minibert.finetune("table", train=..., dev=...)'
    if name == "triviaqa":
        return "is trained on before SQuAD: minibert convert-triviaqa, and then minibert finetune squad --first FILE"
    return (
        f'answers questions: train it with minibert finetune {name}, in Python minibert.finetune_squad("{name}"), or '
        "minibert run-squad"
    )
