"""PyTorch's files: what torch and transformers write is read equal to the bit and the reverse, attacks are refused."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import json
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.checkpoint import pickles, pytorch
from minibert.checkpoint.tensors import DTYPES, Entry, of_array
from minibert.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "pytorch"
RECORDED = json.loads((GOLDEN / "tensors.json").read_text())["files"]


def described(entry: Entry) -> list[object]:
    return [entry.dtype, list(entry.shape), hashlib.sha256(entry.bytes()).hexdigest()]


def refused(path: Path, message: str) -> None:
    """Reading the file and its tensors fails with one line that begins with the path."""
    with pytest.raises(CheckpointError, match=message) as caught:
        for entry in pytorch.read(path).entries.values():
            entry.stored()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 600


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


# --- pickles written here, opcode by opcode, so that they can be wrong

MARK, STOP, TUPLE, REDUCE, PERSISTENT = b"(", b".", b"t", b"R", b"Q"
NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def value(it: object) -> bytes:
    return pickle.dumps(it, protocol=2)[2:-1]


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + MARK + b"".join(arguments) + TUPLE + REDUCE


def storage(key: object = "0", kind: str = "FloatStorage", count: object = 6, *view: object) -> bytes:
    identity = [value("storage"), named("torch", kind), value(key), value("cpu"), value(count), *map(value, view)]
    return MARK + b"".join(identity) + TUPLE + PERSISTENT


def tensor(
    offset: object = 0,
    shape: object = (2, 3),
    strides: object = (3, 1),
    stored: bytes = storage(),  # noqa: B008 (bytes)
    *more: bytes,
    rebuild: str = "_rebuild_tensor_v2",
    hooks: tuple[bytes, ...] = (value(False), NO_HOOKS),
) -> bytes:
    return call(named("torch._utils", rebuild), stored, value(offset), value(shape), value(strides), *hooks, *more)


def pickled(**members: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(value(name) + member for name, member in members.items()) + b"u."


SIX = np.arange(6, dtype="<f4").tobytes()


def zipped(path: Path, top: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", top)
        for key, data in ({"0": SIX} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in more.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy(
    path: Path,
    top: bytes,
    magic: object = 0x1950A86A20F9469CFC6C,
    protocol: object = 1001,
    system: object = None,
    keys: object = ("0",),
    data: bytes = struct.pack("<q", 6) + SIX,  # noqa: B008 (bytes)
) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}} if system is None else system
    keys = list(keys) if isinstance(keys, tuple) else keys
    path.write_bytes(
        b"".join(pickle.dumps(it, protocol=2) for it in (magic, protocol, system))
        + top
        + pickle.dumps(keys, protocol=2)
        + data
    )
    return path


def only(path: Path) -> np.ndarray:
    (entry,) = pytorch.read(path).entries.values()
    return entry.stored()


def test_files_written_by_hand_are_read(tmp_path: Path) -> None:
    """So that what the attacks below change is all that is wrong with them."""
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "x.bin"
    assert (only(zipped(path, pickled(x=tensor()))) == expected).all()
    assert (only(legacy(path, pickled(x=tensor(stored=storage("0", "FloatStorage", 6, None))))) == expected).all()
    old = tensor(rebuild="_rebuild_tensor", hooks=())
    assert (only(zipped(path, pickled(x=old))) == expected).all()
    view = storage("0", "FloatStorage", 6, ("1", 2, 4))
    for shape, wanted in (((2, 2), [[2, 3], [4, 5]]), ((1, 1), [[2]])):
        assert only(legacy(path, pickled(x=tensor(0, shape, (2, 1), view)))).tolist() == wanted
    assert only(zipped(path, pickled(x=tensor(7, (0, 3), (3, 1))))).shape == (0, 3)
    # the stride of one element's axis is never used
    assert only(zipped(path, pickled(x=tensor(5, (1,), (1 << 61,))))).tolist() == [5]


def test_what_python_2_pickled_is_read(tmp_path: Path) -> None:
    """Its str is not unicode, and its OrderedDict gives a list of lists; state_dict() adds an attribute."""
    pairs = b"](](U\x01x" + tensor() + b"ee"
    metadata = value({"_metadata": {"": {"version": 1}}}) + b"b"
    top = b"\x80\x02" + call(named("collections", "OrderedDict"), pairs) + metadata + STOP
    assert list(pytorch.read(zipped(tmp_path / "a.bin", top)).entries) == ["x"]


def test_the_same_items_cost_their_memory_once(tmp_path: Path) -> None:
    """A few bytes name a list of many pairs and make a dict of it again and again."""
    pairs = b"]q\xfe(" + b"".join(b"](" + value(f"k{i}") + value(i) + b"e" for i in range(2000)) + b"e"
    again = b"".join(value(f"d{i}") + call(named("collections", "OrderedDict"), b"h\xfe") for i in range(2000))
    top = b"\x80\x02}(" + value("first") + pairs + again + value("x") + tensor() + b"u" + STOP
    tracemalloc.start()
    try:
        assert list(pytorch.read(zipped(tmp_path / "a.bin", top)).entries) == ["x"]
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    two = b"\x80\x02" + named("collections", "OrderedDict") + b"]]\x86R" + STOP
    with pytest.raises(CheckpointError, match="an OrderedDict of 2 arguments"):
        pytorch.read(zipped(tmp_path / "a.bin", two))


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_may_lie_beside_an_optimizers(wrapper: str, tmp_path: Path) -> None:
    inner = b"}(" + value("x") + tensor() + b"u"
    optimizer = b"}(" + value(0) + b"}" + value("x") + inner + b"u"
    top = pickled(**{"epoch": value(3), wrapper: inner, "loss": tensor(0, (), ()), "optimizer": optimizer})
    assert [name for name in pytorch.read(zipped(tmp_path / "a.bin", top)).entries] == ["x"]
    other = "model" if wrapper == "state_dict" else "state_dict"
    zipped(tmp_path / "b.bin", pickled(**{wrapper: inner, other: inner}))
    refused(tmp_path / "b.bin", "has tensors under .* and .*: save one of them alone")


DEEP = 100_000
PICKLES = {
    "os.system": (call(named("os", "system"), value("touch pwned")), "refused: the file wants to call 'os.system'"),
    "posix.system": (call(named("posix", "system"), value("touch pwned")), "refused: .* 'posix.system'"),
    "eval": (call(named("builtins", "eval"), value("1")), "refused: .* 'builtins.eval'"),
    "by stack": (value("os") + value("system") + b"\x93" + b")R", "refused: .* 'os.system'"),
    "dotted": (value("collections") + value("OrderedDict.__class__") + b"\x93", "refused: .*OrderedDict.__class__"),
    "stack of numbers": (value(1) + value(2) + b"\x93", "a global whose name is no text"),
    "torch.load": (call(named("torch", "load"), value("x")), "refused: .* 'torch.load'"),
    "torch.hub": (named("torch.hub", "load"), "refused: .* 'torch.hub.load'"),
    "module": (named("torch.nn.modules.linear", "Linear"), "refused: .*save its state_dict"),
    "long name": (named("a" * 100_000, "b"), "refused: "),
    "getattr by instance": (b"(S'touch pwned'\nios\nsystem\n", "refused: its pickle has the opcode STRING"),
    "new object": (named("collections", "OrderedDict") + b")\x81", "the opcode NEWOBJ"),
    "object": (MARK + named("collections", "OrderedDict") + b"o", "the opcode OBJ"),
    "extension": (b"\x82\x01", "the opcode EXT1"),
    "set": (b"\x8f", "the opcode EMPTY_SET"),
    "text number": (b"I1\n", "the opcode INT"),
    "digits": (b"L" + b"9" * 100_000 + b"L\n", "malformed|the opcode LONG"),
    "odd escape": (b"S'\\d'\n", "malformed|the opcode STRING"),
    "no escape": (b"V\\u12\n", "malformed"),
    "long number": (b"\x8a\xff" + b"\x7f" * 255, "a number of over 128 bits"),
    "huge number": (b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000, "the opcode LONG4"),
    "negative length": (b"\x8b" + struct.pack("<i", -1), "malformed"),
    "length of 2^63": (b"\x8d" + struct.pack("<Q", 1 << 63), "malformed"),
    "length of 2^62": (b"\x8d" + struct.pack("<Q", 1 << 62), "malformed"),
    "length of 2^32": (b"X" + struct.pack("<I", (1 << 32) - 1), "malformed"),
    "half a pair": (b"X\x03\x00\x00\x00\xed\xa0\x80", "malformed"),
    "no utf-8": (b"X\x01\x00\x00\x00\xff", "malformed"),
    "memo 2^31": (value(1) + b"r" + struct.pack("<I", 1 << 31), "memo index 2147483648"),
    "memo 2^32": (value(1) + b"r" + struct.pack("<I", (1 << 32) - 1), "memo index"),
    "memo unset": (b"h\x05", "memo index 5 was never set"),
    "memo between": (value(1) + b"q\x07" + b"h\x05", "memo index 5 was never set"),
    "memo of nothing": (b"(q\x00", "malformed"),
    "no mark": (b"t", "malformed"),
    "pop": (b"R", "malformed"),
    "tuple of nothing": (b"(\x86", "a tuple of more than the stack has"),
    "append to a tuple": (b")" + value(1) + b"a", "append to a tuple"),
    "odd items": (b"}(" + value("a") + b"u", "1 keys and values for a dict"),
    "set on a list": (b"](" + value("a") + value("b") + b"u", "2 keys and values for a list"),
    "key twice": (b"}" + (value("a") + value(1) + b"s") * 2, "the key 'a' stands twice"),
    "deep key": (b"})" + b"\x85" * DEEP + value(1) + b"s", "a dict's key is a tuple"),
    "list key": (b"}]" + value(1) + b"s", "a dict's key is a list"),
    "call a text": (value("os.system") + b")R", "call of a str with a tuple"),
    "call with a list": (named("collections", "OrderedDict") + b"]R", "call of a function with a list"),
    "state for a tuple": (b")}b", "state for a tuple"),
    "items no pairs": (call(named("collections", "OrderedDict"), value([1])), "items are no pairs"),
    "parameter of nothing": (call(named("torch._utils", "_rebuild_parameter")), "a Parameter without a tensor"),
    "id no tuple": (value("0") + PERSISTENT, "a persistent id that is no storage's"),
    "id of a module": (value(("module", 1, 2, 3, 4)) + PERSISTENT, "a persistent id that is no storage's"),
    "id of a type": (value(("storage", "float99", "0", "cpu", 6)) + PERSISTENT, "a persistent id that is no storage's"),
    "id too short": (value(("storage",)) + PERSISTENT, "a persistent id that is no storage's"),
    "number for a key": (storage(0), "a persistent id that is no storage's"),
    "negative count": (storage("0", "FloatStorage", -6), "size or view is out of range"),
    "count of 2^62": (storage("0", "FloatStorage", 1 << 62), "size or view is out of range"),
    "count a text": (storage("0", "FloatStorage", "6"), "size or view is out of range"),
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("form", [zipped, legacy])
def test_a_pickle_that_is_no_state_dict_is_refused(name: str, form: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    body, message = PICKLES[name]
    if form is legacy:
        message = message.replace("size or view is out of range", "persistent id that is no storage's")
    refused(form(tmp_path / "attack.bin", b"\x80\x02" + body + STOP), message)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"]" * DEEP + b"a" * (DEEP - 1),
        b")" + b"\x85" * 1_000_000,
        b"(" * DEEP + b"t" * DEEP,
        b"}" + (b"X\x01\x00\x00\x00a}" * DEEP) + b"s" * DEEP,
        b"]q\x00h\x00a" + b"h\x00a" * 1000,  # a list that contains itself
        b"}q\x00X\x01\x00\x00\x00ah\x00s",  # a dict that does
        b"(]q\x00" + b"".join(b"](" + b"h%c" % i * 8 + b"eq%c" % (i + 1) for i in range(200)) + b"t",  # 8^200 lists
    ],
    ids=["lists", "tuples", "marks", "dicts", "itself", "dict itself", "doubling"],
)
def test_nesting_costs_no_recursion_and_no_time(body: bytes, tmp_path: Path) -> None:
    start = time.process_time()
    path = zipped(tmp_path / "deep.bin", b"\x80\x02}" + value("deep") + body + b"s" + value("x") + tensor() + b"s.")
    assert list(pytorch.read(path).entries) == ["x"]
    refused(zipped(tmp_path / "alone.bin", b"\x80\x02" + body + b"."), "holds no state dict")
    assert time.process_time() - start < 20


def test_numbers_as_keys_cannot_collide(tmp_path: Path) -> None:
    """Python's hash of an int is the int modulo 2^61 - 1: a dict that kept these would take minutes."""
    keys = b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(60_000))
    path = zipped(tmp_path / "keys.bin", b"\x80\x02}(" + keys + value("x") + tensor() + b"u.")
    start = time.process_time()
    assert list(pytorch.read(path).entries) == ["x"]
    assert time.process_time() - start < 20


