"""One's own data: a csv, tsv or jsonl file per split, named columns, labels found in the training file."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from minibert import files, remote
from minibert.errors import ConfigError, DataError
from minibert.tasks import Example, Task
from minibert.tasks.rows import (
    Row,
    as_number,
    check_file,
    csv_cells,
    csv_header,
    decode,
    format_of,
    json_cells,
    named,
    read_rows,
    score,
    spelled,
    there_are,
    tsv_cells,
)

# Column names that are known without being told, the first that all are there; GLUE's own are among them.
KNOWN_TEXTS: tuple[tuple[str, str | None], ...] = (
    ("sentence1", "sentence2"),
    ("#1 String", "#2 String"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("premise", "hypothesis"),
    ("text_a", "text_b"),
    ("sentence", None),
    ("text", None),
)
KNOWN_IDS = ("id", "index")
KNOWN = (*(name for pair in KNOWN_TEXTS for name in pair if name), *KNOWN_IDS)  # their case does not count
SHOWN, WIDTH = 12, 40  # labels that are told, and letters of each
OWN = ("train", "dev", "text_a", "text_b", "label", "regression")  # arguments of `table` that fine-tuning takes
ADVICE = "check the path and what the file holds"

Columns = Mapping[str, str | None]  # column names under `text_a`, `text_b`, `label` and `id`, as TableTask.columns


@dataclass(frozen=True)
class TableTask(Task):
    """A task over files that the user names; data_dir plays no part."""

    files: Mapping[str, Path] = field(compare=False)
    text_a: str
    text_b: str | None
    label: str
    id: str | None

    @property
    def columns(self) -> dict[str, str | None]:
        """The columns' names as `table` and `read_pairs` take them, for another file like these."""
        return {"text_a": self.text_a, "text_b": self.text_b, "label": self.label, "id": self.id}

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.labels or (self.label,)  # what predicts a price does not predict a score

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"f1 is that of the label {self.labels[1]!r}",) if "f1" in self.metrics else ()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.files)

    def path(self, split: str, data_dir: Path | None = None) -> Path:
        return self.files[self._checked(split)]

    def read(self, split: str, data_dir: Path | None = None) -> list[Example]:
        path = self.path(split)
        examples: list[Example] = []
        labelled = not split.startswith("test")
        for line, cells in read_rows(path, ADVICE, _wanted(self.columns, labelled), (self.label, *KNOWN)):
            where = f"{path}: line {line}"
            examples.append(
                Example(
                    id=_id(cells, self.id, len(examples), where),
                    text_a=_cell(cells, self.text_a, where),
                    text_b=None if self.text_b is None else _cell(cells, self.text_b, where),
                    label=self._label(cells, where, needed=labelled),
                )
            )
        if not examples:
            raise _no_rows(path)
        return examples

    def _label(self, cells: Mapping[str, str | None], where: str, needed: bool) -> int | float | None:
        text = (cells.get(self.label) or "").strip()
        if not text:
            if needed:
                _cell(cells, self.label, where)
                raise DataError(f"{where}: empty label; fill it in or remove the row")
            return None
        if self.regression:
            return score(text, where)
        if text not in self.labels:
            raise DataError(f"{where}: unknown label {text!r} (known: {', '.join(self.labels)}); correct the row")
        return self.labels.index(text)


@dataclass(frozen=True)
class UnreadTable:
    """A task of one's own files before any is opened: a run that goes on has recorded what is not given."""

    given: Mapping[str, Any]  # arguments of `table`
    name: ClassVar[str] = "table"

    def read(self, recorded: Mapping[str, Any]) -> TableTask:
        if "label" in self.given and self.given["label"] != recorded.get("label"):
            recorded = {name: value for name, value in recorded.items() if name != "labels"}
        return table(**{**recorded, **self.given})


def labels_told(task: TableTask, examples: Sequence[Example]) -> Iterator[str]:
    """What the labels of training examples are, in lines: each with its rows, and what looks like a slip."""
    if task.regression:
        numbers = [float(example.label or 0) for example in examples]
        yield f"labels: {min(numbers):.8g} to {max(numbers):.8g}, in the mean {math.fsum(numbers) / len(numbers):.8g}"
        return
    counts = Counter(example.label for example in examples)
    rows = {name: counts[i] for i, name in enumerate(task.labels)}
    shown = [f"{name:.{WIDTH}} {count:,}" for name, count in [*rows.items()][:SHOWN]]
    yield f"labels: {', '.join(shown)}" + f" ... ({len(rows)} labels)" * (len(rows) > SHOWN)
    alike: dict[str, list[str]] = {}
    for name in rows:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"note: the labels {' and '.join(map(repr, names))} differ in case or spaces only"
    if once := [repr(name) for name, count in rows.items() if count == 1]:
        yield f"note: a single row has the label {', '.join(once[:SHOWN])}" + " ..." * (len(once) > SHOWN)


