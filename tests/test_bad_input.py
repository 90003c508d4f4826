"""Every command on every bad input: one line that says where, what and what to do; nothing that was there is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy

from commands import (
    CONFIG,
    VOCABULARY,
    Done,
    assert_one_line,
    assert_stopped,
    contents,
    make_checkpoint,
    minibert_in_process,
    minibert_process,
    mrpc_rows,
    write_mrpc,
)
from minibert import datasets, hub
from minibert.kernels.common import unit

QUICK = ("--batch-size", "8", "--epochs", "1", "--max-seq-length", "32")
TENSOR = "encoder.layer.0.intermediate.dense.weight"


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, data and a finished run, to be copied and damaged."""
    root = tmp_path_factory.mktemp("originals")
    make_checkpoint(root / "checkpoint")
    write_mrpc(root / "glue")
    done = finetune(root)
    assert done.code == 0, done.err
    return root


@pytest.fixture
def here(originals: Path, tmp_path: Path) -> Path:
    """A fresh copy of the originals, and predictions of an earlier day."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    (tmp_path / "predictions.tsv").write_text("earlier\n")
    return tmp_path


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


# --- models


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Changes the tensors in a checkpoint's folder; they have the names that the file has."""

    def damage(folder: Path) -> None:
        arrays = safetensors.numpy.load_file(folder / "model.safetensors")
        change(arrays)
        safetensors.numpy.save_file(arrays, folder / "model.safetensors", {"format": "pt"})

    return damage


def config(**changes: object) -> Callable[[Path], None]:
    """Changes keys of config.json."""

    def damage(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    return damage


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: write(folder / "model.safetensors", change((folder / "model.safetensors").read_bytes()))


def instead_of_weights(name: str, content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write(folder / name, content)

    return damage


def vocabulary(tokens: list[str]) -> Callable[[Path], None]:
    return lambda folder: write(folder / "vocab.txt", "".join(f"{token}\n" for token in tokens).encode())


def no_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").unlink()


def nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["bert." + TENSOR][3, 1] = np.nan


MODELS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": (shutil.rmtree, ()),
    "an empty folder": (lambda folder: [path.unlink() for path in folder.iterdir()], ("holds no weights",)),
    "a tensor is missing": (tensors(lambda a: a.pop("bert." + TENSOR)), (TENSOR, "missing", "checkpoint")),
    "a tensor is extra": (tensors(lambda a: a.update({"bert.other": np.ones(3, np.float32)})), ("bert.other",)),
    "a layer is extra": (
        tensors(lambda a: a.update({f"bert.{TENSOR}".replace("0", "1"): a["bert." + TENSOR]})),
        (TENSOR.replace("0", "1"), "extra"),
    ),
    "a tensor is misshapen": (
        tensors(lambda a: a.update({"bert." + TENSOR: a["bert." + TENSOR].T.copy()})),
        (TENSOR, "(16, 24)", "(24, 16)"),
    ),
    "a tensor holds NaN": (tensors(nan), (TENSOR, "NaN", "checkpoint")),
    "a tensor of whole numbers": (
        tensors(lambda a: a.update({"bert." + TENSOR: np.ones((24, 16), np.int32)})),
        (TENSOR, "int32", "convert"),
    ),
    "weights cut off": (weights(lambda data: data[:-100]), ("model.safetensors", "damaged")),
    "weights cut off in the header": (weights(lambda data: data[:200]), ("model.safetensors", "damaged")),
    "weights are garbage": (weights(lambda data: bytes(range(256)) * 40), ("model.safetensors", "damaged")),
    "weights are empty": (weights(lambda data: b""), ("model.safetensors", "damaged")),
    "a PyTorch file": (instead_of_weights("pytorch_model.bin", b"PK\x03\x04rest"), ("pytorch_model.bin", "PyTorch")),
    "a TensorFlow checkpoint": (
        instead_of_weights("bert_model.ckpt.index", b"index" + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"),
        ("bert_model.ckpt.index", "TensorFlow", "again"),
    ),
    "config missing": (lambda folder: (folder / "config.json").unlink(), ("config.json",)),
    "config not JSON": (lambda folder: write(folder / "config.json", b"{'a': 1}"), ("config.json", "JSON")),
    "config not UTF-8": (lambda folder: write(folder / "config.json", b'{"a": "\xff"}'), ("config.json", "JSON")),
    "config a list": (lambda folder: write(folder / "config.json", b"[]"), ("config.json", "object")),
    "an unknown key in our own config": (config(hiden_dropout_prob=0.2), ("config.json", "hiden_dropout_prob")),
    "a value that computes something else": (
        config(position_embedding_type="relative_key"),
        ("config.json", "position_embedding_type", "relative_key"),
    ),
    "another kind of model": (config(model_type="roberta"), ("config.json", "model_type", "roberta")),
    "a size of no model": (config(hidden_size=-16), ("config.json", "hidden_size")),
    "labels that are no names": (config(id2label=["a", "b"]), ("config.json", "id2label")),
    "no vocabulary": (no_vocabulary, ("vocab.txt",)),
    "a vocabulary without [CLS]": (vocabulary([t for t in VOCABULARY if t != "[CLS]"]), ("vocab.txt", "[CLS]")),
    "a token twice": (vocabulary([*VOCABULARY[:-1], "the"]), ("vocab.txt", "the")),
    "a vocabulary that is too large": (vocabulary([*VOCABULARY, "more"]), (str(len(VOCABULARY) + 1), "vocab.txt")),
    "a vocabulary cut off": (vocabulary(VOCABULARY[:20]), ("20 entries", str(len(VOCABULARY)), "vocab.txt")),
    "a vocabulary not UTF-8": (lambda folder: write(folder / "vocab.txt", b"[PAD]\n\xff\n"), ("vocab.txt", "line 2")),
}


@pytest.mark.parametrize("command", ["finetune", "evaluate", "predict"])
@pytest.mark.parametrize("case", MODELS)
def test_model(here: Path, case: str, command: str) -> None:
    run, name, _ = COMMANDS[command]
    damage, words = MODELS[case]
    damage(here / name)
    before = contents(here)
    assert_one_line(run(here), 1, str(here / name), *words)
    assert contents(here) == before


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_checkpoint_without_a_classifier(here: Path, command: str) -> None:
    shutil.rmtree(here / "run")
    shutil.copytree(here / "checkpoint", here / "run")
    assert_one_line(COMMANDS[command][0](here), 1, str(here / "run"), "no classifier", "minibert finetune")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b'{"finished": true, "settings": {"task": 5}}', b"\xff", b"["]
    + [
        json.dumps({"finished": True, "settings": {"task": "table", "max_seq_length": 32}} | entry).encode()
        for entry in (
            {"columns": "abc"}, {"columns": {"foo": 1}}, {"columns": {"text_a": 1}}, {"columns": [1]}, {"data_dir": 5},
        )
    ],
)  # fmt: skip
def test_a_damaged_run_json(here: Path, command: str, damage: bytes) -> None:
    write(here / "run" / "run.json", damage)
    assert_one_line(COMMANDS[command][0](here), 1, str(here / "run" / "run.json"))


