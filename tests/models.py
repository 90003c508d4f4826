"""Small models and data for tests: shapes that no kernel can take for granted, values from keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minibert.bert import Bert
from minibert.checkpoint import names
from minibert.config import BertConfig
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.optim import Optimizer
from minibert.parameters import Group
from minibert.random import truncated_normal
from minibert.settings import TrainConfig
from minibert.tokenizer import Features
from minibert.training import Trainer

CONFIG = BertConfig(
    vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=40, id2label=("no", "yes", "maybe"),
)  # fmt: skip


def arrays(config: BertConfig = CONFIG, outputs: int = 3, seed: int = 5) -> dict[str, np.ndarray]:
    """Weights large enough that every gradient matters; biases and norms not at their initial 0 and 1."""
    found = {}
    for name, shape in names.shapes(config, outputs).items():
        found[name] = truncated_normal(shape, 0.15, seed, name) + (1.0 if name.endswith("LayerNorm.weight") else 0)
    return found


def bert(device: devices.Device, config: BertConfig = CONFIG, outputs: int = 3) -> Bert:
    model = Bert(config, outputs, device)
    model.fill(arrays(config, outputs))
    return model


def split(count: int = 48, config: BertConfig = CONFIG, longest: int = 33, seed: int = 3) -> Split:
    """Random tokens in sequences of 3 to `longest`, random labels."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(0, config.vocab_size, offsets[-1]).astype(np.int32)
    segments = np.concatenate([np.arange(n) > n // 2 for n in lengths]).astype(np.int8)
    labels = rng.integers(0, 3, count).astype(np.int32)
    return Split("train", Features(ids, segments, offsets), labels)


def trainer(device: devices.Device | None = None, count: int = 48, config: BertConfig = CONFIG, **settings) -> Trainer:
    """A model in training: batches of 8, full rate from the first step unless told otherwise."""
    model = bert(device or devices.open("cpu"), config)
    on = {"device": "gpu", "precision": model.device.precision} if model.device.backend == "gpu" else {}
    settings = {"batch_size": 8, "epochs": 10, "learning_rate": 1e-3, "warmup": 0.0} | on | settings
    return Trainer(model, split(count, config), TrainConfig(task="test", **settings))


def weights(trainer: Trainer) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in trainer.bert.arrays().items()}


def mean(device: devices.Device, losses: Any) -> float:
    """The mean of losses on a device, on the host."""
    return float(device.numpy(losses).mean(dtype=np.float64))


def clip(optimizer: Optimizer) -> None:
    """Finds what clips the gradients of all groups, as a training step does."""
    optimizer.measure()
    optimizer.clip(np.zeros(1, np.float32))


def spoil(trainer: Trainer) -> Trainer:
    """A trainer, whatever is meant to be overwritten being NaN."""

    def spoiled(group: Group) -> Callable[[], None]:
        renew = group.renew_gradients

        def renewed() -> None:
            renew()
            for param in group.products if group._gradients is not None else ():
                param.raw_grad.fill(np.nan)

        return renewed

    for group in trainer.bert.groups:
        group.renew_gradients = spoiled(group)
    return trainer