def table(
    train: Path | str | None = None,
    dev: Path | str | None = None,
    test: Path | str | None = None,
    *,
    text_a: str | None = None,
    text_b: str | None = None,
    label: str = "label",
    id: str | None = None,
    labels: Sequence[str] | None = None,
    regression: bool = False,
) -> TableTask:
    """The task of one's own files, each .csv, .tsv or .jsonl; at least one must be given.

    text_a, text_b: the columns; text_a alone is a task of single texts, and with neither named they are
    found by KNOWN_TEXTS. labels: their names in order, as a checkpoint has them; without, those of the
    training file, sorted (as numbers where all are). `test` needs no labels. With two labels, F1 is that of
    the second. Raises DataError for the files, ConfigError for the settings.
    """
    given = {"train": train, "dev": dev, "test": test}
    places = {split: Path(remote.local(path)) for split, path in given.items() if path is not None}
    if not places:
        raise ConfigError("table: no file given; name a training, dev or test file")
    if text_b is not None and text_a is None:
        raise ConfigError(f"table: a second text column, {text_b!r}, without a first; name both")
    if text_a is None:
        first = next(iter(places.values()))
        text_a, text_b = _find_texts(first)
    if regression:
        found: tuple[str, ...] = ()
        metrics: tuple[str, ...] = ("rmse", "pearson", "spearman")
    else:
        if labels is None and "train" not in places:
            raise ConfigError("table: no training file to find the labels in; give one, or the labels")
        wanted = _wanted({"text_a": text_a, "text_b": text_b, "label": label, "id": id})
        found = tuple(labels) if labels is not None else _find_labels(places["train"], label, wanted)
        metrics = ("accuracy", "f1") if len(found) == 2 else ("accuracy",)
    return TableTask("table", found, metrics, text_b is not None, places, text_a, text_b, label, id)


def read_pairs(source: Path | str | Iterable[bytes | str], columns: Columns | None = None) -> Iterator[Example]:
    """Texts to predict, without labels: a file, or an open stream such as sys.stdin.buffer, read as it comes.

    tsv has a header with column names of KNOWN_TEXTS, and perhaps id or index, or no header and one or two
    columns; jsonl has those names as keys; csv has the header. The names in `columns` are known too, and come
    first; a label is not read. A file is what its ending says; a stream whose first line begins an object is jsonl, any
    other tsv, or csv where only then its first line is a header. DataError names the line.
    """
    columns = columns or {}
    if isinstance(source, (str, Path)):
        path = Path(remote.local(source))
        format = format_of(path)
        if format == "csv":
            return _examples(read_rows(path, ADVICE, known=_known(columns)), str(path), columns)
        check_file(path, ADVICE)
        return _stream(_lines_of(path), str(path), format, columns)
    return _stream(_decoded(source, "<stdin>"), "<stdin>", None, columns)


def _lines_of(path: Path) -> Iterator[str]:
    with files.one_line(path, "read", DataError), path.open("rb") as file:
        yield from _decoded(file, str(path))


