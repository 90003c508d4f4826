"""A classifier's outputs and a reader's highest logits of one batch, without dropout."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from minibert.bert import Bert
from minibert.kernels.top_logits import reference as top_logits
from minibert.squad.spans import Top
from minibert.tokenizer import Features
from minibert.tpu import batches, model, sharding
from minibert.tpu.device import Tpu

_logits = jax.jit(model.logits, static_argnames=("config", "precision"))


def logits(bert: Bert, features: Features, numbers: np.ndarray, size: int) -> np.ndarray:
    """The logits of these examples, at most `size`, in host memory: (B, K), or a reader's (B, L, 2), padded."""
    device = bert.device
    assert isinstance(device, Tpu)
    longest = int((features.offsets[numbers + 1] - features.offsets[numbers]).max())
    length = batches.bucket(longest, bert.config.max_position_embeddings)
    batch: dict[str, Any] = batches.pad(features, numbers, None, length, batches.multiple(size, device.mesh.size))
    with device.memory("a smaller model or a shorter --max-seq-length takes less"):
        batch = sharding.put(batch, sharding.rows(device.mesh))
        found = _logits(device.parameters(bert), batch, bert.config, precision=device.precision)
        return sharding.get(found)[: len(numbers)]


def tops(reader: Bert, features: Features, n: int, size: int) -> Top:
    """The n highest logits of each window, of which there are at most `size`."""
    found = logits(reader, features, np.arange(len(features)), size)
    real = found[np.arange(found.shape[1]) < np.diff(features.offsets)[:, None]]
    values = np.empty((len(features), 2, n), np.float32)
    places = np.empty((len(features), 2, n), np.int32)
    top_logits.forward(values, places, real, features.offsets)
    return Top(values, places, found[:, 0])
