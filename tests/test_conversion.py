"""Conversions: every byte of every tensor comes back, whatever the way; and what `inspect` says about checkpoints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from unittest.mock import Mock

import ml_dtypes
import numpy as np
import pytest

from commands import CONFIG, assert_one_line, contents, make_checkpoint, minibert_in_process
from minibert import checkpoint, latest
from minibert.checkpoint import archive, conversion, huggingface, inspection, names, sources, tensorflow
from minibert.checkpoint.tensors import of_array
from minibert.errors import CheckpointError
from minibert.tokenizer import SPECIAL, Tokenizer

ROUTES = (("tensorflow", "torch", "hf"), ("torch", "tensorflow", "hf"), ("hf", "tensorflow", "torch", "hf"))


def bert_with_everything(folder: Path) -> Path:
    """A checkpoint with every head, odd types, a tied copy and a buffer, in Hugging Face's form."""
    make_checkpoint(folder, ("no", "yes"))
    arrays = {names.to_huggingface(n): a for n, a in checkpoint.load(folder).arrays.items()}
    rng = np.random.default_rng(3)
    c, v = CONFIG.hidden_size, CONFIG.vocab_size
    for row in names.OTHER_HEADS:
        sizes = {"C": c, "V": v, "2": 2}
        shape = tuple(sizes[letter] for letter in row.shape.split())
        arrays[row.name] = rng.standard_normal(shape, np.float32)
    arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
    arrays["bert.embeddings.position_ids"] = np.arange(CONFIG.max_position_embeddings)[None]
    query = "bert.encoder.layer.0.attention.self.query.weight"
    arrays[query] = arrays[query].astype(np.float16)
    arrays["bert.pooler.dense.weight"] = arrays["bert.pooler.dense.weight"].astype(ml_dtypes.bfloat16)
    huggingface.write(folder / "model.safetensors", {name: of_array(name, a) for name, a in arrays.items()})
    return folder


def digest(path: Path) -> dict[str, tuple[str, tuple[int, ...], str]]:
    """Of every tensor under its own name: type, shape, checksum."""
    entries = sources.find(path).stored.entries
    return {n: (e.dtype, e.shape, hashlib.sha256(e.bytes()).hexdigest()) for n, e in entries.items()}


@pytest.mark.parametrize("route", ROUTES, ids="-".join)
def test_round_trips_keep_every_byte(tmp_path: Path, route: tuple[str, ...]) -> None:
    first = place = bert_with_everything(tmp_path / "start")
    for i, form in enumerate(route):
        conversion.convert(place, tmp_path / str(i), form)
        place = tmp_path / str(i)
        assert sources.find(place).stored.format == form
    assert digest(place) == digest(first)
    assert (place / "vocab.txt").read_bytes() == (first / "vocab.txt").read_bytes()
    assert checkpoint.load(place).config == checkpoint.load(first).config


