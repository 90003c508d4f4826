"""Writes a checkpoint in another format: the same values to the bit, under that format's names and orientation.

A tensor that the table of names does not know keeps its name. Types stay what they are. One tensor at a time is in
memory.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert import files, latest, remote
from minibert.checkpoint import config_path, huggingface, names, pytorch, sources, tensorflow
from minibert.checkpoint.sources import Source
from minibert.checkpoint.tensors import Entry
from minibert.config import BertConfig
from minibert.errors import CheckpointError, ConfigError
from minibert.tokenizer import ADDED, FILES, Tokenizer

TOKENIZER = (*FILES, ADDED)
VOCAB, WHOLE, SETTINGS, *_ = FILES


@dataclass(frozen=True)
class Format:
    """Where a format has what: the weights, the config, and the optimizer where it has a file of its own."""

    weights: str
    config: str
    optimizer: str | None
    write: Callable[[Path, Mapping[str, Entry]], None]


FORMATS = {
    "hf": Format("model.safetensors", "config.json", "optimizer.safetensors", huggingface.write),
    "tensorflow": Format("bert_model.ckpt", "bert_config.json", None, tensorflow.write),
    "torch": Format("pytorch_model.bin", "config.json", "optimizer.bin", pytorch.write),
}

OPTIMIZERS = tuple(form.optimizer for form in FORMATS.values() if form.optimizer)
BESIDE = (*TOKENIZER, *OPTIMIZERS)  # what stands beside weights, and must not be left beside others


@dataclass(frozen=True)
class Converted:
    """What was written: the folder, how many tensors and bytes, and what a complete BERT would have besides."""

    folder: Path
    tensors: int
    bytes: int
    missing: tuple[str, ...]


def convert(
    source: Path, target: Path, form: str, optimizer: bool = False, overwrite: bool = False,
    standing: Collection[str] = (),
) -> Converted:  # fmt: skip
    """Writes the checkpoint `source` into the folder `target` as `form`: hf, tensorflow or torch.

    Config and vocabulary come along; from a vocabulary alone, such as Google's, the tokenizer's settings are made that
    transformers reads, which else takes a cased model for an uncased one. `optimizer` carries Adam's moments over: in
    TensorFlow's checkpoint beside the variables, else in a file of their own under the names NAME/adam_m and
    NAME/adam_v. Raises CheckpointError where tensors do not fit the config, where there is nothing to carry over, where
    a file would be replaced without `overwrite`, which also removes the rest of another tokenizer and other weights'
    moments, or where other weights in the folder would be read instead of these. `standing`: of a target that will be
    published at gs://, what stands there and is not in `target`.
    """
    found = sources.find(source)
    path = config_path(found.folder)
    if path is None:
        raise CheckpointError(f"{found.folder}: has no config.json or bert_config.json: put the model's own there")
    raw = files.read_json(path, ConfigError)
    config = BertConfig.from_dict(raw, str(path))
    missing = check(found, config)
    chosen = FORMATS[form]
    written = {chosen.weights: named(found.tensors, found.tensors, form)}
    if optimizer:
        slots = named(_slots(found), found.tensors, form)
        if chosen.optimizer is None:
            written[chosen.weights] |= slots
        else:
            written[chosen.optimizer] = slots
    copied = {name: found.folder / name for name in TOKENIZER if (found.folder / name).is_file()}
    tokenizer = None
    if form != "tensorflow" and VOCAB in copied and not copied.keys() & {WHOLE, SETTINGS}:
        with contextlib.suppress(CheckpointError):  # a vocabulary that is none is no reason to lose the weights
            tokenizer, copied = Tokenizer.load(found.folder), {}
    places = [*written, chosen.config, *(TOKENIZER if tokenizer else copied)]
    _check_free(target, form, places, (found.path, path), overwrite, standing)
    for name, entries in written.items():
        chosen.write(target / name, entries)
    if overwrite and remote.name(target.resolve()) != remote.name(found.folder.resolve()):
        for name in {*OPTIMIZERS, *(TOKENIZER if copied else ())} - written.keys() - copied.keys():
            (target / name).unlink(missing_ok=True)  # no part of another's is to be left
    text = json.dumps(raw if form == "tensorflow" else _described(raw, found.tensors), indent=2)
    files.write_whole(target / chosen.config, text.encode() + b"\n")
    for name, place in copied.items():
        with files.one_line(place, "read", CheckpointError):
            content = place.read_bytes()
        files.write_whole(target / name, content)
    if tokenizer:
        tokenizer.save(target, config.max_position_embeddings)
    sizes = [entry.nbytes for part in written.values() for entry in part.values()]
    return Converted(target, len(sizes), sum(sizes), missing)


def _check_free(
    target: Path, form: str, written: Iterable[str], own: tuple[Path, ...], overwrite: bool, standing: Collection[str]
) -> None:
    """Raises CheckpointError where a file would be replaced unasked, and where one that is none of the source's `own`
    would be read instead.
    """

    def stands(place: Path) -> bool:
        return place.exists() or place.name in standing

    places = [target / name for name in written]
    if form == "tensorflow":
        places[:1] = tensorflow.written(places[0])
    if there := [place for place in places if stands(place) and not overwrite]:
        raise CheckpointError(f"{remote.name(there[0])}: is there already: choose another place or add --overwrite")
    preferred = [*sources.USUAL, latest.NAME, FORMATS["hf"].config]
    if form != "tensorflow":
        preferred = preferred[: preferred.index(FORMATS[form].weights)]
    for place in (target / name for name in preferred):
        if stands(place) and not any(_same(place, other) for other in own):
            raise CheckpointError(
                f"{remote.name(place)}: would be read instead of what is written: remove it or choose another place"
            )


def _same(place: Path, other: Path) -> bool:
    """Whether two paths are of one file, or of copies of one that stands at gs://."""
    return (place.exists() and other.exists() and place.samefile(other)) or remote.name(place) == remote.name(other)


