"""SQuAD's two official evaluators, equal to them in every digit, and honest thresholds for "no answer".

The scripts are evaluate-v1.1.py and evaluate-v2.0.py of rajpurkar.github.io/SQuAD-explorer. Floats are added in their
order and by their functions: `sum` rounds less often from Python 3.12 on, for them as for this file.
"""

from __future__ import annotations

import math
import re
import string
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from minibert import files
from minibert.errors import DataError

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
FOLDS = 5
LARGEST_FILE = 1 << 30  # bytes of predictions or null odds


class Gold(NamedTuple):
    """A question as evaluators see it: without answers it cannot be answered; `article` is its article's number."""

    id: str
    answers: Sequence[str]
    article: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What SQuAD 2.0 makes of one prediction. exact and f1 are 0 to 1; said: the prediction is not empty."""

    exact: float
    f1: float
    said: bool
    answerable: bool
    article: int
    odds: float

    def at(self, threshold: float) -> Scored:
        """The same where null odds above the threshold make the prediction empty."""
        if self.odds > threshold:
            return replace(self, exact=float(not self.answerable), f1=float(not self.answerable), said=False)
        return self


@dataclass(frozen=True)
class CrossFitted:
    """Percentages over all questions, each scored with a threshold found on other articles; a threshold per fold."""

    exact: float
    f1: float
    thresholds: tuple[float, ...]


def normalize(text: str) -> str:
    """Lower case, ASCII punctuation and English articles removed, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def score(prediction: str, answers: Collection[str], both_empty: int) -> tuple[int, float]:
    """Exact match and F1 of words, each with the answer it fits best; both_empty: F1 of nothing against nothing."""
    said, wanted = normalize(prediction), [normalize(answer) for answer in answers]
    return max(int(said == one) for one in wanted), max(_f1(said.split(), one.split(), both_empty) for one in wanted)


def _f1(said: list[str], wanted: list[str], both_empty: int) -> float:
    if not said and not wanted:
        return both_empty
    same = (Counter(said) & Counter(wanted)).total()
    if same == 0:
        return 0
    precision, recall = same / len(said), same / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def without_prediction(questions: Iterable[Gold], predictions: Mapping[str, str]) -> list[str]:
    """The ids that a user should be told of: they score 0 in SQuAD 1.1, and are left out in 2.0."""
    return [question.id for question in questions if question.id not in predictions]


def evaluate_squad(questions: Iterable[Gold], predictions: Mapping[str, str]) -> dict[str, float]:
    """exact_match and f1 in percent, as evaluate-v1.1.py; a question without a prediction scores 0.

    DataError for no questions at all, and for one that has no answers to compare its prediction with.
    """
    total, exact, f1 = 0, 0, 0.0
    for question in questions:
        total += 1
        if question.id not in predictions:
            continue
        if not question.answers:
            raise DataError(f"question {question.id} has no answers: evaluate as squad2, or remove the question")
        one = score(predictions[question.id], question.answers, both_empty=0)
        exact, f1 = exact + one[0], f1 + one[1]
    if not total:
        raise DataError("no questions to evaluate: check the data file")
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * f1 / total}


