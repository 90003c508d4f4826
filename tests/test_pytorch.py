"""PyTorch's files: what torch and transformers write is read equal to the bit and the reverse; mutations of it."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import json
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.checkpoint import pytorch
from minibert.checkpoint.tensors import DTYPES, Entry, of_array
from minibert.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "pytorch"
RECORDED = json.loads((GOLDEN / "tensors.json").read_text())["files"]


def described(entry: Entry) -> list[object]:
    return [entry.dtype, list(entry.shape), hashlib.sha256(entry.bytes()).hexdigest()]


# --- files that torch wrote


@pytest.mark.parametrize("name", RECORDED)
def test_golden_files_are_read_equal_to_the_bit(name: str) -> None:
    found = pytorch.read(GOLDEN / f"{name}.bin")
    assert found.format == "torch"
    assert {key: described(entry) for key, entry in found.entries.items()} == RECORDED[name]
    for key, entry in found.entries.items():
        array = entry.stored()
        assert type(array) is np.ndarray and not array.flags.writeable
        assert array.shape == entry.shape and array.dtype == DTYPES[entry.dtype]
        assert entry.where == f"{GOLDEN / name}.bin: tensor {key!r}"


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_tensors_are_views_of_the_mapped_file_and_share_what_torch_shared(name: str) -> None:
    stored = {key: entry.stored() for key, entry in pytorch.read(GOLDEN / f"{name}.bin").entries.items()}
    for key in ("tied", "transposed", "rows"):
        assert np.shares_memory(stored["base"], stored[key])
    assert stored["transposed"].strides == stored["base"].strides[::-1]
    base = stored["base"]
    while isinstance(base, np.ndarray) and type(base) is not np.memmap:
        base = base.base if isinstance(base.base, np.ndarray) else base.base.obj  # a memoryview's
    assert type(base) is np.memmap


# --- files that we write


def of_every_type() -> dict[str, Entry]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    arrays |= {
        "noise": rng.standard_normal((2, 3, 4), np.float32),
        "transposed": rng.standard_normal((4, 6), np.float32).T,
        "none": np.zeros((3, 0, 7), np.float32),
        "scalar": np.full((), 2.5, np.float32),
        "large sizes: 70000": np.arange(70000, dtype=np.int64),
        "a name like Ωμέγα": np.ones(1, np.int8),
    }
    return {name: of_array(name, array) for name, array in arrays.items()}


def large_from(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members from `limit` bytes on are written with 64-bit sizes, as those over 2 GiB are."""
    if limit:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit - 1)
        monkeypatch.setattr(pytorch, "_LARGE", limit)


