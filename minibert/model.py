"""A classifier in use: a checkpoint, its tokenizer and its label names; texts in, labels and probabilities out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from minibert import batch, checkpoint, hub, models, remote, runs, tasks
from minibert.autograd import untaped
from minibert.bert import Bert
from minibert.checkpoint import Checkpoint, Unread
from minibert.config import BertConfig
from minibert.errors import CheckpointError, ConfigError, DataError, RunError
from minibert.kernels import devices
from minibert.kernels.devices import Device
from minibert.runs import read_description
from minibert.settings import check_counts, settled_device, settled_precision
from minibert.tokenizer import Features, Tokenizer

BATCH = 32  # examples computed at a time outside training, at most
SPARE_ROWS = 128  # word embeddings beyond the vocabulary that are taken for padding


@dataclass(frozen=True)
class Prediction:
    """The most probable label and the probability of each; a regression gives a number and no probabilities."""

    label: str | float
    probabilities: dict[str, float]


class Model:
    """A fine-tuned BERT. `labels` are the names of its outputs, in order; () means one output, a regression.

    `pairs`: whether it was trained on pairs of texts, if that is known.
    """

    def __init__(
        self, bert: Bert, tokenizer: Tokenizer, labels: tuple[str, ...], max_seq_length: int, pairs: bool | None = None
    ):
        self.bert, self.tokenizer, self.labels = bert, tokenizer, labels
        self.max_seq_length, self.pairs = max_seq_length, pairs

    def __repr__(self) -> str:
        labels = f"labels {', '.join(self.labels):.60}" if self.labels else "a regression"
        return f"<minibert.Model: {labels}, {size(self.bert)}>"

    def predict(self, texts: Iterable[str | tuple[str, str | None]]) -> list[Prediction]:
        """A prediction for each text or pair of texts; DataError for one where the model was trained on the other."""
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            given = "one" if isinstance(texts, str) else repr(texts)
            raise ConfigError(f"predict takes a list of texts, not {given}: [text]")
        pairs = [_pair(text, number) for number, text in enumerate(texts)]
        for first, second in pairs:
            if self.pairs not in (None, second is not None):
                which, wanted = ("one text", "pairs") if self.pairs else ("a pair of texts", "single texts")
                lines = "; in lines a tab stands between the two, or commas below a header that names them"
                raise DataError(
                    f"{first!r:.40}: is {which}, but the model was trained on {wanted}: "
                    f"give it {wanted}{lines if self.pairs else ''}"
                )
        outputs = self.outputs(self.tokenizer.encode(pairs, self.max_seq_length))
        if not self.labels:
            return [Prediction(float(value), {}) for value in outputs[:, 0]]
        return [
            Prediction(self.labels[int(row.argmax())], dict(zip(self.labels, map(float, row), strict=True)))
            for row in probabilities(outputs)
        ]

    def outputs(self, features: Features) -> np.ndarray:
        """The classifier's outputs for encoded texts: (N, K) float32."""
        return outputs(self.bert, features)


def _pair(text: object, number: int) -> tuple[str, str | None]:
    """A text or a pair of texts as a pair; DataError for anything else."""
    if isinstance(text, str):
        return text, None
    if not isinstance(text, tuple | list | np.ndarray) or len(text) != 2:  # arrays: rows of a DataFrame's to_numpy()
        raise DataError(f"text {number}: {text!r:.60} is neither a text nor a pair of texts; give text or (text, text)")
    first, second = text
    return first, second


def size(bert: Bert) -> str:
    """How large a model is, and where and how it computes, in a few words."""
    parameters = sum(group.weights.size for group in bert.groups)
    return f"{parameters / 1e6:.1f} M parameters, {bert.device.precision} on {bert.device.description}"


