"""One update as a pure function: gradients in micro-batches, one norm, one clip, Google's Adam.

The state is {"params": ..., "m": ..., "v": ...}, three dicts as minibert/tpu/model.py has parameters, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from minibert.config import BertConfig
from minibert.optim import BETA1, BETA2, EPS, MAX_NORM, WEIGHT_DECAY
from minibert.parameters import is_decayed
from minibert.tpu import model, sharding
from minibert.tpu.model import AXIS, Batch, Params

State = dict[str, Params]
Gradients = Callable[[Params, Batch, jax.Array | None], tuple[jax.Array, Params]]
STATE = ("params", "m", "v")


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


def summed(mesh: Mesh, config: BertConfig, head: int | str, recompute: bool, precision: str, shared: bool) -> Gradients:
    """`gradients`, by all devices of a mesh: each finds those of its own examples. Of parameters that are whole they
    are summed once, after the last micro-batch; of weights that are shared out the model sums them as it goes. Left to
    itself XLA sums after each micro-batch, and sends activations where weights are shared out.
    """
    places = sharding.parameters(mesh, model.shapes(config, head), shared)
    specs, whole = jax.tree.map(lambda place: place.spec, places), PartitionSpec()

    def complete(gradient: jax.Array, spec: PartitionSpec) -> jax.Array:
        return gradient if AXIS in spec else jax.lax.psum(gradient, AXIS)  # the model sums those of what is shared

    def find(params: Params, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, Params]:
        total, grads = gradients(params, batch, config, key, recompute, precision)
        return jax.lax.psum(total, AXIS), jax.tree.map(complete, grads, specs)

    # With check_vma the gradient of a parameter that is whole would be summed wherever it is used.
    given = specs, sharding.rows(mesh, 1).spec, whole
    return jax.shard_map(find, mesh=mesh, in_specs=given, out_specs=(whole, specs), check_vma=False)


def update(
    state: State,
    batch: Batch,
    key: jax.Array | None,
    rate: jax.Array,
    corrections: jax.Array,
    find: Gradients,
) -> tuple[State, jax.Array]:
    """The state after one update, and what it was made with: loss and gradients' norm, (2,).

    batch: (M, B, ...) arrays, M micro-batches; the weights of all examples add up to 1. key: dropout.pack, or None for
    no dropout. rate: the learning rate. corrections: what the two moments are divided by, (2,), ones for Google's Adam.
    find: `gradients`, of (params, batch, key). Where loss or norm is not finite the state stays as it was.
    """
    total, grads = find(state["params"], batch, key)
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
    return dict(zip(STATE, parts, strict=True)), jnp.stack([total, norm])


@lru_cache
def program(
    mesh: Mesh, config: BertConfig, head: int | str, recompute: bool = False, precision: str = "fp32",
    shared: bool = False,
) -> Any:  # fmt: skip
    """`update`, to be compiled for the devices of a mesh; the state that goes in is given up.

    `shared`: each device holds a part of parameters and moments, as sharding.parameters has them.
    """
    step = partial(update, find=summed(mesh, config, head, recompute, precision, shared))
    out = places(mesh, config, head, shared), sharding.everywhere(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def places(mesh: Mesh, config: BertConfig, head: int | str, shared: bool = False) -> State:
    """Where the arrays of a state stand."""
    return dict.fromkeys(STATE, sharding.parameters(mesh, model.shapes(config, head), shared))


def arguments(
    mesh: Mesh, config: BertConfig, head: int | str, micros: int, rows: int, length: int, shared: bool = False
) -> tuple[Any, ...]:
    """What `program` is called with, as shapes: `micros` micro-batches of `rows` examples of `length` tokens."""
    shapes = model.shapes(config, head)
    split, whole = sharding.rows(mesh, 1), sharding.everywhere(mesh)

    def array(sharding: Any, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    place = sharding.parameters(mesh, shapes, shared)
    params = jax.tree.map(lambda x, where: array(where, x.dtype, *x.shape), shapes, place)
    examples = micros, rows
    labels: tuple[Any, ...] = (jnp.int32,)
    if head in (model.SPANS, 1):
        labels = (jnp.int32, 2) if head == model.SPANS else (jnp.float32,)
    batch = {name: array(split, jnp.int32, *examples, length) for name in ("ids", "segments")}
    batch |= {name: array(split, jnp.int32, *examples) for name in ("lengths", "examples")}
    batch |= {
        "weights": array(split, jnp.float32, *examples),
        "labels": array(split, labels[0], *examples, *labels[1:]),
    }
    state = dict.fromkeys(STATE, params)
    return state, batch, array(whole, jnp.uint32, 3), array(whole, jnp.float32), array(whole, jnp.float32, 2)
