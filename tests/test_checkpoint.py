"""Checkpoints: the table of names, reading and writing safetensors, and every file that must be refused."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from minibert import checkpoint, models
from minibert.checkpoint import huggingface, names
from minibert.checkpoint.huggingface import INDEX, SINGLE
from minibert.config import BertConfig
from minibert.errors import CheckpointError, ConfigError, MinibertError
from minibert.model import tokenizer_of

SMALL = BertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=7, id2label=("no", "yes"),
)  # fmt: skip
QUERY = "encoder.layer.0.attention.self.query.weight"


def weights(config: BertConfig = SMALL, outputs: int | None = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(s, np.float32) for k, s in names.shapes(config, outputs).items()}


def write(path: Path, arrays: dict[str, np.ndarray], header: dict[str, Any] | None = None, tail: bytes = b"") -> None:
    """A safetensors file written here, so that it can be wrong: `header` replaces entries."""
    kinds = {"<f4": "F32", "<f2": "F16", "<f8": "F64", "<i8": "I64", "<V2": "BF16"}
    entries: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        span = [end, end + array.nbytes]
        entries[name] = {"dtype": kinds[array.dtype.str], "shape": list(array.shape), "data_offsets": span}
        end += array.nbytes
    text = json.dumps(entries | (header or {})).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values()) + tail)


def folder(path: Path, arrays: dict[str, np.ndarray], **header: Any) -> Path:
    """A checkpoint directory in a foreign hand: config.json without our mark, and the arrays as named."""
    raw = {k: v for k, v in SMALL.to_dict().items() if k != "minibert_format"}
    (path / "config.json").write_text(json.dumps(raw))
    write(path / SINGLE, arrays, header)
    return path


def refused(path: Path | str, *said: str, error: type[MinibertError] = CheckpointError) -> None:
    with pytest.raises(error) as caught:
        checkpoint.load(path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    for part in said:
        assert part in text


# --- the table of names


def test_names_round_trip() -> None:
    ours = names.shapes(models.config("base"), 3)
    tensorflow = [names.to_tensorflow(name) for name in ours]
    assert [names.from_huggingface(names.to_huggingface(name)) for name in ours] == list(ours)
    assert [names.from_tensorflow(name) for name, _ in tensorflow] == [
        (name, transposed) for name, (_, transposed) in zip(ours, tensorflow, strict=True)
    ]
    assert len({name for name, _ in tensorflow}) == len({names.to_huggingface(name) for name in ours}) == 201


def test_names_are_the_published_ones() -> None:
    layer = "bert/encoder/layer_11/"
    assert names.from_tensorflow(layer + "attention/self/query/kernel") == (
        "encoder.layer.11.attention.self.query.weight", True,
    )  # fmt: skip
    assert names.from_tensorflow(layer + "output/LayerNorm/beta") == (
        "encoder.layer.11.output.LayerNorm.bias",
        False,
    )
    assert names.from_tensorflow("bert/embeddings/word_embeddings") == (
        "embeddings.word_embeddings.weight",
        False,
    )
    assert names.from_tensorflow("output_weights") == ("classifier.weight", False)
    assert names.from_tensorflow("bert/pooler/dense/kernel") == ("pooler.dense.weight", True)
    assert names.from_huggingface("bert.embeddings.LayerNorm.gamma") == "embeddings.LayerNorm.weight"
    assert names.from_huggingface("encoder.layer.3.output.dense.bias") == "encoder.layer.3.output.dense.bias"
    assert names.to_huggingface("pooler.dense.bias") == "bert.pooler.dense.bias"
    assert names.to_huggingface("classifier.bias") == "classifier.bias"


@pytest.mark.parametrize(
    "name",
    ["", "bert.classifier.weight", "encoder.layer.01.output.dense.bias", "bert.bert.pooler.dense.bias",
     "encoder.layer.{n}.output.dense.bias", "encoder.layer.-1.output.dense.bias", "encoder.layer.٣.output.dense.bias",
     "encoder.layer.output.dense.bias", "bert.encoder.layer.99999.output.dense.bias"],
)  # fmt: skip
def test_names_that_are_not_ours(name: str) -> None:
    assert names.from_huggingface(name) is None
    assert names.from_tensorflow(name) is None


def test_shapes_count_as_published() -> None:
    counts = {"base": (199, 109_482_240), "large": (391, 335_141_888), "minilm": (103, 22_713_216)}
    for name, (tensors, parameters) in counts.items():
        shapes = names.shapes(models.config(name))
        assert (len(shapes), sum(map(math.prod, shapes.values()))) == (tensors, parameters)


# --- reading and writing


@pytest.mark.parametrize("most", [None, 700])
@pytest.mark.parametrize("outputs", [None, 2])
def test_save_and_load(tmp_path: Path, most: int | None, outputs: int | None) -> None:
    arrays = weights(outputs=outputs)
    checkpoint.save(tmp_path, SMALL, arrays, max_shard_bytes=most)
    found = checkpoint.load(tmp_path)
    assert list(found.arrays) == list(names.shapes(SMALL, outputs))
    assert all(np.array_equal(found.arrays[name], arrays[name]) for name in arrays)
    assert found.config == dataclasses.replace(SMALL, classifier_dropout=0.1)
    assert found.missing_head == (outputs is None)
    assert (found.unused, found.ignored, found.vocab, found.path) == ((), (), None, tmp_path)
    shards = list(tmp_path.glob("model-*"))
    assert (len(shards) > 3) == (most is not None) and (tmp_path / INDEX).exists() == (most is not None)


def test_a_save_in_another_form_leaves_no_old_weights(tmp_path: Path) -> None:
    first, second = weights(), {name: array + 1 for name, array in weights().items()}
    checkpoint.save(tmp_path, SMALL, first, max_shard_bytes=700)
    checkpoint.save(tmp_path, SMALL, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", SINGLE]
    checkpoint.save(tmp_path, SMALL, first, max_shard_bytes=700)
    assert not (tmp_path / SINGLE).exists()
    assert np.array_equal(checkpoint.load(tmp_path).arrays[QUERY], first[QUERY])


def test_save_refuses_what_load_would(tmp_path: Path) -> None:
    good = weights()
    bad = {
        "pooler.dense.bias is missing": {k: v for k, v in good.items() if k != "pooler.dense.bias"},
        "more is extra": good | {"more": good[QUERY]},
        "classifier.bias is (3,), not (2,)": good | {"classifier.bias": np.zeros(3, np.float32)},
        "classifier.bias is float64, not float32": good | {"classifier.bias": np.zeros(2)},
        "3 outputs, but the config names 2": weights(outputs=3),
    }
    for said, arrays in bad.items():
        with pytest.raises(CheckpointError) as caught:
            checkpoint.save(tmp_path, SMALL, arrays)
        assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_float32_is_read_where_it_lies(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, SMALL, weights())
    array = checkpoint.load(tmp_path).arrays[QUERY]
    assert not array.flags.owndata and not array.flags.writeable and array.flags.aligned


@pytest.mark.parametrize("pad", range(4))
def test_unaligned_files_give_aligned_arrays(tmp_path: Path, pad: int) -> None:
    arrays = weights()
    folder(tmp_path, arrays, __metadata__={"pad": "x" * pad})
    found = checkpoint.load(tmp_path).arrays
    assert all(found[k].flags.aligned and np.array_equal(found[k], arrays[k]) for k in arrays)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types(tmp_path: Path, dtype: Any) -> None:
    cast = {name: array.astype(dtype) for name, array in weights().items()}
    folder(tmp_path, cast)
    for name, array in checkpoint.load(tmp_path).arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, cast[name].astype(np.float32))


def test_prefixes_older_names_and_extras(tmp_path: Path) -> None:
    arrays = {}
    for name, array in weights(outputs=None).items():
        older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        arrays["bert." + older] = array
    extras = {
        "bert.embeddings.position_ids": np.arange(7),
        "cls.predictions.bias": np.zeros(11, np.float32),
        "cls.seq_relationship.weight": np.full((2, 8), np.nan, np.float32),
    }
    found = checkpoint.load(folder(tmp_path, arrays | extras))
    assert found.unused == ("cls.predictions.bias", "cls.seq_relationship.weight") and found.missing_head
    assert np.array_equal(found.arrays["embeddings.LayerNorm.bias"], arrays["bert.embeddings.LayerNorm.beta"])


def test_ignored_config_keys_and_google_config(tmp_path: Path) -> None:
    folder(tmp_path, weights())
    raw = json.loads((tmp_path / "config.json").read_text()) | {"warp": 9}
    (tmp_path / "config.json").unlink()
    (tmp_path / "bert_config.json").write_text(json.dumps(raw))
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    found = checkpoint.load(tmp_path)
    assert found.ignored == ("warp",) and found.vocab == tmp_path / "vocab.txt"


def test_random_weights(tmp_path: Path) -> None:
    found = checkpoint.load("random:tiny", seed=3)
    shapes = names.shapes(models.config("tiny"))
    assert {name: array.shape for name, array in found.arrays.items()} == shapes
    assert found.missing_head and found.vocab == models.VOCAB and found.path is None
    checkpoint.save(tmp_path, SMALL, weights())
    first, again = (
        checkpoint.load(f"random:{tmp_path}", seed=3),
        checkpoint.load(f"random:{tmp_path}", seed=3),
    )
    other = checkpoint.load(f"random:{tmp_path}/config.json", seed=4)
    assert first.config == other.config and first.vocab is None
    assert np.array_equal(first.arrays[QUERY], again.arrays[QUERY])
    assert not np.array_equal(first.arrays[QUERY], other.arrays[QUERY])
    assert not np.array_equal(first.arrays[QUERY], weights()[QUERY])
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "hello"]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": 7})
    )
    cased = tokenizer_of(checkpoint.load(f"random:{tmp_path}", seed=3))
    assert not cased.lowercase, "as what stands beside the config says"
    refused("random:huge", "random:huge", "base, large, tiny")


def test_what_is_found_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    """Names and shapes are checked before, values then."""
    arrays = weights()
    arrays[QUERY][0, 0] = np.nan
    found = checkpoint.find(folder(tmp_path, arrays))
    assert found.config.hidden_size == SMALL.hidden_size and found.path == tmp_path
    with pytest.raises(CheckpointError, match=f"{QUERY}.*NaN"):
        found.read()
    del arrays[QUERY]
    with pytest.raises(CheckpointError, match=f"{QUERY} is missing"):
        checkpoint.find(folder(tmp_path, arrays))


# --- what must be refused


def changed(**replaced: Any) -> dict[str, np.ndarray]:
    """The good arrays with some replaced or, by None, left out; a dot is written __."""
    arrays: dict[str, Any] = weights() | {name.replace("__", "."): array for name, array in replaced.items()}
    return {name: array for name, array in arrays.items() if array is not None}


F32 = np.float32


@pytest.mark.parametrize(
    "arrays, said",
    [
        (changed(pooler__dense__bias=None), "tensor pooler.dense.bias is missing"),
        (changed(classifier__bias=None), "has classifier.weight without the rest"),
        (changed(pooler__dense__bias=np.zeros(9, F32)), "'pooler.dense.bias': is (9,), the config says (8,)"),
        (changed(pooler__dense__bias=np.array([0] * 7 + [np.nan], F32)), "'pooler.dense.bias': holds NaN"),
        (
            changed(pooler__dense__bias=np.array([0] * 7 + [-np.inf], F32)),
            "'pooler.dense.bias': holds NaN or inf",
        ),
        (changed(pooler__dense__bias=np.full(8, 1e300)), "'pooler.dense.bias': holds NaN or inf"),
        (changed(pooler__dense__bias=np.arange(8)), "int64 is not float32"),
        (changed(bert__pooler__dense__bias=np.zeros(8, F32)), "are the same parameter pooler.dense.bias"),
        (
            changed(embeddings__LayerNorm__gamma=np.zeros(8, F32)),
            "same parameter embeddings.LayerNorm.weight",
        ),
        (changed(adapter__weight=np.zeros(8, F32)), "'adapter.weight': is no part of BERT"),
        (
            changed(encoder__layer__2__output__dense__bias=np.zeros(8, F32)),
            "'encoder.layer.2.output.dense.bias' is",
        ),
        (
            changed(embeddings__word_embeddings__weight=np.zeros((12, 8), F32)),
            "(12, 8), the config says (11, 8)",
        ),
        (changed(classifier__weight=np.zeros((3, 8), F32)), "3 outputs, but the config names 2 labels"),
        (changed(classifier__weight=np.zeros((0, 8), F32)), "classifier.weight has shape (0, 8)"),
        (changed(classifier__weight=np.float32(1).reshape(())), "classifier.weight has shape ()"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    refused(folder(tmp_path, arrays), said)


def test_large_finite_values_are_no_infinities(tmp_path: Path) -> None:
    folder(tmp_path, changed(pooler__dense__bias=np.full(8, 3e38, F32)))
    assert checkpoint.load(tmp_path).arrays["pooler.dense.bias"][0] == F32(3e38)


BIAS = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
HUGE = 2**40


@pytest.mark.parametrize(
    "entry, said",
    [
        ([], "is not dtype, shape, data_offsets"),
        (BIAS | {"more": 1}, "is not dtype, shape, data_offsets"),
        (BIAS | {"dtype": "F7"}, "unknown type 'F7'"),
        (BIAS | {"dtype": ["F32"]}, "unknown type"),
        (BIAS | {"shape": [-8]}, "are not sizes"),
        (BIAS | {"shape": [True] * 2}, "are not sizes"),
        (BIAS | {"shape": [8.0]}, "are not sizes"),
        (BIAS | {"shape": [1] * 9}, "are not sizes"),
        (BIAS | {"data_offsets": [0]}, "are not sizes"),
        (BIAS | {"data_offsets": [32, 0]}, "is 32 bytes, not [32, 0]"),
        (BIAS | {"shape": [7]}, "is 28 bytes"),
        (BIAS | {"shape": [HUGE, HUGE]}, "are not sizes"),
        (BIAS | {"shape": [0, HUGE, HUGE], "data_offsets": [0, 0]}, "are not sizes"),
        (BIAS | {"shape": [HUGE]}, "bytes, not [0, 32]"),
        (BIAS | {"shape": [HUGE], "data_offsets": [0, 4 * HUGE]}, "ends at byte"),
        (BIAS, "overlaps another or leaves a gap"),
    ],
    ids=str,
)
def test_header_entries_are_not_believed(tmp_path: Path, entry: Any, said: str) -> None:
    refused(folder(tmp_path, weights(), **{"pooler.dense.bias": entry}), SINGLE, said)


def test_gaps_tails_and_duplicate_keys(tmp_path: Path) -> None:
    arrays = weights()
    write(tmp_path / "tail", arrays, tail=b"\0" * 4)
    write(tmp_path / "metadata", arrays, {"__metadata__": []})
    twice = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'
    (tmp_path / "twice").write_bytes(len(twice).to_bytes(8, "little") + twice)
    odd = b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    (tmp_path / "odd").write_bytes(len(odd).to_bytes(8, "little") + odd)
    for name, said in (
        ("odd", "its name is no text"),
        ("tail", "4 bytes belong to no tensor"),
        ("metadata", "not an object"),
        ("twice", "'a' stands twice"),
    ):
        with pytest.raises(CheckpointError, match=said):
            huggingface.read(tmp_path / name)


def test_every_truncation_and_flipped_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    folder(tmp_path, weights())
    path = tmp_path / SINGLE
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        refused(tmp_path, str(path))
    rng = np.random.default_rng(1)
    read = 0
    for at in [*range(8), *rng.integers(8, header, 400).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            checkpoint.load(tmp_path)
            read += 1
        except MinibertError as error:
            assert "\n" not in str(error)
    assert read < 40  # a digit of a layer may become another only where shapes agree: nearly never


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**12, 17 << 20])
def test_a_header_that_claims_to_be_huge(tmp_path: Path, length: int) -> None:
    folder(tmp_path, weights())
    (tmp_path / SINGLE).write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 100)
    refused(tmp_path, "do not hold the header")


def test_sharded_index_is_not_believed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, SMALL, weights(), max_shard_bytes=1000)
    index = json.loads((tmp_path / INDEX).read_text())
    name = "bert." + QUERY

    def with_map(**entries: Any) -> None:
        placed = {k: v for k, v in (index["weight_map"] | entries).items() if v != "drop"}
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": placed}))

    for shard in ("../model.safetensors", "/etc/passwd", "..", "", "a\\b", "c:d", 7, None, "nul\0"):
        with_map(**{name: shard})
        refused(tmp_path, INDEX, "no file name")
    with_map(**{name: "gone.safetensors"})
    refused(tmp_path, "gone.safetensors", "missing")
    with_map(more=index["weight_map"][name])
    refused(tmp_path, "'more' is in no shard")
    with_map(**{name: "drop"})
    refused(tmp_path, name, "the index does not place it here")
    other = next(v for v in index["weight_map"].values() if v != index["weight_map"][name])
    with_map(**{name: other})
    refused(tmp_path, name)
    (tmp_path / INDEX).write_text("{}")
    refused(tmp_path, "no weight_map")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "gone", "there is no such checkpoint")
    # From Python 3.14 on Path.is_file says that there is none.
    refused(tmp_path / ("long" * 65), "there is no such" if sys.version_info >= (3, 14) else "File name too long")
    refused(tmp_path, "holds no weights", "give safetensors")
    starts = {
        "torch.bin": b"PK\x03\x04" + b"\0" * 30,
        "old.pt": b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
        "some.index": b"\0" * 40 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        "model.h5": b"\x89HDF\r\n\x1a\n",
    }
    for name, data in starts.items():
        place = tmp_path / name
        place.mkdir()
        (place / name).write_bytes(data)
        refused(place, str(place / name.removesuffix(".index")))
        refused(place / name, str(place / name.removesuffix(".index")))
        folder(place, weights())
        (place / SINGLE).write_bytes(data)
        refused(place, SINGLE)
    folder(tmp_path, weights())
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "has no config.json")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "config.json", "not valid JSON", error=ConfigError)


# --- against the real thing


def test_minilm(shared: Path) -> None:
    place = shared / "checkpoints" / "all-MiniLM-L6-v2"
    found = checkpoint.load(place)
    assert found.config == models.config("minilm") and found.ignored == () and found.missing_head
    assert found.unused == ()
    assert found.vocab is not None and found.vocab.read_bytes() == models.VOCAB.read_bytes()
    safetensors = pytest.importorskip("safetensors.numpy")
    theirs = safetensors.load_file(place / SINGLE)
    assert found.arrays.keys() == theirs.keys() - {"embeddings.position_ids"}
    assert all(np.array_equal(found.arrays[name], theirs[name]) for name in found.arrays)


def test_safetensors_library_reads_ours(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = weights()
    checkpoint.save(tmp_path, SMALL, arrays)
    theirs = load_file(tmp_path / SINGLE)
    assert theirs.keys() == {names.to_huggingface(name) for name in arrays}
    assert all(np.array_equal(theirs[names.to_huggingface(name)], arrays[name]) for name in arrays)


THEIRS = """
import sys
import numpy as np
from transformers import AutoModelForSequenceClassification
for name, outputs in (("single", 2), ("sharded", 2), ("regression", 1)):
    model, info = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert model.config.id2label == ({0: "no", 1: "yes"} if outputs == 2 else {0: "score"}), model.config
    assert model.config.problem_type == (None if outputs == 2 else "regression"), model.config
    assert model.config.classifier_dropout == 0.1, model.config
    np.savez(name, **{key: value.numpy() for key, value in model.state_dict().items()})
    model.save_pretrained(name + "-theirs")
"""


def test_transformers_reads_ours_and_we_theirs(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torch") is None:
        pytest.skip("the peers extra (transformers, torch) is not installed")
    score = dataclasses.replace(SMALL, id2label=("score",), problem_type="regression")
    checkpoint.save(tmp_path / "single", SMALL, weights())
    checkpoint.save(tmp_path / "sharded", SMALL, weights(), max_shard_bytes=700)
    checkpoint.save(tmp_path / "regression", score, weights(outputs=1))
    # In its own process, away from the checkout: transformers looks for a package called `kernels`.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", THEIRS],
        cwd=tmp_path,
        env=environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("single", "sharded", "regression"):
        ours = checkpoint.load(tmp_path / name)
        again = checkpoint.load(tmp_path / f"{name}-theirs")
        theirs = np.load(tmp_path / f"{name}.npz")
        for key, array in ours.arrays.items():
            assert np.array_equal(theirs[names.to_huggingface(key)], array), key
            assert np.array_equal(again.arrays[key], array), key
        assert again.config == ours.config
