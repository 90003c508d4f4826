"""PyTorch's pickles: state dicts are read; other calls and objects, and tensors outside their storage, are refused."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minibert.checkpoint import pytorch
from minibert.errors import CheckpointError
from torch_files import (
    MARK,
    ONE,
    PERSISTENT,
    SIX,
    STOP,
    call,
    legacy,
    named,
    only,
    pickled,
    refused,
    storage,
    tensor,
    value,
    zipped,
)


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
        b")" + b"\x85" * 100_000,
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