@pytest.mark.parametrize("content", [b'{"name": "a run of somebody else\'s"}', b"{", b"[]"])
@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_nobody_is_advised_to_overwrite_what_may_be_no_run(here: Path, more: tuple[str, ...], content: bytes) -> None:
    write(here / "run" / "run.json", content)
    before = contents(here)
    said = assert_one_line(finetune(here, *more), 1, str(here / "run" / "run.json"))
    assert "overwrite" not in said and contents(here) == before


@pytest.mark.parametrize("data", [None, 5, {}, {"dev": []}, {"dev": {"path": 5}}])
def test_a_run_on_own_files_that_does_not_say_where_they_were(here: Path, data: object) -> None:
    settings = {"task": "table", "max_seq_length": 32}
    write(here / "run" / "run.json", json.dumps({"finished": True, "settings": settings, "data": data}).encode())
    assert_one_line(evaluate(here), 1, str(here / "run"), "does not say", "--input FILE")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_that_is_not_finished(here: Path, command: str) -> None:
    unfinish(here / "run")
    assert_one_line(COMMANDS[command][0](here), 1, str(here / "run"), "not finished", "--resume")


def test_labels_of_another_task(here: Path) -> None:
    glue = Path(__file__).parent / "fixtures" / "glue"
    done = minibert_in_process("evaluate", here / "run", "--task", "rte", "--data-dir", glue)
    assert_one_line(done, 1, "labels 0, 1", "entailment, not_entailment")


# --- settings


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--max-seq-length", "33"), ("--max-seq-length 33", "32 positions", "checkpoint")),
        (("--max-seq-length", "2"), ("max-seq-length 2", "at least 3")),
        (("--epochs", "0"), ("epochs 0", "above 0")),
        (("--epochs", "nan"), ("epochs nan",)),
        (("--epochs", "inf"), ("epochs inf",)),
        (("--epochs", "0.01"), ("no batch", "--epochs")),
        (("--batch-size", "0"), ("batch size 0",)),
        (("--batch-size", "25"), ("24 examples", "--batch-size")),
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
    words = ("24 examples for 1 epochs make no batch of 25", "--batch-size")
    assert_one_line(finetune(here, "--batch-size", "25", output="new"), 1, *words)


