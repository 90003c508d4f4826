"""GLUE's metrics in NumPy, with a bootstrap interval and the majority class beside each.

Every classification metric is a function of the confusion matrix, so that drawing n rows with replacement is
drawing its cells from a multinomial: a thousand resamples cost what a thousand small tables cost. For
regression the drawn counts are weights. Where a metric is undefined it is 0, in a resample as in the whole:
Matthews of constant predictions, F1 without a positive, a correlation with a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minibert.errors import ConfigError, DataError, RunError

Floats = NDArray[np.float64]

RESAMPLES = 1000
SHOWN = 100  # classes whose table of confusions is part of the results: of thousands it is megabytes of text
CELLS = 1 << 22  # weights, or cells of tables, held at once


class Scored(Protocol):
    """What evaluate() asks of a task."""

    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """(K, K) counts: row the true class, column the predicted one."""
    cells = np.asarray(labels, np.int64) * classes + np.asarray(predictions, np.int64)
    return np.bincount(cells.ravel(), minlength=classes * classes).reshape(classes, classes)


def accuracy(table: ArrayLike) -> Floats:
    """The share on the diagonal of (..., K, K) confusion tables; (...)."""
    table = np.asarray(table, np.float64)
    return _ratio(np.trace(table, axis1=-2, axis2=-1), table.sum((-2, -1)))


def f1(table: ArrayLike) -> Floats:
    """2 tp / (2 tp + fp + fn) of class 1, of (..., 2, 2) confusion tables; 0 without positives."""
    table = np.asarray(table, np.float64)
    if table.shape[-2:] != (2, 2):
        raise ConfigError(f"f1 is for two classes, not {table.shape[-1]}; use accuracy or matthews")
    return _ratio(2 * table[..., 1, 1], table[..., 1, :].sum(-1) + table[..., :, 1].sum(-1))


def matthews(table: ArrayLike) -> Floats:
    """Matthews' correlation of (..., K, K) tables, Gorodkin's R_K for K > 2; 0 where a side is constant."""
    table = np.asarray(table, np.float64)
    total = table.sum((-2, -1))
    true, predicted = table.sum(-1), table.sum(-2)  # (..., K)
    covariance = total * np.trace(table, axis1=-2, axis2=-1) - (true * predicted).sum(-1)
    # One root for each side: the product of four counts leaves float64's exact integers.
    spread = np.sqrt(total**2 - (true**2).sum(-1)) * np.sqrt(total**2 - (predicted**2).sum(-1))
    return _ratio(covariance, spread)


def pearson(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Pearson's correlation of two (n,) series; weights: (..., n) counts; 0 where a side is constant."""
    x, y = _centred(x), _centred(y)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    return _correlation(w, np.broadcast_to(x, w.shape), np.broadcast_to(y, w.shape))


