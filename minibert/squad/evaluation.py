"""How well a reader answers: predictions into files, the official metrics over them, and the best threshold."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from minibert import datasets, files, mirror, remote
from minibert.errors import ConfigError, DataError
from minibert.progress import Reporter
from minibert.runs import read_description
from minibert.squad import metrics, reading, spans, windows
from minibert.squad.answering import Answerer, load_squad
from minibert.squad.metrics import Gold
from minibert.squad.reader import tops
from minibert.squad.reading import Questions
from minibert.squad.spans import Prediction

T = TypeVar("T")
SHOWN = 5  # questions without a prediction that are named
log = logging.getLogger(__name__)


def predictions(
    answerer: Answerer, parts: Iterable[Questions], report: Reporter | None = None
) -> Generator[Prediction]:
    """The questions' predictions in their order; only the parts that are being worked on are in memory."""
    s = answerer.settings
    made = ((questions, windows.make(questions, answerer.tokenizer, s.lengths)) for questions in parts)
    ahead, behind = _twice(made)  # by up to a batch, which may end in a later part
    found = spans.predict(
        behind, tops(answerer.reader, (each.features for _, each in ahead), s.n_best_size), answerer.tokenizer,
        n_best=s.n_best_size, max_answer_length=s.max_answer_length, negative=s.negative,
    )  # fmt: skip
    return (report or Reporter()).counted(found, "question")


def _twice(items: Iterable[T]) -> tuple[Iterator[T], Iterator[T]]:
    """itertools.tee, which would hold on to dozens of items that both have passed."""
    source = iter(items)
    waiting: tuple[deque[T], deque[T]] = deque(), deque()

    def one(own: deque[T]) -> Iterator[T]:
        while True:
            if not own:
                if (item := next(source, None)) is None:
                    return
                for each in waiting:
                    each.append(item)
            yield own.popleft()

    return one(waiting[0]), one(waiting[1])


def evaluate(
    answerer: Answerer, parts: Iterable[Questions], folder: Path, report: Reporter | None = None
) -> dict[str, Any]:
    """Predicts, writes all files into the folder and returns the official metrics.

    For SQuAD 2.0 `threshold` is the setting's, or else the best one for these questions; `cross_fitted` is what such a
    threshold is worth on articles that it was not found on.
    """
    with contextlib.closing(predictions(answerer, parts, report)) as found:
        chosen = spans.write_n_best(folder / spans.N_BEST, found)
    if not answerer.settings.negative:
        spans.write_predictions(folder, chosen)
        return metrics.evaluate_squad(golds(parts), {c.id: c.text for c in chosen})
    texts, odds = {c.id: c.text for c in chosen}, {c.id: float(c.null_odds or 0.0) for c in chosen}
    threshold = answerer.settings.null_score_diff_threshold
    if threshold is None:
        threshold = metrics.best_threshold(golds(parts), texts, odds)
    spans.write_predictions(folder, chosen, threshold)
    results: dict[str, Any] = metrics.evaluate_squad2(golds(parts), {c.id: c.answer(threshold) for c in chosen})
    best = metrics.evaluate_squad2(golds(parts), texts, odds)
    results |= {name: value for name, value in best.items() if name.startswith(("best_", "pr_"))}
    results["threshold"] = threshold
    if fitted := metrics.cross_fit(golds(parts), texts, odds):
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
    task: str | None = None,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """The official metrics of the reader in a run directory or checkpoint, on a file or on the run's development file.

    The threshold is the given one, else the run's. The files of predictions are kept in `output_dir`, if given. `task`,
    squad or squad2, is the run's, and squad of a checkpoint.
    """
    source = str(remote.checkpoint(source))
    parts = reading.parts(data or _own_dev_file(source, report or Reporter()))
    answerer = load_squad(source, device, threads, precision, task)
    if null_score_diff_threshold is not None:
        answerer = answerer.with_threshold(null_score_diff_threshold)
    if not answerer.settings.negative:
        for part in parts:
            check_answers(part)
    if output_dir is not None:
        with _folder(output_dir) as folder:
            return evaluate(answerer, parts, folder, report)
    with tempfile.TemporaryDirectory() as temporary:
        return evaluate(answerer, parts, Path(temporary), report)


