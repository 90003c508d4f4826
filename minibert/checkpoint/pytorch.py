"""Reads and writes PyTorch's state dicts (pytorch_model.bin): the zip form, and reads the legacy form before 1.6.

The zip form: FOLDER/data.pkl, the pickled dict, in which each tensor names its storage by a persistent id
("storage", type, key, location, elements); each storage's bytes uncompressed in FOLDER/data/KEY, at a multiple
of 64 bytes; FOLDER/byteorder. The legacy form: five pickles (magic number, protocol 1001, system, the dict, the
storages' keys), then for each key its number of elements as int64 and its bytes. A tensor is an offset, a shape
and strides, in elements of a storage that others may share. Sources: torch/serialization.py and torch/_utils.py
(https://github.com/pytorch/pytorch), docs/source/notes/serialization.rst there, and PKWARE's APPNOTE.TXT.
Nothing in the file is believed: pickles run no code, and every extent is checked against the file's real size.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minibert import files, zips
from minibert.checkpoint import pickles
from minibert.checkpoint.tensors import DTYPES, Entry, Stored, are_sizes, is_shape
from minibert.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGE = 1 << 31  # bytes from which a member needs 64-bit sizes
_SHARING_LIMIT = 64  # how often tensors may hold the file's bytes: tied weights hold theirs two or three times
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # where training scripts put the state dict
_DAMAGED = "the file is damaged: get it again"

_STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage", "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage",
    "uint8": "ByteStorage", "bool": "BoolStorage",
}  # fmt: skip
# The arguments that each takes, at least and at most: storage, offset, shape, strides, whether it needs a gradient,
# hooks, for the types that have no storage class of their own (uint16 ...) the type, and metadata.
_REBUILDS = {
    "torch._utils._rebuild_tensor": (4, 4),
    "torch._utils._rebuild_tensor_v2": (6, 7),
    "torch._utils._rebuild_tensor_v3": (7, 8),
}


@dataclass(frozen=True)
class _Storage:
    """What a persistent id says: `nbytes` from `begin` on of the `total` bytes that are stored under `key`."""

    key: str
    dtype: str
    begin: int
    nbytes: int
    total: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle has it, unchecked: the function that rebuilds it, and its arguments."""

    function: str
    arguments: tuple[Any, ...]


class _Record:
    """The bytes of a storage or of another member, in the mapped file, and their CRC-32 (0: not recorded)."""

    def __init__(self, raw: np.ndarray, crc: int = 0) -> None:
        self.raw = raw
        self._crc = crc

    @functools.cached_property  # computed once: thousands of tensors may share the storage
    def _intact(self) -> bool:
        # PyTorch never looks at it, and writes 0 under torch.serialization.set_crc32_options(False).
        return not self._crc or zlib.crc32(self.raw.data) == self._crc

    def checked(self, where: str) -> np.ndarray:
        if not self._intact:
            raise CheckpointError(f"{where}: its CRC-32 is wrong: {_DAMAGED}")
        return self.raw


def read(path: Path) -> Stored:
    """The tensors of the state dict in a file of either form, found by its content."""
    with files.open_read(path, CheckpointError) as file, files.one_line(path, "read", CheckpointError):
        size = os.fstat(file.fileno()).st_size
        start = file.read(4)
        if not start.startswith((b"PK\x03\x04", b"\x80")):
            raise CheckpointError(f"{path}: its {size} bytes do not begin like a PyTorch file: give another file")
        data = np.asarray(np.memmap(file, np.uint8, "r"))
        top, records = _read_legacy(path, data) if start[0] == 0x80 else _read_zip(path, file, data)
    entries = {}
    for name, value in _state_dict(path, top).items():
        if isinstance(value, _Tensor):  # not metadata beside the tensors
            entries[name] = _entry(f"{path}: tensor {name[:200]!r}", value, records)
    if sum(entry.nbytes for entry in entries.values()) > _SHARING_LIMIT * size:
        raise CheckpointError(f"{path}: its tensors share their bytes over {_SHARING_LIMIT} times: {_DAMAGED}")
    return Stored("torch", path, entries)


# --- the pickled dict


