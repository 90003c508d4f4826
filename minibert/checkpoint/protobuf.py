"""Reads and writes the wire format of protobuf, as far as the messages of a checkpoint need it.

A message is a sequence of fields: a varint, number << 3 | wire type, then the value: a varint (type 0), 8 bytes (1),
a length and so many bytes (2), or 4 bytes (5). Types 3 and 4, groups, have been out of use since proto2 and are
refused. A number that stands twice counts as the last, a message that stands twice as the two joined
(https://protobuf.dev/programming-guides/encoding/). Nothing is believed: lengths end inside the message.
"""

from __future__ import annotations

from typing import Any

from minibert.errors import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DAMAGED = "the file is damaged: get it again"


def varint(data: bytes, at: int, where: str) -> tuple[int, int]:
    """The unsigned number of at most 64 bits at `at`, seven bits a byte from the lowest, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise CheckpointError(f"{where}: ends within a number: {_DAMAGED}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise CheckpointError(f"{where}: holds a number of more than 64 bits: {_DAMAGED}")


class Message:
    """The fields of an encoded message, by their numbers; `where` begins the errors.

    A field that is absent reads as proto3's default: 0 or the empty message. Fields that nobody asks for are
    only skipped, so that files of later versions can be read.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._where = where
        self._fields: dict[int, tuple[int, list[Any]]] = {}  # wire type and values, ints or bytes, by number
        at = 0
        while at < len(data):
            tag, at = varint(data, at, where)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 1 << 29 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                raise CheckpointError(f"{where}: has no field's number and type at byte {at}: {_DAMAGED}")
            value: int | bytes
            if wire == _VARINT:
                value, at = varint(data, at, where)
            else:
                size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
                if size is None:
                    size, at = varint(data, at, where)
                if size > len(data) - at:
                    raise CheckpointError(f"{where}: field {number} is longer than its message: {_DAMAGED}")
                value = data[at : at + size]
                at += size
            first, values = self._fields.setdefault(number, (wire, []))
            if first != wire:
                raise CheckpointError(f"{where}: field {number} has two types: {_DAMAGED}")
            values.append(value)

    def has(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """An int32, int64, bool or enum; negative ones are stored as their 64-bit two's complement."""
        value = (self._all(number, _VARINT) or [0])[-1]
        return value - (1 << 64) if value >= 1 << 63 else value

    def fixed32(self, number: int) -> int:
        return int.from_bytes((self._all(number, _FIXED32) or [b""])[-1], "little")

    def message(self, number: int) -> Message:
        return Message(b"".join(self._all(number, _BYTES)), self._where)

    def messages(self, number: int, most: int | None = None) -> list[Message]:
        """A repeated message's values, in their order; at most the first `most`, since each may be of two bytes."""
        return [Message(data, self._where) for data in self._all(number, _BYTES)[:most]]

    def _all(self, number: int, wire: int) -> list[Any]:
        stored, values = self._fields.get(number, (wire, []))
        if stored != wire:
            raise CheckpointError(f"{self._where}: field {number} has another type: {_DAMAGED}")
        return values


def encode_varint(value: int) -> bytes:
    """A number of 0 to 64 bits; a negative one as its two's complement."""
    value %= 1 << 64
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def integer_field(number: int, value: int) -> bytes:
    """An integer; 0, the default, is left out, as proto3 does."""
    return encode_varint(number << 3 | _VARINT) + encode_varint(value) if value else b""


def fixed32_field(number: int, value: int) -> bytes:
    return encode_varint(number << 3 | _FIXED32) + value.to_bytes(4, "little") if value else b""


def message_field(number: int, content: bytes) -> bytes:
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(content)) + content