def test_a_model_without_heads_keeps_its_bare_names(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    arrays = checkpoint.load(tmp_path / "start").arrays
    huggingface.write(tmp_path / "start" / "model.safetensors", {n: of_array(n, a) for n, a in arrays.items()})
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    assert "bert/embeddings/word_embeddings" in sources.find(tmp_path / "tf").stored.entries
    conversion.convert(tmp_path / "tf", tmp_path / "hf", "hf")
    assert digest(tmp_path / "hf") == digest(tmp_path / "start")


def test_minilm_survives_the_round(shared: Path, tmp_path: Path) -> None:
    place = first = shared / "checkpoints" / "all-MiniLM-L6-v2"
    for form in ("tensorflow", "torch", "hf"):
        conversion.convert(place, tmp_path / form, form)
        place = tmp_path / form
    assert digest(place) == digest(first)


def test_tensorflow_has_googles_names_and_orientation(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start", ("no", "yes"))
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    entries = tensorflow.read(tmp_path / "tf" / "bert_model.ckpt").entries
    ours = checkpoint.load(tmp_path / "start").arrays
    kernel = entries["bert/encoder/layer_0/intermediate/dense/kernel"]
    assert kernel.shape == (CONFIG.hidden_size, CONFIG.intermediate_size)
    assert np.array_equal(kernel.stored(), ours["encoder.layer.0.intermediate.dense.weight"].T)
    assert np.array_equal(entries["output_weights"].stored(), ours["classifier.weight"])
    assert entries["bert/embeddings/LayerNorm/gamma"].shape == (CONFIG.hidden_size,)


@pytest.mark.parametrize("form", conversion.FORMATS)
def test_what_was_converted_trains_as_the_original(tmp_path: Path, form: str) -> None:
    make_checkpoint(tmp_path / "start", ("no", "yes"))
    conversion.convert(tmp_path / "start", tmp_path / "done", form)
    was, now = checkpoint.load(tmp_path / "start"), checkpoint.load(tmp_path / "done")
    assert list(now.arrays) == list(was.arrays)
    assert all(np.array_equal(now.arrays[name], was.arrays[name]) for name in was.arrays)


def test_the_optimizer_comes_along_on_request(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start", ("no", "yes"))
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    prefix = tmp_path / "tf" / "bert_model.ckpt"
    entries = dict(tensorflow.read(prefix).entries)
    rng = np.random.default_rng(1)
    slots = {f"{n}/{s}": rng.standard_normal(e.shape, np.float32) for n, e in entries.items() for s in names.SLOTS}
    slots["global_step"] = np.array(343, np.int64)
    tensorflow.write(prefix, entries | {name: of_array(name, array) for name, array in slots.items()})
    place = tmp_path / "tf"
    before = digest(place)
    for form in ("hf", "torch", "tensorflow"):
        conversion.convert(place, tmp_path / f"with-{form}", form, optimizer=True)
        conversion.convert(place, tmp_path / f"without-{form}", form)
        place = tmp_path / f"with-{form}"
    assert digest(place) == before
    assert len(digest(tmp_path / "without-tensorflow")) == len(entries)
    with pytest.raises(CheckpointError, match="leave --optimizer out"):
        conversion.convert(tmp_path / "without-hf", tmp_path / "more", "tensorflow", optimizer=True)


def test_a_missing_pooler_is_told_and_a_missing_layer_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    arrays = checkpoint.load(tmp_path / "start").arrays
    short = {n: of_array(n, a) for n, a in arrays.items() if not n.startswith("pooler")}
    huggingface.write(tmp_path / "start" / "model.safetensors", short)
    done = conversion.convert(tmp_path / "start", tmp_path / "done", "tensorflow")
    assert done.missing == ("pooler.dense.weight", "pooler.dense.bias")
    del short["encoder.layer.0.output.dense.bias"]
    huggingface.write(tmp_path / "start" / "model.safetensors", short)
    with pytest.raises(CheckpointError, match="encoder.layer.0.output.dense.bias is missing"):
        conversion.convert(tmp_path / "start", tmp_path / "more", "tensorflow")


@pytest.mark.parametrize("form", ["hf", "tensorflow", "torch"])
def test_moments_of_other_weights_are_not_left_to_be_carried_along(tmp_path: Path, form: str) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "done", form)
    for name in conversion.OPTIMIZERS:
        (tmp_path / "done" / name).write_bytes(b"another's")
        (tmp_path / "start" / name).write_bytes(b"its own")
    with pytest.raises(CheckpointError, match="is there already"):
        conversion.convert(tmp_path / "start", tmp_path / "done", form)
    assert {*conversion.OPTIMIZERS} <= contents(tmp_path / "done").keys()
    conversion.convert(tmp_path / "start", tmp_path / "done", form, overwrite=True)
    assert not {*conversion.OPTIMIZERS} & contents(tmp_path / "done").keys()
    with pytest.raises(CheckpointError, match="no optimizer's moments to carry over"):
        conversion.convert(tmp_path / "done", tmp_path / "more", "hf", optimizer=True)
    conversion.convert(tmp_path / "start", tmp_path / "start", "hf", overwrite=True)
    assert {*conversion.OPTIMIZERS} <= contents(tmp_path / "start").keys(), "they belong to these weights"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "done", "tensorflow")
    before = contents(tmp_path / "done")
    done = minibert_in_process("convert", tmp_path / "start", tmp_path / "done", "--to", "tensorflow")
    assert_one_line(done, 1, "bert_model.ckpt.data", "--overwrite")
    assert contents(tmp_path / "done") == before
    done = minibert_in_process("convert", tmp_path / "start", tmp_path / "done", "--to", "tensorflow", "--overwrite")
    assert done.code == 0 and contents(tmp_path / "done") == before


def test_a_file_of_a_checkpoint_that_is_half_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "bert_model.ckpt.data-00000-of-00001").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="data-00000-of-00001: is there already"):
        conversion.convert(tmp_path / "start", tmp_path / "done", "tensorflow")


