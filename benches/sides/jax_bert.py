"""JAX's side: a plain BERT classifier and its training step, for transformers has none in JAX any more.

Parameters carry Hugging Face's names, queries, keys and values one below the other; float32 throughout, and in bf16
products and what lies between them, as autocast would have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from sides import Call, Examples

ABOUT = f"JAX {jax.__version__}"
RATE, DECAY, BETA1, BETA2, EPSILON = 2e-5, 0.01, 0.9, 0.999, 1e-6
Dropout = Callable[[jax.Array], jax.Array]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    arrays = {name.removeprefix("bert."): a for name, a in load_file(folder / "model.safetensors").items()}
    for name in [name for name in arrays if ".query." in name]:
        parts = [arrays.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        arrays[name.replace("query", "qkv")] = np.concatenate(parts)
    return arrays


def logits(
    p: dict[str, jax.Array], batch: dict[str, jax.Array], config: dict[str, Any], dtype: Any, dropout: Dropout
) -> jax.Array:
    """(S, 2) float32 for batches (S, L)."""
    heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]

    def linear(x: jax.Array, name: str) -> jax.Array:
        return x @ p[f"{name}.weight"].astype(dtype).T + p[f"{name}.bias"].astype(dtype)

    def layer_norm(x: jax.Array, name: str) -> jax.Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return (centred * scale * p[f"{name}.weight"] + p[f"{name}.bias"]).astype(dtype)

    def table(name: str) -> jax.Array:
        return p[f"embeddings.{name}_embeddings.weight"]

    ids, mask = batch["input_ids"], batch["attention_mask"]
    x = table("word")[ids] + table("position")[: ids.shape[1]] + table("token_type")[batch["token_type_ids"]]
    x = dropout(layer_norm(x, "embeddings.LayerNorm"))
    bias = jnp.where(mask[:, None, None, :] > 0, 0.0, -1e9)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        qkv = linear(x, f"{at}.attention.self.qkv").reshape(*ids.shape, 3, heads, size)
        q, k, v = (qkv[:, :, j] for j in range(3))
        scores = jnp.einsum("sqhd,skhd->shqk", q, k).astype(jnp.float32) / math.sqrt(size) + bias
        weights = dropout(jax.nn.softmax(scores).astype(dtype))
        y = jnp.einsum("shqk,skhd->sqhd", weights, v).reshape(x.shape)
        x = layer_norm(x + dropout(linear(y, f"{at}.attention.output.dense")), f"{at}.attention.output.LayerNorm")
        y = jax.nn.gelu(linear(x, f"{at}.intermediate.dense"), approximate=False)
        x = layer_norm(x + dropout(linear(y, f"{at}.output.dense")), f"{at}.output.LayerNorm")
    pooled = dropout(jnp.tanh(linear(x[:, 0], "pooler.dense")))
    return linear(pooled, "classifier").astype(jnp.float32)


def mean_loss(p: dict[str, jax.Array], batch: dict[str, jax.Array], **options: Any) -> jax.Array:
    scores = jax.nn.log_softmax(logits(p, batch, **options))
    return -jnp.take_along_axis(scores, batch["labels"][:, None], 1).mean()


def update(p: dict, m: dict, v: dict, batch: dict, key: jax.Array, rate: float, **options: Any) -> tuple:
    """A training step: the new p, m and v, and the loss."""
    keys = iter(jax.random.split(key, 128))

    def dropout(x: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(next(keys), 1 - rate, x.shape)
        return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)

    loss, gradients = jax.value_and_grad(mean_loss)(p, batch, dropout=dropout, **options)
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values()))
    scale = 1 / jnp.maximum(norm, 1)
    for name, g in gradients.items():
        m[name] = BETA1 * m[name] + (1 - BETA1) * (g * scale)
        v[name] = BETA2 * v[name] + (1 - BETA2) * (g * scale) ** 2
        decay = 0.0 if "LayerNorm" in name or "bias" in name else DECAY
        p[name] = p[name] - RATE * (m[name] / (jnp.sqrt(v[name]) + EPSILON) + decay * p[name])
    return p, m, v, loss


class Training:
    """A compiled training step for each padded length."""

    def __init__(self, folder: Path, threads: int, precision: str, multiple: int):
        self.examples, self.multiple, self.session = Examples(folder), multiple, nullcontext()
        config = json.loads((folder / "config.json").read_text())
        self.p = {name: jnp.array(a) for name, a in parameters(folder).items()}
        self.m, self.v = ({name: jnp.zeros_like(a) for name, a in self.p.items()} for _ in range(2))
        options = {"config": config, "dtype": jnp.bfloat16 if precision == "bf16" else jnp.float32}
        self.forward = jax.jit(partial(mean_loss, dropout=lambda x: x, **options))
        self.update = jax.jit(partial(update, rate=config["hidden_dropout_prob"], **options), donate_argnums=(0, 1, 2))

    def about(self) -> str:
        return ABOUT

    def batch(self, number: int) -> dict[str, np.ndarray]:
        numbers = self.examples.training_batch(number)
        batch = self.examples.padded(numbers, self.multiple) | {"labels": self.examples.labels[numbers]}
        return {name: a.astype(np.int32) for name, a in batch.items()}

    def loss(self, number: int) -> float:
        """Without dropout."""
        return float(self.forward(self.p, self.batch(number)))

    def warm(self, calls: list[Call]) -> None:
        for number in self.examples.one_of_each_width(calls, self.multiple):
            self.step(number)

    def steps(self, numbers: Sequence[int]) -> float:
        return [self.step(number) for number in numbers][-1]

    def step(self, number: int) -> float:
        key = jax.random.key(number, impl="rbg")  # the default, threefry, takes longer
        self.p, self.m, self.v, loss = self.update(self.p, self.m, self.v, self.batch(number), key)
        return float(jax.block_until_ready(loss))
