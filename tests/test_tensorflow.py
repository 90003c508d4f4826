"""TensorFlow's checkpoints: what TensorFlow wrote is read to the bit, and no file does more than be refused.

golden/make_tensorflow.py wrote the files in golden/tensorflow/ and says how TensorFlow is made to read ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
import statistics
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from minibert import latest, models
from minibert.checkpoint import names, tensorflow
from minibert.checkpoint.table import read_table, write_table
from minibert.checkpoint.tensors import DTYPES, Entry, of_array
from minibert.errors import CheckpointError
from tensorflow_files import FLOATS, bundle, entry_proto, outcome, replace

GOLDEN = Path(__file__).parent / "golden" / "tensorflow"
TRUTH = json.loads((GOLDEN / "checkpoints.json").read_text(encoding="utf-8"))["checkpoints"]


# What TensorFlow wrote


@pytest.mark.parametrize("checkpoint", TRUTH)
def test_reads_what_tensorflow_wrote(checkpoint: str) -> None:
    stored = tensorflow.read(GOLDEN / checkpoint)
    assert stored.format == "tensorflow" and stored.path == GOLDEN / checkpoint
    assert {*stored.entries} == {*TRUTH[checkpoint]}
    for name, expected in TRUTH[checkpoint].items():
        entry = stored.entries[name]
        assert (entry.dtype, list(entry.shape)) == (expected["dtype"], expected["shape"]), name
        if expected["sha256"] is None:
            with pytest.raises(CheckpointError, match="is not a type that can be read"):
                entry.stored()
        else:
            array = entry.stored()
            assert type(array) is np.ndarray and not array.flags.writeable
            assert (array.dtype, array.shape) == (DTYPES[entry.dtype], entry.shape), name
            assert hashlib.sha256(array.tobytes()).hexdigest() == expected["sha256"], name


def test_writes_the_bytes_that_tensorflow_does(tmp_path: Path) -> None:
    entries = tensorflow.read(GOLDEN / "bert.ckpt").entries
    tensorflow.write(tmp_path / "bert.ckpt", entries)
    data = "bert.ckpt.data-00000-of-00001"
    assert (tmp_path / data).read_bytes() == (GOLDEN / data).read_bytes()
    ours, theirs = (read_table((folder / "bert.ckpt.index").read_bytes(), "") for folder in (tmp_path, GOLDEN))
    assert ours == theirs
    written = {path: (tmp_path / path).read_bytes() for path in os.listdir(tmp_path)}
    tensorflow.write(tmp_path / "bert.ckpt", dict(reversed(entries.items())))
    assert {path: (tmp_path / path).read_bytes() for path in os.listdir(tmp_path)} == written


@pytest.mark.parametrize("checkpoint", TRUTH)
def test_round_trip(checkpoint: str, tmp_path: Path) -> None:
    entries = {
        name: entry for name, entry in tensorflow.read(GOLDEN / checkpoint).entries.items() if entry.dtype in DTYPES
    }
    tensorflow.write(tmp_path / "a" / "copy", entries)
    copies = tensorflow.read(tmp_path / "a" / "copy").entries
    assert {*copies} == {*entries}
    for name, entry in entries.items():
        assert (copies[name].dtype, copies[name].shape) == (entry.dtype, entry.shape)
        assert copies[name].bytes() == entry.bytes()


def test_a_tensor_is_a_view_of_the_file() -> None:
    entry = tensorflow.read(GOLDEN / "bert.ckpt").entries["bert/embeddings/word_embeddings"]
    assert np.shares_memory(entry.stored(), entry.stored()) and np.shares_memory(entry.read(), entry.stored())


def test_values_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    arrays = {"a": np.array([1, 2, 3], np.uint8), "b": FLOATS, "c": FLOATS.astype(ml_dtypes.bfloat16)}
    tensorflow.write(tmp_path / "x", {name: of_array(name, array) for name, array in arrays.items()})
    entries = tensorflow.read(tmp_path / "x").entries
    assert not entries["b"].stored().flags.aligned
    for name in "bc":
        np.testing.assert_array_equal(entries[name].read(), FLOATS)


def test_each_reading_checks_the_checksum(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry_proto(FLOATS), b"b": entry_proto(FLOATS, offset=24)}, FLOATS.tobytes() * 2)
    entries = tensorflow.read(prefix).entries
    np.testing.assert_array_equal(entries["a"].read(), FLOATS)
    for place in range(24):
        with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
            file.seek(place)
            file.write(bytes([FLOATS.tobytes()[place] ^ 1]))
        with pytest.raises(CheckpointError, match=re.escape(f"{prefix}: tensor 'a': its bytes do not have their")):
            entries["a"].stored()
        with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
            file.write(FLOATS.tobytes())
        entries["a"].stored()
    np.testing.assert_array_equal(entries["b"].read(), FLOATS)


def test_no_damaged_index_is_read_otherwise(tmp_path: Path) -> None:
    prefix = tmp_path / "grid.ckpt"
    for path in GOLDEN.glob("grid.ckpt.*"):
        shutil.copy(path, tmp_path)
    index = Path(f"{prefix}.index")
    right, whole = index.read_bytes(), outcome(prefix)
    assert isinstance(whole, dict)
    for place in range(len(right)):
        replace(index, right[:place])
        assert isinstance(outcome(prefix), str)
        replace(index, right[:place] + bytes([right[place] ^ 1 << place % 8]) + right[place + 1 :])
        assert isinstance(outcome(prefix), str) or place >= len(right) - 48  # zeros in the footer mean nothing


def test_no_message_does_more_than_be_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for path in GOLDEN.glob("grid.ckpt.*"):
        shutil.copy(path, tmp_path)
    index = tmp_path / "grid.ckpt.index"
    items = read_table(index.read_bytes(), "")
    kinds = set()
    for _ in range(400):
        i = rng.randrange(len(items))
        value = bytearray(items[i][1])
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(value))
            value[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        changed = [*items[:i], (items[i][0], bytes(value)), *items[i + 1 :]]
        replace(index, write_table(changed))
        kinds.add(type(outcome(tmp_path / "grid.ckpt")))
    assert kinds == {str, dict}


# Writing


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for name in ("", "\0a", "\ud800"):
        with pytest.raises(CheckpointError, match="its name cannot stand in a TensorFlow checkpoint"):
            tensorflow.write(tmp_path / "x", {name: of_array("x", FLOATS)})
    with pytest.raises(CheckpointError, match="here: a TensorFlow checkpoint has no string"):
        tensorflow.write(tmp_path / "x", {"a": Entry("here", "string", (), lambda: FLOATS)})
    assert not [*tmp_path.iterdir()]


def test_the_index_is_written_last(tmp_path: Path) -> None:
    def failing() -> np.ndarray:
        assert not Path(f"{tmp_path}/x.index").exists()
        raise CheckpointError("its bytes are wrong")

    with pytest.raises(CheckpointError, match="its bytes are wrong"):
        tensorflow.write(tmp_path / "x", {"a": Entry("", "float32", (2,), failing)})
    assert not [*tmp_path.iterdir()]


# The file that names the newest


def test_latest_reads_what_tensorflow_wrote() -> None:
    assert latest.newest(GOLDEN) == "größe.ckpt-2"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('model_checkpoint_path: "model.ckpt-343"\nall_model_checkpoint_paths: "model.ckpt-1"\n', "model.ckpt-343"),
        ('all_model_checkpoint_paths: "model.ckpt-1"\n model_checkpoint_path :"model.ckpt-2"', "model.ckpt-2"),
        ('model_checkpoint_path: "gs://bucket/run/model.ckpt-2"', "model.ckpt-2"),
        ('model_checkpoint_path: "C:\\\\run\\\\model.ckpt-2"', "model.ckpt-2"),
        ('model_checkpoint_path: "gr\\303\\266\\\'\\"\\xe.ckpt"', "grö'\"xe.ckpt"),
        ('model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"', "b"),
    ],
)
def test_latest(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text(text)
    assert latest.newest(tmp_path) == name


@pytest.mark.parametrize(
    "content",
    [
        b"", b"model_checkpoint_path: a", b'all_model_checkpoint_paths: "a"', b'model_checkpoint_path: "a', b"\xff",
        *(b'model_checkpoint_path: "' + path + b'"' for path in (b"", b"..", b"a/..", b".", b"a/", b"a\\0", b"\xff")),
    ],
)  # fmt: skip
def test_latest_refuses(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'checkpoint'}: ")):
        latest.newest(tmp_path)


def test_latest_comes_back(tmp_path: Path) -> None:
    assert latest.newest(tmp_path) is None
    for name in ("model.ckpt-343", "größe'\"\n-1"):
        latest.write(tmp_path, name, ["model.ckpt-1", name])
        assert latest.newest(tmp_path) == name
    latest.write(tmp_path, "b", ["a", "b"])
    assert (tmp_path / "checkpoint").read_text() == (
        'model_checkpoint_path: "b"\nall_model_checkpoint_paths: "a"\nall_model_checkpoint_paths: "b"\n'
    )


# Speed


@pytest.mark.slow
def test_bert_base_with_slots_is_read_at_a_gigabyte_a_second(tmp_path: Path) -> None:
    """From a warm cache, checksums and the search for NaN included; the median of five."""
    rng = np.random.default_rng(0)
    entries = {}
    for name, shape in names.shapes(models.config("base"), 2).items():
        for slot in ("", "/adam_m", "/adam_v"):
            array = rng.standard_normal(math.prod(shape), np.float32).reshape(shape)
            entries[name + slot] = of_array(name, array)
    tensorflow.write(tmp_path / "base", entries)
    total = sum(entry.nbytes for entry in entries.values())
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        for entry in tensorflow.read(tmp_path / "base").entries.values():
            entry.read()
        times.append(time.perf_counter() - begin)
    rate = total / statistics.median(times[1:]) / 1e9
    print(f"{total / 1e9:.2f} GB at {rate:.2f} GB/s")
    assert rate >= 1
