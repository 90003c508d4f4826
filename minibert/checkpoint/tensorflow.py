"""Reads and writes TensorFlow's checkpoints of version 2, "tensor bundles", without TensorFlow.

PREFIX.index is a table (table.py) of protobufs: under the empty key a BundleHeaderProto, under each tensor's name a
BundleEntryProto with its type, shape, place and masked CRC-32C. The bytes of the tensors lie in
PREFIX.data-00000-of-00001 or in several such shards. A partitioned variable's entry lists its slices instead; each
has an entry of its own, under a key that begins with a zero byte. (tensorflow/core/protobuf/tensor_bundle.proto;
what writes it is core/util/tensor_bundle/tensor_bundle.cc.) Nothing in the files is believed: what they say is
checked against their sizes when they are opened, and a tensor's checksum each time that it is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minibert import files
from minibert.checkpoint.protobuf import Message, fixed32_field, integer_field, message_field
from minibert.checkpoint.table import LARGEST, masked_crc, read_table, write_table
from minibert.checkpoint.tensors import DTYPES, Entry, Stored, is_shape, view
from minibert.errors import CheckpointError

# tensorflow/core/framework/types.proto; those that DTYPES lacks may stand in entries that nobody reads.
_TYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64", 9: "int64",
    10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}  # fmt: skip
_CODES = {name: code for code, name in _TYPES.items() if name in DTYPES}
# Numbers of fields in BundleHeaderProto, its VersionDef, BundleEntryProto, TensorShapeProto and TensorSliceProto.
_SHARDS, _BIG_ENDIAN, _VERSION, _PRODUCER, _MIN_CONSUMER = 1, 2, 3, 1, 2
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = range(1, 8)
_DIM, _UNKNOWN_RANK, _DIM_SIZE = 2, 3, 1
_EXTENT, _START, _LENGTH = 1, 1, 2
_BUNDLE_VERSION = 1
_DAMAGED = "the checkpoint is damaged: get it again"
_UNCOVERED = f"its slices do not cover it exactly once: {_DAMAGED}"
_UNREADABLE = "is not a type that can be read: leave the tensor out"


def read(path: Path) -> Stored:
    """Every tensor of the checkpoint whose files' names begin with `path`; slices appear as the tensor they make up."""
    index = Path(f"{path}.index")
    with files.one_line(index, "read", CheckpointError):
        if not index.is_file():
            raise CheckpointError(f"{index}: there is no such file: give the prefix, such as bert_model.ckpt")
        with files.open_read(index, CheckpointError) as file:
            data = file.read(LARGEST + 1)
    items = dict(read_table(data, str(index)))
    count = _shard_count(items.pop(b"", None), str(index))
    slices = {key: items.pop(key) for key in [*items] if key.startswith(b"\0")}
    bundle = _Bundle(path, count, slices)
    entries = {}
    for key, value in items.items():
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"{path}: tensor {key[:200]!r}: its name is not UTF-8: {_DAMAGED}") from None
        where = f"{path}: tensor {name[:200]!r}"
        message = Message(value, where)
        protos = message.messages(_SLICES, most=len(slices) + 1)  # a slice that is missing is an error soon enough
        entries[name] = bundle.partitioned(name, message, protos, where) if protos else bundle.entry(message, where)
    bundle.check_all_taken()
    return Stored("tensorflow", path, entries)


def _shard_count(header: bytes | None, where: str) -> int:
    if header is None:
        raise CheckpointError(f"{where}: has no header: it is not the index of a TensorFlow checkpoint")
    message = Message(header, where)
    if message.integer(_BIG_ENDIAN):
        raise CheckpointError(f"{where}: is big-endian: save the checkpoint again on a little-endian machine")
    if message.message(_VERSION).integer(_MIN_CONSUMER) > _BUNDLE_VERSION:
        raise CheckpointError(f"{where}: is of a newer version of the format: save it with an older TensorFlow")
    return message.integer(_SHARDS)


# Where a slice lies in its tensor, and the slice.
_Piece = tuple[tuple[slice, ...], Entry]


