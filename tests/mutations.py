"""Makes cases for the fuzzer (fuzz.py): checkpoints, valid but for a few changes, of every kind that is read.

Each mutator takes a generator of random numbers and returns the case's files and what of them is opened. Lengths and
checksums are those of what has been changed, but for a few that lie: so a case passes the first checks and comes to
those behind them.
"""

from __future__ import annotations

import functools
import io
import json
import math
import pickle
import pickletools
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cramjam
import numpy as np

from minibert.checkpoint import table, tensorflow
from minibert.checkpoint.protobuf import encode_varint, varint
from minibert.checkpoint.tensors import of_array
from minibert.errors import CheckpointError

GOLDEN = Path(__file__).parent / "golden"
INTEGERS = (
    0, 1, 2, 3, 4, 6, 7, 8, 9, 12, 16, 24, 64, 127, 128, 255, 256, 1000, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1,
    2**32, 2**53, 2**56, 2**59, 2**61, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -1, -2, -(2**31), -(2**63),
)  # fmt: skip
NAMES = (
    "bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight", "bert.encoder.layer.0.output.dense.weight",
    "bert/encoder/layer_0/output/dense/kernel", "classifier.weight", "bert/pooler/dense/bias/adam_m", "global_step",
    "cls.predictions.bias", "x", "", "name\nof\x1btwo", "Ωμέγα", "n" * 300,
)  # fmt: skip
OTHER_NAMES = (".", "..", "../x.bin", "/etc/passwd", "..\\x", "C:x", "x\0y", "x\ny", "l" * 300, "字" * 99, "p/" * 2000)
SHAPES = ((), (1,), (6,), (2, 3), (3, 2), (0,), (3, 0, 7), (1,) * 8, (2, 1, 3), (0, 2**40), (100,))

Rng = random.Random
Files = dict[str, bytes]  # in the case's folder, by name
Case = tuple[str, Files]  # what of them is opened ("": the folder), and they


# --- what every mutator uses


def damage(rng: Rng, data: bytes) -> bytes:
    """The bytes with a few changed, put in, taken out or repeated."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, other, count = rng.randint(0, len(result)), rng.randint(0, len(result)), rng.randint(1, 12)
        kind = rng.randrange(5)
        if kind == 0:
            result[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
        elif kind == 1:
            result[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in result[at : at + 1])
        elif kind == 2:
            result[at:at] = rng.randbytes(count)
        elif kind == 3:
            del result[at : at + count]
        else:
            result[at:at] = result[other : other + count]
    return bytes(result)


def rearrange(rng: Rng, items: list[Any], changed: Callable[[Any], Any]) -> None:
    """One of the items changed, which is the most frequent, or dropped, repeated, or swapped with another."""
    if items:
        at, other, kind = rng.randrange(len(items)), rng.randrange(len(items)), rng.randrange(8)
        if kind == 0:
            del items[at]
        elif kind == 1:
            items.insert(other, items[at])
        elif kind == 2:
            items[at], items[other] = items[other], items[at]
        else:
            items[at] = changed(items[at])


class Liar:
    """Called on each number that a file holds, says another one now and then; in many files, never."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._rate = rng.choice((0, 0, 0.005, 0.02))

    def __call__(self, value: int, bits: int = 64) -> int:
        if self._rng.random() < self._rate:
            value = self._rng.choice((value + 1, value - 1, value * 2, self._rng.choice(INTEGERS)))
        return value % (1 << bits)

    def bytes(self, data: bytes) -> bytes:
        return damage(self._rng, data) if self._rng.random() < self._rate else data


# --- JSON, as trees that can hold a key twice: the text of a leaf, a list, an Object of (key's text, tree)


class Object(list[Any]):
    pass


LEAVES = [
    *map(str, INTEGERS), "1.0", "1e9", "1e999", "-0", "1" * 5000, "true", "null", "NaN", "{}", "[]", '"x"', '"\\ud800"',
    *("[" * depth + "]" * depth for depth in (2, 300, 900, 100_000)), '{"a":' * 500 + "0" + "}" * 500,
    '"F16"', '"F64"', '"BOOL"', '"F8_E5M2"', "[0,0]", "[1,6]", *map(json.dumps, (*NAMES, *OTHER_NAMES)),
]  # fmt: skip


