"""Predicting from a file or a stream to a file or a stream: batch by batch, in the input's order."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minibert import files, remote
from minibert.errors import DataError
from minibert.model import BATCH, Model, Prediction, load
from minibert.progress import Reporter
from minibert.runs import read_description
from minibert.tasks import Example
from minibert.tasks.rows import check_file
from minibert.tasks.table import read_pairs

Row = Callable[[Example, Prediction], str]
TOGETHER = 32 * BATCH  # examples of a file whose batches are made by length


def predict_file(
    run: str | Path, source: str, target: str, form: str, threads: int | None = None, precision: str = "auto",
    device: str = "auto", report: Reporter | None = None,
) -> None:  # fmt: skip
    """Reads texts from `source` ("-" is stdin), writes predictions to `target` ("-" is stdout) as `form` says.

    tsv: a header, then id, label and the probability of each label. jsonl: the same as objects. google:
    test_results.tsv, probabilities alone. glue: index and prediction, as GLUE's server takes them. A file is whole or
    not there; a stream gets each batch as it is done, and no answer waits for the next question. Everything is UTF-8.
    The columns that a run was told of are known by name.
    """
    if "-" not in (source, target):
        files.keep_apart(source, target)
    source, run = str(remote.local(source)), remote.checkpoint(run)
    if source != "-":
        check_file(Path(source), "check the path, or leave --input out to read stdin")
    model = load(run, device, threads, precision)
    columns = (read_description(Path(run)) or {}).get("columns")
    if source == "-":
        arriving = Lines(sys.stdin.buffer)
        batches = _batches(read_pairs(arriving, columns=columns), arriving.waiting, BATCH)
    else:
        batches = _some(_batches(read_pairs(source, columns=columns), lambda: True, TOGETHER), source)
    if target == "-":
        _stream(_lines(model, batches, form), sys.stdout.buffer)
        return
    with contextlib.closing((report or Reporter()).counted(batches, "text", len)) as counted:
        lines = _lines(model, counted, form)
        files.write_whole(target, lambda file: file.writelines(line.encode() for line in lines))


class Lines:
    """The lines of a stream as they come, and whether the next one can be had without waiting for input."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.rest = stream, b""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while b"\n" not in self.rest and self._more():
            pass
        line, end, self.rest = self.rest.partition(b"\n")
        if not line and not end:
            raise StopIteration
        return line + end

    def waiting(self) -> bool:
        try:
            while b"\n" not in self.rest and select.select([self.stream], [], [], 0)[0] and self._more():
                pass
        except OSError:  # Windows asks sockets only: whole batches there
            return True
        return b"\n" in self.rest

    def _more(self) -> bool:
        block = self.stream.read1(files.CHUNK)  # type: ignore[attr-defined]
        self.rest += block
        return bool(block)


def _batches(examples: Iterator[Example], waiting: Callable[[], bool], size: int) -> Iterator[list[Example]]:
    """`size` examples at a time, or fewer where no further input is waiting."""
    for first in examples:
        batch = [first]
        while len(batch) < size and waiting() and (more := next(examples, None)):
            batch.append(more)
        yield batch


def _some(batches: Iterator[list[Example]], source: str) -> Iterator[list[Example]]:
    """The same batches; DataError where there is none."""
    first = next(batches, None)
    if first is None:
        raise DataError(f"{source}: holds no texts; check what was to be in it")
    return itertools.chain([first], batches)


def _lines(model: Model, batches: Iterator[list[Example]], form: str) -> Iterator[str]:
    header, row = _form(model.labels, form)
    for batch in batches:
        predictions = model.predict([(e.text_a, e.text_b) for e in batch])
        yield header + "".join(itertools.starmap(row, zip(batch, predictions, strict=True)))
        header = ""
    yield header


def _form(labels: tuple[str, ...], form: str) -> tuple[str, Row]:
    """The header and the function that writes a row."""
    if form == "jsonl":
        return "", _json_row
    if form == "google":
        return "", google_row
    if form == "glue":
        return "index\tprediction\n", _glue_row
    return "\t".join(("id", "prediction", *labels)) + "\n", _tsv_row


def _tsv_row(example: Example, p: Prediction) -> str:
    label = p.label if isinstance(p.label, str) else f"{p.label:.6g}"
    return "\t".join((_one_cell(example.id), label, *(f"{value:.6f}" for value in p.probabilities.values()))) + "\n"


def _json_row(example: Example, p: Prediction) -> str:
    probabilities = {"probabilities": p.probabilities} if p.probabilities else {}  # a regression has none
    return json.dumps({"id": example.id, "prediction": p.label, **probabilities}) + "\n"


def _glue_row(example: Example, p: Prediction) -> str:
    """Of a regression, which is STS-B there, a score from 0 to 5 with three decimals."""
    answer = p.label if isinstance(p.label, str) else f"{min(max(p.label, 0.0), 5.0):.3f}"
    return f"{_one_cell(example.id)}\t{answer}\n"


def _one_cell(id: str) -> str:
    """An id without the tabs and line ends that csv and jsonl can have in it."""
    return re.sub(r"\s", " ", id)


def google_row(example: Example, p: Prediction) -> str:
    """A line of test_results.tsv: Google writes str() of float32 values, and nothing else."""
    values = p.probabilities.values() or [p.label]
    return "\t".join(str(np.float32(value)) for value in values) + "\n"


def _stream(lines: Iterator[str], out: BinaryIO) -> None:
    try:
        for line in lines:
            out.write(line.encode())
            out.flush()
    except BrokenPipeError:
        # The reader has gone, as `head` does: no error. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