def predict_file(
    source: str,
    data: Path,
    output_dir: Path,
    null_score_diff_threshold: float | None = None,
    threads: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    task: str | None = None,
    report: Reporter | None = None,
) -> None:
    """Writes predictions.json, nbest_predictions.json and, for SQuAD 2.0, null_odds.json of a file's questions."""
    for name in (spans.PREDICTIONS, spans.N_BEST, spans.NULL_ODDS):
        files.keep_apart(data, output_dir / name)
    parts = reading.parts(data)  # which are checked first: what that takes is free again for the model
    answerer = load_squad(source, device, threads, precision, task)
    if null_score_diff_threshold is not None:
        answerer = answerer.with_threshold(null_score_diff_threshold)
    with _folder(output_dir) as folder:
        count = write_all(answerer, parts, folder, report)
    say_written(report or Reporter(), count, output_dir)


def say_written(report: Reporter, count: int, folder: Path) -> None:
    report.say(f"predictions of {count:,} questions: {remote.name(folder / spans.PREDICTIONS)}")


def write_all(answerer: Answerer, parts: Iterable[Questions], folder: Path, report: Reporter | None = None) -> int:
    """Predicts and writes all files into the folder, in memory that does not grow; how many questions there were."""
    threshold = answerer.settings.null_score_diff_threshold or 0.0
    with contextlib.closing(predictions(answerer, parts, report)) as found:
        return spans.write_all(folder, found, answerer.settings.negative, threshold)


@contextlib.contextmanager
def _folder(output_dir: Path) -> Iterator[Path]:
    """The folder for files of predictions, there to be written into."""
    with mirror.output(output_dir) as folder:
        with files.one_line(folder, "write", DataError):
            folder.mkdir(parents=True, exist_ok=True)
        yield folder


def again(task: str, file: str | None, report: Reporter) -> str | Path | None:
    """A file of a run that goes on; where one of SQuAD's own is gone the download, whose checksum is known."""
    names = datasets.SQUAD[task]
    if file is None or remote.is_address(file) or Path(file).exists() or Path(file).name not in names:
        return file
    with report.transfer() as progress:
        return datasets.squad_files(task, progress=progress)[names.index(Path(file).name)]


def _own_dev_file(source: str, report: Reporter) -> Path:
    description = read_description(Path(source)) or {}
    found = description.get("data", {})
    path = found.get("dev", {}).get("path") if isinstance(found, dict) else None
    if not isinstance(path, str):
        raise ConfigError(f"{source}: does not say what it was evaluated on; add --data FILE")
    if remote.is_address(path) or Path(path).exists():
        return Path(path)
    task = description["settings"]["task"]
    fetched = again(task, path, report) if task in datasets.SQUAD else path
    if fetched == path or files.sha256(str(fetched)) != found["dev"].get("sha256"):
        raise ConfigError(f"{source}: was evaluated on {path}, which is not there; add --data FILE")
    return Path(str(fetched))


def evaluate_files(task: str, data: Path, predictions: Path, null_odds: Path | None = None) -> dict[str, float]:
    """What the official evaluators make of files alone."""
    parts, said = reading.parts(data), metrics.read_predictions(Path(remote.local(predictions)))
    if missing := metrics.without_prediction(golds(parts), said):
        more = ", ..." if len(missing) > SHOWN else ""
        means = "they count as wrong" if task == "squad" else "they are left out"
        log.warning(
            "%d questions without a prediction: %s%s; %s", len(missing), ", ".join(missing[:SHOWN]), more, means
        )
    if task == "squad":
        return metrics.evaluate_squad(golds(parts), said)
    odds = metrics.read_null_odds(Path(remote.local(null_odds))) if null_odds else None
    return metrics.evaluate_squad2(golds(parts), said, odds)


def check_answers(questions: Questions) -> None:
    """DataError if one has no answers, without which SQuAD 1.1 cannot be evaluated."""
    for question in questions:
        if not question.answers:
            raise DataError(
                f"{questions.source}: question {question.id} has no answers: take squad2, or remove the question"
            )


def golds(parts: Iterable[Questions]) -> Iterator[Gold]:
    """The questions as evaluators see them."""
    for part in parts:
        for q in part:
            yield Gold(q.id, [text for text, _ in q.answers], part.paragraphs[q.paragraph].article)
