"""Running the command line as a user does, in this process or in another, and the small files that it is run on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click

import minibert.cli
from minibert import checkpoint
from minibert.checkpoint import names
from minibert.config import BertConfig
from minibert.random import initial_weights
from minibert.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent

WORDS = """the a in on of to and was is were not bought sold by for after before cat dog house river company mill
bank market prices shares rose fell closed opened said percent million friday monday anna peter city team won lost
game against ##s ##ed ##ing . , " ' 1 2 3 4 5 6 7 8 9 0""".split()
LETTERS = [letter for c in "abcdefghijklmnopqrstuvwxyz" for letter in (c, f"##{c}") if letter not in WORDS]
PIECES = [f"##{a}{b}" for a in "bcdfghklmnprst" for b in "aeiouy"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *PIECES]
CONFIG = BertConfig(
    vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32,
)  # fmt: skip


class Done(NamedTuple):
    """What a user sees of a command that has ended."""

    code: int
    out: str
    err: str


def minibert_in_process(*arguments: str | Path, stdin: bytes = b"") -> Done:
    """`minibert ARGUMENTS` in this process: its exit code, and all that it writes; a traceback where it crashes."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    argv, sys.argv = sys.argv, ["minibert", *map(str, arguments)]
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))  # type: ignore[arg-type]
    writers = io.TextIOWrapper(out, write_through=True), io.TextIOWrapper(err, write_through=True)
    sys.stdout, sys.stderr = writers
    try:
        minibert.cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        if sys.stdout is not writers[0]:  # after an error of stdout
            sys.stdout.close()
        sys.argv = argv
        sys.stdin, sys.stdout, sys.stderr = streams
        for writer in writers:  # not the last to hold them: a stream that dies closes what is under it
            writer.detach()
    return Done(code, out.getvalue().decode(), err.getvalue().decode())


def parsed(*arguments: str) -> click.Context:
    """What `minibert ARGUMENTS` makes of them, before anything is done. A command keeps the help option that its first
    context made: without its parents' settings the whole process would lack `-h`.
    """
    found: click.Command = minibert.cli.cli
    context, name, rest = None, "minibert", list(arguments)
    while isinstance(found, click.Group):
        context = click.Context(found, parent=context, info_name=name, **found.context_settings)
        name, *rest = rest
        found = found.commands[name]
    return found.make_context(name, rest, parent=context)


def minibert_process(
    *arguments: str | Path, env: Mapping[str, str | None] | None = None, cwd: Path | None = None, stdin: bytes = b""
) -> Done:
    """`python -m minibert ARGUMENTS` in a process of its own; None in `env` removes a variable."""
    done = subprocess.run(command(*arguments), input=stdin, capture_output=True, env=environment(env or {}), cwd=cwd)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "minibert", *map(str, arguments)]


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with `changes`, and this checkout first on Python's path."""
    values = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in values.items() if value is not None}


def assert_one_line(done: Done, code: int, *words: str) -> str:
    """That a command failed as every command must: the exit code, no results, no traceback, one line that helps."""
    assert done.code == code, done
    assert done.out == "", done
    assert "Traceback" not in done.err, done.err
    lines = done.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("minibert: "), done.err
    for word in words:
        assert word in lines[0], f"no {word!r} in: {lines[0]}"
    return lines[0]


def assert_stopped(done: Done, code: int, *words: str) -> str:
    """The same of a command that had begun to work: what it had said stands above the one line."""
    *said, last = done.err.splitlines()
    assert not any(line.startswith(("minibert: ", "Traceback", " ")) or "Warning" in line for line in said), done.err
    return assert_one_line(done._replace(err=last), code, *words)


def make_checkpoint(folder: Path, labels: Sequence[str] = (), seed: int = 7, config: BertConfig = CONFIG) -> Path:
    """A very small BERT of random weights with its vocabulary; with `labels` a classifier too, of a large head."""
    config = BertConfig(**{**vars(config), "id2label": tuple(labels)})
    arrays = initial_weights(names.shapes(config, len(labels) or None), 0.5, seed)
    if labels:
        arrays["classifier.weight"] *= 30  # so that predictions differ from text to text
    checkpoint.save(folder, config, arrays)
    Tokenizer.from_vocab(VOCABULARY).save(folder, config.max_position_embeddings)
    return folder


PAIRS = [
    ("The mill closed on Friday .", "On Friday the mill closed ."),
    ("Anna sold the house to Peter .", "Peter sold the house to Anna ."),
    ("Prices rose 3 percent .", "Prices fell 3 percent ."),
    ("The team won the game .", "The game was won by the team ."),
    ("Shares of the bank rose .", "The bank closed ."),
    ("The dog was in the house .", "In the house was the dog ."),
    ('" The cat is not lost , " Anna said .', "Peter lost the cat ."),
    ("The market opened after Monday .", "After Monday the market opened ."),
]


def mrpc_rows(count: int, start: int = 0) -> list[str]:
    """Rows in MRPC's layout; equal halves of the two labels."""
    rows = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    for i in range(start, start + count):
        a, b = PAIRS[i % len(PAIRS)]
        rows.append(f"{(i + i // len(PAIRS)) % 2}\t{i}\t{1000 + i}\t{a}\t{b}")
    return rows


def write_mrpc(folder: Path, train: int = 24, dev: int = 10) -> Path:
    """MRPC's folder with few rows; returns the folder that holds it."""
    (folder / "MRPC").mkdir(parents=True)
    for name, rows in (("train", mrpc_rows(train)), ("dev", mrpc_rows(dev, train))):
        (folder / "MRPC" / f"{name}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte: what must stay as it was."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
