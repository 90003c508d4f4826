"""What shapes a model and a run: frozen dataclasses, checked when they are made.

BertConfig reads Google's bert_config.json and Hugging Face's config.json of the BERT family. Every key is
used, checked, known to have no effect on the computation, or listed as ignored; in our own files an unknown
key is an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minibert.errors import ConfigError

# Written into our own config.json: such a file is read strictly. A later layout takes the next number.
FORMAT_KEY, FORMAT = "minibert_format", 1

GELU = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
HIGHEST_DROPOUT = 65535 / 65536  # kernels count in such parts, and something must be kept
PROBLEM_TYPES = (None, "single_label_classification", "regression")

# Sizes are bounded because a config is untrusted: nobody may make us count to 10**12 layers.
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**16,
    "num_hidden_layers": 1024,
    "num_attention_heads": 2**10,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**10,
}
# Keys that would make the model compute something else; any other value than these is refused.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({},),
    "quantization_config": (None,),
}
# Keys that change nothing here: bookkeeping, memory, the pre-training heads, generation, and Google's pooler
# settings (which its own code does not read).
_INERT = {
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype",
    "gradient_checkpointing", "use_cache", "chunk_size_feed_forward", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "sep_token_id", "output_attentions", "output_hidden_states", "return_dict",
    "torchscript", "directionality", "finetuning_task", "label2id", "num_labels", "pooler_fc_size",
    "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
}  # fmt: skip


@dataclass(frozen=True)
class BertConfig:
    """The shapes and constants of one BERT; the defaults are those of the files that leave a key out."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: 0.1, hard-coded in Google's run_classifier.py
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    id2label: tuple[str, ...] = ()  # label names in the order of the head's outputs; () where there is no head
    problem_type: str | None = None  # "regression" for one output trained on squared error

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if not _is_int(value) or not 1 <= value <= largest:
                raise ConfigError(f"{name} must be a whole number from 1 to {largest}, not {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not isinstance(self.hidden_act, str) or self.hidden_act not in GELU:
            raise ConfigError(f"hidden_act must be one of {', '.join(GELU)}, not {self.hidden_act!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if name == "classifier_dropout" and value is None:
                continue
            if not _is_number(value) or not 0 <= value <= HIGHEST_DROPOUT:
                raise ConfigError(f"{name} must be a number from 0 to {HIGHEST_DROPOUT}, not {value!r}")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < 1:
                raise ConfigError(f"{name} must be a number above 0 and below 1, not {value!r}")
        if not _is_int(self.pad_token_id) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(
                f"pad_token_id must be a token's number below {self.vocab_size}, not {self.pad_token_id!r}"
            )
        for label in self.id2label:
            # A tab or a line end would break the lines of predictions, and half of a UTF-16 pair cannot be written.
            if not isinstance(label, str) or any(c in "\t\r\n" or "\ud800" <= c <= "\udfff" for c in label):
                raise ConfigError(f"id2label must hold names of one line without tabs, not {_short(label)}")
        if len(set(self.id2label)) != len(self.id2label):
            raise ConfigError(f"id2label names a label twice: {', '.join(self.id2label)}")
        if self.problem_type not in PROBLEM_TYPES:
            raise ConfigError(f"problem_type {self.problem_type!r} is not supported: one of {PROBLEM_TYPES[1:]}")
        if self.problem_type == "regression" and len(self.id2label) > 1:
            raise ConfigError(f"problem_type regression has one output, but id2label names {len(self.id2label)}")

    @property
    def gelu(self) -> str:
        """'erf' or 'tanh'."""
        return GELU[self.hidden_act]

    @property
    def head_dropout(self) -> float:
        """The dropout rate on the pooled vector before the classifier."""
        return 0.1 if self.classifier_dropout is None else self.classifier_dropout

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str, own: bool = False) -> BertConfig:
        """The config that the JSON object `raw`, found at `where`, describes.

        `own` says that we wrote it: unknown keys are then errors; else `ignored_keys` lists them.
        Raises ConfigError where a key is missing, out of range, or changes what the model computes.
        """
        for key, allowed in _REQUIRED.items():
            if key in raw and raw[key] is not None and raw[key] not in allowed:
                raise ConfigError(
                    f"{where}: {key} {_short(raw[key])} is not supported (only {_short(allowed[0])}): "
                    "give a plain BERT checkpoint"
                )
        if own and (stray := ignored_keys(raw)):
            raise ConfigError(f"{where}: unknown setting {', '.join(stray)}: remove it or correct its name")
        if own and raw.get(FORMAT_KEY) != FORMAT:
            raise ConfigError(f"{where}: {FORMAT_KEY} {_short(raw.get(FORMAT_KEY))} is not {FORMAT}: update minibert")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if raw.get(field.name) is not None:
                values[field.name] = raw[field.name]
            elif field.default is dataclasses.MISSING:
                raise ConfigError(f"{where}: {field.name} is missing: give the config.json of a BERT model")
        try:
            values["id2label"] = _labels(raw)
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self, spans: bool = False) -> dict[str, Any]:
        """The JSON object that transformers and `from_dict` with own=True read; `spans`: the head marks answers."""
        kind = (
            "BertForQuestionAnswering" if spans else "BertForSequenceClassification" if self.id2label else "BertModel"
        )
        raw: dict[str, Any] = {
            "architectures": [kind],
            "model_type": "bert",
            **dataclasses.asdict(self),
            "position_embedding_type": "absolute",
            FORMAT_KEY: FORMAT,
        }
        # transformers writes null as hidden_dropout_prob; ours means Google's constant, so say which it is.
        raw["classifier_dropout"] = self.head_dropout
        if self.id2label:
            raw["id2label"] = {str(i): label for i, label in enumerate(self.id2label)}
            raw["label2id"] = {label: i for i, label in enumerate(self.id2label)}
        else:
            del raw["id2label"]
        if self.problem_type is None:
            del raw["problem_type"]
        return raw


def ignored_keys(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a config that are neither used, nor checked, nor known to change nothing."""
    used = {field.name for field in dataclasses.fields(BertConfig)}
    return tuple(sorted(raw.keys() - used - _REQUIRED.keys() - _INERT - {FORMAT_KEY}))


def is_own(raw: Mapping[str, Any]) -> bool:
    """True where minibert wrote this config, and not transformers after it read ours (it keeps our keys)."""
    return FORMAT_KEY in raw and "transformers_version" not in raw


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Label names from id2label {"0": name, ...}, from an older num_labels, or () where neither stands."""
    named = raw.get("id2label")
    if named is None:
        count = raw.get("num_labels")
        if count is None:
            return ()
        if not _is_int(count) or not 1 <= count <= 2**16:
            raise ConfigError(f"num_labels must be a whole number from 1 to {2**16}, not {_short(count)}")
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(named, Mapping) or named.keys() != {str(i) for i in range(len(named))}:
        raise ConfigError(f'id2label must map "0", "1", ... to names, not {_short(named)}')
    labels = tuple(named[str(i)] for i in range(len(named)))
    numbers = raw.get("label2id")
    if not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"id2label must hold names, not {_short(named)}")
    if numbers is not None and numbers != {label: i for i, label in enumerate(labels)}:
        raise ConfigError(f"label2id {_short(numbers)} contradicts id2label {_short(named)}")
    return labels


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # By comparison, which takes whole numbers that no float can hold.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