TENSORS = {
    "past the end": (tensor(0, (2, 4), (4, 1)), "tensor 'x': ends at byte 32 of 24"),
    "offset": (tensor(1), "tensor 'x': ends at byte 28 of 24"),
    "offset 2^61": (tensor(1 << 61), "ends at byte"),
    "negative offset": (tensor(-1), "its offset, shape or strides are not sizes"),
    "offset a text": (tensor("0"), "are not sizes"),
    "offset True": (tensor(True), "are not sizes"),
    "stride": (tensor(0, (2, 3), (4, 1)), "ends at byte 28 of 24"),
    "negative stride": (tensor(5, (2, 3), (-3, -1)), "are not sizes"),
    "stride 2^61": (tensor(0, (2, 3), (1 << 61, 1)), "ends at byte"),
    "stride 0": (tensor(0, (1 << 40,), (0,)), "repeats the elements of its storage"),
    "overlapping strides": (tensor(0, (3, 3), (1, 1)), "repeats the elements of its storage"),
    "negative side": (tensor(0, (-2, 3), (3, 1)), "are not sizes"),
    "side 2^62": (tensor(0, (1 << 62,), (1,)), "are not sizes"),
    "side 2^61": (tensor(0, (1 << 61,), (1,)), "are not sizes"),
    "sides 2^40": (tensor(0, (1 << 40, 1 << 40), (0, 0)), "are not sizes"),
    "sides without elements": (tensor(0, (0, 1 << 60), (1, 1)), "are not sizes"),
    "nine sides": (tensor(0, (1,) * 9, (1,) * 9), "are not sizes"),
    "million sides": (tensor(0, (1,) * 100_000, (1,) * 100_000), "are not sizes"),
    "shape a text": (tensor(0, "23", "31"), "are not sizes"),
    "strides of another": (tensor(0, (2, 3), (1,)), "are not sizes"),
    "no storage": (tensor(stored=value("0")), "has no storage"),
    "storage missing": (tensor(stored=storage("1")), "its storage '1' is missing"),
    "path for a key": (tensor(stored=storage("../../etc/passwd")), "its storage '../../etc/passwd' is missing"),
    "storage too large": (tensor(stored=storage("0", "FloatStorage", 7)), "has 24 bytes, not 28"),
    "storage too small": (tensor(stored=storage("0", "FloatStorage", 5)), "has 24 bytes, not 20"),
    "another type": (tensor(stored=storage("0", "DoubleStorage")), "has 24 bytes, not 48"),
    "arguments": (tensor(hooks=()), "is rebuilt from 4 values"),
    "negative bit": (tensor(0, (2, 3), (3, 1), storage(), value({"neg": True})), "is conjugate or negative"),
    "dtype a number": (
        tensor(0, (2, 3), (3, 1), storage(), value(1), rebuild="_rebuild_tensor_v3"),
        "its type is none",
    ),
    "dtype too wide": (
        tensor(0, (2, 3), (3, 1), storage(), named("torch", "float64"), rebuild="_rebuild_tensor_v3"),
        "ends at byte 48 of 24",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_outside_its_storage_is_refused(name: str, tmp_path: Path) -> None:
    body, message = TENSORS[name]
    refused(zipped(tmp_path / "attack.bin", pickled(x=body)), message)


def test_tensors_that_share_everything_are_bounded(tmp_path: Path) -> None:
    """A file of kilobytes may not become gigabytes, tensor by tensor."""
    data = np.zeros(6_000, "<f4").tobytes()
    body = tensor(0, (6_000,), (1,), storage("0", "FloatStorage", 6_000)) + b"q\xff"
    body += b"".join(b"X\x04\x00\x00\x00%04d" % i + b"h\xff" for i in range(5000))
    refused(zipped(tmp_path / "many.bin", pickled(x=body), {"0": data}), "share their bytes over 64 times")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (("1", 2, 5), "out of range"),
        (("1", -1, 2), "out of range"),
        (("1", 0), "view that is none"),
        ("1", "view that is none"),
        (("1", 2, 3), "ends at byte 24 of 12"),
    ],
)
def test_a_view_outside_its_storage_is_refused(view: object, message: str, tmp_path: Path) -> None:
    refused(legacy(tmp_path / "a.bin", pickled(x=tensor(stored=storage("0", "FloatStorage", 6, view)))), message)


