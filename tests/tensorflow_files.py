"""TensorFlow's checkpoints made by hand, so that they can be wrong, and what comes of reading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from minibert.checkpoint import tensorflow
from minibert.checkpoint.protobuf import encode_varint, fixed32_field, integer_field, message_field
from minibert.checkpoint.table import MAGIC, masked_crc, write_table
from minibert.errors import CheckpointError

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