def _ordered_dict(arguments: tuple[object, ...]) -> dict[str, object]:
    result: dict[str, object] = {}
    if len(arguments) > 1:
        raise ValueError(f"an OrderedDict of {len(arguments)} arguments")
    for pairs in arguments:  # Python 2 pickled its items as a list of lists
        if type(pairs) is not list or any(type(pair) is not list or len(pair) != 2 for pair in pairs):
            raise ValueError("an OrderedDict's items are no pairs")
        for key, value in pairs:
            pickles.put(result, key, value)
        pairs.clear()  # else five bytes that call this again with the same list would cost as much once more
    return result


def _first(arguments: tuple[object, ...]) -> object:
    """What a Parameter or a Size holds."""
    if not arguments or not isinstance(arguments[0], _Tensor | tuple):
        raise ValueError("a Parameter without a tensor, or a Size without sizes")
    return arguments[0]


# Everything that a pickle may name; types by their names in DTYPES.
_NAMES: dict[str, object] = {
    "collections.OrderedDict": _ordered_dict,
    **{name: partial(_Tensor, name) for name in _REBUILDS},
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.Size": _first,
    **{f"torch.{storage}": dtype for dtype, storage in _STORAGES.items()},
    "torch.storage.UntypedStorage": "uint8",
    **{f"torch.{dtype}": dtype for dtype in DTYPES},
}


def _storage(saved: object, length: int) -> _Storage:
    """The storage of a persistent id of `length` parts: 5, or in the legacy form 6, of which the last is a view."""
    if type(saved) is not tuple or len(saved) != length:
        raise ValueError("a persistent id that is no storage's")
    kind, dtype, key, _location, count, view = (*saved, None)[:6]
    if kind != "storage" or type(dtype) is not str or dtype not in DTYPES or type(key) is not str:
        raise ValueError("a persistent id that is no storage's")
    begin, extent = 0, count
    if view is not None:
        if type(view) is not tuple or len(view) != 3:
            raise ValueError("a storage's view that is none")
        begin, extent = view[1:]
    if not are_sizes((count, begin, extent)) or begin + extent > count:
        raise ValueError("a storage's size or view is out of range")
    itemsize = DTYPES[dtype].itemsize
    return _Storage(key, dtype, begin * itemsize, extent * itemsize, count * itemsize)


def _state_dict(path: Path, top: object) -> dict[str, object]:
    """The dict of tensors that `top` is, or that it has under one of the usual names."""

    def holds_tensors(value: object) -> bool:
        return isinstance(value, dict) and any(isinstance(member, _Tensor) for member in value.values())

    if isinstance(top, dict):
        inner = [name for name in _WRAPPERS if holds_tensors(top.get(name))]
        if len(inner) > 1:
            raise CheckpointError(f"{path}: has tensors under {' and '.join(inner)}: save one of them alone")
        if inner:
            return top[inner[0]]
        if holds_tensors(top) or not top:
            return top
    raise CheckpointError(f"{path}: holds no state dict: save the model's state_dict() alone")


def _entry(where: str, tensor: _Tensor, records: Mapping[str, _Record]) -> Entry:
    """One tensor, all of its elements checked to lie inside its storage."""
    storage, dtype, offset, shape, strides = _layout(where, tensor)
    record = records.get(storage.key)
    if record is None or record.raw.size != storage.total:
        has = "is missing" if record is None else f"has {record.raw.size} bytes, not {storage.total}"
        raise CheckpointError(f"{where}: its storage {storage.key[:200]!r} {has}: {_DAMAGED}")
    itemsize = DTYPES[dtype].itemsize
    count = math.prod(shape)
    end = (offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) + 1) * itemsize
    if count and end > storage.nbytes:
        raise CheckpointError(f"{where}: ends at byte {end} of {storage.nbytes}: {_DAMAGED}")
    if count * itemsize > storage.nbytes:
        raise CheckpointError(f"{where}: repeats the elements of its storage: save its contiguous() copy")
    begin = storage.begin + offset * itemsize if count else 0
    # The stride of an axis of one element is never used and may be any number.
    steps = tuple(stride * itemsize if side > 1 else itemsize for side, stride in zip(shape, strides, strict=True))
    return Entry(where, dtype, shape, partial(_array, where, dtype, shape, record, begin, steps))


