"""Checkpoints: `load` turns one of any known format, or random:SHAPE, into a config and arrays; `save` writes one.
`find` is `load` up to the weights, for who has something to check before it waits for those.

Strict about tensors: each parameter is filled exactly once with the right shape and finite values, each
tensor of the file is used or listed as unused, and only the fine-tuning head may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from minibert import files, models
from minibert.checkpoint import archive, huggingface, names, sources
from minibert.checkpoint.sources import Source
from minibert.checkpoint.tensors import Entry, of_array
from minibert.config import BertConfig, ignored_keys, is_own
from minibert.errors import CheckpointError, ConfigError

CONFIGS = ("config.json", "bert_config.json")
RANDOM = "random:"
_HEADS = {"classifier": names.HEAD, "span head": names.SPANS}


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found. The arrays are float32 and may be read-only views of the mapped file."""

    config: BertConfig
    arrays: dict[str, np.ndarray]  # our names (checkpoint.names); with or without the classifier
    unused: tuple[str, ...]  # the file's tensors that belong to other heads
    ignored: tuple[str, ...]  # the config's keys that mean nothing to us
    vocab: Path | None  # the vocabulary that belongs to it, where there is one
    path: Path | None  # the directory that config and vocabulary are in; None for random weights
    file: Path | None  # whose checksum tells it from others

    @property
    def missing_head(self) -> bool:
        """Neither a classifier nor, where that was asked for, a head that marks answers."""
        return names.HEAD[0] not in self.arrays and names.SPANS[0] not in self.arrays


@dataclass(frozen=True)
class Unread:
    """A checkpoint of which everything is known but the weights, which `read` reads or draws."""

    config: BertConfig
    weights: Callable[[], dict[str, np.ndarray]]  # what the arrays of the Checkpoint will be
    unused: tuple[str, ...]
    ignored: tuple[str, ...]
    vocab: Path | None
    path: Path | None
    file: Path | None

    def read(self) -> Checkpoint:
        """The checkpoint; raises CheckpointError naming the tensor that is damaged or not finite."""
        return Checkpoint(self.config, self.weights(), self.unused, self.ignored, self.vocab, self.path, self.file)


def load(source: Path | str, seed: int = 0, config_file: Path | None = None, spans: bool = False) -> Checkpoint:
    """Reads the checkpoint that `source` is (see `sources.find`), or makes the weights of `random:base` from `seed`.

    The config is the one beside the weights, or in `config_file`. `spans` asks for the head that marks answers, if
    there is one, in place of pooler and classifier. Raises CheckpointError naming the tensor that is
    missing, extra, twice there, misshapen or not finite, and ConfigError for a config that describes another model.
    """
    return find(source, seed, config_file, spans).read()


def find(source: Path | str, seed: int = 0, config_file: Path | None = None, spans: bool = False) -> Unread:
    """As `load`, up to the weights: the errors are the same, but for those about values."""
    with files.one_line(source, "read", CheckpointError):
        if str(source).startswith(RANDOM):
            return _random(str(source).removeprefix(RANDOM), seed, spans)
        found = sources.find(Path(source))
        path = config_file or config_path(found.folder)
        if path is None:
            raise CheckpointError(f"{found.folder}: has no {' or '.join(CONFIGS)}: put the model's own there")
        config, ignored = _read_config(path)
        entries, unused = _assign(found, config, spans)
        vocab = found.folder / "vocab.txt"

    def weights() -> dict[str, np.ndarray]:
        with files.one_line(source, "read", CheckpointError):
            return {name: entry.read() for name, entry in entries.items()}

    return Unread(config, weights, unused, ignored, vocab if vocab.is_file() else None, found.folder, found.file)


def save(
    folder: Path | str,
    config: BertConfig,
    arrays: Mapping[str, np.ndarray],
    max_shard_bytes: int | None = None,
) -> None:
    """Writes config.json and the weights, each file whole, as transformers and `load` read them."""
    folder = Path(folder)
    outputs = len(arrays[names.HEAD[0]]) if names.HEAD[0] in arrays else None
    spans = names.SPANS[0] in arrays
    wanted = names.shapes(config, outputs, spans)
    for name in [*wanted, *arrays]:
        if name not in arrays or name not in wanted:
            raise CheckpointError(f"{folder}: tensor {name} is {'extra' if name in arrays else 'missing'}: not saved")
        if arrays[name].shape != wanted[name]:
            raise CheckpointError(f"{folder}: tensor {name} is {arrays[name].shape}, not {wanted[name]}: not saved")
        if arrays[name].dtype != np.float32:
            raise CheckpointError(f"{folder}: tensor {name} is {arrays[name].dtype}, not float32: not saved")
    _check_labels(config, outputs, folder)
    entries = {names.to_huggingface(name): of_array(name, arrays[name]) for name in wanted}
    huggingface.write_folder(folder, entries, max_shard_bytes)
    save_config(folder, config, spans)