def spearman(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """Pearson's correlation of the ranks, ties sharing their average; weights as in pearson()."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    return _correlation(w, _ranks(x, w), _ranks(y, w))


def rmse(x: ArrayLike, y: ArrayLike, weights: ArrayLike | None = None) -> Floats:
    """The root of the mean squared difference of two (n,) series, in their unit; weights as in pearson()."""
    squares = (np.asarray(x, np.float64) - np.asarray(y, np.float64)) ** 2
    w = np.ones(len(squares)) if weights is None else np.asarray(weights, np.float64)
    return np.sqrt((w * squares).sum(-1) / w.sum(-1))


def beats(name: str, value: float, other: float) -> bool:
    """Whether the value of a metric is strictly better than another one."""
    return value < other if name in ERRORS else value > other


CLASSIFICATION: dict[str, Callable[[ArrayLike], Floats]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
}
REGRESSION: dict[str, Callable[..., Floats]] = {"rmse": rmse, "pearson": pearson, "spearman": spearman}
ERRORS = {"rmse"}  # of which less is better


def evaluate(task: Scored, outputs: ArrayLike, labels: ArrayLike, seed: int = 0) -> dict[str, Any]:
    """Every metric of the task for (n, K) outputs: logits or probabilities, or scores for regression, K = 1.

    Returns plain numbers, ready for JSON: each metric by name; `combined`, their mean but for errors, where there
    are several; `majority`, the same metrics of a constant predictor (the most frequent of these labels, the
    first of them in a tie; their mean for regression); `beats_majority`, whether every metric is strictly
    better; `interval`, {metric: [low, high]}, the 95 % percentile bootstrap; `confusion` (rows true,
    columns predicted; not for regression, nor for more than SHOWN classes); `examples`; and `notes`, what was
    undefined. Raises DataError for labels that are missing or do not fit, RunError for outputs that are not finite.
    """
    scores = np.asarray(outputs, np.float64)
    scores = scores[:, None] if scores.ndim == 1 else scores
    n, k = scores.shape[0], len(task.labels)
    truth: NDArray[Any] = np.asarray(labels, np.float64)  # None becomes NaN
    if n == 0 or truth.shape != (n,) or scores.shape[1:] != (k or 1,):
        raise DataError(f"evaluation wants labels (n,), outputs (n, {k or 1}); got {truth.shape}, {scores.shape}")
    if not np.isfinite(truth).all():
        bad = int(np.isfinite(truth).argmin())
        raise DataError(f"example {bad} has no label; evaluate a split that has them, such as dev")
    if not np.isfinite(scores).all():
        bad = int(np.isfinite(scores).all(1).argmin())
        raise RunError(f"the output for example {bad} is not finite; go back to an earlier checkpoint")
    if k and not np.isin(truth, np.arange(k)).all():
        raise DataError(f"evaluation has {k} classes; label {truth[~np.isin(truth, np.arange(k))][0]} is none of them")
    rng = np.random.default_rng([seed, n, 0x6D657472])  # "metr": apart from every other use of the seed
    if k:
        result = _classified(task.metrics, confusion(truth.astype(np.int64), scores.argmax(1), k), rng)
    else:
        result = _correlated(task.metrics, scores[:, 0], truth, rng)
    values = [result[name] for name in task.metrics if name not in ERRORS]
    if len(values) > 1:
        result["combined"] = float(np.mean(values))
    result["beats_majority"] = all(beats(name, result[name], result["majority"][name]) for name in task.metrics)
    result["examples"] = n
    return result


def _classified(names: tuple[str, ...], table: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Any]:
    constant = np.zeros_like(table)
    constant[:, table.sum(1).argmax()] = table.sum(1)
    measures = {name: CLASSIFICATION[name] for name in names}
    drawn: dict[str, list[Floats]] = {name: [] for name in names}
    for tables in _tables(table, rng):
        for name, measure in measures.items():
            drawn[name].append(measure(tables))
    return {
        **{name: float(measure(table)) for name, measure in measures.items()},
        "majority": {name: float(measure(constant)) for name, measure in measures.items()},
        "interval": {name: _interval(np.concatenate(values)) for name, values in drawn.items()},
        **({"confusion": table.tolist()} if len(table) <= SHOWN else {}),
        "notes": _notes(predictions=(table.sum(0) > 0).sum() == 1, labels=(table.sum(1) > 0).sum() == 1),
    }


def _tables(table: NDArray[np.int64], rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """RESAMPLES tables (some, K, K) of as many examples, drawn with replacement: some at a time, since of many labels
    all would be gigabytes. Empty cells take no random number.
    """
    k, n, flat = len(table), int(table.sum()), table.ravel()
    cells = np.union1d(np.flatnonzero(flat), [flat.size - 1])  # the last has what is left
    most = max(1, CELLS // flat.size)
    for begin in range(0, RESAMPLES, most):
        tables = np.zeros((min(most, RESAMPLES - begin), flat.size), np.int64)
        tables[:, cells] = rng.multinomial(n, flat[cells] / n, len(tables))
        yield tables.reshape(-1, k, k)


def _correlated(names: tuple[str, ...], scores: Floats, truth: Floats, rng: np.random.Generator) -> dict[str, Any]:
    measures = {name: REGRESSION[name] for name in names}
    drawn: dict[str, list[Floats]] = {name: [] for name in names}
    for weights in _weights(len(truth), rng):
        for name, measure in measures.items():
            drawn[name].append(measure(scores, truth, weights))
    mean = np.full_like(truth, truth.mean())
    return {
        **{name: float(measure(scores, truth)) for name, measure in measures.items()},
        "majority": {name: float(measure(mean, truth)) for name, measure in measures.items()},
        "interval": {name: _interval(np.concatenate(values)) for name, values in drawn.items()},
        "notes": _notes(predictions=np.ptp(scores) == 0, labels=np.ptp(truth) == 0),
    }


def _notes(**constant: bool) -> list[str]:
    return [
        f"all {side} are the same; a metric that is undefined then is given as 0" for side, so in constant.items() if so
    ]


def _weights(n: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of n rows was drawn, in RESAMPLES resamples: (some, n) at a time."""
    step = max(1, CELLS // n)
    for start in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - start)
        drawn = rng.integers(n, size=(count, n)) + np.arange(count)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _interval(values: Floats) -> list[float]:
    return np.quantile(values, (0.025, 0.975)).tolist()


def _centred(x: ArrayLike) -> Floats:
    x = np.asarray(x, np.float64)
    return x - x.mean() if np.ptp(x) else np.zeros_like(x)


def _correlation(w: Floats, x: Floats, y: Floats) -> Floats:
    """Weighted correlation along the last axis of three (..., n) arrays."""
    total = w.sum(-1, keepdims=True)
    dx = x - (w * x).sum(-1, keepdims=True) / total
    dy = y - (w * y).sum(-1, keepdims=True) / total
    xx, yy = (w * dx * dx).sum(-1), (w * dy * dy).sum(-1)
    # Constant in a resample: what is left is the rounding of its mean.
    constant = (xx <= 1e-24 * (w * x * x).sum(-1)) | (yy <= 1e-24 * (w * y * y).sum(-1))
    return np.where(constant, 0.0, np.clip(_ratio((w * dx * dy).sum(-1), np.sqrt(xx) * np.sqrt(yy)), -1, 1))


def _ranks(x: Floats, w: Floats) -> Floats:
    """The average rank of each of (n,) values where value i stands w[..., i] times; (..., n)."""
    _, group = np.unique(x, return_inverse=True)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(np.sort(group))) + 1])
    counts = np.add.reduceat(w[..., np.argsort(group, kind="stable")], starts, axis=-1)  # (..., groups)
    ranks = counts.cumsum(-1) - (counts - 1) / 2
    return ranks[..., group]


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """top / bottom, 0 where bottom is 0."""
    return np.divide(top, bottom, out=np.zeros_like(top, dtype=np.float64), where=bottom != 0)
