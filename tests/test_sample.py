"""The embedded sample: the same text everywhere, dev unlike train, and labels that words alone do not give away."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from minibert import checkpoint, tasks
from minibert.config import BertConfig
from minibert.tasks import Example, sample
from minibert.tasks.sample_events import ENDS, EVENTS, KINDS, STARTS, Event
from minibert.tokenizer import Tokenizer

NAMES = {f"{start}{end}" for start in STARTS for ends in ENDS.values() for end in ends}
CHECKSUM = "12a84932386fe586503bcca9f8718a5b4a2edf9b3a71afe4856135d50d16a5bf"


@pytest.fixture(scope="module")
def train() -> list[Example]:
    return sample.examples("train")


@pytest.fixture(scope="module")
def dev() -> list[Example]:
    return sample.examples("dev")


def words(pairs: list[Example]) -> set[str]:
    return {word for e in pairs for word in f"{e.text_a} {e.text_b}".split()}


def labels(pairs: list[Example]) -> np.ndarray:
    return np.array([e.label for e in pairs])


def majority(pairs: list[Example]) -> float:
    share = labels(pairs).mean()
    return max(share, 1 - share)


def test_text_depends_on_the_seed_alone(dev: list[Example]) -> None:
    text = "\n".join(f"{e.label} {e.text_a} {e.text_b}" for e in dev)
    assert hashlib.sha256(text.encode()).hexdigest() == CHECKSUM
    assert sample.examples("dev", seed=1) != dev


def test_sizes_and_balance(train: list[Example], dev: list[Example]) -> None:
    assert (len(train), len(dev)) == (2400, 400)
    for pairs in (train, dev):
        assert 0.5 <= majority(pairs) <= 0.6
        assert len({(e.text_a, e.text_b) for e in pairs}) == len(pairs)
        assert all(e.text_a != e.text_b for e in pairs)


def test_dev_has_other_templates_and_names_but_no_other_words(train: list[Example], dev: list[Example]) -> None:
    for event in EVENTS:
        assert len(event.templates(unseen=True)) >= 10
        assert not set(event.templates(unseen=True)) & set(event.templates(unseen=False))
    text = {word for pair in sample.passages(5000) for sentence in pair for word in sentence.split()}
    assert not words(dev) & words(train) & NAMES
    assert not words(dev) & text & NAMES
    known = {word.lower() for word in text}
    assert {word.lower() for word in words(dev) - NAMES} <= known


@pytest.mark.parametrize("event", EVENTS)
def test_every_template_tells_every_fact(event: Event) -> None:
    for template in event.templates(unseen=True) + event.templates(unseen=False):
        slots = set(re.findall(r"\{(.)\}", template))
        assert set(event.facts) <= slots <= set(KINDS) | set(event.states), template
        assert slots & set(event.states) or not event.states, template


def test_the_label_says_whether_a_fact_was_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_changed", lambda draws, event, facts, unseen: facts | {"t": "Nowhere"})
    pairs = sample.examples("dev")
    assert not any("Nowhere" in e.text_a for e in pairs)
    assert {e.label for e in pairs if "Nowhere" in (e.text_b or "")} == {0}


def test_mrpc_reads_what_is_written(tmp_path: Path, train: list[Example], dev: list[Example]) -> None:
    sample.write(tmp_path)
    mrpc = tasks.get("mrpc")
    assert mrpc.read("train", tmp_path) == train
    assert mrpc.read("dev", tmp_path) == dev
    test = mrpc.read("test", tmp_path)
    assert [(e.text_a, e.text_b, e.label) for e in test] == [
        (e.text_a, e.text_b, None) for e in sample.examples("test")
    ]


def best_threshold(values: np.ndarray, truth: np.ndarray) -> float:
    """The best accuracy that any threshold, in either direction, has on these very pairs."""
    scores = [((values >= value) == truth).mean() for value in np.unique(values)]
    return max(*scores, *(1 - score for score in scores))


@pytest.mark.parametrize("seed", range(3))
def test_overlap_and_length_do_not_tell(seed: int) -> None:
    pairs = sample.examples("dev", seed)
    overlap = np.array([sample.overlap(e.text_a, e.text_b) for e in pairs])
    lengths = np.array([(len(e.text_a.split()), len(e.text_b.split())) for e in pairs])
    for values in (overlap, abs(lengths[:, 0] - lengths[:, 1]), lengths.sum(1)):
        assert best_threshold(values, labels(pairs)) <= majority(pairs) + 0.05


def grams(text: str) -> set[str]:
    """Words and pairs of neighbours."""
    found = text.lower().split()
    return {*found, *(f"{a} {b}" for a, b in zip(found, found[1:], strict=False))}


def bag_of_words(train: list[Example], dev: list[Example]) -> tuple[float, float]:
    """Accuracy on train and dev of a logistic regression over words and bigrams of a, of b, of one only, of both."""
    numbers: dict[tuple[str, str], int] = {}

    def rows(pairs: list[Example], grow: bool) -> tuple[np.ndarray, np.ndarray]:
        found: list[list[int]] = []
        for e in pairs:
            a, b = grams(e.text_a), grams(e.text_b or "")
            sets = {"a": a, "b": b, "one": a ^ b, "both": a & b}
            keys = [(name, gram) for name, some in sets.items() for gram in sorted(some)]
            found.append(
                [numbers.setdefault(k, len(numbers)) if grow else numbers[k] for k in keys if grow or k in numbers]
            )
        return np.concatenate([np.array(row) for row in found]), np.cumsum([0] + [len(row) for row in found[:-1]])

    columns, starts = rows(train, grow=True)
    truth = labels(train)
    owner = np.repeat(np.arange(len(train)), np.diff(np.append(starts, len(columns))))
    weights = np.zeros(len(numbers))
    pace, bias = np.zeros_like(weights), 0.0
    for _ in range(120):
        error = 1 / (1 + np.exp(-np.add.reduceat(weights[columns], starts) - bias)) - truth
        slope = np.bincount(columns, error[owner], len(numbers)) / len(train) + 1e-3 * weights
        pace = 0.9 * pace - 0.05 * slope
        weights, bias = weights + pace, bias - 0.05 * error.mean()

    def accuracy(columns: np.ndarray, starts: np.ndarray, truth: np.ndarray) -> float:
        return float(((np.add.reduceat(weights[columns], starts) + bias > 0) == truth).mean())

    return accuracy(columns, starts, truth), accuracy(*rows(dev, grow=False), labels(dev))


def test_bag_of_words_does_not_tell(train: list[Example], dev: list[Example]) -> None:
    learned, carried = bag_of_words(train, dev)
    assert learned > majority(train) + 0.2, "the baseline has not learned its own training pairs: it proves nothing"
    assert carried <= majority(dev) + 0.05


def test_bag_of_words_would_find_a_telling_word(train: list[Example], dev: list[Example]) -> None:
    def telling(pairs: list[Example]) -> list[Example]:
        return [Example(e.id, e.text_a, f"{e.text_b} indeed" if e.label else e.text_b, e.label) for e in pairs]

    assert bag_of_words(telling(train), telling(dev))[1] > 0.9


def test_packaged_model_fits_its_vocabulary(dev: list[Example]) -> None:
    path = sample.model_path()
    assert (path / "model.safetensors").stat().st_size <= 3_000_000
    found = checkpoint.load(path)
    assert isinstance(found.config, BertConfig) and found.missing_head
    tokenizer = Tokenizer.load(path)
    assert tokenizer.vocab_size == found.config.vocab_size
    encoded = tokenizer.encode([(e.text_a, e.text_b) for e in dev], 128)
    assert tokenizer.unk_id not in encoded.ids
    assert np.diff(encoded.offsets).max() <= sample.DEFAULTS["max_seq_length"]
