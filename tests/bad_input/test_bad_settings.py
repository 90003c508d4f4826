"""Bad settings, usage and names, and no network: one line that says what and what to do; nothing is written."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

import minibert
from commands import assert_one_line, assert_stopped, contents, minibert_in_process, minibert_process
from damage import finetune
from minibert import datasets, hub
from minibert.errors import DownloadError
from minibert.kernels.common import unit


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--max-seq-length", "33"), ("--max-seq-length 33", "32 positions", "checkpoint")),
        (("--max-seq-length", "2"), ("max-seq-length 2", "at least 3")),
        (("--epochs", "0"), ("epochs 0", "above 0")),
        (("--epochs", "nan"), ("epochs nan",)),
        (("--epochs", "inf"), ("epochs inf",)),
        (("--epochs", "0.01"), ("no batch", "more epochs")),
        (("--batch-size", "0"), ("batch size 0",)),
        (("--batch-size", "25"), ("24 examples", "batches smaller")),
        (("--micro-batch", "9"), ("micro-batch 9", "from 1 to the batch size 8")),
        (("--learning-rate", "-1"), ("learning rate -1",)),
        (("--learning-rate", "nan"), ("learning rate nan",)),
        (("--warmup", "1"), ("warm-up 1",)),
        (("--seed", "-1"), ("seed -1",)),
        (("--device", "gpu"), ("--device cpu",)),  # of a GPU, or of CuPy, that is not there
        (("--sample",), ("--sample", "--data-dir")),
        (
            ("--optimizer", "adafactor", "--bias-correction"),
            ("bias correction True", "off for adafactor", "leave it out"),
        ),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_settings(here: Path, option: tuple[str, ...], words: tuple[str, ...]) -> None:
    before = contents(here)
    assert_one_line(finetune(here, *option, output="new"), 1, *words)
    assert contents(here) == before and not (here / "new").exists()


def test_examples_that_make_no_batch_are_told_before_a_checkpoint_is_fetched(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "resolve", Mock(side_effect=AssertionError("fetched")))
    words = ("24 examples for 1 epoch make no batch of 25; make batches smaller, or train for more epochs",)
    assert_one_line(finetune(here, "--batch-size", "25", output="new"), 1, *words)


@pytest.mark.parametrize("name", ["bert-huge", "google:huge", "random:huge"])
def test_a_name_that_means_nothing_is_told_before_data_are_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "fetch_task", Mock(side_effect=AssertionError("fetched")))
    assert_one_line(minibert_in_process("finetune", "mnli", "--checkpoint", name), 1, name, "base, large")


def test_a_path_that_holds_no_checkpoint_is_told_before_data_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "fetch_task", Mock(side_effect=AssertionError("fetched")))
    assert_one_line(minibert_in_process("finetune", "mnli", "--checkpoint", tmp_path), 1, "holds no weights")


def test_bf16_without_a_matrix_unit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, it is an error; `auto` is fp32 there."""
    monkeypatch.setattr(unit, "mode", lambda: None)
    words = ("precision bf16", "AMX", "--precision fp32", "MINIBERT_TILES=software")
    assert_one_line(finetune(here, "--precision", "bf16", output="new"), 1, *words)
    assert not (here / "new").exists()
    assert finetune(here, output="new").code == 0
    assert json.loads((here / "new" / "run.json").read_text())["settings"]["precision"] == "fp32"