class _Bundle:
    """The data files, each mapped when the first tensor in it is met; the slices and the extents not taken yet."""

    def __init__(self, path: Path, count: int, slices: dict[bytes, bytes]) -> None:
        self._path = path
        self._count = count
        self._slices = slices  # their BundleEntryProtos, by key
        self._maps: dict[int, np.ndarray] = {}
        self._taken: list[tuple[int, int, int, str]] = []  # shard, begin, end, whose

    def entry(self, message: Message, where: str) -> Entry:
        """A tensor, or a slice of one, that lies in one piece."""
        dtype, shape = _dtype_and_shape(message, where)
        raw = self._take(message, where)
        if dtype in DTYPES and raw.size != math.prod(shape) * DTYPES[dtype].itemsize:
            raise CheckpointError(f"{where}: {dtype} of shape {shape} is not {raw.size} bytes: {_DAMAGED}")
        return Entry(where, dtype, shape, partial(_checked, raw, message.fixed32(_CRC), dtype, shape, where))

    def partitioned(self, name: str, message: Message, protos: Sequence[Message], where: str) -> Entry:
        """A tensor that lies in slices, each described by a TensorSliceProto."""
        dtype, shape = _dtype_and_shape(message, where)
        pieces = [self._piece(name, proto, dtype, shape, where) for proto in protos]
        if sum(math.prod(piece.shape) for _, piece in pieces) != math.prod(shape):
            raise CheckpointError(f"{where}: {_UNCOVERED}")
        return Entry(where, dtype, shape, partial(_assembled, pieces, dtype, shape, where))

    def _piece(self, name: str, proto: Message, dtype: str, shape: tuple[int, ...], where: str) -> _Piece:
        # Without a length, which is not a length of 0, an extent is all of its axis; the key has -1 for that.
        extents = [
            (extent.integer(_START), extent.integer(_LENGTH) if extent.has(_LENGTH) else -1)
            for extent in proto.messages(_EXTENT, most=len(shape) + 1)
        ]
        where = f"{where}: its slice {extents[:8]}"
        entry = self._slices.pop(_slice_key(name, extents), None)
        if entry is None or len(extents) != len(shape):
            raise CheckpointError(f"{where} is missing: {_DAMAGED}")
        ends = [side if length == -1 else start + length for (start, length), side in zip(extents, shape, strict=True)]
        place = tuple(slice(start, end) for (start, _), end in zip(extents, ends, strict=True))
        if not all(0 <= axis.start <= axis.stop <= side for axis, side in zip(place, shape, strict=True)):
            raise CheckpointError(f"{where} is not inside its shape {shape}: {_DAMAGED}")
        piece = self.entry(Message(entry, where), where)
        if (piece.dtype, piece.shape) != (dtype, tuple(axis.stop - axis.start for axis in place)):
            raise CheckpointError(f"{where} has another type or shape: {_DAMAGED}")
        return place, piece

    def _take(self, message: Message, where: str) -> np.ndarray:
        """The bytes of a BundleEntryProto, (n,) uint8, a view of the file."""
        shard, begin, size = (message.integer(number) for number in (_SHARD, _OFFSET, _SIZE))
        if not 0 <= shard < self._count:
            raise CheckpointError(f"{where}: lies in shard {shard} of {self._count}: {_DAMAGED}")
        if shard not in self._maps:
            self._maps[shard] = _map(Path(f"{self._path}.data-{shard:05d}-of-{self._count:05d}"))
        held = len(self._maps[shard])
        if begin < 0 or size < 0 or begin + size > held:
            raise CheckpointError(f"{where}: is {size} bytes at byte {begin} of a shard of {held}: {_DAMAGED}")
        if size:
            self._taken.append((shard, begin, begin + size, where))
        return self._maps[shard][begin : begin + size]

    def check_all_taken(self) -> None:
        """Every slice belongs to a tensor and no two tensors share a byte.

        Gaps are allowed, for a writer may align. Sharing is not, even of all bytes: no writer does it, and a
        small file could hold any amount of tensors.
        """
        if self._slices:
            raise CheckpointError(
                f"{self._path}: the slice under {min(self._slices)[:200]!r} is of no tensor: {_DAMAGED}"
            )
        taken = sorted(self._taken)
        for (shard, _, end, _), (following, begin, _, where) in zip(taken, taken[1:], strict=False):
            if shard == following and begin < end:
                raise CheckpointError(f"{where}: overlaps another tensor: {_DAMAGED}")


def _map(path: Path) -> np.ndarray:
    """The bytes of a file, (n,) uint8, read-only, each page read when it is used."""
    with files.one_line(path, "read", CheckpointError):
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no such file, and the index has tensors in it: get it too")
        with files.open_read(path, CheckpointError) as file:
            if not os.fstat(file.fileno()).st_size:  # which mmap refuses
                return np.frombuffer(b"", np.uint8)
            return np.asarray(np.memmap(file, np.uint8, "r"))


