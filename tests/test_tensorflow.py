"""TensorFlow's checkpoints: what TensorFlow wrote is read to the bit, and no file does more than be refused.

golden/make_tensorflow.py wrote the files in golden/tensorflow/ and says how TensorFlow is made to read ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from minibert import models
from minibert.checkpoint import names, table, tensorflow
from minibert.checkpoint.protobuf import Message, encode_varint, fixed32_field, integer_field, message_field
from minibert.checkpoint.table import MAGIC, masked_crc, read_table, write_table
from minibert.checkpoint.tensors import DTYPES, Entry, of_array
from minibert.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden" / "tensorflow"
TRUTH = json.loads((GOLDEN / "checkpoints.json").read_text(encoding="utf-8"))["checkpoints"]
HEADER = integer_field(1, 1) + message_field(3, integer_field(1, 1))
FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


def entry_proto(array: np.ndarray, code: int = 1, shape: Iterable[int] | None = None, **fields: int) -> bytes:
    """A BundleEntryProto; `fields` replace what is right: shard, offset, size, crc."""
    raw = np.frombuffer(array.tobytes(), np.uint8)
    right = {"shard": 0, "offset": 0, "size": raw.size, "crc": masked_crc(raw)} | fields
    dims = b"".join(message_field(2, integer_field(1, side)) for side in (array.shape if shape is None else shape))
    numbers = [right["shard"], right["offset"], right["size"]]
    described = b"".join(integer_field(number, value) for number, value in zip((3, 4, 5), numbers, strict=True))
    return integer_field(1, code) + message_field(2, dims) + described + fixed32_field(6, right["crc"])


def slice_proto(*extents: tuple[int, int | None]) -> bytes:
    """The field `slices` of a BundleEntryProto: (start, length) by axis, None for all of it."""
    content = b""
    for start, length in extents:
        # A length in a oneof is written even where it is 0.
        tail = b"" if length is None else encode_varint(2 << 3) + encode_varint(length)
        content += message_field(1, integer_field(1, start) + tail)
    return message_field(7, content)


def bundle(folder: Path, items: Mapping[bytes, bytes], data: bytes = FLOATS.tobytes(), header: bytes = HEADER) -> Path:
    """A checkpoint of these entries and one shard; the prefix."""
    prefix = folder / "x.ckpt"
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    Path(f"{prefix}.index").write_bytes(write_table(sorted({b"": header, **items}.items())))
    return prefix


def outcome(prefix: Path) -> dict[str, bytes | str] | str:
    """What reading comes to: the error, or by name the bytes or the error."""
    try:
        entries = tensorflow.read(prefix).entries
    except CheckpointError as error:
        return one_line(error)
    result: dict[str, bytes | str] = {}
    for name, entry in entries.items():
        try:
            result[name] = entry.stored().tobytes()
        except CheckpointError as error:
            result[name] = one_line(error)
    return result


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # writing over it would wait for the disk, each time
    path.write_bytes(content)


def one_line(error: CheckpointError) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 1500, text
    return text


# What TensorFlow wrote


@pytest.mark.parametrize("checkpoint", TRUTH)
def test_reads_what_tensorflow_wrote(checkpoint: str) -> None:
    stored = tensorflow.read(GOLDEN / checkpoint)
    assert stored.format == "tensorflow" and stored.path == GOLDEN / checkpoint
    assert {*stored.entries} == {*TRUTH[checkpoint]}
    for name, expected in TRUTH[checkpoint].items():
        entry = stored.entries[name]
        assert (entry.dtype, list(entry.shape)) == (expected["dtype"], expected["shape"]), name
        if expected["sha256"] is None:
            with pytest.raises(CheckpointError, match="is not a type that can be read"):
                entry.stored()
        else:
            array = entry.stored()
            assert type(array) is np.ndarray and not array.flags.writeable
            assert (array.dtype, array.shape) == (DTYPES[entry.dtype], entry.shape), name
            assert hashlib.sha256(array.tobytes()).hexdigest() == expected["sha256"], name


def test_writes_the_bytes_that_tensorflow_does(tmp_path: Path) -> None:
    entries = tensorflow.read(GOLDEN / "bert.ckpt").entries
    tensorflow.write(tmp_path / "bert.ckpt", entries)
    data = "bert.ckpt.data-00000-of-00001"
    assert (tmp_path / data).read_bytes() == (GOLDEN / data).read_bytes()
    ours, theirs = (read_table((folder / "bert.ckpt.index").read_bytes(), "") for folder in (tmp_path, GOLDEN))
    assert ours == theirs
    written = {path: (tmp_path / path).read_bytes() for path in os.listdir(tmp_path)}
    tensorflow.write(tmp_path / "bert.ckpt", dict(reversed(entries.items())))
    assert {path: (tmp_path / path).read_bytes() for path in os.listdir(tmp_path)} == written


@pytest.mark.parametrize("checkpoint", TRUTH)
def test_round_trip(checkpoint: str, tmp_path: Path) -> None:
    entries = {
        name: entry for name, entry in tensorflow.read(GOLDEN / checkpoint).entries.items() if entry.dtype in DTYPES
    }
    tensorflow.write(tmp_path / "a" / "copy", entries)
    copies = tensorflow.read(tmp_path / "a" / "copy").entries
    assert {*copies} == {*entries}
    for name, entry in entries.items():
        assert (copies[name].dtype, copies[name].shape) == (entry.dtype, entry.shape)
        assert copies[name].bytes() == entry.bytes()


def test_a_tensor_is_a_view_of_the_file() -> None:
    entry = tensorflow.read(GOLDEN / "bert.ckpt").entries["bert/embeddings/word_embeddings"]
    assert np.shares_memory(entry.stored(), entry.stored()) and np.shares_memory(entry.read(), entry.stored())


def test_values_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    arrays = {"a": np.array([1, 2, 3], np.uint8), "b": FLOATS, "c": FLOATS.astype(ml_dtypes.bfloat16)}
    tensorflow.write(tmp_path / "x", {name: of_array(name, array) for name, array in arrays.items()})
    entries = tensorflow.read(tmp_path / "x").entries
    assert not entries["b"].stored().flags.aligned
    for name in "bc":
        np.testing.assert_array_equal(entries[name].read(), FLOATS)


def test_each_reading_checks_the_checksum(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry_proto(FLOATS), b"b": entry_proto(FLOATS, offset=24)}, FLOATS.tobytes() * 2)
    entries = tensorflow.read(prefix).entries
    np.testing.assert_array_equal(entries["a"].read(), FLOATS)
    for place in range(24):
        with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
            file.seek(place)
            file.write(bytes([FLOATS.tobytes()[place] ^ 1]))
        with pytest.raises(CheckpointError, match=re.escape(f"{prefix}: tensor 'a': its bytes do not have their")):
            entries["a"].stored()
        with open(f"{prefix}.data-00000-of-00001", "r+b") as file:
            file.write(FLOATS.tobytes())
        entries["a"].stored()
    np.testing.assert_array_equal(entries["b"].read(), FLOATS)


def test_no_damaged_index_is_read_otherwise(tmp_path: Path) -> None:
    prefix = tmp_path / "grid.ckpt"
    for path in GOLDEN.glob("grid.ckpt.*"):
        shutil.copy(path, tmp_path)
    index = Path(f"{prefix}.index")
    right, whole = index.read_bytes(), outcome(prefix)
    assert isinstance(whole, dict)
    for place in range(len(right)):
        replace(index, right[:place])
        assert isinstance(outcome(prefix), str)
        replace(index, right[:place] + bytes([right[place] ^ 1 << place % 8]) + right[place + 1 :])
        assert isinstance(outcome(prefix), str) or place >= len(right) - 48  # zeros in the footer mean nothing


def test_no_message_does_more_than_be_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    for path in GOLDEN.glob("grid.ckpt.*"):
        shutil.copy(path, tmp_path)
    index = tmp_path / "grid.ckpt.index"
    items = read_table(index.read_bytes(), "")
    kinds = set()
    for _ in range(400):
        i = rng.randrange(len(items))
        value = bytearray(items[i][1])
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(value))
            value[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        changed = [*items[:i], (items[i][0], bytes(value)), *items[i + 1 :]]
        replace(index, write_table(changed))
        kinds.add(type(outcome(tmp_path / "grid.ckpt")))
    assert kinds == {str, dict}


# The table


def seal(block: bytes, kind: int = 0) -> bytes:
    block += bytes([kind])
    return block + masked_crc(block).to_bytes(4, "little")


def pack(*entries: tuple[int, bytes, bytes], restarts: int = 1) -> bytes:
    """A block of (bytes shared, rest of the key, value)."""
    content = b"".join(
        encode_varint(shared) + encode_varint(len(rest)) + encode_varint(len(value)) + rest + value
        for shared, rest, value in entries
    )
    return content + b"\0" * 4 + restarts.to_bytes(4, "little")


def place(offset: int, size: int) -> bytes:
    return encode_varint(offset) + encode_varint(size)


def sealed_table(*blocks: bytes, bounds: str = "zz", places: Mapping[int, tuple[int, int]] | None = None) -> bytes:
    """A table of sealed blocks; `places` says where the index is to say that they lie, other than where they do."""
    content, index = b"", []
    for i, block in enumerate(blocks):
        offset, size = (places or {}).get(i, (len(content), len(block) - 5))
        index.append((0, bounds[i].encode(), place(offset, size)))
        content += block
    metaindex = place(len(content), 8)
    content += seal(pack())
    footer = metaindex + place(len(content), len(pack(*index)))
    return content + seal(pack(*index)) + footer.ljust(40, b"\0") + MAGIC


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


# The bundle


BAD_BUNDLES: dict[str, tuple[dict[bytes, bytes], bytes]] = {
    "is big-endian": ({}, HEADER + integer_field(2, 1)),
    "is of a newer version": ({}, HEADER + message_field(3, integer_field(2, 2))),
    "lies in shard 0 of 0": ({b"a": entry_proto(FLOATS)}, b""),
    "lies in shard 1 of 1": ({b"a": entry_proto(FLOATS, shard=1)}, HEADER),
    "lies in shard -1 of 1": ({b"a": entry_proto(FLOATS, shard=-1)}, HEADER),
    "is 24 bytes at byte 1 of a shard of 24": ({b"a": entry_proto(FLOATS, offset=1)}, HEADER),
    "is 24 bytes at byte -1 of": ({b"a": entry_proto(FLOATS, offset=-1)}, HEADER),
    "is -1 bytes at byte 0": ({b"a": entry_proto(FLOATS, size=-1)}, HEADER),
    "of shape (2, 3) is not 20 bytes": ({b"a": entry_proto(FLOATS, size=20)}, HEADER),
    "of shape (2, 4) is not 24 bytes": ({b"a": entry_proto(FLOATS, shape=(2, 4))}, HEADER),
    "bfloat16 of shape (2, 3)": ({b"a": entry_proto(FLOATS, 14)}, HEADER),
    "its shape (-1, 3) is not": ({b"a": entry_proto(FLOATS, shape=(-1, 3))}, HEADER),
    "its shape (0, 4611686018427387903) is": ({b"a": entry_proto(FLOATS, shape=(0, 2**62 - 1), size=0)}, HEADER),
    "its shape (1, 1, 1, 1, 1, 1, 1, 1, 1) is": ({b"a": entry_proto(FLOATS, shape=[1] * 900)}, HEADER),
    "its shape (2, 3) is not that of": ({b"a": entry_proto(FLOATS) + message_field(2, integer_field(3, 1))}, HEADER),
    "tensor b'\\xff': its name is not UTF-8": ({b"\xff": entry_proto(FLOATS)}, HEADER),
    "tensor 'b': overlaps another": ({b"a": entry_proto(FLOATS), b"b": entry_proto(FLOATS)}, HEADER),
    "tensor 'a\\nb': overlaps": (
        {b"a": entry_proto(FLOATS), b"a\nb": entry_proto(FLOATS[:1], offset=20, size=4, shape=())}, HEADER,
    ),
    f"tensor '{'n' * 200}': lies in shard": ({b"n" * 10_000: entry_proto(FLOATS, shard=7)}, HEADER),
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_BUNDLES)
def test_bad_bundles(reason: str, tmp_path: Path) -> None:
    items, header = BAD_BUNDLES[reason]
    result = outcome(bundle(tmp_path, items, header=header))
    assert isinstance(result, str) and reason in result


def test_missing_files(tmp_path: Path) -> None:
    prefix = bundle(tmp_path, {b"a": entry_proto(FLOATS)})
    data, index = Path(f"{prefix}.data-00000-of-00001"), Path(f"{prefix}.index")
    data.unlink()
    assert f"{data}: there is no such file" in outcome(prefix)
    os.mkfifo(data)  # opening it would wait for a writer
    assert f"{data}: there is no such file" in outcome(prefix)
    index.write_bytes(write_table([(b"a", entry_proto(FLOATS))]))
    assert f"{index}: has no header" in outcome(prefix)
    index.unlink()
    assert f"{index}: there is no such file: give the prefix" in outcome(prefix)
    # From Python 3.14 on Path.is_file says that there is none.
    said = "there is no such file" if sys.version_info >= (3, 14) else "cannot read: File name too long"
    assert said in outcome(tmp_path / ("x" * 300))


def test_gaps_empty_tensors_and_unknown_types_are_allowed(tmp_path: Path) -> None:
    empty = np.zeros((0, 3), np.float32)
    items = {
        b"a": entry_proto(FLOATS, offset=8),
        b"b": entry_proto(empty, offset=9),
        b"c": entry_proto(FLOATS, 99, size=5),
    }
    entries = tensorflow.read(bundle(tmp_path, items, b"\0" * 8 + FLOATS.tobytes())).entries
    np.testing.assert_array_equal(entries["a"].read(), FLOATS)
    assert entries["b"].stored().shape == (0, 3) and entries["c"].dtype == "type 99"
    only = tensorflow.read(bundle(tmp_path, {b"b": entry_proto(empty)}, b"")).entries
    assert only["b"].stored().shape == (0, 3)
    assert tensorflow.read(bundle(tmp_path, {})).entries == {}


# Slices

LOW, HIGH = ((0, 1), (0, None)), ((1, 1), (0, None))
WHOLE = integer_field(1, 1) + message_field(2, message_field(2, b"\x08\x02") + message_field(2, b"\x08\x03"))


def sliced(*slices: tuple[tuple[int, int | None], ...], whole: bytes = WHOLE, **other: bytes) -> dict[bytes, bytes]:
    """The entries of FLOATS in these slices; `other` are entries of slices that differ, by number: _0, _1."""
    items = {b"v": whole + b"".join(slice_proto(*extents) for extents in slices)}
    for i, extents in enumerate(slices):
        key = tensorflow._slice_key("v", [(start, -1 if length is None else length) for start, length in extents])
        items[key] = other.get(f"_{i}") or entry_proto(FLOATS[i], shape=(1, 3), offset=12 * i)
    return items


def test_slices(tmp_path: Path) -> None:
    entry = tensorflow.read(bundle(tmp_path, sliced(LOW, HIGH))).entries["v"]
    np.testing.assert_array_equal(entry.stored(), FLOATS)
    assert not entry.stored().flags.writeable and entry.shape == (2, 3)
    # A length of 0 is not the absence of one.
    empty = sliced(LOW, HIGH, ((0, 0), (0, 3)), _2=entry_proto(FLOATS[:0]))
    np.testing.assert_array_equal(tensorflow.read(bundle(tmp_path, empty)).entries["v"].stored(), FLOATS)


TWO_BY_THREE = entry_proto(FLOATS)
BAD_SLICES = {
    "is of no tensor": {**sliced(LOW, HIGH), b"v": TWO_BY_THREE[:-5]},
    "its slices do not cover it": sliced(LOW),
    "its slices do not cover it exactly": sliced(LOW, ((0, 1), (0, 3)), _1=entry_proto(FLOATS[1:], offset=12)),
    "slice [(0, 1), (0, -1)] is missing": {**sliced(LOW, HIGH), b"v": WHOLE + slice_proto(*LOW) * 2},
    "slice [(5, 1)] is missing": {b"v": WHOLE + slice_proto((5, 1))},
    "slice [(0, 1)] is missing": sliced(((0, 1),)),
    "slice [(2, 1), (0, -1)] is not inside": sliced(LOW, ((2, 1), (0, None))),
    "slice [(-1, 1), (0, -1)] is not inside": sliced(LOW, ((-1, 1), (0, None))),
    "slice [(1, -2), (0, -1)] is not inside": sliced(LOW, ((1, -2), (0, None))),
    "slice [(1, 1), (1, 3)] is not inside": sliced(LOW, ((1, 1), (1, 3))),
    "slice [(1, 1), (1, -1)] has another type": sliced(LOW, ((1, 1), (1, None))),
    "slice [(1, 1), (0, -1)] has another type or shape": sliced(LOW, HIGH, _1=entry_proto(FLOATS[1:].T, offset=12)),
    "slice [(1, 1), (0, -1)] has another type": sliced(
        LOW, HIGH, _1=entry_proto(FLOATS[1:].view(np.int32), 3, offset=12)
    ),
    "slice [(1, 1), (0, -1)]: its bytes do not": sliced(LOW, HIGH, _1=entry_proto(FLOATS[1:], offset=12, crc=1)),
    "slice [(1, 1), (0, -1)]: overlaps another": sliced(LOW, HIGH, _1=entry_proto(FLOATS[1:])),
    "string is not a type": sliced(
        LOW,
        HIGH,
        whole=integer_field(1, 7) + WHOLE[2:],
        _0=entry_proto(FLOATS[:1], 7),
        _1=entry_proto(FLOATS[1:], 7, offset=12),
    ),
}


@pytest.mark.parametrize("reason", BAD_SLICES)
def test_bad_slices(reason: str, tmp_path: Path) -> None:
    result = outcome(bundle(tmp_path, BAD_SLICES[reason]))
    message = result if isinstance(result, str) else result["v"]
    assert isinstance(message, str) and reason in message


def test_keys_of_slices_sort_as_their_numbers() -> None:
    rng = random.Random(0)
    numbers = sorted({sign * rng.getrandbits(bits) for bits in range(64) for sign in (-1, 1) for _ in range(20)})
    keys = [tensorflow._signed(number) for number in numbers]
    assert keys == sorted(keys) and len({*keys}) == len(keys)
    # Computed by hand from ordered_code.cc.
    assert [tensorflow._signed(value) for value in (0, 63, 64, -1, -64, -65)] == [
        b"\x80", b"\xbf", b"\xc0\x40", b"\x7f", b"\x40", b"\x3f\xbf"
    ]  # fmt: skip
    assert tensorflow._slice_key("a\0b", []) == b"\0a\0\xffb\0\1\0"


# No file takes long or much room


def test_many_entries_take_linear_time(tmp_path: Path) -> None:
    # Slices of one tensor with a long name: their keys would be 20 MB, in the file they are 20 kB.
    first = tensorflow._slice_key("n" * 10_000, [(0, 1)])
    keys = [(0, first, b""), *((len(first) - 2, tensorflow._signed(i) + first[-1:], b"") for i in range(1, 2000))]
    content = sealed_table(seal(pack(*keys)))
    begin = time.process_time()
    with pytest.raises(CheckpointError, match="unpack to more than"):
        read_table(content, "")
    items = {b"%d" % i: integer_field(1, 7) for i in range(10_000)}
    assert len(outcome(bundle(tmp_path, items))) == 10_000
    assert time.process_time() - begin < 3


# Writing


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for name in ("", "\0a", "\ud800"):
        with pytest.raises(CheckpointError, match="its name cannot stand in a TensorFlow checkpoint"):
            tensorflow.write(tmp_path / "x", {name: of_array("x", FLOATS)})
    with pytest.raises(CheckpointError, match="here: a TensorFlow checkpoint has no string"):
        tensorflow.write(tmp_path / "x", {"a": Entry("here", "string", (), lambda: FLOATS)})
    assert not [*tmp_path.iterdir()]


def test_the_index_is_written_last(tmp_path: Path) -> None:
    def failing() -> np.ndarray:
        assert not Path(f"{tmp_path}/x.index").exists()
        raise CheckpointError("its bytes are wrong")

    with pytest.raises(CheckpointError, match="its bytes are wrong"):
        tensorflow.write(tmp_path / "x", {"a": Entry("", "float32", (2,), failing)})
    assert not [*tmp_path.iterdir()]


# The file that names the newest


def test_latest_reads_what_tensorflow_wrote() -> None:
    assert tensorflow.latest(GOLDEN) == "größe.ckpt-2"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('model_checkpoint_path: "model.ckpt-343"\nall_model_checkpoint_paths: "model.ckpt-1"\n', "model.ckpt-343"),
        ('all_model_checkpoint_paths: "model.ckpt-1"\n model_checkpoint_path :"model.ckpt-2"', "model.ckpt-2"),
        ('model_checkpoint_path: "gs://bucket/run/model.ckpt-2"', "model.ckpt-2"),
        ('model_checkpoint_path: "C:\\\\run\\\\model.ckpt-2"', "model.ckpt-2"),
        ('model_checkpoint_path: "gr\\303\\266\\\'\\"\\xe.ckpt"', "grö'\"xe.ckpt"),
        ('model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"', "b"),
    ],
)
def test_latest(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text(text)
    assert tensorflow.latest(tmp_path) == name


@pytest.mark.parametrize(
    "content",
    [
        b"", b"model_checkpoint_path: a", b'all_model_checkpoint_paths: "a"', b'model_checkpoint_path: "a', b"\xff",
        *(b'model_checkpoint_path: "' + path + b'"' for path in (b"", b"..", b"a/..", b".", b"a/", b"a\\0", b"\xff")),
    ],
)  # fmt: skip
def test_latest_refuses(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'checkpoint'}: ")):
        tensorflow.latest(tmp_path)


def test_latest_comes_back(tmp_path: Path) -> None:
    assert tensorflow.latest(tmp_path) is None
    for name in ("model.ckpt-343", "größe'\"\n-1"):
        tensorflow.write_latest(tmp_path, name, ["model.ckpt-1", name])
        assert tensorflow.latest(tmp_path) == name
    tensorflow.write_latest(tmp_path, "b", ["a", "b"])
    assert (tmp_path / "checkpoint").read_text() == (
        'model_checkpoint_path: "b"\nall_model_checkpoint_paths: "a"\nall_model_checkpoint_paths: "b"\n'
    )


# Speed


@pytest.mark.slow
def test_bert_base_with_slots_is_read_at_a_gigabyte_a_second(tmp_path: Path) -> None:
    """From a warm cache, checksums and the search for NaN included; the median of five."""
    rng = np.random.default_rng(0)
    entries = {}
    for name, shape in names.shapes(models.config("base"), 2).items():
        for slot in ("", "/adam_m", "/adam_v"):
            array = rng.standard_normal(math.prod(shape), np.float32).reshape(shape)
            entries[name + slot] = of_array(name, array)
    tensorflow.write(tmp_path / "base", entries)
    total = sum(entry.nbytes for entry in entries.values())
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        for entry in tensorflow.read(tmp_path / "base").entries.values():
            entry.read()
        times.append(time.perf_counter() - begin)
    rate = total / statistics.median(times[1:]) / 1e9
    print(f"{total / 1e9:.2f} GB at {rate:.2f} GB/s")
    assert rate >= 1