def test_weights_that_would_be_read_instead_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    for form, rival in (
        ("torch", "model.safetensors"),
        ("tensorflow", "pytorch_model.bin"),
        ("tensorflow", "checkpoint"),
    ):
        folder = tmp_path / f"{form}-{rival}"
        folder.mkdir()
        (folder / rival).write_bytes(b"another's")
        with pytest.raises(CheckpointError, match=f"{rival}: would be read instead"):
            conversion.convert(tmp_path / "start", folder, form, overwrite=True)
        assert contents(folder) == {rival: b"another's"}
    conversion.convert(tmp_path / "start", tmp_path / "start", "torch", overwrite=True)  # the same weights twice


@pytest.mark.parametrize("cased", [False, True])
def test_googles_vocabulary_gets_the_settings_that_transformers_reads(tmp_path: Path, cased: bool) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    vocab = [*SPECIAL, *(f"{'Bert' if cased else 'bert'}{i}" for i in range(CONFIG.vocab_size - len(SPECIAL)))]
    (tmp_path / "tf" / "vocab.txt").write_text("\n".join(vocab))
    for name in {*conversion.TOKENIZER} - {"vocab.txt", "special_tokens_map.json"}:
        (tmp_path / "tf" / name).unlink(missing_ok=True)
    for form in ("hf", "torch"):
        conversion.convert(tmp_path / "tf", tmp_path / form, form)
        settings = json.loads((tmp_path / form / "tokenizer_config.json").read_text())
        assert settings["do_lower_case"] is not cased
        assert (tmp_path / form / "tokenizer.json").is_file()
        with pytest.raises(CheckpointError, match="is there already"):
            conversion.convert(tmp_path / "tf", tmp_path / form, form)