def tree(value: Any) -> Any:
    if isinstance(value, dict):
        return Object((json.dumps(key), tree(member)) for key, member in value.items())
    return [tree(member) for member in value] if isinstance(value, list | tuple) else json.dumps(value)


def text(node: Any) -> str:
    if isinstance(node, Object):
        return "{" + ",".join(f"{key}:{text(member)}" for key, member in node) + "}"
    return "[" + ",".join(map(text, node)) + "]" if isinstance(node, list) else node


def mutate_tree(rng: Rng, node: Any) -> Any:
    """The tree with one thing changed, at any depth."""
    if not isinstance(node, list) or not node or rng.random() < 0.04:
        return [node] if rng.random() < 0.1 else rng.choice(LEAVES)

    def member(pair: Any) -> Any:
        if isinstance(node, Object):
            key, value = pair
            return (rng.choice(LEAVES[-30:]), value) if rng.random() < 0.1 else (key, mutate_tree(rng, value))
        return mutate_tree(rng, pair)

    rearrange(rng, node, member)
    return node


def mutated_json(rng: Rng, value: Any, changes: tuple[int, ...] = (0, 1, 1, 2)) -> bytes:
    """The value as JSON with one of these numbers of changes."""
    node = tree(value)
    for _ in range(rng.choice(changes)):
        node = mutate_tree(rng, node)
    raw = text(node).encode()
    return damage(rng, raw) if any(changes) and rng.random() < 0.05 else raw


# --- safetensors


ITEMSIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1}


def values(rng: Rng, count: int) -> bytes:
    """Bytes of tensors: random ones are often NaN as floats, zeros never."""
    return rng.randbytes(count) if rng.random() < 0.2 else bytes(count)


def safetensors_file(rng: Rng, names: Iterable[str], changes: tuple[int, ...] = (0, 1, 1, 2)) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = rng.choice([*ITEMSIZES]), rng.choice(SHAPES)
        extent = ITEMSIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + extent]}
        end += extent
    raw = mutated_json(rng, header, changes)
    length = rng.choice(INTEGERS) % 2**64 if rng.random() < 0.03 else len(raw)
    if rng.random() < 0.04:
        end = max(0, end + rng.randint(-9, 9))
    return length.to_bytes(8, "little") + raw + values(rng, end)


def safetensors(rng: Rng) -> Case:
    """The header, as JSON and as bytes; its length is what it then is."""
    file = safetensors_file(rng, rng.sample(NAMES, rng.randint(1, 4)))
    if rng.random() < 0.03:
        file = damage(rng, file)
    return rng.choice(("model.safetensors", "")), {"model.safetensors": file}


def shards(rng: Rng) -> Case:
    """The index, what it places where, and the shards, of either kind."""
    index = rng.choice(("model.safetensors.index.json", "pytorch_model.bin.index.json"))
    names = rng.sample(NAMES, rng.randint(2, 6))
    files, placed = {}, {}
    for i in range(0, len(names), 2):
        files[shard := f"model-{i}.safetensors"] = safetensors_file(rng, names[i : i + 2], changes=(0,) * 9 + (1,))
        placed |= dict.fromkeys(names[i : i + 2], shard)
    if rng.random() < 0.2:
        files["model.bin"] = torch_zip(rng)
        placed |= dict.fromkeys(golden_names("zip"), "model.bin")
    if rng.random() < 0.1:
        placed[rng.choice(("more", rng.choice(names)))] = rng.choice((index, *OTHER_NAMES))
    files[index] = mutated_json(rng, {"metadata": {"total_size": 100}, "weight_map": placed})
    if rng.random() < 0.1:
        there = list(files.items())
        rearrange(rng, there, lambda item: (rng.choice([*files]), item[1]))
        files = dict(there)
    return rng.choice((index, "")), files


# --- TensorFlow: protobufs in a table, and data files


class Field(NamedTuple):
    number: int
    wire: int
    value: int | bytes  # bytes also for a varint written otherwise than usual


class Bundle(NamedTuple):
    items: list[tuple[bytes, bytes]]  # of the index
    shards: list[bytes]


