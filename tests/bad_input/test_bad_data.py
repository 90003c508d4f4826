"""Bad data: every command says in one line where, what and what to do; nothing that was there is lost."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import CONFIG, Done, assert_one_line, contents, mrpc_rows
from damage import COMMANDS, LABELLED, rows, third, write

# --- data files: what is done to the file, and what every command then says

DATA: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing": (Path.unlink, ("no such file", "--")),
    "a folder": (lambda path: (path.unlink(), path.mkdir())[0], ()),
    "empty": (lambda path: write(path, b""), ()),
    "only blank lines": (lambda path: write(path, b"\n\n"), ()),
    "header only": (lambda path: rows(path, lambda all: all[:1]), ()),
    "cut off in a row": (lambda path: write(path, path.read_bytes().rpartition(b"\t")[0]), ()),
    "not UTF-8": (third(lambda row: row), ("line 3", "UTF-8")),
    "UTF-16": (lambda path: write(path, path.read_text().encode("utf-16")), ()),
    "a NUL byte": (third(lambda row: row + "\0"), ("line 3", "NUL")),
    "too few columns": (third(lambda row: row.rpartition("\t")[0]), ("line 3", "columns")),
    "another header": (lambda path: rows(path, lambda all: ["a\tb\tc\td\te", *all[1:]]), ("line 1",)),
}


# A blank line is a text without words to predict.
@pytest.mark.parametrize(
    ("case", "command"), [(c, d) for c in DATA for d in COMMANDS if (c, d) != ("only blank lines", "predict")]
)
def test_data_file(here: Path, case: str, command: str) -> None:
    run, _, name = COMMANDS[command]
    damage, words = DATA[case]
    path = here / "glue" / "MRPC" / name
    damage(path)
    if case == "not UTF-8":
        path.write_bytes(path.read_bytes().replace(b"\n1\t", b"\n1\t\xff", 1).replace(b"\n0\t", b"\n0\t\xff", 1))
        words = ("UTF-8", "line ")
    before = contents(here)
    assert_one_line(run(here), 1, str(path), *words)
    assert contents(here) == before


@pytest.mark.parametrize("command", LABELLED)
@pytest.mark.parametrize("label", ["7", "", "yes", "0.0"])
def test_unknown_label(here: Path, command: str, label: str) -> None:
    run, _, name = COMMANDS[command]
    path = here / "glue" / "MRPC" / name
    third(lambda row: label + row[1:])(path)
    before = contents(here)
    assert_one_line(run(here), 1, f"{path}: line 3: unknown label {label!r}", "0, 1", "--data-dir")
    assert contents(here) == before


@pytest.mark.parametrize("command", LABELLED)
def test_no_data_folder(here: Path, command: str) -> None:
    shutil.rmtree(here / "glue")
    assert_one_line(COMMANDS[command][0](here), 1, str(here / "glue"), "no such folder", "--data-dir")


def test_the_readers_of_the_tables_above_can_fail(here: Path) -> None:
    """Undamaged, all of the commands succeed, and a command that crashes is found out."""
    for run, _, _ in COMMANDS.values():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(here / "new")
        assert run(here).code == 0
    assert (here / "predictions.tsv").read_text().startswith("id\tprediction\t0\t1\n")
    with pytest.raises(AssertionError):
        assert_one_line(Done(1, "", "Traceback (most recent call last):\n"), 1)
    assert CONFIG.max_position_embeddings == 32 and len(mrpc_rows(3)) == 4