@pytest.mark.parametrize("name", ["bert-huge", "google:huge"])
def test_a_name_that_means_nothing_is_told_before_data_are_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "fetch_task", Mock(side_effect=AssertionError("fetched")))
    assert_one_line(minibert_in_process("finetune", "mnli", "--checkpoint", name), 1, name, "base, large")


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
        (("finetune", "rte", "--sample"), ("--sample", "rte", "minibert finetune mrpc --sample")),
        (("finetune", "mrpc", "--checkpoint", "bert-huge"), ("bert-huge", "base, large")),
        (("evaluate", "bert-huge"), ("bert-huge", "base, large")),
        (("predict", "bert-huge"), ("bert-huge", "base, large")),
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
    "arguments", ["finetune mrpc", "finetune mrpc --data-dir glue", "download base", "download mrpc"]
)
def test_no_network_and_nothing_in_the_cache(
    originals: Path, tmp_path: Path, offline: dict[str, str], arguments: str
) -> None:
    shutil.copytree(originals / "glue", tmp_path / "glue")
    done = minibert_process(*arguments.split(), env=offline, cwd=tmp_path)
    assert_one_line(done, 1, "cannot", "--sample", "--checkpoint DIR", "--data-dir DIR")
    assert not (tmp_path / "runs").exists()


def test_in_a_process_of_its_own_it_looks_the_same(here: Path) -> None:
    (here / "glue" / "MRPC" / "dev.tsv").unlink()
    for arguments in (["evaluate", "run", "--data-dir", "glue"], ["predict", "run", "--input", "glue/MRPC/dev.tsv"]):
        assert_one_line(minibert_process(*arguments, cwd=here), 1, "dev.tsv: no such file")


# --- output


def unfinish(run: Path) -> None:
    """Makes a finished run one that was killed before its first saved state."""
    raw = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(raw | {"finished": False}))


def test_output_directory_with_a_finished_run(here: Path) -> None:
    before = contents(here)
    assert_one_line(finetune(here), 1, str(here / "run"), "finished run", "--overwrite")
    assert_one_line(finetune(here, "--resume"), 1, str(here / "run"), "finished", "--overwrite")
    assert contents(here) == before


def test_output_directory_with_an_unfinished_run(here: Path) -> None:
    unfinish(here / "run")
    before = contents(here)
    assert_one_line(finetune(here), 1, "unfinished run of the same settings", "--resume")
    for more in ((), ("--resume",)):
        done = finetune(here, "--learning-rate", "1e-4", *more)
        assert_one_line(done, 1, "other settings", "learning_rate was 2e-05, now 0.0001", "--overwrite")
    assert contents(here) == before
    rows(here / "glue" / "MRPC" / "train.tsv", lambda all: all[:-1])
    assert_one_line(finetune(here, "--resume"), 1, "other settings", "train data was")


def test_output_directory_with_something_else(here: Path) -> None:
    (here / "run").rename(here / "old")
    (here / "run").mkdir()
    write(here / "run" / "thesis.tex", b"years of work")
    before = contents(here)
    assert_one_line(finetune(here), 1, str(here / "run"), "not empty", "--overwrite")
    assert_one_line(finetune(here, "--seeds", "2"), 1, str(here / "run"), "not empty", "--overwrite")
    assert contents(here) == before
    assert finetune(here, "--overwrite").code == 0
    assert (here / "run" / "thesis.tex").read_bytes() == b"years of work", "--overwrite removes what runs write"


def test_overwriting_keeps_the_old_run_until_the_new_one_can_start(here: Path) -> None:
    (here / "glue" / "MRPC" / "train.tsv").write_text("")
    before = contents(here)
    assert_one_line(finetune(here, "--overwrite"), 1, "train.tsv", "empty")
    assert contents(here) == before


def test_output_directory_is_the_checkpoint(here: Path) -> None:
    before = contents(here)
    done = finetune(here, "--overwrite", output="checkpoint")
    assert_one_line(done, 1, str(here / "checkpoint"), "the checkpoint that training starts from", "--output-dir")
    assert contents(here) == before


