"""One table of BERT's tensors: our name, TensorFlow's name, shape, and whether that one is transposed.

Our names are those of Hugging Face's BertModel without the prefix `bert.`, matrices as [outputs, inputs].
TensorFlow's: google-research/bert, modeling.py, run_classifier.py, run_pretraining.py and run_squad.py; its dense
kernels are [inputs, outputs]. What is read may lack the prefix, or name LayerNorm's parameters as Google did.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from minibert.config import BertConfig


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
SPANS = ("qa_outputs.weight", "qa_outputs.bias")  # the head that marks answers

# Heads that this model has not: kept in a conversion, unused in training.
OTHER_HEADS = (
    Row("cls.predictions.transform.dense.weight", "cls/predictions/transform/dense/kernel", "C C", True),
    Row("cls.predictions.transform.dense.bias", "cls/predictions/transform/dense/bias", "C"),
    Row("cls.predictions.transform.LayerNorm.weight", "cls/predictions/transform/LayerNorm/gamma", "C"),
    Row("cls.predictions.transform.LayerNorm.bias", "cls/predictions/transform/LayerNorm/beta", "C"),
    Row("cls.predictions.bias", "cls/predictions/output_bias", "V"),
    Row("cls.seq_relationship.weight", "cls/seq_relationship/output_weights", "2 C"),
    Row("cls.seq_relationship.bias", "cls/seq_relationship/output_bias", "2"),
    Row("qa_outputs.weight", "cls/squad/output_weights", "2 C"),
    Row("qa_outputs.bias", "cls/squad/output_bias", "2"),
)
BUFFER = "embeddings.position_ids"  # 0, 1, 2 ..., which transformers used to save
# What else BERT checkpoints carry: copies of tied weights, counters. These have one name everywhere.
EXTRAS = (BUFFER, "cls.", "cls/", "qa_outputs.")
# Google's optimizer in its checkpoints: VARIABLE/adam_m, VARIABLE/adam_v and the number of updates.
SLOTS, GLOBAL_STEP = ("adam_m", "adam_v"), "global_step"

_OURS = {row.name: row for row in (*TABLE, *OTHER_HEADS)}
_TENSORFLOWS = {row.tensorflow: row for row in (*TABLE, *OTHER_HEADS)}
_OTHERS = {row.name for row in OTHER_HEADS}
_ROOTS = {*HEAD, *_OTHERS}  # never below bert. or bert/
_PREFIX = "bert."
# Google's names of LayerNorm's parameters, which the first PyTorch conversions kept.
_OLDER = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_LAYER = re.compile(r"(?<=layer[._])(0|[1-9][0-9]{0,3})(?=[./])")  # "01" is nobody's layer


def shapes(config: BertConfig, num_outputs: int | None = None, spans: bool = False) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in the model's order; the classifier if `num_outputs` is given.

    `spans`: the head that marks answers instead of pooler and classifier.
    """
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
    if spans:
        return result | {name: tuple(sizes.get(n, 2) for n in _OURS[name].shape.split()) for name in SPANS}
    for row in TABLE[first:]:
        if not in_layer(row) and (num_outputs or row.name not in HEAD):
            result[row.name] = shape(row)
    return result


def to_huggingface(name: str, prefix: bool = True) -> str:
    """The name in transformers' models with heads, or without the prefix in its BertModel."""
    return _PREFIX + name if prefix and _pattern(name) in _OURS and name not in _ROOTS else name


def from_huggingface(name: str) -> str | None:
    """Our name for a tensor of a Hugging Face checkpoint, with prefix or without; None where not in the table."""
    bare = name.removeprefix(_PREFIX)
    for older, newer in _OLDER.items():
        if bare.endswith(older):
            bare = bare.removesuffix(older) + newer
    if _pattern(bare) not in _OURS or (bare in _ROOTS and name.startswith(_PREFIX)):
        return None
    return bare


def to_tensorflow(name: str) -> tuple[str, bool]:
    """TensorFlow's name, and whether its array is ours transposed; a name of no row stays as it is."""
    row = _OURS.get(_pattern(name))
    return (name, False) if row is None else (row.tensorflow.format(n=_layer(name)), row.transposed)


def from_tensorflow(name: str) -> tuple[str, bool] | None:
    """Our name for a TensorFlow variable, and whether its array is ours transposed; None where not in the table."""
    row = _TENSORFLOWS.get(_pattern(name)) or _TENSORFLOWS.get("bert/" + _pattern(name))
    return None if row is None else (row.name.format(n=_layer(name)), row.transposed)


def split_slot(name: str) -> tuple[str, str]:
    """A variable's name and its slot's with the slash: ("x", "/adam_m") of "x/adam_m", ("x", "") of "x"."""
    variable, _, slot = name.rpartition("/")
    return (variable, "/" + slot) if slot in SLOTS else (name, "")


def is_parameter(name: str) -> bool:
    """True for our name of a tensor that some BERT of this kind has."""
    return _pattern(name) in _OURS and name not in _OTHERS


def is_other_head(name: str) -> bool:
    """True for our name of a tensor of a head that this model has not."""
    return name in _OTHERS


def is_extra(name: str) -> bool:
    """True for a tensor of a file that is known to be no parameter of this model, and may stay unused."""
    return name.removeprefix(_PREFIX).startswith(EXTRAS)


def is_buffer(name: str) -> bool:
    """True for a tensor that says nothing, so that nobody needs to be told that it is not used."""
    return name.removeprefix(_PREFIX) == BUFFER


def _pattern(name: str) -> str:
    return "" if "{" in name else _LAYER.sub("{n}", name, count=1)


def _layer(name: str) -> str:
    found = _LAYER.search(name)
    return found.group() if found else ""