def _decoded(lines: Iterable[bytes | str], where: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        text = decode(line, where, number) if isinstance(line, bytes) else line
        if number == 1:
            text = text.removeprefix("\ufeff")
        yield text.removesuffix("\n").removesuffix("\r")


def _stream(lines: Iterator[str], where: str, format: str | None, columns: Columns) -> Iterator[Example]:
    first = next(lines, None)
    if first is None:
        return
    lines, known = chain([first], lines), _known(columns)
    if format == "jsonl" or (format is None and re.match(r'\s*\{\s*["}]', first)):
        texts = [name for name in (columns.get("text_a"), columns.get("text_b")) if name]
        numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
        yield from _examples(
            ((number, json_cells(line, where, number, texts, known)) for number, line in numbered), where, columns
        )
        return
    header = first.split("\t")
    if _texts_among(spelled(header, known), columns):
        yield from _examples(named(tsv_cells(lines), where, known=known), where, columns)
    elif len(header) == 1 and _is_csv(csv_header(first), columns):
        rows = csv_cells((f"{line}\n" for line in lines), where)
        yield from _examples(named(rows, where, known=known), where, columns)
    else:
        yield from _examples(_headless(tsv_cells(lines), where, len(header)), where, {})


def _is_csv(header: list[str], columns: Columns) -> bool:
    """Whether the first line of a stream is a header of csv and no prose, in which a space follows a comma."""
    prose = any(name.startswith(" ") for name in header)
    return not prose and _texts_among(spelled(header, _known(columns)), columns) is not None


def _known(columns: Columns) -> list[str]:
    """The names of columns whose case does not count, a run's own first."""
    return [*(name for name in columns.values() if name), *KNOWN]


def _headless(rows: Iterator[tuple[int, list[str]]], where: str, width: int) -> Iterator[Row]:
    if width > 2:
        raise DataError(
            f"{where}: line 1: {width} columns and no header; begin with one that names the texts: sentence, or "
            "sentence1 and sentence2"
        )
    names = ["sentence1", "sentence2"] if width == 2 else ["sentence"]
    for number, cells in rows:
        if len(cells) != width:
            raise DataError(f"{where}: line {number}: {len(cells)} columns, not {width}; correct the row")
        yield number, dict(zip(names, cells, strict=True))


def _examples(rows: Iterator[Row], where: str, columns: Columns) -> Iterator[Example]:
    own_id = columns.get("id")
    for i, (number, cells) in enumerate(rows):
        here = f"{where}: line {number}"
        texts = _texts_among(cells, columns)
        if texts is None:
            pairs = ((columns["text_a"], columns.get("text_b")),) if columns.get("text_a") else KNOWN_TEXTS
            for a, second in pairs:
                if a in cells and second:
                    raise DataError(f"{here}: {a!r} is there, and {second!r} is missing")
            own = " and ".join(name for name in (columns.get("text_a"), columns.get("text_b")) if name)
            advice = "name the columns so"
            raise DataError(f"{here}: no {own or 'sentence'}, nor sentence1 and sentence2{there_are([*cells], advice)}")
        a, b = texts
        yield Example(
            id=_id(cells, own_id if own_id in cells else None, i, here),
            text_a=_cell(cells, a, here),
            text_b=None if b is None else _cell(cells, b, here),
            label=None,
        )


def _texts_among(names: Iterable[str], columns: Columns) -> tuple[str, str | None] | None:
    """The text columns that are there: those of `columns`, else the first of KNOWN_TEXTS."""
    names, own = set(names), columns.get("text_a")
    known = ((own, columns.get("text_b")), *KNOWN_TEXTS) if own else KNOWN_TEXTS
    return next(((a, b) for a, b in known if a in names and (b is None or b in names)), None)


def known_texts() -> str:
    """KNOWN_TEXTS in words."""
    return ", ".join(" and ".join(name for name in pair if name) for pair in KNOWN_TEXTS)


def _find_texts(path: Path) -> tuple[str, str | None]:
    for _, cells in read_rows(path, ADVICE, known=KNOWN):
        if texts := _texts_among(cells, {}):
            return texts
        advice = f"name the columns, --text-a and --text-b, or call them {known_texts()}"
        raise DataError(f"{path}: line 1: no column of texts is known{there_are([*cells], advice)}")
    raise _no_rows(path)


def _find_labels(path: Path, column: str, wanted: Mapping[str, str]) -> tuple[str, ...]:
    found: set[str] = set()
    rows = 0
    for line, cells in read_rows(path, ADVICE, wanted):
        where = f"{path}: line {line}"
        text = _cell(cells, column, where).strip()
        if not text:
            raise DataError(f"{where}: empty label; fill it in or remove the row")
        if re.search(r"[\t\r\n]", text):
            raise DataError(f"{where}: a tab or line end in the label {text!r}; remove it, or predictions are no tsv")
        found.add(text)
        rows += 1
    if rows == 0:
        raise _no_rows(path)
    if len(found) < 2:
        raise DataError(f"{path}: column {column!r} holds the one label {found.pop()!r}; it needs two or more")
    if len(found) > max(20, rows // 2):
        raise DataError(
            f"{path}: column {column!r} holds {len(found)} labels in {rows} rows; "
            "name the right one with --label, or predict numbers with --regression"
        )
    numbers = {name: as_number(name) for name in found}
    if not all(map(math.isfinite, numbers.values())):
        return tuple(sorted(found))
    return tuple(sorted(found, key=lambda name: (numbers[name], name)))


def _id(cells: Mapping[str, str | None], column: str | None, row: int, where: str) -> str:
    if column is not None:
        return _cell(cells, column, where)
    return next((cells[name] or str(row) for name in KNOWN_IDS if name in cells), str(row))


def _cell(cells: Mapping[str, str | None], column: str, where: str) -> str:
    text = cells.get(column)
    if text is None:
        missing = f"no column {column!r}{there_are([*cells], 'each line needs it')}"
        raise DataError(f"{where}: {f'{column!r} is null; give text' if column in cells else missing}")
    return text


def _wanted(columns: Columns, labelled: bool = True) -> dict[str, str]:
    """The columns that a header must have, and what to do about each that is missing."""
    advice = {"id": "rename the right one"} | {
        name: f"name the right one with --{name.replace('_', '-')} of minibert finetune, or rename it"
        for name in ("text_a", "text_b", *["label"] * labelled)
    }
    return {column: advice[name] for name, column in columns.items() if column is not None and name in advice}


def _no_rows(path: Path) -> DataError:
    return DataError(f"{path}: no rows below the header, which is the first row; {ADVICE}")
