"""TensorFlow's bundles: entries and slices are read where they lie; those that lie elsewhere or overlap are refused."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from minibert.checkpoint import tensorflow
from minibert.checkpoint.protobuf import integer_field, message_field
from minibert.checkpoint.table import read_table, write_table
from minibert.errors import CheckpointError
from tensorflow_files import FLOATS, HEADER, bundle, entry_proto, outcome, pack, seal, sealed_table, slice_proto

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
