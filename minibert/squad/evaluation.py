"""How well a reader answers: predictions into files, the official metrics over them, and the best threshold."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minibert import files, mirror, remote
from minibert.errors import ConfigError, DataError
from minibert.runs import read_description
from minibert.squad import metrics, reading, spans, windows
from minibert.squad.answering import Answerer, load_squad
from minibert.squad.metrics import Gold
from minibert.squad.reader import tops
from minibert.squad.reading import Questions
from minibert.squad.spans import Chosen


def predict(answerer: Answerer, questions: Questions, folder: Path) -> list[Chosen]:
    """Writes nbest_predictions.json into the folder; returns what predictions and thresholds are made of."""
    s = answerer.settings
    made = windows.prepare(questions, answerer.tokenizer, s.lengths)
    found = spans.predict(
        questions, made, tops(answerer.reader, made, s.n_best_size), answerer.tokenizer, n_best=s.n_best_size,
        max_answer_length=s.max_answer_length, negative=s.negative,
    )  # fmt: skip
    return spans.write_n_best(folder / spans.N_BEST, found)


def evaluate(answerer: Answerer, questions: Questions, folder: Path) -> dict[str, Any]:
    """Predicts, writes all files into the folder and returns the official metrics.

    For SQuAD 2.0 `threshold` is the setting's, or else the best one for these questions; `cross_fitted` is what such a
    threshold is worth on articles that it was not found on.
    """
    chosen = predict(answerer, questions, folder)
    wanted = golds(questions)
    if not answerer.settings.negative:
        spans.write_predictions(folder, chosen)
        return metrics.evaluate_squad(wanted, {c.id: c.text for c in chosen})
    texts, odds = {c.id: c.text for c in chosen}, {c.id: float(c.null_odds or 0.0) for c in chosen}
    threshold = answerer.settings.null_score_diff_threshold
    if threshold is None:
        threshold = metrics.best_threshold(wanted, texts, odds)
    spans.write_predictions(folder, chosen, threshold)
    results: dict[str, Any] = metrics.evaluate_squad2(wanted, {c.id: c.answer(threshold) for c in chosen})
    best = metrics.evaluate_squad2(wanted, texts, odds)
    results |= {name: value for name, value in best.items() if name.startswith(("best_", "pr_"))}
    results["threshold"] = threshold
    if fitted := metrics.cross_fit(wanted, texts, odds):
        results["cross_fitted"] = {"exact": fitted.exact, "f1": fitted.f1, "thresholds": list(fitted.thresholds)}
    return results


def evaluate_run(
    source: str,
    data: Path | None = None,
    output_dir: Path | None = None,
    null_score_diff_threshold: float | None = None,
    threads: int | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """The official metrics of the reader in a run directory or checkpoint, on a file or on the run's development file.

    The threshold is the given one, else the run's. The files of predictions are kept in `output_dir`, if given.
    """
    source = str(remote.checkpoint(source))
    answerer = load_squad(source, device, threads, precision)
    if null_score_diff_threshold is not None:
        answerer = answerer.with_threshold(null_score_diff_threshold)
    questions = reading.read(data or _own_dev_file(source))
    if output_dir is not None:
        with _folder(output_dir) as folder:
            return evaluate(answerer, questions, folder)
    with tempfile.TemporaryDirectory() as temporary:
        return evaluate(answerer, questions, Path(temporary))


def predict_file(
    source: str,
    data: Path,
    output_dir: Path,
    null_score_diff_threshold: float | None = None,
    threads: int | None = None,
    precision: str = "auto",
    device: str = "auto",
) -> None:  # fmt: skip
    """Writes predictions.json, nbest_predictions.json and, for SQuAD 2.0, null_odds.json of a file's questions."""
    answerer = load_squad(source, device, threads, precision)
    questions = reading.read(data)
    threshold = null_score_diff_threshold
    if threshold is None:
        threshold = answerer.settings.null_score_diff_threshold or 0.0
    with _folder(output_dir) as folder:
        spans.write_predictions(folder, predict(answerer, questions, folder), threshold)


@contextlib.contextmanager
def _folder(output_dir: Path) -> Iterator[Path]:
    """The folder for files of predictions, there to be written into."""
    with mirror.output(output_dir) as folder:
        with files.one_line(folder, "write", DataError):
            folder.mkdir(parents=True, exist_ok=True)
        yield folder


def _own_dev_file(source: str) -> Path:
    description = read_description(Path(source)) or {}
    found = description.get("data", {})
    path = found.get("dev", {}).get("path") if isinstance(found, dict) else None
    if not isinstance(path, str):
        raise ConfigError(f"{source}: does not say what it was evaluated on; add --data FILE")
    return Path(path)


def evaluate_files(task: str, data: Path, predictions: Path, null_odds: Path | None = None) -> dict[str, float]:
    """What the official evaluators make of files alone."""
    wanted, said = golds(reading.read(data)), metrics.read_predictions(Path(remote.local(predictions)))
    if task == "squad":
        return metrics.evaluate_squad(wanted, said)
    odds = metrics.read_null_odds(Path(remote.local(null_odds))) if null_odds else None
    return metrics.evaluate_squad2(wanted, said, odds)


def golds(questions: Questions) -> list[Gold]:
    """The questions as evaluators see them."""
    return [
        Gold(q.id, () if q.impossible else [text for text, _ in q.answers], questions.paragraphs[q.paragraph].article)
        for q in questions
    ]