def test_output_directory_in_use(here: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    (here / "new").mkdir()
    with open(here / "new" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # which leaves room for other shared ones, and none for ours
        for more in ((), ("--overwrite",)):
            assert_one_line(
                finetune(here, *more, output="new"), 1, str(here / "new"), "another process", "--output-dir"
            )
    assert finetune(here, output="new").code == 0


def test_nothing_to_resume(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line(finetune(here, "--resume", output="new"), 1, str(here / "new"), "no run to resume", "--resume")
    assert not (here / "new").exists()
    monkeypatch.chdir(here)
    assert_one_line(minibert_in_process("finetune", "mrpc", "--resume"), 1, "no unfinished run of mrpc")
    assert_one_line(minibert_in_process("finetune", "mrpc", "--resume", "--seeds", "2"), 1, "--output-dir")


@pytest.mark.parametrize("damage", [b"", b"garbage", bytes(range(256)) * 50])
def test_a_damaged_state(here: Path, damage: bytes) -> None:
    unfinish(here / "run")
    write(here / "run" / "state.safetensors", damage)
    assert_stopped(finetune(here, "--resume"), 1, "state.safetensors", "--overwrite")


def test_output_under_a_file(here: Path) -> None:
    write(here / "file", b"content")
    for output in ("file", "file/run"):
        assert_one_line(finetune(here, output=output), 1, str(here / output), "cannot write")
    done = minibert_in_process(
        "predict", here / "run", "--input", here / "glue/MRPC/dev.tsv", "--output", here / "file/predictions.tsv"
    )
    assert_one_line(done, 1, "predictions.tsv", "cannot write")
    assert (here / "file").read_bytes() == b"content"


def test_output_that_may_not_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert_one_line(finetune(here, output="new"), 1, str(here / "new"), "cannot write: Permission denied", "check who")


class FullDisk:
    """os.fsync that finds the disk full at the call of that number, from 1, and ever after."""

    def __init__(self, at: int):
        self.at, self.calls = at, 0

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_any_write_and_then_is_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a run fails once: one line, and the run goes on from there to the bits of an undisturbed one."""
    assert finetune(here, "--save-every", "1", "--overwrite").code == 0
    straight = contents(here / "run")
    refused = 0
    for at in range(1, 100):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullDisk(at))
            done = finetune(here, "--save-every", "1", output="new")
        if done.code == 0:
            break
        refused += 1
        assert_stopped(done, 1, str(here / "new"), "No space left on device", "free some space")
        assert not list((here / "new").glob("*.tmp")) and not list((here / "new").glob(".*.tmp"))
        more = ["--resume"] if (here / "new" / "run.json").exists() else []
        done = finetune(here, "--save-every", "1", *more, output="new")
        assert done.code == 0, done.err
        for name in ("model.safetensors", "metrics.jsonl", "eval_results.json"):
            assert (here / "new" / name).read_bytes() == straight[name], f"{name} after write {at}"
        shutil.rmtree(here / "new")
    assert refused >= 10


def test_a_full_disk_leaves_earlier_predictions(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(1))
    assert_one_line(predict(here), 1, "predictions.tsv", "No space left", "free some space")
    assert (here / "predictions.tsv").read_text() == "earlier\n"


def test_a_file_size_limit_stops_a_real_write(here: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # room for run.json, not for a state
    try:
        done = finetune(here, "--save-every", "1", output="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_stopped(done, 1, "state.safetensors", "cannot write: File too large")
    assert sorted(path.name for path in (here / "new").iterdir()) == ["metrics.jsonl", "run.json"]


def test_metrics_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minibert import runs

    def full(path: Path, content: bytes) -> None:
        write(path, content)
        if path.name == "metrics.jsonl":
            path.unlink()
            path.symlink_to("/dev/full")

    monkeypatch.setattr(runs.files, "write_whole", full)
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert_stopped(finetune(here, output="new"), 1, "metrics.jsonl", "No space left", "free some space")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_stdout_that_cannot_be_written(here: Path) -> None:
    import subprocess

    from commands import command, environment

    with open("/dev/full", "wb") as full:
        for arguments in (["evaluate", "run"], ["predict", "run", "--input", "glue/MRPC/dev.tsv"]):
            done = subprocess.run(
                command(*arguments), stdout=full, stderr=subprocess.PIPE, env=environment({}), cwd=here
            )
            assert_one_line(Done(done.returncode, "", done.stderr.decode()), 1, "No space left on device")


def test_a_loss_that_is_not_finite(here: Path) -> None:
    large = lambda a: a.update({"bert.pooler.dense.weight": a["bert.pooler.dense.weight"] * np.float32(1e38)})  # noqa: E731
    tensors(large)(here / "checkpoint")
    tensors(lambda a: a["bert.embeddings.LayerNorm.weight"].fill(1e38))(here / "checkpoint")
    done = finetune(here, output="new")
    assert_stopped(done, 1, str(here / "new"), "at step 1 of 3", "state before it is kept", "learning rate")
    assert (here / "new" / "state.safetensors").is_file()


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
