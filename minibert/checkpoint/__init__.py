"""Checkpoints: `load` turns a directory, or random:SHAPE, into a config and arrays; `save` writes one.

Strict about tensors: each parameter is filled exactly once with the right shape and finite values, each
tensor of the file is used or listed as unused, and only the fine-tuning head may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibert import files, models
from minibert.checkpoint import huggingface, names
from minibert.config import BertConfig, ignored_keys, is_own
from minibert.errors import CheckpointError, ConfigError

CONFIGS = ("config.json", "bert_config.json")
RANDOM = "random:"
READS = "this version reads a directory with config.json and model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found. The arrays are float32 and may be read-only views of the mapped file."""

    config: BertConfig
    arrays: dict[str, np.ndarray]  # our names (checkpoint.names); with or without the classifier
    unused: tuple[str, ...]  # the file's tensors that belong to other heads
    ignored: tuple[str, ...]  # the config's keys that mean nothing to us
    vocab: Path | None  # the vocabulary that belongs to it, where there is one
    path: Path | None  # the directory; None for random weights

    @property
    def missing_head(self) -> bool:
        return names.HEAD[0] not in self.arrays


def load(source: Path | str, seed: int = 0) -> Checkpoint:
    """Reads the checkpoint in the directory `source`, or makes the weights of `random:base` from `seed`.

    Raises CheckpointError naming the tensor that is missing, extra, twice there, misshapen or not finite, and
    ConfigError for a config that describes another model.
    """
    with files.one_line(source, "read", CheckpointError):
        if str(source).startswith(RANDOM):
            return _random(str(source).removeprefix(RANDOM), seed)
        return _load(Path(source))


def _load(folder: Path) -> Checkpoint:
    _recognise(folder)
    path = _config_path(folder)
    if path is None:
        raise CheckpointError(f"{folder}: has no config.json: {READS}")
    config, ignored = _read_config(path)
    arrays, unused = _assign(huggingface.read_folder(folder), config, folder)
    vocab = folder / "vocab.txt"
    return Checkpoint(config, arrays, unused, ignored, vocab if vocab.is_file() else None, folder)


def save(
    folder: Path | str,
    config: BertConfig,
    arrays: Mapping[str, np.ndarray],
    max_shard_bytes: int | None = None,
) -> None:
    """Writes config.json and the weights, each file whole, as transformers and `load` read them."""
    folder = Path(folder)
    outputs = len(arrays[names.HEAD[0]]) if names.HEAD[0] in arrays else None
    wanted = names.shapes(config, outputs)
    for name in [*wanted, *arrays]:
        if name not in arrays or name not in wanted:
            raise CheckpointError(f"{folder}: tensor {name} is {'extra' if name in arrays else 'missing'}: not saved")
        if arrays[name].shape != wanted[name]:
            raise CheckpointError(f"{folder}: tensor {name} is {arrays[name].shape}, not {wanted[name]}: not saved")
    _check_labels(config, outputs, folder)
    huggingface.write_folder(folder, {name: arrays[name] for name in wanted}, max_shard_bytes)
    files.write_whole(folder / "config.json", json.dumps(config.to_dict(), indent=2).encode() + b"\n")


