"""BERT in jax.numpy, over padded batches: embeddings, encoder, and the classifier's head or the reader's.

The same model as minibert/bert.py and minibert/squad/reader.py, whose kernels' `reference.py` define it. Parameters
are a dict by checkpoint name; those of the layers stand one upon the other in its entry LAYERS, for `scan`, with
queries, keys and values as one matrix.

B examples of at most L tokens, C hidden, F feed-forward, H heads, D = C/H, K outputs. A batch is a dict:

    ids, segments      (B, L) int32; what lies beyond an example's length is never seen
    lengths, examples  (B,) int32: real tokens, at least one, and the example's number in its data set
    labels             (B,) int32 classes or float32 targets; of spans (B, 2) int32, first and last token
    weights            (B,) float32: what an example's loss counts; 0 for one that only fills the batch

In float32 products are float32 on a TPU, too. In bf16 activations and operands of products are bf16; sums, softmax,
norms, the pooler and the heads, losses and the parameters themselves are float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minibert.checkpoint import names
from minibert.config import BertConfig
from minibert.tpu import dropout

Params = dict[str, Any]
Batch = Mapping[str, Any]

LAYERS = "encoder.layer"
AXIS = "data"  # the axis of a mesh of devices, which share out examples and perhaps weights
SPANS = "spans"  # the reader's head, where a number would be a classifier's outputs
TYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16}

# A layer's parameters, and the checkpoint's tensors that each of them is made of, one below the other.
PARTS = {
    name.replace("self.query", "self.qkv"): tuple(name.replace("query", part) for part in ("query", "key", "value"))
    if "self.query" in name
    else (name,)
    for name in (row.name.removeprefix(f"{LAYERS}.{{n}}.") for row in names.TABLE if "{n}" in row.name)
    if "self.key" not in name and "self.value" not in name
}


def shapes(config: BertConfig, head: int | str) -> Params:
    """The parameters' shapes and types, in the dict's structure; `head` is the number of outputs, or SPANS."""
    flat = names.shapes(config, None if head == SPANS else int(head), spans=head == SPANS)

    def stacked(sources: tuple[str, ...]) -> tuple[int, ...]:
        first, *rest = (flat[f"{LAYERS}.0.{source}"] for source in sources)
        return config.num_hidden_layers, first[0] * (1 + len(rest)), *first[1:]

    found: Params = {name: shape for name, shape in flat.items() if not name.startswith(LAYERS)}
    found[LAYERS] = {part: stacked(sources) for part, sources in PARTS.items()}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), found, is_leaf=is_shape)


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Params:
    """A checkpoint's tensors, by their names, as parameters in host memory."""
    found: Params = {name: array for name, array in arrays.items() if not name.startswith(LAYERS)}
    layers = range(sum(name.endswith("intermediate.dense.bias") for name in arrays))
    found[LAYERS] = {
        part: np.stack([np.concatenate([arrays[f"{LAYERS}.{i}.{source}"] for source in sources]) for i in layers])
        for part, sources in PARTS.items()
    }
    return found


def to_arrays(params: Params) -> dict[str, np.ndarray]:
    """The way back, for parameters and whatever has their structure: gradients, moments."""
    found = {name: np.asarray(value) for name, value in params.items() if name != LAYERS}
    for part, stacked in params[LAYERS].items():
        for i, layer in enumerate(np.asarray(stacked)):
            sources = PARTS[part]
            for source, array in zip(sources, np.split(layer, len(sources)), strict=True):
                found[f"{LAYERS}.{i}.{source}"] = array
    return found


