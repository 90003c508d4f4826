"""A reader in use: questions and a text in, the best parts of the text out."""

from __future__ import annotations

import dataclasses
from os import PathLike
from pathlib import Path

from minibert import checkpoint, remote
from minibert.errors import CheckpointError, ConfigError, DataError, RunError
from minibert.model import find_run, open_device, size, tokenizer_of
from minibert.runs import read_description
from minibert.squad import spans, windows
from minibert.squad.reader import Reader, tops
from minibert.squad.reading import single
from minibert.squad.settings import SquadConfig
from minibert.squad.spans import Answer
from minibert.tokenizer import Tokenizer

ANSWERED_BY = (
    "task", "max_seq_length", "doc_stride", "max_query_length", "n_best_size", "max_answer_length",
    "null_score_diff_threshold",
)  # fmt: skip


class Answerer:
    """A fine-tuned reader, its tokenizer and the settings that it was trained with."""

    def __init__(self, reader: Reader, tokenizer: Tokenizer, settings: SquadConfig):
        self.reader, self.tokenizer, self.settings = reader, tokenizer, settings

    def __repr__(self) -> str:
        return f"<minibert.Answerer: {self.settings.task}, {size(self.reader)}>"

    def answer(self, question: str, context: str, n: int = 3) -> list[Answer]:
        """The n best answers, each a part of the context, best first; "" where none is better (SQuAD 2.0)."""
        questions = single(question, context)
        if not question.strip():
            raise DataError("the question is empty: ask one")
        made = windows.make(questions, self.tokenizer, self.settings.lengths)
        s = self.settings
        (prediction,) = spans.predict(
            [(questions, made)], tops(self.reader, [made.features], s.n_best_size), self.tokenizer,
            n_best=s.n_best_size, max_answer_length=s.max_answer_length, negative=s.negative,
        )  # fmt: skip
        found = spans.answers(context, prediction)
        odds, threshold = prediction.null_odds, s.null_score_diff_threshold or 0.0
        if odds is not None:  # whether there is no answer is the threshold's decision, not that of probabilities
            found.sort(key=lambda answer: (answer.text != "") == (odds > threshold))
        return found[:n]

    def with_threshold(self, threshold: float) -> Answerer:
        """The same reader with another null_score_diff_threshold; ConfigError where there always is an answer."""
        if not self.settings.negative:
            raise ConfigError("a threshold belongs to SQuAD 2.0: leave it out, or add --task squad2")
        settings = dataclasses.replace(self.settings, null_score_diff_threshold=threshold)
        return Answerer(self.reader, self.tokenizer, settings)


def load_squad(
    source: str | PathLike[str], device: str = "auto", threads: int | None = None, precision: str = "auto",
    task: str | None = None,
) -> Answerer:  # fmt: skip
    """The reader of a finished run, in a checkpoint directory or on the hub; `task`, squad or squad2, is the run's.

    Raises CheckpointError where there is no head that marks answers, which fine-tuning would make.
    """
    path = find_run(source)
    description = read_description(path)
    if description and not description["finished"]:
        raise RunError(f"{remote.name(path)}: the run is not finished; go on with minibert finetune ... --resume")
    found = checkpoint.load(path, spans=True)
    if found.missing_head:
        raise CheckpointError(
            f"{source}: marks no answers yet; train it with minibert finetune squad --checkpoint {source}"
        )
    reader = Reader(found.config, open_device(device, threads, precision))
    reader.fill(found.arrays)
    settings = settings_of(description, task)
    longest = min(settings.max_seq_length, found.config.max_position_embeddings)
    return Answerer(reader, tokenizer_of(found), dataclasses.replace(settings, max_seq_length=longest))


def settings_of(description: dict | None, task: str | None = None) -> SquadConfig:
    """What a run answers by, and the threshold that was found for it; the defaults where there is no run."""
    given = {k: v for k, v in (description or {"settings": {}})["settings"].items() if k in ANSWERED_BY}
    if description and isinstance(description.get("null_score_diff_threshold"), float):
        given["null_score_diff_threshold"] = description["null_score_diff_threshold"]
    try:
        settings = SquadConfig(**{"task": "squad", "precision": "fp32", **given})
    except (TypeError, ConfigError):
        raise RunError("run.json: its settings are damaged; train again with --overwrite") from None
    return dataclasses.replace(settings, task=task) if task else settings


def is_reader(path: Path) -> bool:
    """Whether a directory holds a run of SQuAD, or a model that marks answers and nothing else."""
    description = read_description(path)
    if description:
        return str(description["settings"]["task"]).startswith("squad")
    return not path.is_file() and checkpoint.architecture(path) == "BertForQuestionAnswering"
