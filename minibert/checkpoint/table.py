"""Reads and writes LevelDB's table: sorted keys and values in one file. TensorFlow's index files are such tables.

Blocks, then a footer of 48 bytes: where the metaindex and the index block lie (offset and size as varints), zeros
up to byte 40, MAGIC. Each block is followed by a byte, 0 as it is or 1 Snappy, and by the masked CRC-32C of block
and byte. A block holds entries: three varints, how many bytes the key shares with the one before it, how many
follow, how long the value is; then the rest of the key and the value. It ends with the offsets of the entries
whose keys are whole, for a search; we read in order and need them not. The index block has for each data block a
key not below its last and below the next's first, with the block's place for the value. (LevelDB,
doc/table_format.md; TensorFlow's own reader is tsl/lib/io/table.cc, table_options.h says what it writes.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from minibert.checkpoint.protobuf import encode_varint, varint
from minibert.errors import CheckpointError

MAGIC = bytes.fromhex("57fb808b247547db")
# Bytes of a table, and of its keys and values: BERT-Large's with Adam's slots have 100 kB. A Python object costs
# a hundred times what stands in the file.
LARGEST = 4 << 20
_RATIO = 64  # Snappy reaches 21, three bytes for 64; keys that share 16, since each sixteenth is whole
_FOOTER, _TRAILER = 48, 5
_BLOCK, _RESTART = 4096, 16  # bytes after which a block is full, entries from one whole key to the next
_DAMAGED = "the file is damaged: get it again"


def masked_crc(data: bytes | np.ndarray) -> int:
    """The CRC-32C, rotated and shifted by a constant as LevelDB stores it: a CRC of data with CRCs in it is weak."""
    import google_crc32c  # and cramjam below: here, so that all other checkpoints load where they are not installed

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(data: bytes, where: str) -> list[tuple[bytes, bytes]]:
    """The keys, strictly increasing, and their values; raises CheckpointError, `where` first, on any other file."""
    if len(data) > LARGEST:
        raise CheckpointError(f"{where}: over {LARGEST} bytes are no checkpoint's index: give a correct file")
    if len(data) < _FOOTER or not data.endswith(MAGIC):
        raise CheckpointError(f"{where}: is cut short or not a TensorFlow index: get the file again")
    return list(_Reader(data, where).items())


class _Reader:
    """Reads one table; `where` begins its errors."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self._room = min(LARGEST, _RATIO * len(data))  # what keys and values may still take, each counted whole

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        footer = self._data[-_FOOTER:]
        metaindex, at = self._place(footer, 0)
        index, _ = self._place(footer, at)
        self._block(*metaindex)  # holds nothing for us, but a wrong checksum means a damaged file
        free, last = 0, None
        for bound, value in self._entries(self._block(*index)):
            (offset, size), _ = self._place(value, 0)
            # In order and apart: so each byte of the file is unpacked once, however many places the index names.
            if offset < free:
                raise self._error("has blocks that overlap")
            free = offset + size
            for key, content in self._entries(self._block(offset, size)):
                if (last is not None and key <= last) or key > bound:
                    raise self._error("has keys out of order")
                yield key, content
                last = key
            last = bound

    def _place(self, data: bytes, at: int) -> tuple[tuple[int, int], int]:
        offset, at = varint(data, at, self._where)
        size, at = varint(data, at, self._where)
        return (offset, size), at

    def _block(self, offset: int, size: int) -> bytes:
        end = offset + size
        if end + _TRAILER > len(self._data) - _FOOTER:
            raise self._error("has a block outside the file")
        stored = int.from_bytes(self._data[end + 1 : end + _TRAILER], "little")
        if masked_crc(self._data[offset : end + 1]) != stored:
            raise self._error(f"the block at byte {offset} does not have its checksum")
        packed, kind = self._data[offset:end], self._data[end]
        if kind == 0:
            return packed
        if kind != 1:
            raise self._error(f"the block at byte {offset} has the unknown compression {kind}")
        announced, _ = varint(packed, 0, self._where)
        if announced > min(LARGEST, _RATIO * size):
            raise self._error(f"the block at byte {offset} announces {announced} bytes in {size}")
        import cramjam

        try:
            return bytes(cramjam.snappy.decompress_raw(packed))
        except cramjam.DecompressionError:
            raise self._error(f"the block at byte {offset} is not valid Snappy") from None

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, bytes]]:
        restarts = int.from_bytes(block[-4:], "little")
        end = len(block) - 4 - 4 * restarts
        if end < 0:
            raise self._error("has a block too small for its restart points")
        at, key = 0, b""
        while at < end:
            shared, at = varint(block, at, self._where)
            rest, at = varint(block, at, self._where)
            length, at = varint(block, at, self._where)
            if shared > len(key) or rest + length > end - at:
                raise self._error("has an entry longer than its block")
            self._room -= shared + rest + length
            if self._room < 0:
                raise self._error(f"its {len(self._data)} bytes unpack to more than an index can hold")
            key = key[:shared] + block[at : at + rest]
            yield key, block[at + rest : at + rest + length]
            at += rest + length

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self._where}: {what}: {_DAMAGED}")


def write_table(items: Iterable[tuple[bytes, bytes]], compress: bool = False) -> bytes:
    """The table of these keys, strictly increasing, and values; its blocks as they are, or in Snappy.

    TensorFlow writes no Snappy blocks since 1.2 but reads them.
    """
    table = bytearray()

    def put(pairs: list[tuple[bytes, bytes]]) -> bytes:
        """Appends a block and returns where it lies."""
        block = _pack(pairs)
        if compress:
            import cramjam

            block = bytes(cramjam.snappy.compress_raw(block))
        place = encode_varint(len(table)) + encode_varint(len(block))
        block += bytes([compress])
        table.extend(block + masked_crc(block).to_bytes(4, "little"))
        return place

    index: list[tuple[bytes, bytes]] = []
    pairs: list[tuple[bytes, bytes]] = []
    held = 0
    for key, value in items:
        if held >= _BLOCK:
            index.append((pairs[-1][0], put(pairs)))
            pairs, held = [], 0
        pairs.append((key, value))
        held += len(key) + len(value)
    if pairs:
        index.append((pairs[-1][0], put(pairs)))
    footer = (put([]) + put(index)).ljust(_FOOTER - len(MAGIC), b"\0") + MAGIC
    return bytes(table) + footer


def _pack(pairs: list[tuple[bytes, bytes]]) -> bytes:
    block, restarts, before = bytearray(), [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % _RESTART == 0:
            restarts.append(len(block))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        block += encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        block += key[shared:] + value
        before = key
    restarts = restarts or [0]  # LevelDB has at least one, in an empty block too
    return bytes(block) + b"".join(place.to_bytes(4, "little") for place in [*restarts, len(restarts)])