def product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum in a's type, summed in float32. A TPU multiplies float32 as bf16 where it is not told otherwise."""
    precision = "highest" if a.dtype == jnp.float32 else "default"
    return jnp.einsum(spec, a, b.astype(a.dtype), precision=precision, preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def weighted(x: jax.Array, w: jax.Array, shared: bool) -> jax.Array:
    """x wᵀ: (..., C) and (F, C) to (..., F) float32. In bf16, too, w's gradient is the float32 that products sum in:
    JAX's own rule rounds it to what w was rounded to.

    `shared`: w is this device's rows alone. All are gathered for each product and none kept; of w's gradient, summed
    over the devices, each gets its rows.
    """
    return product("...c,fc->...f", x, _whole(w, x, shared))


def _whole(w: jax.Array, x: jax.Array, shared: bool) -> jax.Array:
    """All rows of w, in x's type, which in bf16 is half as much to send."""
    w = w.astype(x.dtype)
    return jax.lax.all_gather(w, AXIS, tiled=True) if shared else w


def _weighted(x: jax.Array, w: jax.Array, shared: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return weighted(x, w, shared), (x, w)


def _slopes(shared: bool, kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    dy = dy.astype(x.dtype)
    dw = product("nf,nc->fc", dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]))
    dw = jax.lax.psum_scatter(dw, AXIS, tiled=True) if shared else dw
    return product("...f,fc->...c", dy, _whole(w, x, shared)).astype(x.dtype), dw


weighted.defvjp(_weighted, _slopes)


def linear(x: jax.Array, p: Params, name: str) -> jax.Array:
    """x wᵀ + b in x's type: (..., C) to (..., F). b is whole on each device and tells whether w is."""
    w, b = p[f"{name}.weight"], p[f"{name}.bias"]
    return (weighted(x, w, len(w) < len(b)) + b).astype(x.dtype)


def layer_norm(x: jax.Array, p: Params, name: str, eps: float) -> jax.Array:
    """Over the last axis, float32."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * rstd * p[f"{name}.weight"] + p[f"{name}.bias"]


def embed(p: Params, batch: Batch, config: BertConfig, key: jax.Array | None) -> jax.Array:
    """dropout(LayerNorm(word + segment + position embeddings)): (B, L, C) float32.

    A device that holds only some columns of the tables, of all three or of none, looks them up for all devices'
    examples. Then each gets the others of its own: a batch is far less to send than a table.
    """
    words = p["embeddings.word_embeddings.weight"]
    tokens, positions = (batch["ids"], batch["segments"]), jnp.arange(batch["ids"].shape[1])
    shared = words.shape[1] < config.hidden_size
    ids, segments = jax.lax.all_gather(tokens, AXIS, tiled=True) if shared else tokens
    x = words[ids] + p["embeddings.token_type_embeddings.weight"][segments]
    x = x + p["embeddings.position_embeddings.weight"][positions]
    x = jax.lax.all_to_all(x, AXIS, split_axis=0, concat_axis=2, tiled=True) if shared else x
    x = layer_norm(x, p, "embeddings.LayerNorm", config.layer_norm_eps)
    return dropout.hidden(x, batch["examples"], config.hidden_dropout_prob, dropout.at(key, "embedding"))


def attention(qkv: jax.Array, batch: Batch, heads: int, rate: float, key: jax.Array | None) -> jax.Array:
    """Self-attention among each example's real tokens: (B, L, 3C) to (B, L, C)."""
    b, l, c3 = qkv.shape  # noqa: E741
    q, k, v = (x.reshape(b, l, heads, -1) for x in jnp.split(qkv, 3, -1))
    scores = product("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    p = jax.nn.softmax(jnp.where(real(batch)[:, None, None], scores, jnp.finfo(scores.dtype).min))
    p = dropout.attention(p, batch["examples"], rate, key).astype(qkv.dtype)
    return product("bhqk,bkhd->bqhd", p, v).astype(qkv.dtype).reshape(b, l, c3 // 3)


def real(batch: Batch) -> jax.Array:
    """Which tokens are real: (B, L)."""
    return jnp.arange(batch["ids"].shape[1]) < batch["lengths"][:, None]


def layer(x: jax.Array, p: Params, i: Any, batch: Batch, config: BertConfig, key: jax.Array | None) -> jax.Array:
    """Encoder block number i, LayerNorm after each half: (B, L, C) to the same.

    What `again` marks is computed again in the backward pass, from what went in, as the kernels do: attention's
    probabilities, masks, GELU.
    """
    again = partial(jax.checkpoint, prevent_cse=False)  # nothing is common to the two loops over layers

    def add_norm(y: jax.Array, x: jax.Array, part: str, site: str) -> jax.Array:
        y = dropout.hidden(y, batch["examples"], config.hidden_dropout_prob, dropout.at(key, site, i))
        z = x.astype(jnp.float32) + y
        return layer_norm(z, p, f"{part}.LayerNorm", config.layer_norm_eps).astype(x.dtype)

    def narrow(h: jax.Array) -> jax.Array:
        g = jax.nn.gelu(h.astype(jnp.float32), approximate=config.gelu == "tanh")
        return linear(g.astype(h.dtype), p, "output.dense")

    qkv = linear(x, p, "attention.self.qkv")
    rate, at = config.attention_probs_dropout_prob, dropout.at(key, "attention", i)
    y = again(partial(attention, heads=config.num_attention_heads, rate=rate, key=at))(qkv, batch)
    y = linear(y, p, "attention.output.dense")
    x = again(partial(add_norm, part="attention.output", site="attention_output"))(y, x)
    y = again(narrow)(linear(x, p, "intermediate.dense"))
    return again(partial(add_norm, part="output", site="ffn"))(y, x)


def encode(
    p: Params, batch: Batch, config: BertConfig, key: jax.Array | None, recompute: bool, precision: str
) -> jax.Array:
    """The last layer's output: (B, L, C)."""

    def body(x: jax.Array, one: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        return layer(x, *one, batch, config, key), None

    x = embed(p, batch, config, key).astype(TYPES[precision])
    body = jax.checkpoint(body, prevent_cse=False) if recompute else body
    return jax.lax.scan(body, x, (p[LAYERS], jnp.arange(config.num_hidden_layers)))[0]


def logits(
    p: Params,
    batch: Batch,
    config: BertConfig,
    key: jax.Array | None = None,
    recompute: bool = False,
    precision: str = "fp32",
) -> jax.Array:
    """Float32: a classifier's (B, K), from the pooled [CLS], or a reader's (B, L, 2), start and end.

    Without a key (dropout.pack) nothing is dropped. `recompute`: a layer keeps its input alone. `precision`: fp32 or
    bf16.
    """
    x = encode(p, batch, config, key, recompute, precision)
    if "qa_outputs.weight" in p:
        return linear(x.astype(jnp.float32), p, "qa_outputs")
    x = jnp.tanh(linear(x[:, :1].astype(jnp.float32), p, "pooler.dense"))
    x = dropout.hidden(x, batch["examples"], config.head_dropout, dropout.at(key, "classifier"))
    return linear(x[:, 0], p, "classifier")


def losses(logits: jax.Array, batch: Batch) -> jax.Array:
    """The loss of each example, (B,): cross entropy, the mean of both of a span's, or the squared error of one output.

    A span's softmax is over the example's real tokens alone.
    """
    labels = batch["labels"]
    if logits.ndim == 3:
        scores = jax.nn.log_softmax(jnp.where(real(batch)[..., None], logits, jnp.finfo(logits.dtype).min), 1)
        return -jnp.take_along_axis(scores, labels[:, None], 1)[:, 0].mean(-1)
    if logits.shape[-1] == 1:
        return (logits[:, 0] - labels) ** 2
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
