"""PyTorch's files made by hand, a pickle opcode by opcode, so that they can be wrong; and how they are refused."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minibert.checkpoint import pytorch
from minibert.errors import CheckpointError

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


ONE = pickled(x=tensor(stored=storage("0", "FloatStorage", 6, None)))


def refused(path: Path, message: str) -> None:
    """Reading the file and its tensors fails with one line that begins with the path."""
    with pytest.raises(CheckpointError, match=message) as caught:
        for entry in pytorch.read(path).entries.values():
            entry.stored()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 600
