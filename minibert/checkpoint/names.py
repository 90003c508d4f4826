"""One table of BERT's tensors: our name, TensorFlow's name, shape, and whether that one is transposed.

Our names are those of Hugging Face's BertModel without the prefix `bert.`, matrices as [outputs, inputs].
TensorFlow's: google-research/bert, modeling.py, run_classifier.py; its dense kernels are [inputs, outputs].
"""

from __future__ import annotations

import re
from typing import NamedTuple

from minibert.config import BertConfig
from minibert.errors import CheckpointError


class Row(NamedTuple):
    name: str  # {n}: the layer's number
    tensorflow: str
    shape: str  # V vocabulary, P positions, S segments, C hidden, F feed-forward, K outputs
    transposed: bool = False  # TensorFlow's array is this one transposed


TABLE = (
    Row("embeddings.word_embeddings.weight", "bert/embeddings/word_embeddings", "V C"),
    Row("embeddings.position_embeddings.weight", "bert/embeddings/position_embeddings", "P C"),
    Row("embeddings.token_type_embeddings.weight", "bert/embeddings/token_type_embeddings", "S C"),
    Row("embeddings.LayerNorm.weight", "bert/embeddings/LayerNorm/gamma", "C"),
    Row("embeddings.LayerNorm.bias", "bert/embeddings/LayerNorm/beta", "C"),
    *(
        Row("encoder.layer.{n}." + name, "bert/encoder/layer_{n}/" + tensorflow, shape, transposed)
        for name, tensorflow, shape, transposed in (
            ("attention.self.query.weight", "attention/self/query/kernel", "C C", True),
            ("attention.self.query.bias", "attention/self/query/bias", "C", False),
            ("attention.self.key.weight", "attention/self/key/kernel", "C C", True),
            ("attention.self.key.bias", "attention/self/key/bias", "C", False),
            ("attention.self.value.weight", "attention/self/value/kernel", "C C", True),
            ("attention.self.value.bias", "attention/self/value/bias", "C", False),
            ("attention.output.dense.weight", "attention/output/dense/kernel", "C C", True),
            ("attention.output.dense.bias", "attention/output/dense/bias", "C", False),
            ("attention.output.LayerNorm.weight", "attention/output/LayerNorm/gamma", "C", False),
            ("attention.output.LayerNorm.bias", "attention/output/LayerNorm/beta", "C", False),
            ("intermediate.dense.weight", "intermediate/dense/kernel", "F C", True),
            ("intermediate.dense.bias", "intermediate/dense/bias", "F", False),
            ("output.dense.weight", "output/dense/kernel", "C F", True),
            ("output.dense.bias", "output/dense/bias", "C", False),
            ("output.LayerNorm.weight", "output/LayerNorm/gamma", "C", False),
            ("output.LayerNorm.bias", "output/LayerNorm/beta", "C", False),
        )
    ),
    Row("pooler.dense.weight", "bert/pooler/dense/kernel", "C C", True),
    Row("pooler.dense.bias", "bert/pooler/dense/bias", "C"),
    Row("classifier.weight", "output_weights", "K C"),
    Row("classifier.bias", "output_bias", "K"),
)
HEAD = ("classifier.weight", "classifier.bias")

# Other heads and counters that BERT checkpoints carry: no parameters of this model, so they stay unused.
EXTRAS = ("embeddings.position_ids", "cls.", "qa_outputs.")

_OURS = {row.name: row for row in TABLE}
_TENSORFLOWS = {row.tensorflow: row for row in TABLE}
_PREFIX = "bert."
# Google's names of LayerNorm's parameters, which the first PyTorch conversions kept.
_OLDER = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_LAYER = re.compile(r"(?<=layer[._])(0|[1-9][0-9]{0,3})(?=[./])")  # "01" is nobody's layer


def shapes(config: BertConfig, num_outputs: int | None = None) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in the model's order; the classifier if `num_outputs` is given."""
    sizes = {
        "V": config.vocab_size,
        "P": config.max_position_embeddings,
        "S": config.type_vocab_size,
        "C": config.hidden_size,
        "F": config.intermediate_size,
        "K": num_outputs or 0,
    }

    def shape(row: Row) -> tuple[int, ...]:
        return tuple(sizes[letter] for letter in row.shape.split())

    def in_layer(row: Row) -> bool:
        return "{n}" in row.name

    first = next(i for i, row in enumerate(TABLE) if in_layer(row))
    result = {row.name: shape(row) for row in TABLE[:first]}
    for n in range(config.num_hidden_layers):
        result |= {row.name.format(n=n): shape(row) for row in TABLE if in_layer(row)}
    for row in TABLE[first:]:
        if not in_layer(row) and (num_outputs or row.name not in HEAD):
            result[row.name] = shape(row)
    return result


def to_huggingface(name: str) -> str:
    """The name in transformers' BertForSequenceClassification."""
    return name if name in HEAD else _PREFIX + name


def from_huggingface(name: str) -> str | None:
    """Our name for a tensor of a Hugging Face checkpoint, with prefix or without; None where not ours."""
    bare = name.removeprefix(_PREFIX)
    for older, newer in _OLDER.items():
        if bare.endswith(older):
            bare = bare.removesuffix(older) + newer
    if _pattern(bare) not in _OURS or (bare in HEAD and name != bare):
        return None
    return bare


def to_tensorflow(name: str) -> tuple[str, bool]:
    """TensorFlow's name, and whether its array is ours transposed."""
    row = _OURS.get(_pattern(name))
    if row is None:
        raise CheckpointError(f"{name} is not a tensor of BERT")
    return row.tensorflow.format(n=_layer(name)), row.transposed


def from_tensorflow(name: str) -> tuple[str, bool] | None:
    """Our name for a TensorFlow variable, and whether its array is ours transposed; None where not ours."""
    row = _TENSORFLOWS.get(_pattern(name))
    return None if row is None else (row.name.format(n=_layer(name)), row.transposed)


def is_extra(name: str) -> bool:
    """True for a tensor that belongs to another head or is a counter, and may stay unused."""
    return name.removeprefix(_PREFIX).startswith(EXTRAS)


def _pattern(name: str) -> str:
    return "" if "{" in name else _LAYER.sub("{n}", name, count=1)


def _layer(name: str) -> str:
    found = _LAYER.search(name)
    return found.group() if found else ""
