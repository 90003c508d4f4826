"""Reads and writes safetensors files, and writes Hugging Face's checkpoint directories of them.

The format: 8 bytes little-endian, the header's length; a JSON header {name: {dtype, shape, data_offsets}};
the tensors' bytes without gaps (https://huggingface.co/docs/safetensors). The safetensors library has no
bfloat16 for NumPy and copies every tensor; here the file is mapped, and float32 is read where it lies.
Nothing in the file is believed: every length and offset is checked against its real size before it is used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minibert import files
from minibert.checkpoint.tensors import DTYPES, Entry, Stored, are_sizes, is_shape, view
from minibert.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Types by their names in the file; those of 8-bit floats may stand in tensors that stay unused.
_TYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64",
    "F8_E4M3": "float8", "F8_E5M2": "float8",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items() if dtype in DTYPES}
_HEADER_LIMIT = 16 << 20  # BERT-Large's header has 40 kB
_DAMAGED = "the file is damaged or not safetensors: get it again"


def read(path: Path) -> Stored:
    """Every tensor of one safetensors file."""
    with files.open_read(path, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise CheckpointError(f"{path}: its {size} bytes do not hold the header that they announce: {_DAMAGED}")
        header = files.parse_json(file.read(length), str(path), CheckpointError)
        start = 8 + length
        with files.one_line(path, "read", CheckpointError):
            # An empty map is an error in mmap; a file without tensors is an error further on.
            data = np.asarray(np.memmap(file, np.uint8, "r"))[start:]
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is not an object: {_DAMAGED}")
    entries, extents = {}, []
    for name, description in header.items():
        where = f"{path}: tensor {name[:200]!r}"
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # JSON can name what no other file could
            raise CheckpointError(f"{where}: its name is no text: {_DAMAGED}")
        dtype, shape, begin, end = _description(description, where)
        if end > data.size:
            raise CheckpointError(f"{where}: ends at byte {end} of {data.size}: {_DAMAGED}")
        extents.append((begin, end, name))
        entries[name] = Entry(where, dtype, shape, partial(_stored, data[begin:end], dtype, shape, where))
    expected = 0
    for begin, end, name in sorted(extents):
        if begin != expected:
            raise CheckpointError(f"{path}: tensor {name[:200]!r}: overlaps another or leaves a gap: {_DAMAGED}")
        expected = end
    if expected != data.size:
        raise CheckpointError(f"{path}: {data.size - expected} bytes belong to no tensor: {_DAMAGED}")
    return Stored("hf", path, entries)


def _description(raw: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one header entry, its extent checked against its shape."""
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: its header entry is not dtype, shape, data_offsets: {_DAMAGED}")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise CheckpointError(f"{where}: unknown type {str(dtype)[:20]!r}: convert the checkpoint to float32")
    if not is_shape(shape) or not are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: its shape or offsets are not sizes: {_DAMAGED}")
    ours = _TYPES[dtype]
    extent = math.prod(shape) * (DTYPES[ours].itemsize if ours in DTYPES else 1)
    if offsets[1] - offsets[0] != extent:
        raise CheckpointError(f"{where}: {dtype} of shape {shape} is {extent} bytes, not {offsets}: {_DAMAGED}")
    return ours, tuple(shape), offsets[0], offsets[1]


def _stored(raw: np.ndarray, dtype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if dtype not in DTYPES:
        raise CheckpointError(f"{where}: {dtype} is not a type that can be read: leave the tensor out")
    return view(raw, dtype, shape)


def write(path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the file whole; its first tensor begins at a multiple of 64 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else dict(metadata)}
    end = 0
    for name, entry in entries.items():
        if entry.dtype not in _NAMES:
            raise CheckpointError(f"{entry.where}: safetensors has no type {entry.dtype}: leave it out")
        span = [end, end + entry.nbytes]
        header[name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span}
        end += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)

    def content(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries.values():
            file.write(entry.bytes())

    files.write_whole(path, content)


def write_folder(folder: Path, entries: Mapping[str, Entry], max_shard_bytes: int | None = None) -> None:
    """Writes model.safetensors, or an index and shards of at most `max_shard_bytes` (no tensor is split)."""
    shards = _split(entries, max_shard_bytes)
    if len(shards) == 1:
        write(folder / SINGLE, entries)
        _remove(folder, {SINGLE})
        return
    placed: dict[str, str] = {}
    titles = []
    for i, shard in enumerate(shards, 1):
        title = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write(folder / title, shard)
        placed |= dict.fromkeys(shard, title)
        titles.append(title)
    index = {"metadata": {"total_size": sum(entry.nbytes for entry in entries.values())}, "weight_map": placed}
    files.write_whole(folder / INDEX, json.dumps(index, indent=2).encode() + b"\n")
    _remove(folder, {INDEX, *titles})


def _split(entries: Mapping[str, Entry], most: int | None) -> list[dict[str, Entry]]:
    shards: list[dict[str, Entry]] = [{}]
    held = 0
    for name, entry in entries.items():
        if most is not None and shards[-1] and held + entry.nbytes > most:
            shards.append({})
            held = 0
        shards[-1][name] = entry
        held += entry.nbytes
    return shards


def _remove(folder: Path, kept: Iterable[str]) -> None:
    """Removes the weights of an earlier save in another form, which a reader would take for these."""
    for path in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in kept:
            with files.one_line(path, "remove"):
                path.unlink(missing_ok=True)