def evaluate_squad2(
    questions: Iterable[Gold],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """What evaluate-v2.0.py reports, in its order: percentages, counts and thresholds.

    null_odds (its --na-prob-file) add best_... and, as its plots would, pr_..._ap. `threshold` is its --na-prob-thresh:
    above it a prediction counts as empty, and the default of 1 holds for differences of logits too. Questions without
    a prediction are left out, where the script fails. DataError where none is left, or one has no null odds.
    """
    scored = _score_all(questions, predictions, null_odds)
    final = [one.at(threshold) for one in scored.values()]
    result = _percentages("", final)
    for prefix, answerable in (("HasAns_", True), ("NoAns_", False)):
        if part := [one for one in final if one.answerable == answerable]:
            result |= _percentages(prefix, part)
    if null_odds is not None:
        # A stable sort: equal odds stay in the order of their file, which the best threshold depends on.
        by_odds = sorted((scored[id] for id in null_odds if id in scored), key=lambda one: one.odds)
        for name in ("exact", "f1"):
            result[f"best_{name}"], result[f"best_{name}_thresh"] = _official_best(by_odds, name)
        if "HasAns_total" in result:
            result["pr_exact_ap"] = _average_precision(by_odds, [one.exact for one in by_odds])
            result["pr_f1_ap"] = _average_precision(by_odds, [one.f1 for one in by_odds])
            result["pr_oracle_ap"] = _average_precision(by_odds, [1.0] * len(by_odds))
    return result


def best_threshold(questions: Iterable[Gold], predictions: Mapping[str, str], null_odds: Mapping[str, float]) -> float:
    """The threshold of null odds with the highest F1, where predictions are the best texts that are not empty.

    It is best_f1_thresh, except where that does not have the F1 reported beside it: between equal odds, where it is
    best to answer nothing (the script says 0), and for predictions such as "the", which count as empty in part.
    """
    return _best_threshold(_score_all(questions, predictions, null_odds).values())


def cross_fit(
    questions: Iterable[Gold], predictions: Mapping[str, str], null_odds: Mapping[str, float], folds: int = FOLDS
) -> CrossFitted | None:
    """What best_threshold is worth on articles it was not found on; None for one article.

    Predictions are best_threshold's. Every folds-th article forms a fold, which is scored with the threshold found on
    all the others: found on the questions that are scored, as the official script does, it looks better than it is.
    """
    scored = _score_all(questions, predictions, null_odds).values()
    articles = {article: i for i, article in enumerate(dict.fromkeys(one.article for one in scored))}
    folds = min(folds, len(articles))
    if folds < 2:
        return None
    thresholds, final = [], []
    for fold in range(folds):
        inside = [articles[one.article] % folds == fold for one in scored]
        thresholds.append(_best_threshold(one for one, here in zip(scored, inside, strict=True) if not here))
        final += [one.at(thresholds[-1]) for one, here in zip(scored, inside, strict=True) if here]
    sums = _percentages("", final)
    return CrossFitted(sums["exact"], sums["f1"], tuple(thresholds))


def _score_all(
    questions: Iterable[Gold], predictions: Mapping[str, str], null_odds: Mapping[str, float] | None
) -> dict[str, Scored]:
    """By id and in the questions' order; an answer of which normalising leaves nothing does not count."""
    scored = {}
    for id, answers, article in questions:
        if id not in predictions:
            continue
        if null_odds is not None and id not in null_odds:
            raise DataError(f"question {id} has a prediction but no null odds: give the files of one run")
        exact, f1 = score(predictions[id], [a for a in answers if normalize(a)] or [""], both_empty=1)
        odds = 0.0 if null_odds is None else null_odds[id]
        scored[id] = Scored(exact, f1, bool(predictions[id]), bool(answers), article, odds)
    if not scored:
        raise DataError("no question has a prediction: check that data and predictions belong together")
    return scored


def _percentages(prefix: str, scored: Collection[Scored]) -> dict[str, float]:
    total = len(scored)
    return {
        f"{prefix}exact": 100.0 * sum(one.exact for one in scored) / total,
        f"{prefix}f1": 100.0 * sum(one.f1 for one in scored) / total,
        f"{prefix}total": total,
    }


def _official_best(by_odds: Sequence[Scored], name: str) -> tuple[float, float]:
    """The highest percentage and its threshold: from all predictions empty on, one more at a time is let stand."""
    total: float = sum(not one.answerable for one in by_odds)
    best, threshold = total, 0.0
    for one in by_odds:
        total += getattr(one, name) if one.answerable else -one.said
        if total > best:
            best, threshold = total, one.odds
    return 100.0 * best / len(by_odds), threshold


def _best_threshold(scored: Iterable[Scored]) -> float:
    """The first of the thresholds with the highest F1: those after each group of equal odds, and one below them all."""
    by_odds = sorted(scored, key=lambda one: one.odds)
    total = best = float(sum(not one.answerable for one in by_odds))
    threshold = math.nextafter(by_odds[0].odds, -math.inf)
    for i, one in enumerate(by_odds):
        total += one.f1 - (not one.answerable)
        if total > best and (i + 1 == len(by_odds) or by_odds[i + 1].odds > one.odds):
            best, threshold = total, one.odds
    return threshold


def _average_precision(by_odds: Sequence[Scored], values: Sequence[float]) -> float:
    """In percent: precision over recall, a step wherever a threshold fits between null odds."""
    answerable = sum(one.answerable for one in by_odds)
    found = average = reached = 0.0
    for i, (one, value) in enumerate(zip(by_odds, values, strict=True)):
        if one.answerable:
            found += value
        if i + 1 == len(by_odds) or by_odds[i + 1].odds != one.odds:
            recall = found / answerable
            average += found / (i + 1) * (recall - reached)
            reached = recall
    return 100.0 * average


def read_predictions(path: Path | str) -> dict[str, str]:
    """predictions.json: a text for each question's id."""
    predictions = files.read_json(path, DataError, LARGEST_FILE)
    for id, text in predictions.items():
        if not isinstance(text, str):
            raise DataError(f"{path}: the prediction for question {id[:200]} is not a text: give a predictions.json")
    return predictions


def read_null_odds(path: Path | str) -> dict[str, float]:
    """null_odds.json: a finite number for each question's id, higher where it has no answer."""
    odds = files.read_json(path, DataError, LARGEST_FILE)
    for id, value in odds.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise DataError(f"{path}: the null odds of question {id[:200]} are no number: give a null_odds.json")
    return odds