def test_a_unit_that_is_none() -> None:
    done = minibert_process("bench", "--precision", "bf16", env={"MINIBERT_TILES": "gpu"})
    assert_one_line(done, 1, "MINIBERT_TILES=gpu", "set it to software, or unset it")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finetune",), ("Missing argument 'TASK'", "minibert finetune --help")),
        (("finetune", "mrpc", "--epochs", "many"), ("--epochs", "'many'", "minibert finetune --help")),
        (("finetune", "mrpc", "--epoch", "3"), ("--epoch", "--epochs")),
        (("finetune", "mrpc", "--recipe", "mine"), ("--recipe", "google")),
        (("finetune", "mrpc", "--seeds", "0"), ("--seeds",)),
        (("finetune", "mrpc", "--save-every", "0"), ("--save-every",)),
        (("finetune", "mrpc", "--threads", "0"), ("--threads",)),
        (("finetune", "mrpc", "--train", "mine.csv"), ("--train", "TASK table")),
        (("finetune", "table", "--train", "mine.csv"), ("--dev FILE",)),
        (
            ("finetune", "squad", "--train", "a.json"),
            ("not go with TASK squad:", "train-v1.1.json and dev"),
        ),
        (("finetune", "squad2", "--train", "a.json"), ("--first FILE:EPOCHS", "--data-dir DIR with train-v2.0.json")),
        (("finetune", "squad2", "--label", "a"), ("--label does not go with TASK squad2 (",)),
        (("predict", "run", "--format", "xml"), ("--format", "tsv")),
        (("evaluate",), ("Missing argument 'RUN'", "minibert evaluate --help")),
        (("download",), ("Missing argument", "minibert download --help")),
        (("finetun", "mrpc"), ("finetun", "finetune")),
    ],
    ids=lambda value: " ".join(value) if len(value) > 2 else "",
)
def test_usage(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_line(minibert_in_process(*arguments), 2, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("finetune", "mrcp"), ("no task 'mrcp'", "did you mean mrpc?")),
        (("finetune", "sqaud"), ("no task 'sqaud'", "did you mean squad?", "xnli, squad, squad2")),
        (("download", "mrcp"), ("mrcp", "did you mean mrpc?")),
        (("download", "base", "minlm"), ("minlm", "did you mean minilm?")),
        (("finetune", "rte", "--sample"), ("--sample", "rte", "minibert finetune mrpc --sample")),
        (("finetune", "mrpc", "--checkpoint", "bert-huge"), ("bert-huge", "base, large")),
        (("evaluate", "bert-huge"), ("bert-huge", "no such run", "minibert finetune TASK")),
        (("predict", "bert-huge"), ("bert-huge", "no such run", "minibert finetune TASK")),
        (("download", "bert-huge"), ("bert-huge", "base, large", "MRPC")),
        (("finetune", "table", "--train", "a.csv", "--dev", "b.csv"), ("a.csv", "no such file")),
        (("finetune", "table", "--train", "a.xls", "--dev", "b.csv"), ("a.xls", ".csv, .tsv or .jsonl")),
    ],
    ids=lambda value: " ".join(value) if len(value) > 2 else "",
)
def test_names(here: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    monkeypatch.chdir(here)
    more = ("--data-dir", "glue") if "--checkpoint" in arguments else ()
    before = contents(here)
    assert_one_line(minibert_in_process(*arguments, *more), 1, *words)
    assert contents(here) == before


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a machine without a network and with empty caches: a port that is bound and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        yield {
            "HF_ENDPOINT": nowhere,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": "0",
            "MINIBERT_DATA_URL": nowhere,
            "MINIBERT_GOOGLE_URL": nowhere,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("finetune mrpc", {"--checkpoint", "--data-dir", "--sample"}),
        ("finetune mrpc --data-dir glue", {"--checkpoint", "--data-dir", "--sample"}),
        ("finetune rte", {"--checkpoint", "--data-dir"}),
        ("finetune squad", {"--checkpoint", "--data-dir"}),
        ("finetune table --train a.csv --dev a.csv", {"--checkpoint"}),
        ("download base", set()),
        ("download mrpc", set()),
        ("download google:tiny", set()),
        ("convert base new --to hf", set()),
        ("predict google/bert_tiny", set()),
    ],
)
def test_no_network_and_nothing_in_the_cache(
    originals: Path, tmp_path: Path, offline: dict[str, str], arguments: str, options: set[str]
) -> None:
    """What is told to do about it are options that the command has."""
    shutil.copytree(originals / "glue", tmp_path / "glue")
    (tmp_path / "a.csv").write_text("text,label\n" + "one,a\ntwo,b\n" * 20)
    done = minibert_process(*arguments.split(), env=offline, cwd=tmp_path)
    assert_stopped(done, 1, "cannot", "or name a local copy")  # labels of one's own files are told before
    assert set(re.findall(r"--[a-z-]+", done.err)) == options
    assert not (tmp_path / "runs").exists()


def test_python_is_not_told_of_options_when_there_is_no_network(
    offline: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in offline.items():
        monkeypatch.setenv(name, value)
    for train in (minibert.finetune, minibert.finetune_squad):
        with pytest.raises(DownloadError, match="cannot be reached .*name a local copy") as error:
            train()
        assert "--" not in str(error.value)


def test_in_a_process_of_its_own_it_looks_the_same(here: Path) -> None:
    (here / "glue" / "MRPC" / "dev.tsv").unlink()
    for arguments in (["evaluate", "run", "--data-dir", "glue"], ["predict", "run", "--input", "glue/MRPC/dev.tsv"]):
        assert_one_line(minibert_process(*arguments, cwd=here), 1, "dev.tsv: no such file")