def test_no_part_of_another_tokenizer_is_left(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start", ("no", "yes"))
    for form in ("hf", "tensorflow"):
        conversion.convert(tmp_path / "start", tmp_path / form, form)
        (tmp_path / form / "added_tokens.json").write_text('{"[E1]": 9999}')
        conversion.convert(tmp_path / "start", tmp_path / form, form, overwrite=True)
        Tokenizer.load(tmp_path / form)
    (tmp_path / "start" / "added_tokens.json").write_text('{"[E1]": 9999}')
    Tokenizer.from_vocab(tmp_path / "start" / "vocab.txt").save(tmp_path / "start")
    Tokenizer.load(tmp_path / "start")
    for name in conversion.TOKENIZER:
        (tmp_path / "start" / name).unlink(missing_ok=True)
    before = contents(tmp_path / "hf")
    conversion.convert(tmp_path / "start", tmp_path / "hf", "hf", overwrite=True)
    assert contents(tmp_path / "hf") == before, "there is nothing in its place"


def test_a_vocabulary_that_is_none_comes_along_as_it_is(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    for name in conversion.TOKENIZER:
        (tmp_path / "tf" / name).unlink(missing_ok=True)
    (tmp_path / "tf" / "vocab.txt").write_text("twice\ntwice\n")
    conversion.convert(tmp_path / "tf", tmp_path / "hf", "hf")
    assert (tmp_path / "hf" / "vocab.txt").read_text() == "twice\ntwice\n"


# --- finding


def test_found_by_content_and_not_by_name(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    for form, name in (("hf", "weights.bin"), ("torch", "model.safetensors")):
        folder = tmp_path / form
        conversion.convert(tmp_path / "start", folder, form)
        (folder / conversion.FORMATS[form].weights).rename(folder / name)
        for place in (folder, folder / name):
            found = sources.find(place)
            assert found.stored.format == form
            assert found.tensors.keys() == sources.find(tmp_path / "start").tensors.keys()


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_tensorflow_by_its_prefix_or_any_of_its_files(tmp_path: Path, suffix: str) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    found = sources.find(tmp_path / "tf" / f"bert_model.ckpt{suffix}")
    assert (found.stored.format, found.folder) == ("tensorflow", tmp_path / "tf")


def test_of_several_checkpoints_the_newest_is_named_or_the_user_asked(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    entries = tensorflow.read(tmp_path / "tf" / "bert_model.ckpt").entries
    tensorflow.write(tmp_path / "tf" / "model.ckpt-7", {**entries, "global_step": of_array("s", np.array(7))})
    with pytest.raises(CheckpointError, match="bert_model.ckpt.index, model.ckpt-7.index.*give the path of one"):
        sources.find(tmp_path / "tf")
    latest.write(tmp_path / "tf", "model.ckpt-7", ["model.ckpt-7"])
    assert set(sources.find(tmp_path / "tf").slots) == {"global_step"}


def test_shards_of_either_kind(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    whole = digest(tmp_path / "start")
    entries = sources.find(tmp_path / "start").stored.entries
    half = len(entries) // 2
    parts = dict(list(entries.items())[:half]), dict(list(entries.items())[half:])
    for form in ("hf", "torch"):
        folder = tmp_path / form
        placed = {}
        for i, part in enumerate(parts):
            conversion.FORMATS[form].write(folder / f"part-{i}.bin", part)
            placed |= dict.fromkeys(part, f"part-{i}.bin")
        name = conversion.FORMATS[form].weights + ".index.json"
        (folder / name).write_text(json.dumps({"weight_map": placed}))
        assert digest(folder) == whole
    for bad in ("../start/model.safetensors", "", "..", "a/b", "C:x", 7, "x.index.json"):
        (tmp_path / "hf" / "x.index.json").write_text("{}")
        (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(CheckpointError):
            sources.find(tmp_path / "hf")


def test_nothing_to_find(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="give safetensors, a PyTorch file"):
            sources.find(place)
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(CheckpointError, match="HDF5"):
        sources.find(tmp_path)


# --- inspect


def test_inspect_shows_no_name_that_a_terminal_would_obey(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    bad = ("\x1b]0;owned\x07", "a\nmissing: nothing", "n" * 9999)
    huggingface.write(tmp_path / "start" / "model.safetensors", {name: of_array(name, np.zeros(1)) for name in bad})
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    (tmp_path / "start" / "config.json").write_text(json.dumps(config | {"remark": "\x1b[2J"}))
    done = minibert_in_process("inspect", tmp_path / "start")
    assert done.code == 0 and "\x1b" not in done.out and "\x07" not in done.out
    assert "\nmissing: nothing" not in done.out and max(map(len, done.out.splitlines())) < 10_000


@pytest.mark.parametrize("form", conversion.FORMATS)
def test_inspect(tmp_path: Path, form: str) -> None:
    make_checkpoint(tmp_path / "start", ("no", "yes"))
    conversion.convert(tmp_path / "start", tmp_path / "done", form)
    done = minibert_in_process("inspect", tmp_path / "done", "--json")
    said = json.loads(done.out)
    assert said["format"] == form and said["config"]["hidden_size"] == CONFIG.hidden_size
    assert {t["name"]: t["shape"] for t in said["tensors"]} == {
        name: list(entry.shape) for name, entry in sources.find(tmp_path / "done").stored.entries.items()
    }
    assert {t["dtype"] for t in said["tensors"]} == {"float32"}
    assert (said["missing"], said["left_over"], said["damaged"], said["note"]) == ([], [], [], "")
    table = minibert_in_process("inspect", tmp_path / "done").out
    assert f"format {form}" in table and said["tensors"][0]["name"] in table


def test_inspect_names_what_is_missing_left_over_and_damaged(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start", ("no", "yes"))
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    prefix = tmp_path / "tf" / "bert_model.ckpt"
    entries = dict(tensorflow.read(prefix).entries)
    del entries["bert/pooler/dense/bias"]
    entries["extra"] = of_array("extra", np.zeros(3))
    entries = {name: of_array(name, entry.stored().copy()) for name, entry in entries.items()}
    tensorflow.write(prefix, entries)
    data = prefix.with_name("bert_model.ckpt.data-00000-of-00001")
    raw = bytearray(data.read_bytes())
    raw[0] ^= 1
    data.write_bytes(raw)
    said = inspection.inspect(tmp_path / "tf")
    assert said["missing"] == ["pooler.dense.bias"] and said["left_over"] == ["extra"]
    assert len(said["damaged"]) == 1 and "checksum" in said["damaged"][0]


def test_inspect_takes_what_is_no_bert(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    for form in conversion.FORMATS.values():
        form.write(tmp_path / form.weights, {"some/thing": of_array("some/thing", array)})
        said = inspection.inspect(tmp_path / form.weights)
        assert said["tensors"] == [{"name": "some/thing", "shape": [2, 3], "dtype": "int16", "bytes": 12}]
        assert said["config"] is None and said["note"] and not said["missing"]


def test_inspect_says_why_a_config_describes_no_bert(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    for text, words in (("{", "not valid JSON"), ('{"model_type": "gpt2"}', "model_type 'gpt2' is not supported")):
        (tmp_path / "config.json").write_text(text)
        done = minibert_in_process("inspect", tmp_path)
        assert done.code == 0 and f"note: {tmp_path / 'config.json'}" in done.out and words in done.out


def test_a_text_is_no_checkpoint_and_no_damaged_one(tmp_path: Path) -> None:
    for name, told in (
        ("pairs.tsv", "is no checkpoint: give safetensors"),
        ("model.safetensors", "the file is damaged"),
    ):
        (tmp_path / name).write_text("It rained .\tIt was wet .\n")
        with pytest.raises(CheckpointError, match=f"{name}: .*{told}"):
            inspection.inspect(tmp_path / name)


def test_another_model_s_config_is_not_left_to_be_read(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "config.json").write_text('{"hidden_act": "gelu_new"}')
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="tf/config.json: would be read instead of what is written"):
            conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow", overwrite=overwrite)
    conversion.convert(tmp_path / "start", tmp_path / "start", "tensorflow", overwrite=True)  # its own is no other's


def test_the_config_of_a_zip_is_the_one_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "tf", "tensorflow")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as file:
        for path in (tmp_path / "tf").iterdir():
            file.write(path, f"model/{path.name}")
    (tmp_path / "config.json").write_text('{"vocab_size": 7}')
    wanted = checkpoint.load(tmp_path / "start").config
    monkeypatch.setattr(archive, "unpack", Mock(side_effect=AssertionError("a gigabyte is unpacked")))
    assert checkpoint.read_config(tmp_path / "m.zip") == dataclasses.replace(wanted, id2label=())
    index = tmp_path / "start" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {}}')
    assert checkpoint.read_config(index) == wanted