@pytest.mark.parametrize("limit", [None, 32])
def test_what_is_written_is_read_equal_to_the_bit_and_aligned(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_from(limit, monkeypatch)
    entries = of_every_type()
    pytorch.write(tmp_path / "a.bin", entries)
    found = pytorch.read(tmp_path / "a.bin").entries
    assert [(name, described(entry)) for name, entry in found.items()] == [
        (name, described(entry)) for name, entry in entries.items()
    ]
    assert all(entry.stored().ctypes.data % 64 == 0 for entry in found.values() if entry.nbytes)
    pytorch.write(tmp_path / "b.bin", found)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.bin") as archive:
        assert archive.testzip() is None
        assert all(info.create_system == 3 for info in archive.infolist())


def test_no_tensors_are_written_and_read(tmp_path: Path) -> None:
    pytorch.write(tmp_path / "none.bin", {})
    assert pytorch.read(tmp_path / "none.bin").entries == {}


def test_a_type_that_torch_has_not_is_not_written(tmp_path: Path) -> None:
    odd = Entry("here: tensor 'x'", "float8", (1,), lambda: np.zeros(1))
    with pytest.raises(CheckpointError, match="here: tensor 'x': .* no type float8"):
        pytorch.write(tmp_path / "odd.bin", {"x": odd})
    assert not list(tmp_path.iterdir())


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    size = 1 << 20
    entries = {
        str(i): Entry(str(i), "uint8", (size,), functools.partial(np.full, size, i, np.uint8)) for i in range(16)
    }
    tracemalloc.start()
    pytorch.write(tmp_path / "a.bin", entries)
    found = pytorch.read(tmp_path / "a.bin").entries
    assert all((entry.stored() == i).all() for i, entry in enumerate(found.values()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size


def bits(tensor: Any) -> bytes:
    torch = pytest.importorskip("torch")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@pytest.mark.parametrize("limit", [None, 32])
def test_torch_loads_what_is_written(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    large_from(limit, monkeypatch)
    entries = of_every_type()
    path = tmp_path / "pytorch_model.bin"
    pytorch.write(path, entries)
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert list(loaded) == list(entries)
        for name, tensor in loaded.items():
            assert str(tensor.dtype) == f"torch.{entries[name].dtype}" and tuple(tensor.shape) == entries[name].shape
            assert bits(tensor) == bytes(entries[name].bytes())


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_transformers_and_torch_save_is_read(options: dict[str, bool], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.BertForPreTraining(config).half()  # its decoder is tied to the embeddings
    path = tmp_path / "pytorch_model.bin"
    torch.save(model.state_dict(), path, **options)
    found = pytorch.read(path).entries
    assert found.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert bytes(found[name].bytes()) == bits(tensor)
    # and back: transformers loads what is written here
    config.save_pretrained(tmp_path / "back")
    pytorch.write(tmp_path / "back" / "pytorch_model.bin", found)
    back = transformers.BertForPreTraining.from_pretrained(
        tmp_path / "back", dtype=torch.float16, use_safetensors=False
    )
    for name, tensor in model.state_dict().items():
        assert bits(back.state_dict()[name]) == bits(tensor)


def test_checksums_that_torch_did_not_compute_are_not_held_against_a_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.arange(5)}, tmp_path / "a.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    assert pytorch.read(tmp_path / "a.bin").entries["x"].stored().tolist() == [0, 1, 2, 3, 4]


# --- mutations of valid files


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, sizes, pieces cut out, doubled or taken from elsewhere in the file."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        at, length = rng.randrange(len(data)), rng.randint(1, 8)
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice(b"\x00\x01\x7f\x80\xff().0KJMQRX]abchlqrstu}\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95")
        elif kind == 2:
            data[at : at + length] = rng.choice((1 << 31, 1 << 63, 255, -1 % (1 << 64))).to_bytes(8, "little")[:length]
        elif kind == 3:
            del data[at : at + length]
            data = data or bytearray(b".")
        else:
            other = rng.randrange(len(data))
            data[at:at] = data[other : other + length]
    return bytes(data)


def outcome(path: Path) -> bool:
    try:
        for entry in pytorch.read(path).entries.values():
            entry.bytes()
    except CheckpointError as error:
        assert "\n" not in str(error)
        return False
    return True


@pytest.mark.parametrize("count", [1500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_mutated_file_is_read_or_refused(count: int, tmp_path: Path) -> None:
    """A third each: pickles in a repaired archive, legacy files, and archives as they are."""
    rng = random.Random(0)
    path = tmp_path / "mutated.bin"
    outcomes: collections.Counter[tuple[str, bool]] = collections.Counter()
    sources = {name: (GOLDEN / f"{name}.bin").read_bytes() for name in ("zip", "zip-protocol4", "module", "training")}
    archives = {}
    for name, raw in sources.items():
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            archives[name] = {info.filename: archive.read(info) for info in archive.infolist()}
    old = [(GOLDEN / f"{name}.bin").read_bytes() for name in ("legacy", "legacy-protocol4", "module-legacy")]
    for i in range(count):
        kind = ("pickle", "legacy", "archive")[i % 3]
        if kind == "pickle":
            with zipfile.ZipFile(path, "w") as archive:
                for member, content in archives[rng.choice([*archives])].items():
                    archive.writestr(member, mutate(content, rng) if member.endswith("data.pkl") else content)
        else:
            path.write_bytes(mutate(rng.choice(old if kind == "legacy" else [*sources.values()]), rng))
        outcomes[kind, outcome(path)] += 1
    print(dict(outcomes))
    assert min(outcomes.values()) > count / 100  # each kind is read at times and refused at times
