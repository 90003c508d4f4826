"""Where the weights are: finds them in a file, a directory, a prefix or a zip, by content and not by extension.

Whatever the form, what comes out is the same: entries under our names (checkpoint.names) in our orientation.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from minibert import files, latest
from minibert.checkpoint import archive, huggingface, names, pytorch, table, tensorflow
from minibert.checkpoint.tensors import Entry, Stored
from minibert.errors import CheckpointError

READS = "give safetensors, a PyTorch file, a TensorFlow checkpoint, Google's zip, or a directory that holds one"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # of a file of such a name the content is damaged
SHARDED = ".index.json"
_TENSORFLOW_FILE = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$")
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[^/\\:]{1,200}")
_LEGACY = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # the number that PyTorch's files began with before 1.6
# What a directory's weights are called, the first that is there; otherwise the one file that is recognised.
USUAL = (
    huggingface.SINGLE, huggingface.INDEX, "pytorch_model.bin", "pytorch_model.bin" + SHARDED,
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What was found, and its tensors under our names in our orientation, those of no row under their own."""

    stored: Stored
    folder: Path  # where the config and the vocabulary lie
    tensors: dict[str, Entry]
    slots: dict[str, Entry]  # Adam's, apart: NAME/adam_m, NAME/adam_v, global_step

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def file(self) -> Path:
        """The file that tells this checkpoint from others: TensorFlow's index has every tensor's checksum."""
        return self.path.with_name(self.path.name + ".index") if self.stored.format == "tensorflow" else self.path


def find(source: Path) -> Source:
    """Opens what `source` holds. Raises CheckpointError naming the file and what is wrong with it."""
    if source.is_file() and archive.is_archive(source):
        source = archive.unpack(source)
    stored = _read(source)
    tensors: dict[str, Entry] = {}
    slots: dict[str, Entry] = {}
    theirs: dict[str, str] = {}
    for name, entry in stored.entries.items():
        ours, entry = _ours(name, entry, stored.format == "tensorflow")
        if ours in theirs:
            raise CheckpointError(
                f"{stored.path}: tensors {theirs[ours][:200]!r} and {name[:200]!r} are the same parameter {ours[:200]}"
            )
        theirs[ours] = name
        is_slot = ours == names.GLOBAL_STEP or names.split_slot(ours)[1]
        (slots if is_slot else tensors)[ours] = entry
    folder = source if source.is_dir() else source.parent
    return Source(stored, folder, tensors, slots)


def _ours(name: str, entry: Entry, tensorflow: bool) -> tuple[str, Entry]:
    variable, slot = names.split_slot(name)
    if tensorflow:
        ours, transposed = names.from_tensorflow(variable) or (variable, False)
    else:
        ours, transposed = names.from_huggingface(variable) or variable, False
    return ours + slot, entry.transposed() if transposed else entry


def _read(source: Path) -> Stored:
    """The tensors of a file, a directory or TensorFlow's prefix under their own names."""
    if source.is_dir():
        return _read_folder(source)
    if source.is_file():
        return _read_file(source)
    prefix = _prefix(source)
    if prefix is None:
        raise CheckpointError(f"{source}: there is no such checkpoint: {READS}")
    return tensorflow.read(prefix)


def _read_folder(folder: Path) -> Stored:
    for name in USUAL:
        if (folder / name).is_file():
            return _read_file(folder / name)
    with files.one_line(folder, "read", CheckpointError):
        newest = latest.newest(folder)
        if newest is not None:
            if not os.path.isfile(folder / f"{newest}.index"):
                path = folder / latest.NAME
                raise CheckpointError(f"{path}: names {newest[:200]!r}, and there is no such file: {READS}")
            return tensorflow.read(folder / newest)
        found = [path for path in sorted(folder.iterdir()) if path.is_file() and _kind(path)]
    if len(found) > 1:
        listed = ", ".join(path.name for path in found[:5])
        raise CheckpointError(f"{folder}: holds several checkpoints ({listed}): give the path of one")
    if not found:
        raise CheckpointError(f"{folder}: holds no weights: {READS}")
    return _read_file(found[0])


def _read_file(path: Path) -> Stored:
    if path.name.endswith(SHARDED):
        return _read_shards(path)
    kind = _kind(path)
    if kind == "tensorflow":
        if path.suffix != ".index":
            raise CheckpointError(f"{path}: is a TensorFlow index, which must be called PREFIX.index: rename it")
        return tensorflow.read(path.with_suffix(""))
    if kind == "hdf5":
        raise CheckpointError(f"{path}: is a Keras file (HDF5), which is not read: {READS}")
    if kind is None and (prefix := _prefix(path)) is not None:
        return tensorflow.read(prefix)
    if kind is None and path.suffix not in WEIGHTS:
        raise CheckpointError(f"{path}: is no checkpoint: {READS}")
    return pytorch.read(path) if kind == "torch" else huggingface.read(path)


def _prefix(path: Path) -> Path | None:
    """TensorFlow's prefix for itself or one of its files, where there is an index beside it."""
    prefix = path.with_name(_TENSORFLOW_FILE.sub("", path.name))
    return prefix if prefix.with_name(prefix.name + ".index").is_file() else None


def _kind(path: Path) -> str | None:
    """What a file holds by its content; None where it is nothing known."""
    with files.open_read(path, CheckpointError) as file, files.one_line(path, "read", CheckpointError):
        start = file.read(32)
        size = file.seek(0, 2)
        file.seek(max(0, size - len(table.MAGIC)))
        end = file.read()
    if end == table.MAGIC:
        return "tensorflow"
    if start.startswith(archive.MAGIC) or (start[:1] == b"\x80" and _LEGACY in start):
        return "torch"
    if start.startswith(b"\x89HDF\r\n"):
        return "hdf5"
    # 8 bytes, the length of a JSON object that follows
    return "hf" if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8 else None


def _read_shards(index: Path) -> Stored:
    """The tensors of all files that the index of a sharded checkpoint names."""
    placed = files.read_json(index, CheckpointError).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index}: has no weight_map: get the checkpoint again")
    for name, shard in placed.items():
        # An index may only name files beside it; what cannot be printed would break the lines of errors.
        if not isinstance(shard, str) or not _FILE_NAME.fullmatch(shard) or not shard.isprintable():
            raise CheckpointError(f"{index}: tensor {name[:200]!r} is said to be in {str(shard)[:80]!r}: no file name")
    entries: dict[str, Entry] = {}
    format = ""
    for shard in sorted(set(placed.values())):
        path = index.parent / shard
        if not os.path.isfile(path):  # Path.is_file raises for a name of too many bytes
            raise CheckpointError(f"{path}: this shard is missing: get the checkpoint again")
        if shard.endswith(SHARDED):
            raise CheckpointError(f"{index}: names {shard[:80]!r}, which is an index itself: get the checkpoint again")
        stored = _read_file(path)
        format = stored.format
        for name, entry in stored.entries.items():
            if placed.get(name) != shard:
                raise CheckpointError(f"{entry.where}: the index does not place it here: get the checkpoint again")
            entries[name] = entry
    if missing := sorted(placed.keys() - entries.keys()):
        raise CheckpointError(f"{index}: tensor {missing[0][:200]!r} is in no shard: get the checkpoint again")
    return Stored(format, index, entries)
