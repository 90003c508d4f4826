"""The tasks of GLUE, and XNLI: one table, a row per task.

Files, columns and the order of labels are those of google-research/bert:run_classifier.py, and for the tasks
that it lacks those of transformers' GLUE processors. As there, a tab ends a cell and a quotation mark is a
character like any other. Columns are found by the header's names, so that a file of another task or version
is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from minibert.errors import DataError, plain
from minibert.tasks import Example, Task
from minibert.tasks.rows import read_text, score, split_lines, tsv_cells

log = logging.getLogger(__name__)

BINARY = ("0", "1")
NLI = ("contradiction", "entailment", "neutral")  # Google's order; transformers' data sets have another
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Split:
    """One file of a task: of the names in `files` the first that exists; `header` where the file has none."""

    files: tuple[str, ...]
    text_a: str
    text_b: str | None
    label: str
    header: tuple[str, ...] = ()
    only: tuple[str, str] | None = None  # the column and the value of the rows that count


@dataclass(frozen=True)
class GlueTask(Task):
    """A task whose files lie in a folder of its own."""

    folder: str
    files: Mapping[str, Split] = field(repr=False, compare=False)
    spellings: Mapping[str, str] = field(default_factory=dict, compare=False)  # of labels in the files
    skip_short: bool = False  # rows with too few columns are in the published file
    closed: bool = False  # the published files end in a newline, so that one without has lost its end

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)

    def path(self, split: str, data_dir: Path) -> Path:
        names = self.files[self._checked(split)].files
        folder = self._folder(Path(data_dir))
        return next((folder / name for name in names if (folder / name).exists()), folder / names[0])

    def wants(self, name: str) -> bool:
        first, _, rest = name.partition("/")
        inside = rest if plain(first) == plain(self.folder) else name
        return any(inside in split.files for split in self.files.values())

    def read(self, split: str, data_dir: Path) -> list[Example]:
        path = self.path(split, data_dir)
        layout = self.files[split]
        text = read_text(path, self._advice)
        if self.closed and not text.endswith("\n"):
            raise DataError(f"{path}: no newline at the end: cut off; fetch it again, or add it if the row is whole")
        lines = split_lines(text.rstrip("\r\n"))
        header = layout.header or tuple(lines[0].split("\t"))
        columns = self._columns(layout, header, needs_label=not split.startswith("test"), path=path)
        width = 1 + max(column for column in columns.values() if column is not None)
        examples: list[Example] = []
        short: list[int] = []
        for number, cells in tsv_cells(lines):
            if number == 1 and not layout.header:
                continue
            if len(cells) < width:
                cut = number == len(lines) and not text.endswith("\n")
                if cut or not self.skip_short:
                    what = f"{len(cells)} of {width} columns{': the file is cut off' if cut else ''}"
                    raise DataError(f"{path}: line {number}: {what}; {self._advice}")
                short.append(number)
                continue
            if layout.only and cells[header.index(layout.only[0])] != layout.only[1]:
                continue
            examples.append(self._example(cells, columns, str(len(examples)), f"{path}: line {number}"))
        if short:
            log.warning("%s: %d rows have too few columns, first line %d: skipped", path, len(short), short[0])
        if not examples:
            rows = f"rows with {' = '.join(layout.only)}" if layout.only else "rows below the header"
            raise DataError(f"{path}: no {rows}; {self._advice}")
        return examples

    @property
    def _advice(self) -> str:
        if self.name == "ax":  # what is downloaded has no labels
            return "the one with labels is at gluebenchmark.com/diagnostics; give --data-dir AX/ or the folder it is in"
        return f"fetch it again, or give --data-dir {self.folder}/ or the folder that holds it"

    def _folder(self, data_dir: Path) -> Path:
        if not data_dir.is_dir():
            wrong = "is a file, not a folder" if data_dir.exists() else "no such folder"
            raise DataError(f"{data_dir}: {wrong}; give --data-dir {self.folder}/ or the folder that holds it")
        folders = (child for child in sorted(data_dir.iterdir()) if plain(child.name) == plain(self.folder))
        return next((folder for folder in folders if folder.is_dir()), data_dir)

    def _columns(self, layout: Split, header: tuple[str, ...], needs_label: bool, path: Path) -> dict[str, int | None]:
        def find(name: str | None) -> int | None:
            return header.index(name) if name in header else None

        wanted = [layout.text_a, layout.text_b, needs_label and layout.label, layout.only and layout.only[0]]
        if missing := [name for name in wanted if name and name not in header]:
            raise DataError(f"{path}: line 1: no column {missing[0]!r} for {self.name}; {self._advice}")
        return {
            "id": find("index") if "index" in header else find("id"),
            "a": find(layout.text_a),
            "b": find(layout.text_b),
            "label": find(layout.label),
        }

    def _example(self, cells: list[str], columns: Mapping[str, int | None], row: str, where: str) -> Example:
        def cell(name: str) -> str | None:
            column = columns[name]
            return None if column is None else cells[column]

        label = cell("label")
        return Example(
            id=cell("id") or row,
            text_a=cell("a") or "",
            text_b=cell("b"),
            label=None if label is None else self._label(label, where),
        )

    def _label(self, text: str, where: str) -> int | float:
        if self.regression:
            return score(text, where)
        name = self.spellings.get(text, text)
        if name not in self.labels:
            raise DataError(f"{where}: unknown label {text!r} (known: {', '.join(self.labels)}); {self._advice}")
        return self.labels.index(name)


def _three(a: str, b: str | None, label: str, headless: tuple[str, ...] = ()) -> dict[str, Split]:
    return {
        split: Split((f"{split}.tsv",), a, b, label, () if split == "test" else headless)
        for split in ("train", "dev", "test")
    }


def _mnli() -> dict[str, Split]:
    names = {
        "train": "train.tsv",
        "dev": "dev_matched.tsv",
        "dev-mismatched": "dev_mismatched.tsv",
        "test": "test_matched.tsv",
        "test-mismatched": "test_mismatched.tsv",
    }
    return {split: Split((name,), "sentence1", "sentence2", "gold_label") for split, name in names.items()}


def _xnli() -> dict[str, Split]:
    """Chinese, as Google's code has it; its archives unpack into folders of their own."""
    train = "multinli/multinli.train.zh.tsv"
    splits = {"train": Split((train, f"XNLI-MT-1.0/{train}"), "premise", "hypo", "label")}
    for split in ("dev", "test"):
        name = f"xnli.{split}.tsv"
        splits[split] = Split(
            (name, f"XNLI-1.0/{name}"), "sentence1", "sentence2", "gold_label", only=("language", "zh")
        )
    return splits


