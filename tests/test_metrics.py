"""Metrics against values worked out by hand and against slow loops that follow the definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minibert import metrics, tasks
from minibert.errors import ConfigError, DataError, RunError

BINARY = SimpleNamespace(metrics=("accuracy", "f1", "matthews"), labels=("0", "1"))
SCORE = SimpleNamespace(metrics=("pearson", "spearman"), labels=())


def one_hot(predictions, classes: int = 2) -> np.ndarray:
    return np.eye(classes)[predictions]


def slow_pearson(x, y) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    xx = sum((a - mx) ** 2 for a in x)
    yy = sum((b - my) ** 2 for b in y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.sqrt(xx * yy) if xx and yy else 0.0


def slow_ranks(x) -> list[float]:
    """1 + those below + half of the others that are equal."""
    return [1 + sum(b < a for b in x) + (sum(b == a for b in x) - 1) / 2 for a in x]


def test_by_hand() -> None:
    # true 1 1 1 0 0, predicted 1 1 0 1 0: two true positives, one false positive, one false negative
    table = metrics.confusion([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 2)
    assert table.tolist() == [[1, 1], [1, 2]]
    assert metrics.accuracy(table) == 3 / 5
    assert metrics.f1(table) == pytest.approx(4 / 6)
    assert metrics.matthews(table) == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert metrics.pearson([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert metrics.spearman([1, 2, 3, 4], [10, 1000, 100, 9999]) == pytest.approx(0.8)
    # ranks 1.5 1.5 3 against 1 2.5 2.5: covariance 0.75, both variances 1.5
    assert metrics.spearman([5, 5, 9], [0, 7, 7]) == pytest.approx(0.5)


def test_matthews_is_the_correlation_of_the_indicators_for_two_classes_and_gorodkins_for_three() -> None:
    rng = np.random.default_rng(1)
    truth, guess = rng.integers(2, size=(2, 200))
    assert metrics.matthews(metrics.confusion(truth, guess, 2)) == pytest.approx(slow_pearson(truth, guess))
    truth = rng.integers(3, size=200)
    guess = np.where(rng.random(200) < 0.5, truth, rng.integers(3, size=200))
    x, y = one_hot(truth, 3), one_hot(guess, 3)  # R_K: the covariances of the indicators, summed over classes
    cov = lambda a, b: ((a - a.mean(0)) * (b - b.mean(0))).sum()  # noqa: E731
    expected = cov(x, y) / math.sqrt(cov(x, x) * cov(y, y))
    assert metrics.matthews(metrics.confusion(truth, guess, 3)) == pytest.approx(expected)


def test_undefined_is_zero() -> None:
    constant = metrics.confusion([0, 1, 1], [1, 1, 1], 2)
    assert metrics.matthews(constant) == 0
    assert metrics.f1(metrics.confusion([0, 0], [0, 0], 2)) == 0
    assert metrics.pearson([0.1] * 7, [1, 2, 3, 4, 5, 6, 7]) == 0
    assert metrics.spearman([0.1] * 7, [1, 2, 3, 4, 5, 6, 7]) == 0
    with pytest.raises(ConfigError, match="two classes"):
        metrics.f1(np.ones((3, 3)))


def test_matthews_of_many_rows_does_not_overflow() -> None:
    table = np.array([[4, 1], [1, 4]], np.int64) * 10**8
    assert metrics.matthews(table) == pytest.approx(0.6)


def test_a_large_offset_does_not_spoil_a_correlation() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 50))
    assert metrics.pearson(x + 1e8, y) == pytest.approx(slow_pearson(x, y), abs=1e-6)


def test_weights_are_rows_repeated() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(6, size=30) / 2.0, rng.standard_normal(30)
    weights = rng.multinomial(30, np.full(30, 1 / 30), 5)
    weights = np.concatenate([weights, np.eye(30, dtype=np.int64)[:2] * 30])  # two that drew one row only
    pearson, spearman = metrics.pearson(x, y, weights), metrics.spearman(x, y, weights)
    for i, w in enumerate(weights):
        xs, ys = np.repeat(x, w), np.repeat(y, w)
        expected = (0.0, 0.0) if i >= 5 else (slow_pearson(xs, ys), slow_pearson(slow_ranks(xs), slow_ranks(ys)))
        assert (pearson[i], spearman[i]) == pytest.approx(expected, abs=1e-12)


def test_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    x, y = np.round(rng.standard_normal((2, 300)), 1)
    y += x
    assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_of_an_error_less_is_better_and_it_is_no_part_of_the_mean() -> None:
    task = SimpleNamespace(metrics=("rmse", "pearson", "spearman"), labels=())
    truth = np.array([100.0, 200.0, 300.0, 500.0])
    result = metrics.evaluate(task, truth + [30, -30, 30, -30], truth)
    assert result["rmse"] == pytest.approx(30) and result["majority"]["rmse"] == pytest.approx(truth.std())
    assert result["combined"] == pytest.approx((result["pearson"] + result["spearman"]) / 2)
    assert result["interval"]["rmse"] == pytest.approx([30, 30]) and result["beats_majority"] is True
    far = metrics.evaluate(task, truth / 1e5, truth)  # perfect correlations, in another unit
    assert far["pearson"] == pytest.approx(1) and far["rmse"] > truth.std() and far["beats_majority"] is False
    weights = np.array([[2, 0, 1, 1]])
    assert metrics.rmse([1, 2, 3, 4], [1, 2, 5, 5], weights) == pytest.approx(np.sqrt((4 + 1) / 4))


def test_evaluate_gives_every_metric_ready_for_json() -> None:
    truth, guess = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    result = metrics.evaluate(BINARY, one_hot(guess), truth, seed=1)
    assert result == json.loads(json.dumps(result))
    assert list(result)[:3] == ["accuracy", "f1", "matthews"]
    assert result["combined"] == pytest.approx((result["accuracy"] + result["f1"] + result["matthews"]) / 3)
    assert result["confusion"] == [[1, 1], [1, 2]]
    assert result["majority"] == pytest.approx({"accuracy": 0.6, "f1": 0.75, "matthews": 0.0})
    assert result["beats_majority"] is False  # the accuracy is only equal, the F1 lower
    assert result["examples"] == 5 and result["notes"] == []
    assert metrics.evaluate(BINARY, one_hot(truth), truth)["beats_majority"] is True


def test_one_class_is_called_what_it_is() -> None:
    result = metrics.evaluate(BINARY, one_hot([1, 1, 1, 1]), [1, 1, 0, 1])
    assert result["beats_majority"] is False
    assert result["accuracy"] == result["majority"]["accuracy"] == 0.75
    assert result["notes"] == ["all predictions are the same; a metric that is undefined then is given as 0"]
    result = metrics.evaluate(SCORE, [2.0, 2.0, 2.0], [1.0, 2.0, 4.0])
    assert (result["pearson"], result["spearman"]) == (0, 0) and len(result["notes"]) == 1
    assert result["beats_majority"] is False and "confusion" not in result


def test_the_majority_is_that_of_the_labels_not_of_the_predictions() -> None:
    result = metrics.evaluate(BINARY, one_hot([1, 1, 1, 1, 0]), [0, 0, 0, 1, 1])
    assert result["majority"] == pytest.approx({"accuracy": 0.6, "f1": 0.0, "matthews": 0.0})


def test_mrpc_majority(shared: Path) -> None:
    mrpc = tasks.get("mrpc")
    labels = [example.label for example in mrpc.read("dev", shared / "data" / "glue")]
    result = metrics.evaluate(mrpc, one_hot([1] * len(labels)), labels)
    assert {name: round(value, 4) for name, value in result["majority"].items()} == {
        "accuracy": 0.6838,
        "f1": 0.8122,
    }
    assert result["beats_majority"] is False


def test_intervals_are_those_of_resampled_rows() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(2, size=150)
    guess = np.where(rng.random(150) < 0.8, truth, 1 - truth)
    scores, target = rng.standard_normal((2, 150))
    target = target + scores
    slow: dict[str, list[float]] = {name: [] for name in ("accuracy", "f1", "matthews", "pearson", "spearman")}
    for _ in range(2000):
        rows = rng.integers(150, size=150)
        table = metrics.confusion(truth[rows], guess[rows], 2)
        for name in BINARY.metrics:
            slow[name].append(float(metrics.CLASSIFICATION[name](table)))
        for name in SCORE.metrics:
            slow[name].append(float(metrics.REGRESSION[name](scores[rows], target[rows])))
    found = metrics.evaluate(BINARY, one_hot(guess), truth)["interval"]
    found |= metrics.evaluate(SCORE, scores, target)["interval"]
    for name, values in slow.items():
        low, high = np.quantile(values, (0.025, 0.975))
        assert found[name] == pytest.approx([low, high], abs=0.15 * (high - low)), name


def test_the_seed_decides_the_interval() -> None:
    truth = np.arange(90) % 3 % 2
    outputs = one_hot((np.arange(90) % 5 == 0) ^ truth)
    first, again, other = (metrics.evaluate(BINARY, outputs, truth, seed)["interval"] for seed in (1, 1, 2))
    assert first == again != other


def test_many_rows_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    scores, target = rng.standard_normal((2, 64))
    monkeypatch.setattr(metrics, "CELLS", 64 * 7)
    shapes = [weights.shape for weights in metrics._weights(64, np.random.default_rng(1))]
    assert sum(rows for rows, _ in shapes) == metrics.RESAMPLES and max(shapes) == (7, 64)
    assert metrics.evaluate(SCORE, scores, target)["interval"]["pearson"][0] < 0.5


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "message"),
    [
        (np.zeros((0, 2)), [], DataError, "wants labels"),
        (np.zeros((2, 2)), [0], DataError, "wants labels"),
        (np.zeros((2, 3)), [0, 1], DataError, r"outputs \(n, 2\)"),
        (np.zeros((2, 2)), [0, None], DataError, "example 1 has no label"),
        (np.zeros((2, 2)), [0, 2], DataError, "label 2.0 is none of them"),
        ([[0, 1], [np.nan, 0]], [0, 1], RunError, "output for example 1 is not finite"),
    ],
)
def test_refusals(outputs, labels, error, message) -> None:
    with pytest.raises(error, match=message):
        metrics.evaluate(BINARY, outputs, labels)


def test_a_table_of_thousands_of_confusions_is_no_result():
    def found(classes):
        task = SimpleNamespace(labels=tuple(map(str, range(classes))), metrics=("accuracy",))
        return metrics.evaluate(task, np.eye(classes), np.arange(classes))

    assert len(found(metrics.SHOWN)["confusion"]) == metrics.SHOWN
    assert "confusion" not in found(metrics.SHOWN + 1) and found(metrics.SHOWN + 1)["accuracy"] == 1