@functools.cache
def bundles() -> list[Bundle]:
    """TensorFlow's own, of every type and of slices in grids and shards, and one of ours with BERT's names."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "bert.ckpt"
        shapes = {"bert/encoder/layer_0/output/dense/kernel": (4, 3), "bert/pooler/dense/bias": (3,), "global_step": ()}
        entries = {name: of_array(name, np.ones(shape, np.float32)) for name, shape in shapes.items()}
        tensorflow.write(ours, entries)
        prefixes = [ours, *(GOLDEN / "tensorflow" / f"{name}.ckpt" for name in ("types", "partitioned"))]
        return [
            Bundle(
                table.read_table(Path(f"{prefix}.index").read_bytes(), ""),
                [path.read_bytes() for path in sorted(prefix.parent.glob(prefix.name + ".data-*"))],
            )
            for prefix in prefixes
        ]


def fields(data: bytes) -> list[Field]:
    """Of a well-formed message; of any other, none."""
    found, at = [], 0
    try:
        while at < len(data):
            tag, at = varint(data, at, "")
            if tag & 7 == 0:
                value: int | bytes
                value, at = varint(data, at, "")
            else:
                size, at = varint(data, at, "") if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
                value = data[at : at + size]
                at += size
            found.append(Field(tag >> 3, tag & 7, value))
    except (CheckpointError, KeyError):
        return []
    return found if at == len(data) else []


def message(parts: Iterable[Field]) -> bytes:
    """The encoded message; types and values need not fit each other."""
    result = bytearray()
    for number, wire, value in parts:
        result += encode_varint(number << 3 | wire)
        if isinstance(value, int):
            result += encode_varint(value) if wire in (0, 2) else value.to_bytes(17, "little", signed=True)[: 12 - wire]
        else:
            result += encode_varint(len(value)) + value if wire == 2 else value
    return bytes(result)


def mutate_message(rng: Rng, data: bytes) -> bytes:
    """The message with one field changed, in it or in a message inside it."""

    def changed(field: Field) -> Field:
        number, wire, value = field
        kind = rng.randrange(20)
        if kind == 0:
            return Field(rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 2**29)), wire, value)
        if kind == 1:
            return Field(number, rng.randrange(8), value)
        if kind == 2:
            return Field(number, 2, data)  # itself, inside itself
        if isinstance(value, bytes):
            return Field(number, wire, mutate_message(rng, value))
        if kind == 3:  # longer than it need be, and than it may be
            return Field(number, wire, encode_varint(value | 1 << 63)[:-1] + b"\x80" * rng.randrange(3) + b"\0")
        return Field(number, wire, rng.choice((value + 1, value - 1, value * 2, rng.choice(INTEGERS))))

    parts = fields(data)
    if not parts or rng.random() < 0.05:
        return damage(rng, data)
    rearrange(rng, parts, changed)
    return message(parts)


def resealed(value: bytes, shards: list[bytes]) -> bytes:
    """A BundleEntryProto with the checksum of the bytes that it now names."""
    parts = fields(value)
    numbers = {field.number: field.value for field in parts}
    shard, begin, size = (numbers.get(number, 0) for number in (3, 4, 5))
    if not all(isinstance(number, int) for number in (shard, begin, size)) or shard >= len(shards):
        return value
    raw = shards[shard][begin : begin + size]
    crc = table.masked_crc(raw).to_bytes(4, "little")
    return message([field for field in parts if field.number != 6] + [Field(6, 5, crc)])


def rekeyed(items: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The slices' entries under the keys that their tensors' entries now ask for."""
    kept = [item for item in items if not item[0].startswith(b"\0")]
    entries = [value for key, value in items if key.startswith(b"\0")]
    for key, value in kept[:]:
        for field in fields(value):
            if field.number == 7 and isinstance(field.value, bytes) and entries:
                extents = []
                for part in fields(field.value):
                    numbers = dict((f.number, f.value) for f in fields(part.value if part.wire == 2 else b""))
                    start, length = numbers.get(1, 0), numbers.get(2, -1)
                    if isinstance(start, int) and isinstance(length, int):
                        extents.append((start, length))
                kept.append((tensorflow._slice_key(key.decode("utf-8", "replace"), extents), entries.pop(0)))
    return kept


