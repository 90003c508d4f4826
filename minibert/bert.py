"""BERT: embeddings, encoder, pooler and a classification head, as functions over packed tokens.

Equations: Devlin et al. 2018 and google-research/bert. The model never learns which device runs it. Parameters carry
Hugging Face's names, so that a checkpoint's tensors are views of the groups' buffers; queries, keys and values stand
one below the other and are one product.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from minibert import ops
from minibert.autograd import Tensor, passed, recompute
from minibert.batch import EVALUATED, Batch
from minibert.config import BertConfig
from minibert.errors import ConfigError
from minibert.kernels.devices import Device
from minibert.kernels.devices.away import Away
from minibert.parameters import Group
from minibert.policies import Hosted, Policy, length, parse
from minibert.random import Key
from minibert.tokenizer import Features


class Bert:
    """The parameters of one model on one device and the computations over them.

    Groups: `embeddings`, one for each of `layers`, `head` (pooler and classifier with `outputs` columns). A model with
    another head is a subclass with `_head_shapes`, `logits` and `loss` of its own: minibert/squad/reader.py.
    """

    def __init__(self, config: BertConfig, outputs: int, device: Device):
        self.config, self.outputs, self.device = config, outputs, device
        # Tokens at a time outside training, which lowers it to what it takes itself; a TPU's programs have one size.
        self.at_once = sys.maxsize if device.backend == "tpu" else EVALUATED
        c, f = config.hidden_size, config.intermediate_size
        self.embeddings = Group(device, "embeddings", {
            "embeddings.word_embeddings.weight": (config.vocab_size, c),
            "embeddings.position_embeddings.weight": (config.max_position_embeddings, c),
            "embeddings.token_type_embeddings.weight": (config.type_vocab_size, c),
            "embeddings.LayerNorm.weight": (c,),
            "embeddings.LayerNorm.bias": (c,),
        })  # fmt: skip
        self.layers = [
            Group(device, f"encoder.layer.{i}", {
                "attention.self.qkv.weight": (3 * c, c),
                "attention.self.qkv.bias": (3 * c,),
                "attention.output.dense.weight": (c, c),
                "attention.output.dense.bias": (c,),
                "attention.output.LayerNorm.weight": (c,),
                "attention.output.LayerNorm.bias": (c,),
                "intermediate.dense.weight": (f, c),
                "intermediate.dense.bias": (f,),
                "output.dense.weight": (c, f),
                "output.dense.bias": (c,),
                "output.LayerNorm.weight": (c,),
                "output.LayerNorm.bias": (c,),
            }, products=True)
            for i in range(config.num_hidden_layers)
        ]  # fmt: skip
        self.head = Group(device, "head", self._head_shapes(), products=True)
        # Called with a group before the forward pass uses it (False), and when the backward pass has completed its
        # gradients (True): not with the embeddings, which are the first and the last.
        self.watchers: list[Callable[[Group, bool], None]] = []

    def _head_shapes(self) -> dict[str, tuple[int, ...]]:
        c = self.config.hidden_size
        return {
            "pooler.dense.weight": (c, c),
            "pooler.dense.bias": (c,),
            "classifier.weight": (self.outputs, c),
            "classifier.bias": (self.outputs,),
        }

    @property
    def groups(self) -> list[Group]:
        return [self.embeddings, *self.layers, self.head]

    def arrays(self, gradients: bool = False) -> dict[str, np.ndarray]:
        """Every parameter (or its gradient) by checkpoint name; on the CPU these are views and can be written, before
        the model computes again. Gradients are to be asked for anew after each update.
        """
        views = self.views([group.gradients if gradients else group.weights for group in self.groups])
        if not gradients:
            self._changed()
        return {name: self.device.numpy(view) for name, view in views.items()}

    def views(self, buffers: Sequence[Any]) -> dict[str, Any]:
        """By checkpoint name, the device's views of flat buffers, one a group, laid out as its weights are: Adam's
        moments for example."""
        found: dict[str, Any] = {}
        for group, buffer in zip(self.groups, buffers, strict=True):
            prefix = f"{group.name}." if group in self.layers else ""
            for param in group:
                found.update(_checkpoint_views(prefix + param.name, buffer[param.span].reshape(param.shape)))
        return found

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copies a checkpoint's tensors, one for each parameter, into the model."""
        for name, view in self.views([group.weights for group in self.groups]).items():
            self.device.write(view, arrays[name])
        self._changed()

    def _changed(self) -> None:
        for group in self.groups:
            group.changed()

    def check(self, features: Features) -> None:
        """Raises ConfigError where features reach beyond the embeddings: kernels check no index."""
        config = self.config
        for what, largest, size in (
            ("word", features.ids.max(initial=0), config.vocab_size),
            ("position", np.diff(features.offsets).max(initial=1) - 1, config.max_position_embeddings),
            ("segment", features.segments.max(initial=0), config.type_vocab_size),
        ):
            if largest >= size:
                raise ConfigError(
                    f"the texts need {what} embedding number {largest}, the model has {size}; "
                    "give another checkpoint, or single texts to a model with one segment"
                )

    def encode(self, batch: Batch, key: Key | None, policy: Policy | None = None, only_firsts: bool = False) -> Tensor:
        """The last layer's output for every token, (T, C). Without a key nothing is dropped.

        `policy`: what to compute again in the backward pass; None: nothing. `only_firsts`: for each sequence's first
        token alone, (S, C). The last layer then computes nothing else once its attention has read all tokens, and
        spares a twelfth of BERT-Base three quarters of its work, both ways.
        """
        config, group = self.config, self.embeddings
        x = ops.embedding(
            self.device, batch,
            group["embeddings.word_embeddings.weight"], group["embeddings.position_embeddings.weight"],
            group["embeddings.token_type_embeddings.weight"], group["embeddings.LayerNorm.weight"],
            group["embeddings.LayerNorm.bias"], config.layer_norm_eps, config.hidden_dropout_prob,
            key and key.at("embedding"),
        )  # fmt: skip
        away = Away(self.device)
        x = self._run(policy or parse("none", len(self.layers)), 0, batch, key, only_firsts, away, x)
        return self._heard(self.head, x)

    def _run(
        self, policy: Policy, first: int, batch: Batch, key: Key | None, only_firsts: bool, away: Away, x: Tensor
    ) -> Tensor:
        """The layers from `first` on that a policy is for. `away`: where inputs wait of parts in square brackets."""
        for part in policy:
            if isinstance(part, tuple):
                part_of = partial(self._run, part, first, batch, key, only_firsts, away)
                x = recompute(part_of, x, away if isinstance(part, Hosted) else None)
                first += length(part)
            else:
                x = self._heard(self.layers[first], x)
                last = only_firsts and first + 1 == len(self.layers)
                x = self.layer(first, batch, key, last, part == "c", x)
                first += 1
        return x

    def _heard(self, group: Group, x: Tensor) -> Tensor:
        """x, before which nothing uses the group's parameters."""
        if not self.watchers:
            return x
        self._tell(group, False)
        return passed(x, partial(self._tell, group, True))

    def _tell(self, group: Group, back: bool) -> None:
        for watcher in self.watchers:
            watcher(group, back)

    def layer(self, i: int, batch: Batch, key: Key | None, only_firsts: bool, cheap: bool, x: Tensor) -> Tensor:
        """One encoder block, LayerNorm after each half: (T, C) to (T, C), or to (S, C) where `only_firsts`."""
        config, p = self.config, self.layers[i]
        where = (batch.first_positions, batch.first_examples) if only_firsts else (batch.positions, batch.examples)

        def add_norm(y: Tensor, x: Tensor, part: str, site: str) -> Tensor:
            gamma, beta = p[f"{part}.LayerNorm.weight"], p[f"{part}.LayerNorm.bias"]
            at = key and key.at(site, i)
            return ops.dropout_add_layer_norm(
                y, x, gamma, beta, *where, config.layer_norm_eps, config.hidden_dropout_prob, at
            )

        heads, projected = config.num_attention_heads, (p["attention.self.qkv.weight"], p["attention.self.qkv.bias"])
        qkv = ops.linear(x, *projected, shape=self.device.projected_shape(batch.tokens, config.hidden_size, heads))
        rate, at = config.attention_probs_dropout_prob, key and key.at("attention", i)
        attend = partial(ops.attention, qkv, batch, heads, rate, at)
        attended = y = attend()
        if only_firsts:
            x, y = ops.take_rows(x, batch.firsts), ops.take_rows(y, batch.firsts)
        y = ops.linear(y, p["attention.output.dense.weight"], p["attention.output.dense.bias"])
        halfway = partial(add_norm, y, x, "attention.output", "attention_output")
        x = halfway()
        y = ops.feed_forward(
            x, p["intermediate.dense.weight"], p["intermediate.dense.bias"],
            p["output.dense.weight"], p["output.dense.bias"], config.gelu,
        )  # fmt: skip
        out = add_norm(y, x, "output", "ffn")
        if cheap:
            attended.forget(attend)
            x.forget(halfway)
        return out

    def logits(self, batch: Batch, key: Key | None = None, policy: Policy | None = None) -> Tensor:
        """Classifier outputs from the pooled [CLS]: (S, outputs)."""
        p = self.head
        x = self.encode(batch, key, policy, only_firsts=True)
        x = ops.bias_tanh(ops.linear(x, p["pooler.dense.weight"], None), p["pooler.dense.bias"])
        at = key and key.at("classifier")
        x = ops.dropout(x, batch.first_positions, batch.first_examples, self.config.head_dropout, at)
        return ops.linear(x, p["classifier.weight"], p["classifier.bias"])

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of each example: (S,). One output column means regression."""
        if self.outputs == 1:
            return ops.mean_squared_error(logits, batch.labels)
        return ops.softmax_cross_entropy(logits, batch.labels)


def _checkpoint_views(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if ".qkv." in name:
        rows = len(value) // 3
        for i, part in enumerate(("query", "key", "value")):
            yield name.replace("qkv", part), value[i * rows : (i + 1) * rows]
    else:
        yield name, value