ONE = pickled(x=tensor(stored=storage("0", "FloatStorage", 6, None)))
LEGACY: dict[str, tuple[dict[str, Any], str]] = {
    "magic": ({"magic": 1}, "is a pickle but not PyTorch's"),
    "magic a list": ({"magic": [1]}, "is a pickle but not PyTorch's"),
    "protocol": ({"protocol": 1002}, "is a pickle but not PyTorch's"),
    "big-endian": ({"system": {"little_endian": False}}, "not little-endian"),
    "no system": ({"system": [1]}, "not little-endian"),
    "no keys": ({"keys": ()}, "its storage '0' is missing"),
    "keys no list": ({"keys": "0"}, "has no list of storages"),
    "another key": ({"keys": ("0", "1")}, "list of storages is not that of its tensors"),
    "a key twice": ({"keys": ("0", "0")}, "list of storages is not that of its tensors"),
    "a number for a key": ({"keys": (0,)}, "list of storages is not that of its tensors"),
    "count": ({"data": struct.pack("<q", 7) + SIX}, "storage '0' ends at byte"),
    "count 2^63": ({"data": b"\xff" * 8 + SIX}, "storage '0' ends at byte"),
    "count less": ({"data": struct.pack("<q", 5) + SIX}, "has 20 bytes, not 24"),
    "no data": ({"data": b""}, "storage '0' ends at byte"),
}