def table_file(rng: Rng, items: list[tuple[bytes, bytes]]) -> bytes:
    """A table of several blocks, some in Snappy, with the checksums of what they hold."""
    lie = Liar(rng)
    result = bytearray()

    def put(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
        block, before = bytearray(), b""
        for i, (key, value) in enumerate(pairs):
            shared = 0
            while i % 16 and shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
            for number in (shared, len(key) - shared, len(value)):
                block += encode_varint(lie(number))
            block += key[shared:] + value
            before = key
        raw = lie.bytes(bytes(block) + bytes(4) + lie(1, 32).to_bytes(4, "little"))
        compressed = rng.random() < 0.3
        if compressed:
            raw = lie.bytes(cramjam.snappy.compress_raw(raw).read())
        sealed = raw + bytes([lie(compressed, 8)])
        place = encode_varint(lie(len(result))) + encode_varint(lie(len(raw)))
        result.extend(sealed + lie(table.masked_crc(sealed), 32).to_bytes(4, "little"))
        return place

    index, step = [], rng.choice((1, 3, 100))
    for i in range(0, len(items), step):
        index.append((items[i : i + step][-1][0], put(items[i : i + step])))
    if rng.random() < 0.05:
        rearrange(rng, index, lambda entry: (lie.bytes(entry[0]), damage(rng, entry[1])))
    footer = put(items if rng.random() < 0.05 else []) + put(index)
    return bytes(result) + footer.ljust(40, b"\0") + lie.bytes(table.MAGIC)


def tensorflow_files(rng: Rng, prefix: str) -> Files:
    bundle = rng.choice(bundles())
    items, shards = list(bundle.items), list(bundle.shards)

    def changed(item: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        key, value = item
        if rng.random() < 0.15:
            return rng.choice((damage(rng, key), b"\0" + key, b"\0", rng.choice(NAMES).encode())), value
        return key, mutate_message(rng, value)

    for _ in range(rng.choice((0, 1, 1, 2))):
        rearrange(rng, items, changed)
    if rng.random() < 0.15:
        rearrange(rng, shards, lambda data: rng.choice((data[: rng.randrange(len(data) + 1)], data * 2, b"")))
    if rng.random() < 0.5:
        items = rekeyed(items)
    if rng.random() < 0.6:
        items = [(key, resealed(value, shards) if key else value) for key, value in items]
    if rng.random() < 0.8:  # each key once, in their order
        items = sorted(dict(items).items())
    header = {field.number: field.value for field in fields(dict(items).get(b"", b""))}
    count = header.get(1, 0) if rng.random() < 0.5 else len(shards)
    count = count if isinstance(count, int) and count < 100_000 else len(shards)
    whole = rng.random() < 0.5
    index = table.write_table(items, compress=rng.random() < 0.3) if whole else table_file(rng, items)
    return {f"{prefix}.index": index} | {
        f"{prefix}.data-{i:05d}-of-{count:05d}": shard for i, shard in enumerate(shards)
    }


def tensorflow_bundle(rng: Rng) -> Case:
    """Items of the index, fields of its messages, blocks of its table, data files; checksums are what they then are."""
    files = tensorflow_files(rng, "x.ckpt")
    if rng.random() < 0.1:
        line = b'model_checkpoint_path: "%s"\n' % rng.choice(("x.ckpt", "/y/x.ckpt", *OTHER_NAMES)).encode()
        return "", files | {"checkpoint": damage(rng, line) if rng.random() < 0.5 else line}
    return rng.choice(("x.ckpt", "x.ckpt.index", rng.choice([*files]), "")), files


# --- zips, and the pickles in them


def zip_file(rng: Rng, members: Iterable[tuple[str, bytes]], deflated: bool) -> bytes:
    """A zip of these files, with true lengths and checksums but for what the liar says."""
    lie = Liar(rng)
    result, directory, count = bytearray(), bytearray(), 0
    for name, content in members:
        method = lie(8 if deflated and rng.random() < 0.8 else 0, 16)
        packed = lie.bytes(zlib.compress(content, wbits=-15) if method == 8 else content)
        crc = lie(0 if rng.random() < 0.05 else zlib.crc32(content), 32)
        offset, encoded = lie(len(result)), name.encode()
        sizes, extra = [lie(len(packed)), lie(len(content))], b""
        if offset >= 2**32 or max(sizes) >= 2**32 or rng.random() < 0.05:
            extra = struct.pack("<2H3Q", 1, 24, sizes[1], sizes[0], offset)
            sizes, offset = [2**32 - 1] * 2, 2**32 - 1
        extra += struct.pack("<2s2H", b"FB", 2, 0) if rng.random() < 0.2 else b""
        flags = lie(0x800 if rng.random() < 0.5 else 0, 16)

        def header(magic: bytes, *start: int, more: bytes = b"") -> bytes:
            lengths = lie(len(encoded), 16), lie(len(extra), 16)  # noqa: B023 - called at once
            numbers = lie(flags, 16), lie(method, 16), 0, 33, lie(crc, 32), *sizes, *lengths  # noqa: B023
            return magic + struct.pack(f"<{len(start)}H4H3L2H", *start, *numbers) + more  # noqa: B023

        directory += header(b"PK\1\2", 20, lie(20, 16), more=struct.pack("<3H2L", 0, 0, 0, 0, offset))
        directory += lie.bytes(encoded) + lie.bytes(extra)
        result += header(b"PK\3\4", 20) + lie.bytes(encoded) + lie.bytes(extra) + packed
        count += 1
    start, size = lie(len(result)), lie(len(directory))
    result += directory
    if start >= 2**32 or size >= 2**32 or rng.random() < 0.05:
        end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", lie(44), 45, 45, 0, 0, lie(count), count, size, start)
        result += end + struct.pack("<4sLQL", b"PK\6\7", 0, lie(len(result)), lie(1, 32))
        start, size = 2**32 - 1, 2**32 - 1
    comment = rng.choice((b"", b"", b"", b"comment"))
    result += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, start, lie(len(comment), 16)) + comment
    return damage(rng, bytes(result)) if rng.random() < 0.02 else bytes(result)


def google_zip(rng: Rng) -> Case:
    """Headers, directory and deflated bytes of a zip as Google's, and what is in it."""
    folder = rng.choice(("", "uncased_L-2/", "../", "/", "a\\..\\"))
    members = list(tensorflow_files(rng, folder + "bert_model.ckpt").items()) if rng.random() < 0.3 else []
    if not members:
        bundle = rng.choice(bundles())
        members = [(f"{folder}bert_model.ckpt.index", table.write_table(bundle.items))]
        members += [
            (f"{folder}bert_model.ckpt.data-{i:05d}-of-{len(bundle.shards):05d}", shard)
            for i, shard in enumerate(bundle.shards)
        ]
    members += [(folder + "bert_config.json", b"{}"), (folder + "vocab.txt", b"[PAD]\n"), (folder + "more.txt", b"")]
    if rng.random() < 0.3:
        others = (*OTHER_NAMES[:9], "other.ckpt.index", "x/vocab.txt", "bert_model.ckpt.data-00007-of-00009")
        rearrange(rng, members, lambda member: rng.choice((
            (folder + rng.choice(others), member[1]), (member[0], damage(rng, member[1])),
            (member[0], bytes(rng.choice((10**4,) * 20 + (12 * 10**6,)))),
        )))  # fmt: skip
    return "google.zip", {"google.zip": zip_file(rng, members, deflated=True)}


def opcodes(stream: io.BytesIO) -> list[bytes]:
    """The opcodes of the next pickle, each with its argument."""
    begin = stream.tell()
    places = [place for _, _, place in pickletools.genops(stream)]
    data = stream.getvalue()[begin : stream.tell()]
    places = [*(place - begin for place in places), len(data)]
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


def pushed(value: object) -> bytes:
    """The opcodes that push it, without those that begin and end a pickle."""
    return pickle.dumps(value, 2)[2:-1]


@functools.cache
def torch_files(form: str) -> list[tuple[list[list[bytes]], list[bytes]]]:
    """Torch's own files, the smallest first: the opcodes of their pickles, and the bytes of their storages."""
    found = []
    for path in sorted((GOLDEN / "pytorch").glob("*.bin"), key=lambda path: (path.stat().st_size, path)):
        data = path.read_bytes()
        if data.startswith(b"PK") == (form == "zip"):
            if form == "zip":
                members = zip_members(data)
                top = next(content for name, content in members.items() if name.endswith("/data.pkl"))
                keys = [name for name in members if "/data/" in name]
                storages = [members[name] for name in sorted(keys, key=lambda name: int(name.rpartition("/")[2]))]
                found.append(([opcodes(io.BytesIO(top))], storages))
            else:
                stream = io.BytesIO(data)
                found.append(([opcodes(stream) for _ in range(5)], [stream.read()]))
    return found


def torch_file(rng: Rng, form: str) -> tuple[list[list[bytes]], list[bytes]]:
    """Most often the smallest, which has a few tensors and takes a fifth of the others' time."""
    found = torch_files(form)
    return found[0] if rng.random() < 0.8 else rng.choice(found)


def zip_members(data: bytes) -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


@functools.cache
def golden_names(form: str) -> list[str]:
    return [*json.loads((GOLDEN / "pytorch" / "tensors.json").read_text())["files"][form]]


@functools.cache
def opcode_pool() -> list[bytes]:
    """Opcodes to put in: those of all files, others that a state dict has not, and numbers of all sizes."""
    of_files = {
        opcode for form in ("zip", "legacy") for pickles, _ in torch_files(form) for p in pickles for opcode in p
    }
    strange = [bytes([code]) for code in range(256)]
    hostile = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor\n",
               b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\xff", b"\x8b\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"h\0",
               b"ctorch.storage\nUntypedStorage\n", b"ctorch\nuint16\n", b"L" + b"9" * 9000 + b"L\n"]  # fmt: skip
    pushes = [pushed(value) for value in (*NAMES, *SHAPES, True, None, 1.5, [], {}, [["a", 1]])]
    return [*sorted(of_files), *strange, *hostile, *pushes]