def _layout(where: str, tensor: _Tensor) -> tuple[_Storage, str, int, tuple[int, ...], tuple[int, ...]]:
    """(storage, dtype, offset, shape, strides) of the arguments that a tensor is rebuilt from."""
    arguments = tensor.arguments
    least, most = _REBUILDS[tensor.function]
    if not least <= len(arguments) <= most:
        raise CheckpointError(f"{where}: is rebuilt from {len(arguments)} values, not {most}: {_DAMAGED}")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage):
        raise CheckpointError(f"{where}: has no storage: {_DAMAGED}")
    if not is_shape(shape) or not are_sizes(strides) or not are_sizes((offset,)) or len(shape) != len(strides):
        raise CheckpointError(f"{where}: its offset, shape or strides are not sizes: {_DAMAGED}")
    dtype = arguments[6] if least == 7 else storage.dtype
    if type(dtype) is not str or dtype not in DTYPES:
        raise CheckpointError(f"{where}: its type is none: {_DAMAGED}")
    if least != most and len(arguments) == most and arguments[-1]:
        raise CheckpointError(f"{where}: is conjugate or negative, to be resolved: save its clone()")
    return storage, dtype, offset, tuple(shape), tuple(strides)


def _array(
    where: str, dtype: str, shape: tuple[int, ...], record: _Record, begin: int, steps: tuple[int, ...]
) -> np.ndarray:
    return np.ndarray(shape, DTYPES[dtype], record.checked(where).data, begin, steps)


# --- the two forms


def _read_zip(path: Path, file: BinaryIO, data: np.ndarray) -> tuple[object, dict[str, _Record]]:
    members = _members(path, file, data)
    tops = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tops) != 1:
        raise CheckpointError(
            f"{path}: is a zip archive with {len(tops)} data.pkl, so not PyTorch's: give another file"
        )
    folder = tops[0].removesuffix("data.pkl")
    order = members.get(folder + "byteorder")
    if order is not None and order.raw[:7].tobytes() != b"little":  # files before torch 2.1 do not say
        raise CheckpointError(f"{path}: its bytes are not little-endian: save it again on another machine")
    pickled = members[tops[0]]
    if pickled.raw.size > pickles.LIMIT:
        raise CheckpointError(f"{path}: its pickle has {pickled.raw.size} bytes, not under {pickles.LIMIT}: {_DAMAGED}")
    stream = io.BytesIO(pickled.checked(f"{path}: data.pkl").tobytes())
    top = pickles.load(stream, _NAMES, partial(_storage, length=5), str(path))
    prefix = folder + "data/"
    return top, {name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)}


def _members(path: Path, file: BinaryIO, data: np.ndarray) -> dict[str, _Record]:
    """The archive's members, none of which may be compressed, encrypted, there twice or overlap another."""
    try:
        with zips.opened(file) as archive:
            infos = archive.infolist()
    # ValueError: names that are not UTF-8; NotImplementedError: versions of the format that zipfile does not know.
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as reason:
        raise CheckpointError(f"{path}: its zip directory cannot be read ({str(reason)[:200]}): {_DAMAGED}") from None
    members: dict[str, _Record] = {}
    expected = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        where = f"{path}: member {info.filename[:200]!r}"
        begin = _begin(where, info, data)
        end = begin + info.file_size
        if end > data.size:
            raise CheckpointError(f"{where}: ends at byte {end} of {data.size}: {_DAMAGED}")
        if info.header_offset < expected or info.filename in members:
            raise CheckpointError(f"{where}: overlaps another or is there twice: {_DAMAGED}")
        members[info.filename] = _Record(data[begin:end], info.CRC)
        expected = end
    return members


def _begin(where: str, info: zipfile.ZipInfo, data: np.ndarray) -> int:
    """Where the member's bytes begin: after its local header, which has extra fields of its own."""
    start = info.header_offset
    if not 0 <= start <= data.size - 30:
        raise CheckpointError(f"{where}: its header at byte {start} of {data.size}: {_DAMAGED}")
    magic, flags, method, name_length, extra_length = struct.unpack("<4s2xHH16xHH", data[start : start + 30].tobytes())
    if (flags | info.flag_bits) & 0x61 or method or info.compress_type or info.compress_size != info.file_size:
        raise CheckpointError(f"{where}: is compressed or encrypted, which PyTorch's files are not: unpack and save it")
    name = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if magic != b"PK\x03\x04" or data[start + 30 : start + 30 + name_length].tobytes() != name:
        raise CheckpointError(f"{where}: its header is not that of the directory: {_DAMAGED}")
    return start + 30 + name_length + extra_length


