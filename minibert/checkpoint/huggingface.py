"""Reads and writes safetensors, one file or several with an index, under Hugging Face's names.

The format: 8 bytes little-endian, the header's length; a JSON header {name: {dtype, shape, data_offsets}};
the tensors' bytes without gaps (https://huggingface.co/docs/safetensors). The safetensors library has no
bfloat16 for NumPy and copies every tensor; here the file is mapped, and float32 is read where it lies.
Nothing in the file is believed: every length and offset is checked against its real size before it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minibert import files
from minibert.checkpoint import names
from minibert.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Bytes of one element. Only the float types are read; the others may stand in tensors that stay unused.
_ITEMSIZE = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_HEADER_LIMIT = 16 << 20  # BERT-Large's header has 40 kB
_DAMAGED = "the file is damaged or not safetensors: get it again"


class Entry:
    """One tensor of a mapped file, checked to lie inside it; `read` gives it as float32."""

    def __init__(self, where: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> None:
        self.where, self.dtype, self.shape, self._data = where, dtype, shape, data

    def read(self) -> np.ndarray:
        """The values as float32, a view of the file where it holds that; raises on NaN and infinity."""
        raw = self._data
        if self.dtype == "F32":
            array = raw.view("<f4")
            if not array.flags.aligned:
                array = array.copy()
        elif self.dtype == "BF16":  # the upper half of a float32
            array = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif self.dtype in ("F16", "F64"):
            with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
                array = raw.view("<f2" if self.dtype == "F16" else "<f8").astype(np.float32)
        else:
            raise CheckpointError(
                f"{self.where}: type {self.dtype} is not F32, F16, BF16 or F64: convert the checkpoint"
            )
        if not _finite(array):
            raise CheckpointError(f"{self.where}: holds NaN or infinite values: get the checkpoint again")
        return array.reshape(self.shape)


def _finite(array: np.ndarray) -> bool:
    # A finite sum has only finite terms, and takes one pass and no copy; one that overflowed proves nothing.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def read_safetensors(path: Path) -> dict[str, Entry]:
    """Every tensor of one safetensors file by its name in the file; values are read by `Entry.read`."""
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
        dtype, shape, begin, end = _description(description, where)
        if end > data.size:
            raise CheckpointError(f"{where}: ends at byte {end} of {data.size}: {_DAMAGED}")
        extents.append((begin, end, name))
        entries[name] = Entry(where, dtype, shape, data[begin:end])
    expected = 0
    for begin, end, name in sorted(extents):
        if begin != expected:
            raise CheckpointError(f"{path}: tensor {name[:200]!r}: overlaps another or leaves a gap: {_DAMAGED}")
        expected = end
    if expected != data.size:
        raise CheckpointError(f"{path}: {data.size - expected} bytes belong to no tensor: {_DAMAGED}")
    return entries


def _description(raw: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one header entry, its extent checked against its shape."""
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: its header entry is not dtype, shape, data_offsets: {_DAMAGED}")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEMSIZE:
        raise CheckpointError(f"{where}: unknown type {str(dtype)[:20]!r}: convert the checkpoint to float32")
    if not _sizes(shape) or len(shape) > 8 or not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: its shape or offsets are not sizes: {_DAMAGED}")
    extent = _ITEMSIZE[dtype]
    for side in shape:
        extent *= side
    if offsets[1] - offsets[0] != extent:
        raise CheckpointError(f"{where}: {dtype} of shape {shape} is {extent} bytes, not {offsets}: {_DAMAGED}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)


def read_folder(folder: Path) -> dict[str, Entry]:
    """The tensors of a checkpoint directory: model.safetensors, or the shards that its index names."""
    if (folder / SINGLE).exists():
        return read_safetensors(folder / SINGLE)
    path = folder / INDEX
    placed = files.read_json(path, CheckpointError).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{path}: has no weight_map: get the checkpoint again")
    for name, shard in placed.items():
        # An index may only name files beside it.
        if not isinstance(shard, str) or shard in ("", ".", "..") or set(shard) & set("/\\:\0"):
            raise CheckpointError(f"{path}: tensor {name[:200]!r} is said to be in {str(shard)[:80]!r}: no file name")
    entries: dict[str, Entry] = {}
    for shard in sorted(set(placed.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard}: this shard is missing: get the checkpoint again")
        for name, entry in read_safetensors(folder / shard).items():
            if placed.get(name) != shard:
                raise CheckpointError(f"{entry.where}: the index does not place it here: get the checkpoint again")
            entries[name] = entry
    if missing := sorted(placed.keys() - entries.keys()):
        raise CheckpointError(f"{path}: tensor {missing[0][:200]!r} is in no shard: get the checkpoint again")
    return entries


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes float32 arrays whole, each at a multiple of 64 bytes where the one before it is."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise CheckpointError(f"{path}: tensor {name}: {array.dtype} instead of float32")
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, "<f4").reshape(-1).view(np.uint8).data)

    files.write_whole(path, write)


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], max_shard_bytes: int | None) -> None:
    """Writes model.safetensors, or an index and shards of at most `max_shard_bytes` (no tensor is split)."""
    named = {names.to_huggingface(name): array for name, array in arrays.items()}
    shards = _split(named, max_shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, named, {"format": "pt"})
        _remove(folder, {SINGLE})
        return
    placed: dict[str, str] = {}
    titles = []
    for i, shard in enumerate(shards, 1):
        title = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / title, shard, {"format": "pt"})
        placed |= dict.fromkeys(shard, title)
        titles.append(title)
    index = {"metadata": {"total_size": sum(array.nbytes for array in named.values())}, "weight_map": placed}
    files.write_whole(folder / INDEX, json.dumps(index, indent=2).encode() + b"\n")
    _remove(folder, {INDEX, *titles})


def _split(arrays: Mapping[str, np.ndarray], most: int | None) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    held = 0
    for name, array in arrays.items():
        if most is not None and shards[-1] and held + array.nbytes > most:
            shards.append({})
            held = 0
        shards[-1][name] = array
        held += array.nbytes
    return shards


def _remove(folder: Path, kept: Iterable[str]) -> None:
    """Removes the weights of an earlier save in another form, which a reader would take for these."""
    for path in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in kept:
            with files.one_line(path, "remove"):
                path.unlink(missing_ok=True)
