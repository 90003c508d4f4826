"""Gradients that devices find together, each with a part of the weights, beside those of one: a program with JAX in a
process of its own, for tests/test_tpu_devices.py. It prints, for each of its cases, how far apart they are.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

import models
from minibert.random import Key
from minibert.tpu import dropout, sharding, training
from minibert.tpu.model import SPANS, shapes

MICROS, LENGTH = 2, 6
# Devices, hidden size, feed-forward's, head, precision, what is computed again: weights of which all, some or none
# divide, heads that do, and one device, which has all of everything.
CASES = [
    (1, 8, 16, 3, "fp32", False), (2, 8, 15, 2, "fp32", True), (2, 8, 16, SPANS, "bf16", False),
    (3, 8, 15, 3, "bf16", True), (3, 8, 10, 1, "fp32", False), (5, 6, 20, SPANS, "fp32", True),
]  # fmt: skip


def apart(devices: int, hidden: int, inner: int, head: int | str, precision: str, recompute: bool) -> float:
    """The largest difference in the loss or a gradient, of that one's largest number or a thousandth of the largest."""
    config = dataclasses.replace(
        models.CONFIG, hidden_size=hidden, intermediate_size=inner, num_attention_heads=2, num_hidden_layers=2
    )
    mesh, rng, how = sharding.mesh(jax.devices()[:devices]), np.random.default_rng(devices), (recompute, precision)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes(config, head))
    examples = MICROS, 2 * devices
    batch = {
        "ids": rng.integers(0, config.vocab_size, (*examples, LENGTH)),
        "segments": rng.integers(0, 2, (*examples, LENGTH)),
        "lengths": rng.integers(1, LENGTH + 1, examples), "examples": np.arange(4 * devices).reshape(examples),
        "labels": rng.integers(0, 1 if head == SPANS else head, (*examples, 2) if head == SPANS else examples),
        "weights": rng.random(examples) * (rng.random(examples) < 0.8),
    }  # fmt: skip
    floats = {"weights", "labels"} if head == 1 else {"weights"}
    batch = {name: array.astype(np.float32 if name in floats else np.int32) for name, array in batch.items()}
    key = dropout.pack(Key(3, 1))
    alone = sharding.get(jax.jit(lambda p, b, k: training.gradients(p, b, config, k, *how))(params, batch, key))
    placed = sharding.put(params, sharding.parameters(mesh, shapes(config, head), True))
    shared = sharding.put(batch, sharding.rows(mesh, 1))
    find = jax.jit(training.summed(mesh, config, head, *how, True))
    together = sharding.get(find(placed, shared, sharding.put(key, sharding.everywhere(mesh))))
    tops = jax.tree.map(lambda x: np.abs(x).max(), alone)
    least = max(jax.tree.leaves(tops)) / 1000
    errors = jax.tree.map(lambda x, y, top: np.abs(x - y).max() / max(top, least), together, alone, tops)
    return float(max(jax.tree.leaves(errors)))


if __name__ == "__main__":
    print(json.dumps([[*case, apart(*case)] for case in CASES]))
