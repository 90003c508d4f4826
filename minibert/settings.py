"""The settings of a fine-tuning run: what `run.json` records and a resume must agree with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from minibert.errors import BackendError, ConfigError

RECIPES = {  # schedule, bias correction
    "google": ("google", False),  # the chapter's: run_classifier.py as published
    "stable": ("hf", True),  # Mosbach et al. 2021, who train longer with it: add --epochs 20
}
SCHEDULES = ("google", "hf", "electra")
RECOMPUTE = ("none", "layers")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers of a run; the defaults are those of Google's MRPC example.

    `micro_batch` examples are computed at a time (None: the whole batch); gradients add up over the batch. `gelu`,
    `schedule` and `bias_correction` override the checkpoint's and the recipe's when they are not None.
    """

    task: str
    epochs: float = 3.0
    batch_size: int = 32
    micro_batch: int | None = None
    learning_rate: float = 2e-5
    max_seq_length: int = 128
    warmup: float = 0.1
    recipe: str = "google"
    schedule: str | None = None
    bias_correction: bool | None = None
    gelu: str | None = None
    precision: str = "auto"
    device: str = "auto"
    recompute: str = "none"
    seed: int = 1

    def __post_init__(self) -> None:
        _require("epochs", self.epochs, 0 < self.epochs < 2**31, "above 0")
        _require("batch size", self.batch_size, self.batch_size >= 1, "at least 1")
        micro = self.batch_size if self.micro_batch is None else self.micro_batch
        _require("micro-batch", micro, 1 <= micro <= self.batch_size, f"from 1 to the batch size {self.batch_size}")
        _require("learning rate", self.learning_rate, 0 < self.learning_rate < 1, "above 0 and below 1")
        _require(
            "max-seq-length",
            self.max_seq_length,
            self.max_seq_length >= 3,
            "at least 3: [CLS], a word, [SEP]",
        )
        _require("warm-up", self.warmup, 0 <= self.warmup < 1, "a share of the steps, from 0 to below 1")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        _require("recipe", self.recipe, self.recipe in RECIPES, " or ".join(RECIPES))
        _require("schedule", self.schedule, self.schedule in (None, *SCHEDULES), ", ".join(SCHEDULES))
        _require("gelu", self.gelu, self.gelu in (None, "erf", "tanh"), "erf or tanh")
        _require("recompute", self.recompute, self.recompute in RECOMPUTE, " or ".join(RECOMPUTE))
        if self.precision not in ("auto", "fp32"):
            raise BackendError(f"precision {self.precision} is not in this version; use --precision fp32")
        if self.device not in ("auto", "cpu"):
            raise BackendError(f"device {self.device} is not in this version; use --device cpu")

    @property
    def effective_schedule(self) -> str:
        return self.schedule or RECIPES[self.recipe][0]

    @property
    def effective_bias_correction(self) -> bool:
        return RECIPES[self.recipe][1] if self.bias_correction is None else self.bias_correction

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _require(name: str, value: object, holds: bool, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} {value} is out of range: it must be {wanted}")