def check(found: Source, config: BertConfig) -> tuple[str, ...]:
    """The parameters that `found` lacks: the pooler may be left out, as transformers does for some heads.

    Raises CheckpointError for any other that is missing and for a shape that is not the config's.
    """
    head = found.tensors.get(names.HEAD[0])
    missing = []
    for name, shape in names.shapes(config, head.shape[0] if head and head.shape else None).items():
        if name not in found.tensors:
            if not name.startswith("pooler."):
                raise CheckpointError(f"{found.path}: tensor {name} is missing: get a complete checkpoint")
            missing.append(name)
        elif found.tensors[name].shape != shape:
            where = found.tensors[name].where
            raise CheckpointError(f"{where}: is {found.tensors[name].shape}, the config says {shape}")
    return tuple(missing)


def named(entries: Mapping[str, Entry], model: Mapping[str, Entry], form: str) -> dict[str, Entry]:
    """The entries of a model, or of its optimizer, as the format `form` names and orients them."""
    prefix = any(name in names.HEAD or names.is_other_head(name) for name in model)
    result = {}
    for name, entry in entries.items():
        parameter, slot = names.split_slot(name)
        if form == "tensorflow":
            theirs, transposed = names.to_tensorflow(parameter)
        else:
            theirs, transposed = names.to_huggingface(parameter, prefix), False
        result[theirs + slot] = entry.transposed() if transposed else entry
    return result


def _slots(found: Source) -> dict[str, Entry]:
    """Adam's moments and the step, from the checkpoint or from the file beside it."""
    if found.slots:
        return found.slots
    for form in FORMATS.values():
        if form.optimizer and (found.folder / form.optimizer).is_file():
            return sources.find(found.folder / form.optimizer).slots
    raise CheckpointError(f"{found.path}: has no optimizer's moments to carry over: leave --optimizer out")


def _described(raw: dict[str, Any], tensors: Mapping[str, Entry]) -> dict[str, Any]:
    """The config with what transformers wants to be told and Google's does not tell."""
    if "cls.predictions.bias" in tensors:
        kind = "PreTraining" if "cls.seq_relationship.bias" in tensors else "MaskedLM"
    else:
        kind = "SequenceClassification" if names.HEAD[0] in tensors else ""
        kind = "QuestionAnswering" if "qa_outputs.bias" in tensors else kind
    described = {"model_type": "bert", "architectures": [f"BertFor{kind}" if kind else "BertModel"], **raw}
    if kind == "SequenceClassification" and "id2label" not in raw:
        labels = [f"LABEL_{i}" for i in range(tensors[names.HEAD[0]].shape[0])]
        described["id2label"] = {str(i): label for i, label in enumerate(labels)}
        described["label2id"] = {label: i for i, label in enumerate(labels)}
    return described
