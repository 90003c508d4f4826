"""Bad checkpoints and runs: one line that says where, what and what to do; nothing that was there is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from commands import VOCABULARY, assert_one_line, contents, minibert_in_process
from damage import COMMANDS, evaluate, finetune, tensors, unfinish, write

TENSOR = "encoder.layer.0.intermediate.dense.weight"


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


@pytest.mark.parametrize(
    ("data", "said"),
    [*((data, "does not say") for data in (None, 5, {}, {"dev": []})), ({"dev": {"path": 5}}, "data dev path is 5")],
)
def test_a_run_on_own_files_that_does_not_say_where_they_were(here: Path, data: object, said: str) -> None:
    settings = {"task": "table", "max_seq_length": 32}
    write(here / "run" / "run.json", json.dumps({"finished": True, "settings": settings, "data": data}).encode())
    assert_one_line(evaluate(here), 1, str(here / "run"), said, *["--input FILE"] * (said == "does not say"))


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_that_is_not_finished(here: Path, command: str) -> None:
    unfinish(here / "run")
    assert_one_line(COMMANDS[command][0](here), 1, str(here / "run"), "not finished", "--resume")


def test_labels_of_another_task(here: Path) -> None:
    glue = Path(__file__).parent.parent / "fixtures" / "glue"
    done = minibert_in_process("evaluate", here / "run", "--task", "rte", "--data-dir", glue)
    assert_one_line(done, 1, "labels 0, 1", "entailment, not_entailment")
