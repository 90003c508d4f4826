"""Predicting from a file or a stream to a file or a stream: batch by batch, in the input's order."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from minibert import files
from minibert.model import BATCH, Model, Prediction, load
from minibert.tasks import Example
from minibert.tasks.table import read_pairs

Row = Callable[[Example, Prediction], str]


def predict_file(run: str | Path, source: str, target: str, form: str, threads: int | None = None) -> None:
    """Reads texts from `source` ("-" is stdin), writes predictions to `target` ("-" is stdout) as `form` says.

    tsv: a header, then id, label and the probability of each label. jsonl: the same as objects. google:
    test_results.tsv, probabilities alone. A file is whole or not there; a stream gets each batch as it is done.
    """
    examples = read_pairs(sys.stdin.buffer if source == "-" else Path(source))
    lines = _lines(load(run, threads=threads), examples, form)
    if target == "-":
        _stream(lines, sys.stdout)
    else:
        files.write_whole(Path(target), lambda file: file.writelines(line.encode() for line in lines))


def _lines(model: Model, examples: Iterable[Example], form: str) -> Iterator[str]:
    header, row = _form(model.labels, form)
    if header:
        yield header
    examples = iter(examples)
    while chunk := list(itertools.islice(examples, BATCH)):
        predictions = model.predict([(e.text_a, e.text_b) for e in chunk])
        yield "".join(itertools.starmap(row, zip(chunk, predictions, strict=True)))


def _form(labels: tuple[str, ...], form: str) -> tuple[str, Row]:
    """The header and the function that writes a row."""
    if form == "jsonl":
        return "", _json_row
    if form == "google":
        return "", _google_row
    return "\t".join(("id", "prediction", *labels)) + "\n", _tsv_row


def _tsv_row(example: Example, p: Prediction) -> str:
    label = p.label if isinstance(p.label, str) else f"{p.label:.3f}"
    return "\t".join((example.id, label, *(f"{value:.6f}" for value in p.probabilities.values()))) + "\n"


def _json_row(example: Example, p: Prediction) -> str:
    return json.dumps({"id": example.id, "prediction": p.label, "probabilities": p.probabilities}) + "\n"


def _google_row(example: Example, p: Prediction) -> str:
    # Google writes str() of float32 values, and nothing else.
    values = p.probabilities.values() or [p.label]
    return "\t".join(str(np.float32(value)) for value in values) + "\n"


def _stream(lines: Iterator[str], out: TextIO) -> None:
    try:
        for line in lines:
            out.write(line)
            out.flush()
    except BrokenPipeError:
        # The reader has gone, as `head` does: no error. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