def _dtype_and_shape(message: Message, where: str) -> tuple[str, tuple[int, ...]]:
    proto = message.message(_SHAPE)
    shape = tuple(dim.integer(_DIM_SIZE) for dim in proto.messages(_DIM, most=9))  # one more than a shape may have
    # NumPy makes no array, not even an empty one, whose sides that are not 0 have too large a product.
    if not is_shape(shape) or proto.integer(_UNKNOWN_RANK):
        raise CheckpointError(f"{where}: its shape {shape[:9]} is not that of a tensor: {_DAMAGED}")
    code = message.integer(_DTYPE)
    return _TYPES.get(code, f"type {code}"), shape


def _checked(raw: np.ndarray, crc: int, dtype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    if dtype not in DTYPES:
        raise CheckpointError(f"{where}: {dtype} {_UNREADABLE}")
    if masked_crc(raw) != crc:
        raise CheckpointError(f"{where}: its bytes do not have their checksum: {_DAMAGED}")
    return view(raw, dtype, shape)


def _assembled(pieces: Sequence[_Piece], dtype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The tensor, a copy, of slices that have as many elements as it: so much the files' size justifies."""
    if dtype not in DTYPES:
        raise CheckpointError(f"{where}: {dtype} {_UNREADABLE}")
    whole, filled = np.empty(shape, DTYPES[dtype]), np.zeros(shape, bool)
    for place, piece in pieces:
        if filled[place].any():
            raise CheckpointError(f"{where}: {_UNCOVERED}")
        whole[place] = piece.stored()
        filled[place] = True
    whole.flags.writeable = False
    return whole


def _slice_key(name: str, extents: Sequence[tuple[int, int]]) -> bytes:
    """The key of a slice, (start, length) by axis: 0, the tensor's name, the rank and the extents in TensorFlow's
    ordered code, whose bytes sort as the values do (tensorflow/core/lib/strings/ordered_code.cc)."""
    key = _unsigned(0) + name.encode().replace(b"\0", b"\0\xff") + b"\0\1" + _unsigned(len(extents))
    return key + b"".join(_signed(start) + _signed(length) for start, length in extents)


def _unsigned(value: int) -> bytes:
    """How many bytes, and the bytes from the highest."""
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """Two's complement from the highest byte, seven bits a byte and one of sign; the first bits, as many as there
    are bytes, are flipped: so the size can be seen, and all negative numbers sort before all others."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    flipped = (1 << size) - 1 << 7 * size
    return (value % (1 << 8 * size) ^ flipped).to_bytes(size, "big")


def write(path: Path, entries: Mapping[str, Entry]) -> None:
    """Writes the checkpoint as one shard and, when that stands, the index; equal entries give equal bytes."""
    names = {_key(name, entry): name for name, entry in entries.items()}
    header = integer_field(_SHARDS, 1) + message_field(_VERSION, integer_field(_PRODUCER, _BUNDLE_VERSION))
    items = [(b"", header)]

    def content(file: BinaryIO) -> None:
        offset = 0
        for key, name in sorted(names.items()):
            raw = entries[name].bytes()
            file.write(raw)
            items.append((key, _bundle_entry(entries[name], offset, raw)))
            offset += raw.nbytes

    data, index = written(path)
    files.write_whole(data, content)
    files.write_whole(index, write_table(items))


def written(path: Path) -> tuple[Path, Path]:
    """The files of a checkpoint as `write` writes it: the tensors and the index."""
    return Path(f"{path}.data-00000-of-00001"), Path(f"{path}.index")


def _key(name: str, entry: Entry) -> bytes:
    if entry.dtype not in _CODES:
        raise CheckpointError(f"{entry.where}: a TensorFlow checkpoint has no {entry.dtype} from us: leave it out")
    try:
        key = name.encode()
    except UnicodeEncodeError:
        key = b""
    if not key or key.startswith(b"\0"):  # the header's key, and how those of slices begin
        raise CheckpointError(f"{entry.where}: its name cannot stand in a TensorFlow checkpoint: rename it")
    return key


def _bundle_entry(entry: Entry, offset: int, raw: memoryview) -> bytes:
    shape = b"".join(message_field(_DIM, integer_field(_DIM_SIZE, side)) for side in entry.shape)
    return (
        integer_field(_DTYPE, _CODES[entry.dtype])
        + message_field(_SHAPE, shape)
        + integer_field(_OFFSET, offset)
        + integer_field(_SIZE, raw.nbytes)
        + fixed32_field(_CRC, masked_crc(np.asarray(raw)))
    )
