"""minibert's side: no padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

from minibert import checkpoint
from minibert.bert import Bert
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.model import outputs
from minibert.settings import TrainConfig
from minibert.tokenizer import Features
from minibert.training import Trainer
from sides import BATCH, SEED, Call, Examples

ABOUT = f"minibert: NumPy {np.__version__}, Numba {numba.__version__}"


class Model:
    """The checkpoint in `folder`, on a device."""

    def __init__(self, folder: Path, threads: int, precision: str, device: str = "cpu"):
        found, self.examples = checkpoint.load(folder), Examples(folder)
        options = {"threads": threads} if device == "cpu" else {}
        self.bert = Bert(found.config, 2, devices.open(device, precision=precision, **options))
        self.bert.fill(found.arrays)
        self.session = self.bert.device.session()

    def about(self) -> str:
        return ABOUT


class Training(Model):
    """minibert's training step."""

    def __init__(self, *arguments: Any, recompute: str = "none", layerwise: bool = False, **options: Any):
        super().__init__(*arguments, **options)
        e = self.examples
        split = Split("train", Features(e.ids, e.segments, e.offsets), e.labels)
        settings = TrainConfig(
            task="mrpc", batch_size=BATCH, epochs=1, warmup=0, seed=SEED,
            recompute=recompute, layerwise_update=layerwise,
        )  # fmt: skip
        self.trainer = Trainer(self.bert, split, settings)

    def loss(self, number: int) -> float:
        """Without dropout."""
        losses = self.trainer.gradients(self.examples.training_batch(number), key=None)
        for group in self.bert.groups:
            group.renew_gradients()
        return float(self.bert.device.numpy(losses).mean())

    def warm(self, calls: list[Call]) -> None:
        # One step compiles for all sizes; a card records each size when it comes for the second time.
        for call in calls[:1] if self.bert.device.backend == "cpu" else calls * 2:
            self.steps(call[1])

    def steps(self, numbers: Sequence[int]) -> float:
        under_way = [self.trainer.begin(number) for number in numbers]
        losses = [wait().loss for wait in under_way]
        self.bert.device.wait()  # a loss is there before its update
        return losses[-1]


class Inference(Model):
    """minibert's evaluation."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        e, order = self.examples, np.concatenate(self.examples.sorted_batches())
        here = np.concatenate([np.arange(e.offsets[n], e.offsets[n + 1]) for n in order])
        self.features = Features(e.ids[here], e.segments[here], np.concatenate([[0], np.cumsum(e.lengths[order])]))

    def warm(self, calls: list[Call]) -> None:
        self.logits()

    def logits(self) -> np.ndarray:
        """The logits of all examples, in batches of like length: (N, 2)."""
        return outputs(self.bert, self.features)