def mutate_pickle(rng: Rng, pickled: list[bytes]) -> list[bytes]:
    """The opcodes with one or two changed: most often a number, for those are sizes, offsets and strides."""
    result = list(pickled)

    def changed(opcode: bytes) -> bytes:
        if opcode[:1] in b"KMJ" and rng.random() < 0.9:
            value = int.from_bytes(opcode[1:], "little")
            return pushed(rng.choice((value + 1, value - 1, value * 2, 0, 1, 2, 3, rng.choice(INTEGERS))))
        return rng.choice(opcode_pool())

    for _ in range(rng.choice((0, 1, 1, 2))):
        numbers = [i for i, opcode in enumerate(result) if opcode[:1] in b"KMJ"]
        if numbers and rng.random() < 0.5:
            result[at] = changed(result[at := rng.choice(numbers)])
        elif rng.random() < 0.1:  # a part of another pickle
            other = rng.choice(rng.choice(torch_files("zip"))[0])
            begin, at = rng.randrange(len(other)), rng.randrange(len(result))
            result[at:at] = other[begin : begin + rng.randint(1, 40)]
        else:
            rearrange(rng, result, changed)
    return result


def torch_zip(rng: Rng) -> bytes:
    (pickled,), storages = torch_file(rng, "zip")
    top = b"".join(mutate_pickle(rng, pickled))
    if rng.random() < 0.03:
        top = damage(rng, top)
    members = [("x/data.pkl", top), ("x/byteorder", b"little"), ("x/version", b"3\n")]
    members += [(f"x/data/{i}", storage) for i, storage in enumerate(storages)]
    if rng.random() < 0.15:
        rearrange(rng, members, lambda member: rng.choice((
            (rng.choice(("x/data/1", "y/data.pkl", "x/byteorder", *OTHER_NAMES)), member[1]),
            (member[0], damage(rng, member[1])),
        )))  # fmt: skip
    return zip_file(rng, members, deflated=rng.random() < 0.02)


def torch(rng: Rng) -> Case:
    """Opcodes of the pickle, the storages, headers and directory of the zip; checksums are what they then are."""
    return rng.choice(("pytorch_model.bin", "")), {"pytorch_model.bin": torch_zip(rng)}


def torch_legacy(rng: Rng) -> Case:
    """Opcodes of the five pickles, the storages' keys, counts and bytes."""
    pickles, (tail,) = torch_file(rng, "legacy")
    pickles = list(pickles)
    if rng.random() < 0.9:
        at = rng.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 4))
        pickles[at] = mutate_pickle(rng, pickles[at])
    if rng.random() < 0.02:
        rearrange(rng, pickles, lambda pickled: mutate_pickle(rng, pickled))
    if rng.random() < 0.1:
        count = rng.choice(INTEGERS) % 2**64
        tail = rng.choice((damage(rng, tail), count.to_bytes(8, "little") + tail[8:], tail[: rng.randrange(len(tail))]))
    return "old.bin", {"old.bin": b"".join(opcode for pickled in pickles for opcode in pickled) + tail}