def save_config(folder: Path, config: BertConfig, spans: bool) -> None:
    """Writes config.json alone, of a classifier or with `spans` of a model that marks answers."""
    files.write_whole(folder / CONFIGS[0], json.dumps(config.to_dict(spans), indent=2).encode() + b"\n")


def _assign(found: Source, config: BertConfig, spans: bool) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """The entries under our names, in the model's order, and the names of the tensors left unused."""
    entries = found.tensors
    heads = {kind: [name for name in head if name in entries] for kind, head in _HEADS.items()}
    for kind, head in heads.items():
        if len(head) == 1:
            raise CheckpointError(
                f"{found.path}: has {head[0]} without the rest of the {kind}: get the checkpoint again"
            )
    # The file says how many outputs the classifier has; everything else the config says.
    shape = entries[names.HEAD[0]].shape if heads["classifier"] else ()
    outputs = shape[0] if shape else None
    if heads["classifier"] and not outputs:
        raise CheckpointError(f"{found.path}: tensor classifier.weight has shape {shape}: get the checkpoint again")
    _check_labels(config, outputs, found.path)
    wanted = names.shapes(config, outputs, spans)
    if spans and not heads["span head"]:
        wanted = {name: shape for name, shape in wanted.items() if name not in names.SPANS}
    known = wanted.keys() | (names.shapes(config, outputs).keys() if spans else ())
    unused = []
    for name, entry in entries.items():
        if name not in wanted:
            if names.is_parameter(name) and name not in known:
                raise CheckpointError(f"{found.path}: tensor {name!r} is extra: the config has no such layer")
            if name not in known and not names.is_other_head(name) and not names.is_extra(name):
                raise CheckpointError(f"{entry.where}: is no part of BERT: give a plain BERT checkpoint")
            if not names.is_buffer(name):
                unused.append(name)
    for name, shape in wanted.items():
        if name not in entries and name.startswith("pooler.") and heads["span head"]:
            raise CheckpointError(
                f"{found.path}: answers questions and has no {name}, which a classifier needs: minibert answer and "
                "minibert.load_squad take it"
            )
        if name not in entries:
            raise CheckpointError(f"{found.path}: tensor {name} is missing: get a complete checkpoint")
        if entries[name].shape != shape:
            raise CheckpointError(f"{entries[name].where}: is {entries[name].shape}, the config says {shape}")
    return {name: entries[name] for name in wanted}, tuple(sorted(unused))


def _check_labels(config: BertConfig, outputs: int | None, where: Path) -> None:
    if outputs is not None and config.id2label and len(config.id2label) != outputs:
        raise CheckpointError(
            f"{where}: tensor classifier.weight has {outputs} outputs, "
            f"but the config names {len(config.id2label)} labels"
        )


def _read_config(path: Path) -> tuple[BertConfig, tuple[str, ...]]:
    raw = files.read_json(path, ConfigError)
    config = BertConfig.from_dict(raw, str(path), own=is_own(raw))
    return config, ignored_keys(raw)


def read_config(source: Path | str) -> BertConfig:
    """The config alone of what `load` reads: of random:SHAPE, a directory, a zip, or a file with one beside it."""
    name = str(source)
    if name.startswith(RANDOM) and name.removeprefix(RANDOM) in models.NAMES:
        return models.config(name.removeprefix(RANDOM))
    place = Path(name.removeprefix(RANDOM))
    if place.is_file() and archive.is_archive(place):
        raw = files.parse_json(archive.config(place), f"{place}: {archive.CONFIG}", ConfigError)
        return BertConfig.from_dict(raw, str(place), own=is_own(raw))
    is_config = place.suffix == ".json" and not place.name.endswith(sources.SHARDED)
    path = config_path(place) if place.is_dir() else place if is_config else config_path(place.parent)
    if path is None or not path.is_file():
        raise CheckpointError(f"{source}: has no {' or '.join(CONFIGS)} beside it: give its directory or random:SHAPE")
    return _read_config(path)[0]


def architecture(folder: Path) -> str | None:
    """The name of the model that a directory's config.json says it is, or None."""
    path = folder / CONFIGS[0]
    named = files.read_json(path, ConfigError).get("architectures") if path.is_file() else None
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def config_path(folder: Path) -> Path | None:
    """The config in a checkpoint's directory, as transformers or as Google names it."""
    return next((folder / name for name in CONFIGS if (folder / name).is_file()), None)


def _random(shape: str, seed: int, spans: bool) -> Unread:
    """Weights of a named shape, or of the config at a path, drawn from `seed`; no head."""
    from minibert.random import initial_weights

    vocab: Path | None = models.VOCAB
    ignored: tuple[str, ...] = ()
    if shape in models.NAMES:
        config = models.config(shape)
    else:
        path = Path(shape)
        path = (config_path(path) or path / CONFIGS[0]) if path.is_dir() else path
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
    wanted = {name: shape for name, shape in names.shapes(config, spans=spans).items() if name not in names.SPANS}
    draw = partial(initial_weights, wanted, config.initializer_range, seed)
    return Unread(config, draw, (), ignored, vocab, None, None)
