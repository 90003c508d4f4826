"""The table that TensorFlow's index is, and its messages: what is right comes back, what is not is refused."""

from __future__ import annotations

import re

import pytest

from minibert.checkpoint import table
from minibert.checkpoint.protobuf import Message, encode_varint, fixed32_field, integer_field, message_field
from minibert.checkpoint.table import MAGIC, read_table, write_table
from minibert.errors import CheckpointError
from tensorflow_files import pack, seal, sealed_table

ONE = pack((0, b"a", b"1"), (1, b"b", b"2"))
BAD_TABLES = {
    "cut short or not": b"",
    "cut short or not a TensorFlow index": b"\0" * 47 + MAGIC[:-1] + b"\0",
    "ends within a number": sealed_table(seal(b"\x80", 1)),
    "more than 64 bits": b"\xff" * 40 + MAGIC,
    "block outside the file": b"\0\0\0\0".ljust(40, b"\0") + MAGIC,
    "does not have its checksum": sealed_table(ONE + b"\0" + b"\0" * 4),
    "unknown compression 2": sealed_table(seal(ONE, 2)),
    "not valid Snappy": sealed_table(seal(b"\x05" + ONE, 1)),
    "announces 4294967295 bytes": sealed_table(seal(b"\xff\xff\xff\xff\x0f" + ONE, 1)),
    "announces 4194305 bytes": sealed_table(seal(encode_varint(table.LARGEST + 1) + b"\0" * 300_000, 1)),
    "has blocks that overlap": sealed_table(seal(ONE), seal(ONE), places={1: (0, len(ONE))}),
    "keys out of order": sealed_table(seal(ONE), seal(ONE)),
    "has keys out of order": sealed_table(seal(pack((0, b"b", b""), (0, b"a", b"")))),
    "keys out of order:": sealed_table(seal(pack((0, b"a", b""), (0, b"a", b"")))),
    "has keys out of order: the": sealed_table(seal(ONE), seal(pack((0, b"c", b""))), bounds="mz"),
    "index: has keys out of order": sealed_table(seal(ONE), bounds="a"),
    "too small for its restart points": sealed_table(seal(pack(restarts=3))),
    "index: has a block too small": sealed_table(seal(b"")),
    "an entry longer than its block": sealed_table(seal(pack((1, b"a", b"")))),
    "index: has an entry longer than its block": sealed_table(seal(b"\0\1\x7f" + ONE)),
    "unpack to more than": sealed_table(
        seal(pack((0, b"k" * 50_000, b""), *((50_000 + i, b"k", b"") for i in range(300))))
    ),
}


@pytest.mark.parametrize("reason", BAD_TABLES)
def test_bad_tables(reason: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        read_table(BAD_TABLES[reason], "x.index")


def test_tables_within_the_bounds() -> None:
    assert read_table(sealed_table(seal(ONE), seal(pack((0, b"c", b"3"))), bounds="bc"), "") == [
        (b"a", b"1"), (b"ab", b"2"), (b"c", b"3")
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="over 4194304 bytes"):
        read_table(b"\0" * (table.LARGEST + 1), "x")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("count", [0, 1, 16, 17, 3000])
def test_tables_come_back(count: int, compress: bool) -> None:
    items = [(b"bert/encoder/layer_%05d/kernel" % i, b"value" * (i % 7)) for i in range(count)]
    written = write_table(items, compress)
    assert read_table(written, "") == items
    whole = sum(len(key) + len(value) for key, value in items)
    if count == 3000 and compress:
        assert len(written) < whole / 3
    elif count == 3000:
        assert len(written) < whole
        # What a search needs: blocks of 4 kB, and every 16th key whole.
        reader, footer = table._Reader(written, ""), written[-48:]
        index, _ = reader._place(footer, reader._place(footer, 0)[1])
        assert whole / 5000 < len([*reader._entries(reader._block(*index))]) < whole / 4000
        assert written.count(b"bert/encoder/layer_") >= count / 16


# Protobuf


def test_messages() -> None:
    assert [encode_varint(value) for value in (0, 127, 128, 300)] == [b"\0", b"\x7f", b"\x80\1", b"\xac\2"]
    assert Message(integer_field(1, -1), "").integer(1) == -1 and len(encode_varint(-1)) == 10
    assert Message(b"\x08\x81\x00", "").integer(1) == 1  # longer than it need be, which protobuf allows
    later = integer_field(9, 5) + b"\x71" + b"8 bytes." + fixed32_field(15, 7) + message_field(1000, b"x")
    message = Message(integer_field(1, 3) + later + integer_field(1, 4), "")
    assert message.integer(1) == 4 and message.integer(2) == 0 and message.fixed32(3) == 0
    assert message.fixed32(15) == 7 and message.has(9) and not message.has(2)
    joined = Message(message_field(2, integer_field(1, 3)) + message_field(2, integer_field(2, 4)), "")
    assert (joined.message(2).integer(1), joined.message(2).integer(2), len(joined.messages(2))) == (3, 4, 2)
    assert joined.message(3).integer(1) == 0 and joined.messages(3) == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x08", "ends within a number"),
        (b"\x08" + b"\xff" * 9, "ends within a number"),
        (b"\x08" + b"\xff" * 10, "more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x0a\x05four", "longer than its message"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "longer than its message"),
        (b"\x0dfou", "longer than its message"),
        (b"\x09seven..", "longer than its message"),
        (b"\x0b\x0c", "no field's number and type at byte 1"),  # a group
        (b"\x00\x00", "no field's number and type"),
        (encode_varint(1 << 32) + b"\0", "no field's number and type"),
        (b"\x0f", "no field's number and type"),
    ],
)
def test_bad_messages(data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"^here: .*{reason}"):
        Message(data, "here")


def test_a_field_of_another_type_is_refused() -> None:
    for field in (fixed32_field(1, 1), message_field(1, b"")):
        with pytest.raises(CheckpointError, match="field 1 has another type"):
            Message(field, "").integer(1)
        with pytest.raises(CheckpointError, match="field 1 has two types"):
            Message(integer_field(1, 1) + field, "")