@pytest.mark.parametrize("name", LEGACY)
def test_a_wrong_legacy_file_is_refused(name: str, tmp_path: Path) -> None:
    changed, message = LEGACY[name]
    refused(legacy(tmp_path / "attack.bin", ONE, **changed), message)


# --- zip archives


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for content in (b"", b"P", b"PK\x03", b"\x89HDF", b"{}"):
        path.write_bytes(content)
        refused(path, "do not begin like a PyTorch file")
    path.write_bytes(b"\x80")
    refused(path, "malformed")
    path.write_bytes(pickle.dumps({"weight": 1}))
    refused(path, "is a pickle but not PyTorch's")
    zipped(path, b"\x80\x02N.")
    refused(path, "holds no state dict")
    path.write_bytes(b"PK\x03\x04")
    refused(path, "zip directory cannot be read")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bert_model.ckpt.index", b"")
    refused(path, "is a zip archive with 0 data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("b/data.pkl", b"")
    refused(path, "is a zip archive with 2 data.pkl")
    refused(tmp_path, "cannot read")
    refused(tmp_path / "missing", "cannot read: No such file")


def test_a_big_endian_zip_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "a.bin", pickled(x=tensor()), byteorder=b"big"), "not little-endian")
    assert pytorch.read(zipped(tmp_path / "b.bin", pickled(x=tensor()), byteorder=b"little")).entries


