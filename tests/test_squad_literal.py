"""The fast SQuAD code against the slow, literal transcription of Google's: every feature, and files to the byte.

Of each development file every tenth article by default, all of it among the slow tests. Logits are drawn; those of a
finished run, which MINIBERT_SQUAD_RUN names, are compared too, among the slow tests.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import google_squad as google
import google_squad_evaluate
from minibert.kernels import devices
from minibert.squad import reading, spans, windows
from minibert.squad.answering import load_squad
from minibert.squad.evaluation import golds, predictions
from minibert.squad.metrics import evaluate_squad, evaluate_squad2
from minibert.squad.spans import Top
from minibert.squad.windows import Lengths
from minibert.tokenizer import Tokenizer

FILES = {"dev-v1.1.json": False, "dev-v2.0.json": True}  # whether there may be no answer
N_BEST = 20
THRESHOLDS = (0.0, -2.5)

parts = pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
whole = pytest.mark.parametrize("name", FILES)


@pytest.fixture(scope="module")
def vocab(shared: Path) -> Path:
    return shared / "data" / "vocab" / "bert-base-uncased-vocab.txt"


def some(shared: Path, name: str, every: int) -> dict[str, Any]:
    parsed = json.loads((shared / "data" / "squad" / name).read_text())
    return parsed | {"data": parsed["data"][::every]}


def made(parsed: dict[str, Any], folder: Path, vocab: Path, negative: bool | None):
    """Our questions, windows and tokenizer of a parsed file."""
    path = folder / "data.json"
    path.write_text(json.dumps(parsed))
    questions, tokenizer = reading.read(path), Tokenizer.from_vocab(vocab)
    return questions, windows.make(questions, tokenizer, Lengths(), negative), tokenizer


def theirs(parsed: dict[str, Any], vocab: Path, training: bool, negative: bool):
    examples = google.read_squad_examples(parsed, training, negative)
    tokenizer = google.Tokenizer(vocab.read_text(encoding="utf-8").splitlines(), True)
    return examples, google.convert_examples_to_features(examples, tokenizer, 384, 128, 64, training)


@parts
@whole
@pytest.mark.parametrize("training", [False, True], ids=["predicting", "training"])
def test_every_feature_is_the_transcription_s(shared, vocab, tmp_path, name, every, training):
    negative = FILES[name]
    parsed = some(shared, name, every)
    parsed = google.with_first_answers(parsed) if training else parsed
    questions, ours, tokenizer = made(parsed, tmp_path, vocab, negative if training else None)
    _, features = theirs(parsed, vocab, training, negative)
    if name == "dev-v1.1.json" and every == 1:
        assert len(ours) == 10_833  # as many as are published
    assert len(ours) == len(features)
    offsets, maximal = ours.features.offsets, {}
    for i, feature in enumerate(features):
        row = slice(offsets[i], offsets[i + 1])
        assert [tokenizer.vocab[t] for t in ours.features.ids[row]] == feature.tokens
        assert ours.features.segments[row].tolist() == feature.segment_ids
        number = int(ours.question[i])
        if number not in maximal:
            maximal = {number: ours.maximal(ours.of_question(number))}
        first = int(ours.first[i])
        best = maximal[number][i - ours.of_question(number).start]
        assert dict(enumerate(best.tolist(), first)) == feature.token_is_max_context
        word = ours.token_words[ours.token_offsets[questions.questions[number].paragraph] + int(ours.begin[i]) :]
        assert dict(enumerate(word[: len(best)].tolist(), first)) == feature.token_to_orig_map
        if training:
            assert ours.labels[i].tolist() == [feature.start_position, feature.end_position]


def drawn(windows_made, seed: int) -> list[np.ndarray]:
    """Logits of each window (tokens, 2), float32, some alike."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(windows_made.features.offsets)
    return [np.round(rng.normal(0, 4, (n, 2)), 1).astype(np.float32) for n in lengths]


def tops(logits: list[np.ndarray]):
    """What prediction keeps of logits, by the kernel."""
    device = devices.open("cpu")
    for one in logits:
        values, places = np.empty((1, 2, N_BEST), np.float32), np.empty((1, 2, N_BEST), np.int32)
        device.top_logits.forward(values, places, one, np.array([0, len(one)], np.int32))
        yield Top(values, places, one[:1])


@parts
@whole
@pytest.mark.parametrize(
    "threshold", [THRESHOLDS[0], *(pytest.param(t, marks=pytest.mark.slow) for t in THRESHOLDS[1:])]
)
def test_files_are_the_transcription_s_to_the_byte(shared, vocab, tmp_path, name, every, threshold):
    negative, parsed = FILES[name], some(shared, name, every)
    questions, ours, tokenizer = made(parsed, tmp_path, vocab, None)
    logits = drawn(ours, seed=every)
    found = spans.predict([(questions, ours)], tops(logits), tokenizer, n_best=N_BEST, negative=negative)
    chosen = spans.write_n_best(tmp_path / spans.N_BEST, found)
    spans.write_predictions(tmp_path, chosen, threshold)

    assert_files(tmp_path, questions, parsed, vocab, logits, negative, threshold)


@pytest.mark.slow
@whole
def test_files_of_trained_logits_are_the_transcription_s(shared, tmp_path, monkeypatch, name):
    if not (run := os.environ.get("MINIBERT_SQUAD_RUN")):
        pytest.skip("MINIBERT_SQUAD_RUN is not set: this test reads the trained reader of a run's directory")
    negative, parsed = FILES[name], some(shared, name, every=1)
    answerer, questions = load_squad(run), reading.read(shared / "data" / "squad" / name)
    answerer.settings = dataclasses.replace(
        answerer.settings, task="squad2" if negative else "squad", max_seq_length=384, doc_stride=128
    )
    reader, logits = answerer.reader, []
    forward = reader.logits

    def recorded(batch: Any) -> Any:
        found = forward(batch)
        logits.extend(np.split(found.data.copy(), batch.offsets[1:-1]))
        return found

    monkeypatch.setattr(reader, "logits", recorded)
    chosen = spans.write_n_best(tmp_path / spans.N_BEST, predictions(answerer, [questions]))
    for threshold in THRESHOLDS:
        spans.write_predictions(tmp_path, chosen, threshold)
        assert_files(tmp_path, questions, parsed, Path(run) / "vocab.txt", logits, negative, threshold)


def assert_files(
    folder: Path, questions: Any, parsed: Any, vocab: Path, logits: list[np.ndarray], negative: bool, threshold: float
) -> None:
    """The files in the folder are those that the transcription writes for these logits, and score as it scores them."""
    examples, features = theirs(parsed, vocab, False, negative)
    results = {
        feature.unique_id: google.RawResult(*one.T.tolist()) for feature, one in zip(features, logits, strict=True)
    }
    wanted = google.write_predictions(
        examples, features, results, N_BEST, 30, True, negative, threshold if negative else 0.0
    )
    for file, text in zip((spans.PREDICTIONS, spans.N_BEST, spans.NULL_ODDS), wanted, strict=True):
        assert (text is None and not (folder / file).exists()) or (folder / file).read_text() == text, file

    said = json.loads(wanted[0])
    if negative:
        odds = json.loads(wanted[2])
        assert evaluate_squad2(golds([questions]), said, odds) == google_squad_evaluate.evaluate_2(
            parsed["data"], said, odds, 1.0, True
        )
    else:
        assert evaluate_squad(golds([questions]), said) == google_squad_evaluate.evaluate_1(parsed["data"], said)