# The diagnostic set is for a model trained on MNLI; its labels are published in a file with other columns.
_AX = {
    "dev": Split(("diagnostic-full.tsv",), "Premise", "Hypothesis", "Label"),
    "test": Split(("AX.tsv", "diagnostic.tsv"), "sentence1", "sentence2", "label"),
}

_COLA = ("source", "label", "mark", "sentence")
_PAIR = ("sentence1", "sentence2", "label")

# name, labels, metrics, pairs?, folder, files
TASKS = (
    GlueTask("cola", BINARY, ("matthews",), False, "CoLA", _three("sentence", None, "label", _COLA)),
    GlueTask("sst-2", BINARY, ("accuracy",), False, "SST-2", _three("sentence", None, "label")),
    GlueTask(
        "mrpc",
        BINARY,
        ("accuracy", "f1"),
        True,
        "MRPC",
        _three("#1 String", "#2 String", "Quality"),
        closed=True,
    ),
    GlueTask(
        "sts-b", (), ("pearson", "spearman"), True, "STS-B", _three("sentence1", "sentence2", "score"), closed=True
    ),
    GlueTask(
        "qqp",
        BINARY,
        ("accuracy", "f1"),
        True,
        "QQP",
        _three("question1", "question2", "is_duplicate"),
        skip_short=True,
    ),
    GlueTask("mnli", NLI, ("accuracy",), True, "MNLI", _mnli()),
    GlueTask("qnli", ENTAILMENT, ("accuracy",), True, "QNLI", _three("question", "sentence", "label")),
    GlueTask("rte", ENTAILMENT, ("accuracy",), True, "RTE", _three(*_PAIR), closed=True),
    GlueTask("wnli", BINARY, ("accuracy",), True, "WNLI", _three(*_PAIR)),
    GlueTask("ax", NLI, ("matthews",), True, "AX", _AX),
    GlueTask("xnli", NLI, ("accuracy",), True, "XNLI", _xnli(), {"contradictory": "contradiction"}),
)