def test_a_pickle_or_directory_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(zipped(tmp_path / "a.bin", b"\x80\x02" + b"]" * pickles.LIMIT), "its pickle has 1048578 bytes")
    path = zipped(tmp_path / "b.bin", pickled(x=tensor()))
    monkeypatch.setattr(pytorch, "_DIRECTORY_LIMIT", 64)
    refused(path, "its directory has .* bytes, not under 64")


def test_compressed_encrypted_or_doubled_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled(x=tensor()))
        archive.writestr("archive/data/0", bytes(10_000_000))  # a bomb of ten kilobytes
    refused(path, "is compressed or encrypted")
    zipped(path, pickled(x=tensor()))
    raw = bytearray(path.read_bytes())
    raw[6] |= 1  # the flag of the first local header
    path.write_bytes(raw)
    refused(path, "is compressed or encrypted")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(x=tensor()))
        with pytest.warns(UserWarning, match="Duplicate name"):
            for _ in range(2):
                archive.writestr("archive/data/0", SIX)
    refused(path, "overlaps another or is there twice")


def test_names_of_members_are_never_paths(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(SIX)
    key = f"../../../..{outside}"
    path = zipped(tmp_path / "a.bin", pickled(x=tensor(stored=storage(key))), {key: bytes(24)})
    assert not only(path).any()  # the member's bytes, not those of the file that it is called
    assert outside.read_bytes() == SIX and len(list(tmp_path.iterdir())) == 2


def test_a_wrong_checksum_is_found_when_the_tensor_is_read(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.bin", pickled(x=tensor()))
    raw = path.read_bytes()
    path.write_bytes(raw.replace(SIX, SIX[:-1] + b"\x01"))
    entry = pytorch.read(path).entries["x"]
    for _ in range(2):
        with pytest.raises(CheckpointError, match="tensor 'x': its CRC-32 is wrong"):
            entry.stored()
    path.write_bytes(raw.replace(value("x"), value("y"), 1))
    refused(path, "data.pkl: its CRC-32 is wrong")


def fields(raw: bytes) -> dict[str, int]:
    """Where the fields of the last member's headers lie."""
    local, central, end = raw.rindex(b"PK\x03\x04"), raw.rindex(b"PK\x01\x02"), raw.rindex(b"PK\x05\x06")
    return {
        "local magic": local, "local method": local + 8, "local name length": local + 26,
        "local extra length": local + 28, "local name": local + 30, "version": central + 6, "flags": central + 8,
        "method": central + 10, "compressed size": central + 20, "size": central + 24, "name": central + 46,
        "offset": central + 42, "directory size": end + 12, "directory offset": end + 16,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local magic": b"PK\x07\x08"}, "its header is not that of the directory"),
        ({"local name length": b"\xff\xff"}, "its header is not that of the directory"),
        ({"local name length": b"\x0d\x00"}, "its header is not that of the directory"),
        ({"local extra length": b"\xff\xff"}, "ends at byte"),
        ({"local extra length": b"\x04\x00"}, "its CRC-32 is wrong"),
        ({"local name": b"b"}, "its header is not that of the directory"),
        ({"size": b"\xff\xff\xff\x00", "compressed size": b"\xff\xff\xff\x00"}, "ends at byte"),
        ({"size": b"\x17\x00\x00\x00"}, "is compressed or encrypted"),
        ({"method": b"\x08\x00"}, "is compressed or encrypted"),
        ({"local method": b"\x08\x00"}, "is compressed or encrypted"),
        ({"offset": b"\x00\x00\x00\x00"}, "overlaps|header is not that"),
        ({"offset": b"\xff\xff\x00\x00"}, "its header at byte"),
        ({"offset": b"\xff\xff\xff\xff"}, "its header at byte"),
        ({"directory offset": b"\xff\xff\x00\x00"}, "its header at byte|header is not that"),
        ({"directory size": b"\xff\xff\xff\xff"}, "zip directory cannot be read"),
        ({"directory size": b"\x01\x00\x00\x00"}, "zip directory cannot be read"),
        ({"version": b"\xff\x00"}, "zip directory cannot be read"),
        ({"flags": b"\x00\x08", "name": b"\xff"}, "zip directory cannot be read"),
    ],
)
def test_a_zip_whose_headers_lie_is_refused(changes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.bin", pickled(x=tensor()))
    raw = bytearray(path.read_bytes())
    for name, new in changes.items():
        place = fields(bytes(raw))[name]
        raw[place : place + len(new)] = new
    path.write_bytes(raw)
    refused(path, message)


def test_members_may_not_overlap(tmp_path: Path) -> None:
    """Else a directory of a megabyte names one storage ten thousand times, with a checksum of each to compute."""
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(x=tensor()))
        archive.writestr("archive/data/0", SIX)
        first, second = (archive.getinfo(f"archive/{name}") for name in ("data.pkl", "data/0"))
        first.file_size = first.compress_size = second.header_offset + 40
    refused(path, "overlaps another or is there twice")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.bin"
    for whole in (zipped(path, pickled(x=tensor())).read_bytes(), legacy(path, ONE).read_bytes()):
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            refused(path, "again|give another file")


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
