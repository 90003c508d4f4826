"""One update as a pure function: gradients in micro-batches, one norm, one clip, Google's Adam.

The state is {"params": ..., "m": ..., "v": ...}, three dicts as minibert/tpu/model.py has parameters, float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from minibert.config import BertConfig
from minibert.optim import BETA1, BETA2, EPS, MAX_NORM, WEIGHT_DECAY
from minibert.parameters import is_decayed
from minibert.tpu import model
from minibert.tpu.model import Batch, Params

State = dict[str, Params]


def state_of(params: Params) -> State:
    """The state that training begins with: moments of zero."""
    return {"params": params, "m": jax.tree.map(jnp.zeros_like, params), "v": jax.tree.map(jnp.zeros_like, params)}


def loss(
    params: Params, batch: Batch, config: BertConfig, key: jax.Array | None, recompute: bool, precision: str
) -> jax.Array:
    """The sum of the examples' losses, each by its weight."""
    logits = model.logits(params, batch, config, key, recompute, precision)
    return jnp.sum(batch["weights"] * model.losses(logits, batch))


def gradients(
    params: Params,
    batch: Batch,
    config: BertConfig,
    key: jax.Array | None,
    recompute: bool = False,
    precision: str = "fp32",
) -> tuple[jax.Array, Params]:
    """The loss of a batch of micro-batches, whose arrays have one more axis before all others, and its gradients."""

    def add(total: Any, micro: Batch) -> tuple[Any, None]:
        found = jax.value_and_grad(loss)(params, micro, config, key, recompute, precision)
        return jax.tree.map(jnp.add, total, found), None

    zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, batch)[0]


def update(
    state: State,
    batch: Batch,
    key: jax.Array | None,
    rate: jax.Array,
    corrections: jax.Array,
    *,
    config: BertConfig,
    recompute: bool = False,
    precision: str = "fp32",
) -> tuple[State, jax.Array]:
    """The state after one update, and what it was made with: loss and gradients' norm, (2,).

    batch: (M, B, ...) arrays, M micro-batches; the weights of all examples add up to 1. key: dropout.pack, or None for
    no dropout. rate: the learning rate. corrections: what the two moments are divided by, (2,), ones for Google's Adam.
    Where loss or norm is not finite the state stays as it was.
    """
    total, grads = gradients(state["params"], batch, config, key, recompute, precision)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
    finite, scale = jnp.isfinite(total) & jnp.isfinite(norm), MAX_NORM / jnp.maximum(norm, MAX_NORM)

    def adam(path: Any, p: jax.Array, m: jax.Array, v: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        decay = WEIGHT_DECAY if is_decayed(path[-1].key) else 0.0
        scaled = g * scale
        m_new = BETA1 * m + (1 - BETA1) * scaled
        v_new = BETA2 * v + (1 - BETA2) * scaled * scaled
        step = m_new / corrections[0] / (jnp.sqrt(v_new / corrections[1]) + EPS) + decay * p
        return tuple(jnp.where(finite, new, old) for new, old in ((p - rate * step, p), (m_new, m), (v_new, v)))

    new = jax.tree_util.tree_map_with_path(adam, state["params"], state["m"], state["v"], grads)
    parts = jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), new)
    return dict(zip(("params", "m", "v"), parts, strict=True)), jnp.stack([total, norm])
