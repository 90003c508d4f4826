"""Compiles every kernel that training and prediction use, so that the first run finds them in the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from minibert.bert import Bert
from minibert.config import BertConfig
from minibert.errors import BackendError
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.common import unit
from minibert.kernels.devices import compiling, cpu, gpu
from minibert.model import outputs
from minibert.settings import TrainConfig
from minibert.squad.reader import Reader, tops
from minibert.squad.settings import SquadConfig
from minibert.tokenizer import Features
from minibert.training import Trainer

SMALL: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 16,
}  # fmt: skip
CASES = (  # optimizer, GELU, labels, heads: of 64 columns, as a GPU's matrix unit takes them, and of others
    ("adam", "gelu", ("no", "yes"), 1), ("adam8bit", "gelu_new", ("score",), 4),
    ("adafactor", "gelu_new", ("score",), 1),
)  # fmt: skip
FEATURES = Features(np.ones(8, np.int32), np.zeros(8, np.int8), np.array([0, 3, 8]))


def compile_kernels() -> Iterator[tuple[str, float]]:
    """Trains and predicts with a very small model on every device and in every precision that this machine has, each
    form of GELU, all losses and all optimizers, with gradients that are overwritten and added to: kernels are compiled
    for types, and for few sizes. Yields what was compiled for and the seconds it took. BackendError where nothing of it
    would be kept.
    """
    if compiling.not_kept:
        raise BackendError(f"nothing is compiled: {compiling.not_kept}")
    places = {"cpu": unit.available(), "gpu": gpu.precision() == "bf16"} if gpu.usable() else {"cpu": unit.available()}
    for name, bf16 in places.items():
        for precision in ("fp32", "bf16") if bf16 else ("fp32",):
            began = time.perf_counter()
            devices.open(name, precision=precision).zeros((cpu.PAGED,), np.uint8, "workspace")  # a large array's
            for optimizer, gelu, labels, heads in CASES:
                config = BertConfig(**SMALL, num_attention_heads=heads, hidden_act=gelu, id2label=labels)
                _train(name, precision, optimizer, config)
            _read(name, precision)
            yield f"{name}, {precision}", time.perf_counter() - began


def _read(name: str, precision: str) -> None:
    device, labels = devices.open(name, precision=precision), np.array([[0, 0], [1, 2]], np.int32)
    reader = Reader(BertConfig(**SMALL, num_attention_heads=1), device)
    settings = SquadConfig(task="squad", device=name, precision=precision, batch_size=2, epochs=1)
    trainer = Trainer(reader, Split("train", FEATURES, labels), settings)
    with device.session():
        trainer.step(0)
    list(tops(reader, [FEATURES], settings.n_best_size))


def _train(name: str, precision: str, optimizer: str, config: BertConfig) -> None:
    num_outputs = len(config.id2label)
    labels = np.zeros(2, np.float32 if num_outputs == 1 else np.int32)
    device = devices.open(name, precision=precision)
    settings = TrainConfig(
        task="none", optimizer=optimizer, device=name, precision=precision, batch_size=2, micro_batch=1, epochs=1
    )  # fmt: skip
    trainer = Trainer(Bert(config, num_outputs, device), Split("train", FEATURES, labels), settings)
    with device.session():
        trainer.step(0)
    outputs(trainer.bert, FEATURES)