def _read_legacy(path: Path, data: np.ndarray) -> tuple[object, dict[str, _Record]]:
    stream = io.BytesIO(data[: pickles.LIMIT].tobytes())
    storages: dict[str, _Storage] = {}

    def persistent(saved: object) -> _Storage:
        storage = _storage(saved, length=6)
        storages.setdefault(storage.key, storage)
        return storage

    load = partial(pickles.load, stream, _NAMES, persistent, str(path))
    if load() != _MAGIC or load() != _PROTOCOL:
        raise CheckpointError(f"{path}: is a pickle but not PyTorch's of protocol {_PROTOCOL}: give another file")
    system, top, keys = load(), load(), load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path}: its bytes are not little-endian: save it again on another machine")
    if type(keys) is not list:
        raise CheckpointError(f"{path}: has no list of storages: {_DAMAGED}")
    records: dict[str, _Record] = {}
    end = stream.tell()
    for key in keys:
        if type(key) is not str or key not in storages or key in records:
            raise CheckpointError(f"{path}: its list of storages is not that of its tensors: {_DAMAGED}")
        begin = end + 8
        count = int.from_bytes(data[end:begin].tobytes(), "little")
        end = begin + count * DTYPES[storages[key].dtype].itemsize
        if end > data.size:
            raise CheckpointError(f"{path}: storage {key[:200]!r} ends at byte {end} of {data.size}: {_DAMAGED}")
        records[key] = _Record(data[begin:end])
    return top, records


# --- writing


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """Writes the zip form as torch.save does since 1.6, each tensor with a storage of its own, in C order."""
    for entry in entries.values():
        if entry.dtype not in DTYPES:
            raise CheckpointError(f"{entry.where}: PyTorch's state dicts have no type {entry.dtype}: leave it out")

    def members() -> Iterator[tuple[str, int, Callable[[], bytes | memoryview]]]:
        pickled = _pickled(entries)
        yield "data.pkl", len(pickled), lambda: pickled
        yield "byteorder", 6, lambda: b"little"
        for i, entry in enumerate(entries.values()):
            yield f"data/{i}", entry.nbytes, entry.bytes
        yield "version", 2, lambda: b"3\n"  # of the archive's format

    def content(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, nbytes, give in members():
                info = zipfile.ZipInfo(f"archive/{name}")  # dated 1980: equal tensors make equal files
                info.create_system = 3  # Unix; otherwise that of the machine
                large = nbytes >= _LARGE
                # The data begin after the header, the name, the field of 64-bit sizes and this padding with its
                # own head, which is named FB as PyTorch names it.
                padding = -(file.tell() + 30 + len(info.filename) + 20 * large + 4) % 64
                info.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
                with archive.open(info, "w", force_zip64=large) as member:
                    member.write(give())

    files.write_whole(path, content)


def _pickled(entries: Mapping[str, Entry]) -> bytes:
    """The pickle of {name: tensor}, protocol 2; the pickle module would want torch's functions to be there."""
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for i, (name, entry) in enumerate(entries.items()):
        strides: list[int] = []
        step = 1
        for side in reversed(entry.shape):
            strides.insert(0, step)
            step *= side
        typed = entry.dtype in _STORAGES
        rebuild = "torch._utils._rebuild_tensor_v2" if typed else "torch._utils._rebuild_tensor_v3"
        storage = f"torch.{_STORAGES[entry.dtype]}" if typed else "torch.storage.UntypedStorage"
        count = math.prod(entry.shape) if typed else entry.nbytes
        parts += [
            _value(name), _global(rebuild), pickle.MARK,
            pickle.MARK, _value("storage"), _global(storage), _value(str(i)), _value("cpu"), _value(count),
            pickle.TUPLE, pickle.BINPERSID, _value(0), _value(entry.shape), _value(tuple(strides)), _value(False),
            _global("collections.OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE,  # no hooks
            b"" if typed else _global(f"torch.{entry.dtype}"), pickle.TUPLE, pickle.REDUCE,
        ]  # fmt: skip
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _value(value: object) -> bytes:
    """The opcodes that push it, without the pickle's first (its protocol) and last (STOP)."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _global(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()