def _assign(
    entries: Mapping[str, huggingface.Entry], config: BertConfig, folder: Path
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The arrays under our names, in the model's order, and the names of the tensors left unused."""
    found: dict[str, str] = {}
    unused = []
    for theirs in entries:
        name = names.from_huggingface(theirs)
        if name is None:
            if not names.is_extra(theirs):
                raise CheckpointError(f"{entries[theirs].where}: is no part of BERT: give a plain BERT checkpoint")
            unused.append(theirs)
        elif name in found:
            raise CheckpointError(f"{folder}: tensors {found[name]!r} and {theirs!r} are the same parameter {name}")
        else:
            found[name] = theirs
    head = [name for name in names.HEAD if name in found]
    if len(head) == 1:
        raise CheckpointError(f"{folder}: has {head[0]} but not the rest of the classifier: get the checkpoint again")
    # The file says how many outputs the head has; everything else the config says.
    shape = entries[found[names.HEAD[0]]].shape if head else ()
    outputs = shape[0] if shape else None
    if head and not outputs:
        raise CheckpointError(f"{folder}: tensor classifier.weight has shape {shape}: get the checkpoint again")
    _check_labels(config, outputs, folder)
    wanted = names.shapes(config, outputs)
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{folder}: tensor {name} is missing: get a complete checkpoint")
        if entries[found[name]].shape != shape:
            raise CheckpointError(
                f"{entries[found[name]].where}: is {entries[found[name]].shape}, the config says {shape}"
            )
    if extra := [name for name in found if name not in wanted]:
        raise CheckpointError(f"{folder}: tensor {found[extra[0]]!r} is extra: the config has no such layer")
    return {name: entries[found[name]].read() for name in wanted}, tuple(sorted(unused))


def _check_labels(config: BertConfig, outputs: int | None, folder: Path) -> None:
    if outputs is not None and config.id2label and len(config.id2label) != outputs:
        raise CheckpointError(
            f"{folder}: tensor classifier.weight has {outputs} outputs, "
            f"but the config names {len(config.id2label)} labels"
        )


def _read_config(path: Path) -> tuple[BertConfig, tuple[str, ...]]:
    raw = files.read_json(path, ConfigError)
    config = BertConfig.from_dict(raw, str(path), own=is_own(raw))
    return config, ignored_keys(raw)


def _config_path(folder: Path) -> Path | None:
    return next((folder / name for name in CONFIGS if (folder / name).is_file()), None)


def _random(shape: str, seed: int) -> Checkpoint:
    """Weights of a named shape, or of the config at a path, drawn from `seed`."""
    from minibert.random import initial_weights

    vocab: Path | None = models.VOCAB
    ignored: tuple[str, ...] = ()
    if shape in models.NAMES:
        config = models.config(shape)
    else:
        path = Path(shape)
        path = (_config_path(path) or path / CONFIGS[0]) if path.is_dir() else path
        if not path.is_file():
            raise CheckpointError(
                f"{RANDOM}{shape}: give one of {', '.join(models.NAMES)}, or the path of a config.json"
            )
        config, ignored = _read_config(path)
        beside = path.with_name("vocab.txt")
        if beside.is_file():
            vocab = beside
        elif config.vocab_size != models.config("base").vocab_size:
            vocab = None
    arrays = initial_weights(names.shapes(config), config.initializer_range, seed)
    return Checkpoint(config, arrays, (), ignored, vocab, None)


# What the first bytes of a file say it is. A format that gets its reader in `load` leaves this table.
_UNREAD = (
    (b"PK\x03\x04", "a zip archive (a PyTorch file or Google's download)"),
    (b"\x80\x02", "an old PyTorch file"),
    (b"\x89HDF", "an HDF5 file"),
)
_TENSORFLOW_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of a TensorFlow index (its table's magic)


def _recognise(path: Path) -> None:
    """Returns where `path` is a directory with safetensors; else says what it is and what is read instead."""
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such checkpoint: {READS}")
    if path.is_dir():
        if any((path / name).is_file() for name in (huggingface.SINGLE, huggingface.INDEX)):
            weights = path / huggingface.SINGLE
            if weights.is_file() and (kind := _kind(weights)):
                raise CheckpointError(f"{weights}: is {kind} in spite of its name, which is not read yet: {READS}")
            return
        for child in sorted(child for child in path.iterdir() if child.is_file()):
            if kind := _kind(child):
                raise CheckpointError(f"{child}: is {kind}, which is not read yet: {READS}")
        raise CheckpointError(f"{path}: has no {huggingface.SINGLE}: {READS}")
    kind = _kind(path) or "a file"
    raise CheckpointError(f"{path}: is {kind}, not a directory: {READS}")


def _kind(path: Path) -> str | None:
    """What a file that is not safetensors holds, by its content; None where it is not known."""
    with files.open_read(path, CheckpointError) as file:
        start = file.read(8)
        file.seek(max(0, path.stat().st_size - len(_TENSORFLOW_END)))
        if file.read() == _TENSORFLOW_END:
            return "a TensorFlow checkpoint"
    return next((kind for magic, kind in _UNREAD if start.startswith(magic)), None)
