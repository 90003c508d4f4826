"""The settings of a SQuAD run: those of any training, with the defaults of the chapter's, and windows and answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minibert.errors import ConfigError
from minibert.settings import TrainConfig
from minibert.squad.windows import Lengths

TASKS = ("squad", "squad2")


@dataclass(frozen=True)
class SquadConfig(TrainConfig):
    """`doc_stride` is the step from one window of a long text to the next. An answer has at most `max_answer_length`
    tokens; `n_best_size` are kept. `null_score_diff_threshold`: how much better no answer must score than the best
    answer to be given (squad2); None: what is best on the development set.
    """

    epochs: float = 2.0
    batch_size: int = 12
    learning_rate: float = 3e-5
    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    n_best_size: int = 20
    max_answer_length: int = 30
    null_score_diff_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task {self.task!r:.40} is none of SQuAD's: {' or '.join(TASKS)}")
        super().__post_init__()
        self.lengths  # noqa: B018 - checks them
        for name in ("n_best_size", "max_answer_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is out of range: it must be at least 1")
        threshold = self.null_score_diff_threshold
        if threshold is not None and not math.isfinite(threshold):
            raise ConfigError(f"null_score_diff_threshold {threshold} is out of range: it must be a finite number")

    @property
    def negative(self) -> bool:
        """Whether a question may have no answer."""
        return self.task == "squad2"

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.max_seq_length, self.doc_stride, self.max_query_length)