def outputs(bert: Bert, features: Features) -> np.ndarray:
    """The classifier's outputs, without dropout and without a tape: (N, K) float32.

    Texts of like length share a batch: its heads of attention cost the same, and cores finish together.
    """
    bert.check(features)
    device, found = bert.device, np.empty((len(features), bert.outputs), np.float32)
    order = np.argsort(np.diff(features.offsets), kind="stable")
    with device.session(), untaped():
        waiting: list[
            tuple[np.ndarray, Callable[[], np.ndarray]]
        ] = []  # read a batch later, so that a device of its own never waits
        for places in batch.filled(np.diff(features.offsets)[order], BATCH, bert.at_once):
            numbers = order[places]
            if device.backend == "tpu":
                from minibert.tpu import inference

                found[numbers] = inference.logits(bert, features, numbers, BATCH)
                continue
            logits = bert.logits(batch.pack(device, features, numbers, None)).data
            waiting.append((numbers, device.read_later(logits)))
            if len(waiting) > 1:
                before, read = waiting.pop(0)
                found[before] = read()
        for numbers, read in waiting:
            found[numbers] = read()
    return found


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def load(
    source: str | PathLike[str], device: str = "auto", threads: int | None = None, precision: str = "auto"
) -> Model:
    """The classifier of a finished run or in its directory, in a checkpoint directory, on the hub or under an alias.

    Texts are cut where the run cut them, those for other checkpoints at their tokenizer's model_max_length, or at the
    model's last position. `threads`: how many compute in this process from now on, whichever model; at first as many as
    there are cores. Raises CheckpointError where there is no classification head, which fine-tuning would make.
    """
    path = find_run(source)
    description = read_description(path)
    if description and not description["finished"]:
        raise RunError(f"{remote.name(path)}: the run is not finished; go on with minibert finetune ... --resume")
    found = checkpoint.load(path)
    if found.missing_head:
        raise CheckpointError(
            f"{source}: has no classifier yet; make one with minibert finetune TASK --checkpoint {source}"
        )
    outputs = len(found.arrays["classifier.bias"])
    # transformers leaves id2label out of config.json where it is the default
    labels = () if outputs == 1 else found.config.id2label or tuple(f"LABEL_{i}" for i in range(outputs))
    positions = found.config.max_position_embeddings
    tokenizer = tokenizer_of(found)
    longest = description["settings"]["max_seq_length"] if description else tokenizer.max_length or positions
    bert = Bert(found.config, outputs, open_device(device, threads, precision))
    bert.fill(found.arrays)
    return Model(bert, tokenizer, labels, min(longest, positions), _pairs(description))


def find_run(source: str | PathLike[str]) -> Path:
    """Where what `load` is given lies (hub.resolve); RunError, naming the runs that there are, where it is no name, or
    the folder of several.
    """
    if not isinstance(source, str | PathLike):
        raise ConfigError(f"{source!r:.40}: is no run or checkpoint; give its path or its name")
    try:
        path = hub.resolve(fspath(source))
    except hub.Unknown:
        there = runs.listed()
        advice = f"there are {there}" if there else "minibert finetune TASK makes one"
        raise RunError(f"{source}: there is no such run or checkpoint: {advice}") from None
    if seeds := runs.seeds_in(path):
        named = " ... ".join(dict.fromkeys((seeds[0], seeds[-1])))
        raise RunError(f"{source}: holds the runs {named}: name one, such as {Path(source) / seeds[0]}")
    return path


def _pairs(description: Mapping[str, Any] | None) -> bool | None:
    """Whether a run's task is one of pairs; None where there is no run, or of another version's."""
    if description is None:
        return None
    if columns := description.get("columns"):
        return columns.get("text_b") is not None
    with contextlib.suppress(ConfigError):
        return tasks.get(description["settings"]["task"]).pairs
    return None


def open_device(name: str, threads: int | None, precision: str = "auto") -> Device:
    """The device of a setting; `auto` is the GPU where there is one, and the device's best precision."""
    (threads,) = check_counts(threads=threads)
    name = settled_device(name)
    if name == "tpu":
        from minibert.tpu import device as tpu

        if threads:
            raise ConfigError("--threads says how a CPU computes: leave it out with --device tpu")
        return tpu.open(settled_precision(precision, name))
    return devices.open(name, threads=threads, precision=settled_precision(precision, name))


def tokenizer_of(found: Checkpoint | Unread) -> Tokenizer:
    """The tokenizer that belongs to a checkpoint; the embeddings must hold its whole vocabulary."""
    if found.path is not None:
        tokenizer = Tokenizer.load(found.path)
    elif found.vocab is not None:
        own = found.vocab != models.VOCAB  # beside a config, where it says how words are cut
        tokenizer = Tokenizer.load(found.vocab.parent) if own else Tokenizer.from_vocab(found.vocab)
    else:
        raise CheckpointError("random weights of this shape have no vocabulary; put a vocab.txt beside the config")
    check_vocabulary(tokenizer, found.config, found.path)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: BertConfig, where: Path | None) -> None:
    """Raises ConfigError where the tokenizer's vocabulary, found at `where`, is not the model's."""
    # Some models have rows to spare, up to a round number; more than that is another vocabulary, or one cut off.
    if not 0 <= config.vocab_size - tokenizer.vocab_size < SPARE_ROWS:
        fits = len(tokenizer.vocab) <= config.vocab_size
        beyond = [token.content for id, token in sorted(tokenizer.added.items()) if fits and id >= config.vocab_size]
        advice = f"take out {beyond[0]!r:.40} and what else was added" if beyond else "give the model its own vocab.txt"
        raise ConfigError(
            f"{where}: the vocabulary has {tokenizer.vocab_size} entries, the model {config.vocab_size}; {advice}"
        )


def column_order(have: Sequence[str], want: Sequence[str]) -> list[int] | None:
    """For each wanted label the column of that name; None when the names are not the same set.

    What transformers calls LABEL_0, LABEL_1, ... is the labels 0, 1, ..., or the only output.
    """
    if len(have) == len(want) == 1:
        return [0]
    for names in ([*have], [name.removeprefix("LABEL_") for name in have]):
        if sorted(names) == sorted(want):
            return [names.index(label) for label in want]
    return None
