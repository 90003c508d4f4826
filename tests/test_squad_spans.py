"""From logits to answers and files, on hand-made cases; the whole of write_predictions is held elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from minibert.squad import reading, spans, windows
from minibert.squad.spans import Top
from minibert.squad.words import WORD, Cutter
from minibert.tokenizer import Tokenizer

VOCAB = "[PAD] [UNK] [CLS] [SEP] [MASK] who ? ( ) - . ' a b c d e f g h s steve smith cafe un ##able # 1895 1943"
TOKENIZER = Tokenizer.from_vocab(VOCAB.split())
N = 4


def top(logits: list[np.ndarray], n: int = N) -> Top:
    """The definition: a stable sort of each column, highest first."""
    values, places = np.zeros((len(logits), 2, n), np.float32), np.full((len(logits), 2, n), -1, np.int32)
    for i, window in enumerate(logits):
        for column in (0, 1):
            best = np.argsort(-window[:, column], kind="stable")[:n]
            places[i, column, : len(best)], values[i, column, : len(best)] = best, window[best, column]
    return Top(values, places, np.array([window[0] for window in logits], np.float32).reshape(-1, 2))


def logits_of(tokens: int, starts: dict[int, float], ends: dict[int, float], rest: float = -9.0) -> np.ndarray:
    logits = np.full((tokens, 2), rest, np.float32)
    for column, given in enumerate((starts, ends)):
        for place, value in given.items():
            logits[place, column] = value
    return logits


def predicted(context: str, *logits: np.ndarray, lengths=(384, 128, 64), n_best: int = N, **options):
    questions = reading.single("who?", context)
    made = windows.make(questions, TOKENIZER, windows.Lengths(*lengths))
    assert [len(window) for window in logits] == np.diff(made.features.offsets).tolist()
    tops = [top(list(logits), n_best)] if logits else []
    [prediction] = spans.predict([(questions, made)], tops, TOKENIZER, n_best=n_best, **options)
    return prediction


def texts(prediction: spans.Prediction) -> list[str]:
    return [entry.text for entry in prediction.entries]


def test_the_best_spans_and_their_probabilities() -> None:
    # [CLS] who ? [SEP] a b c [SEP]
    prediction = predicted("A b c", logits_of(8, {4: 3, 5: 1}, {4: 1, 6: 2}))
    assert texts(prediction) == ["A b c", "A", "b c"]
    assert [entry.score for entry in prediction.entries] == [5, 4, 3]
    total = 1 + math.exp(-1) + math.exp(-2)
    assert prediction.probabilities == [1 / total, math.exp(-1) / total, math.exp(-2) / total]
    assert prediction.best == "A b c" and prediction.null_odds is None
    assert spans.answers("A b c", prediction)[2] == ("b c", prediction.probabilities[2], 2, 5)


def test_among_equals_the_starts_come_first_then_the_ends() -> None:
    letters = "( ) - . ' a b c d e f g h s".split()
    logits = np.ones((19, 2), np.float32)
    logits[12:] = 0
    prediction = predicted(" ".join(letters), logits, n_best=20)
    highest = [" ".join(letters[i:j]) for i in range(8) for j in range(i + 1, 9)]
    assert texts(prediction) == highest[:20]


@pytest.mark.parametrize(("longest", "wanted"), [(1, []), (2, ["b c"]), (3, ["a b c", "b c"])])
def test_long_spans_are_no_answers(longest: int, wanted: list[str]) -> None:
    prediction = predicted("a b c", logits_of(8, {4: 3, 5: 1}, {6: 1}), max_answer_length=longest)
    assert [text for text in texts(prediction) if "c" in text.split()[1:]] == wanted


def test_a_longest_answer_of_any_size() -> None:
    logits = logits_of(8, {4: 3, 5: 1}, {4: 1, 6: 2})
    for longest in (2**31 - 1, 2**31, 10**30):
        assert texts(predicted("A b c", logits, max_answer_length=longest)) == ["A b c", "A", "b c"]


def test_only_tokens_of_the_text_can_be_answers() -> None:
    prediction = predicted("a b", logits_of(7, {0: 9, 1: 9, 3: 9, 6: 9}, {0: 9, 2: 9, 3: 9, 6: 9}))
    assert texts(prediction) == ["empty"]
    assert prediction.entries == [("empty", 0.0, 0.0, 0, 0)] and prediction.probabilities == [1.0]
    assert spans.answers("a b", prediction) == []


def test_a_start_counts_where_its_context_is_best_an_end_everywhere() -> None:
    # Windows "a b c d" and "c d e f": c is better off in the first, d in the second.
    first = logits_of(9, {7: 5}, {7: 1, 6: 2})  # d, not answered here
    second = logits_of(9, {4: 4, 5: 1}, {5: 1})
    prediction = predicted("a b c d e f", first, second, lengths=(9, 2, 2))
    assert texts(prediction)[0] == "d" and prediction.entries[0].start_logit == 1
    assert not any(entry.start_logit in (4, 5) for entry in prediction.entries)


def test_part_of_a_word_in_a_later_window() -> None:
    # Windows "a b c d" and "c d ( f".
    second = logits_of(9, {7: 5}, {7: 5})
    prediction = predicted("a b c d (f", logits_of(9, {}, {}), second, lengths=(9, 2, 2))
    assert prediction.entries[0] == ("f", 5.0, 5.0, 9, 10)


def test_a_text_stands_once_with_its_best_score() -> None:
    prediction = predicted("a b a", logits_of(8, {4: 3, 6: 4}, {4: 3, 6: 4}))
    assert texts(prediction) == ["a", "a b a"]
    assert prediction.entries[0] == ("a", 4.0, 4.0, 4, 5)


def test_no_answer_stands_behind_its_equals() -> None:
    prediction = predicted("a b", logits_of(7, {0: 1, 4: 1, 5: 0}, {0: 1, 4: 1, 5: 0}), negative=True)
    assert texts(prediction) == ["a", "", "a b", "b"]
    assert prediction.null_odds == 0.0 and prediction.best == "a"


def test_no_answer_is_appended_to_a_full_list() -> None:
    prediction = predicted("a b c", logits_of(8, {4: 1, 5: 1, 6: 1}, {4: 1, 5: 1, 6: 1}), negative=True)
    assert texts(prediction) == ["a", "a b", "a b c", "b", ""]
    assert prediction.null_odds == -18.0 - 2.0


def test_the_null_score_is_the_lowest_of_the_windows() -> None:
    first, second = logits_of(9, {0: 7, 4: 1}, {0: 7, 4: 1}), logits_of(9, {0: 2, 7: 2}, {0: 3, 7: 2})
    prediction = predicted("a b c d e f", first, second, lengths=(9, 2, 2), negative=True)
    assert prediction.null_odds == 5.0 - 2.0 - 2.0 and prediction.best == "f"
    assert [entry[1:3] for entry in prediction.entries if not entry.text] == [(2.0, 3.0)]


def test_where_every_answer_is_none_the_original_fails() -> None:
    prediction = predicted("a b", logits_of(7, {0: 3}, {0: 2}, -9.0), negative=True, max_answer_length=0)
    assert texts(prediction) == ["empty", ""]
    assert prediction.null_odds == 5.0 and prediction.best == "empty"
    assert spans.answers("a b", prediction) == [("", prediction.probabilities[1], 0, 0)]


def test_a_text_without_tokens() -> None:
    assert texts(predicted("")) == ["empty"]
    prediction = predicted(" ", negative=True)
    assert texts(prediction) == ["empty", ""] and prediction.null_odds == 1000000.0


# What get_final_text gives for a prediction within these words.
FINAL = {
    ("steve smith", "Steve Smith's"): "Steve Smith",
    ("1895", "(1895-1943)."): "1895",
    ("1895 - 1943", "(1895-1943)."): "1895-1943",
    ("( 1895 - 1943 ) .", "(1895-1943)."): "(1895-1943).",
    ("cafe", "Caf\u00e9,"): "Caf\u00e9",
    ("cafe", "Cafe\u0301,"): "Cafe\u0301,",  # one letter more than is read: nothing can be counted off
    ("cafe", "\u200bCafe,"): "\u200bCafe,",
    ("[UNK]", "Zz."): "Zz.",
    ("", "Zz."): "Zz.",
    ("a", "\u200b (a)"): "\u200b (a)",
    ("b", "a (b) b"): "b",
    ("b ) b", "a (b) b"): "b) b",
}


@pytest.mark.parametrize(("given", "wanted"), FINAL.items(), ids=map(ascii, FINAL))
def test_the_final_text(given: tuple[str, str], wanted: str) -> None:
    predicted, original = given
    start, stop = spans.final_span(predicted, original, " ".join(Cutter(TOKENIZER).words(original)))
    assert original[start:stop] == wanted


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        (["un", "##able", "a"], "unable a"),
        (["##able"], "able"),
        (["#", "#", "a"], "# # a"),
        (["a", "[UNK]"], "a [UNK]"),
    ],
)
def test_pieces_are_joined(tokens: list[str], wanted: str) -> None:
    assert spans.joined_pieces(tokens) == wanted


def test_an_answer_is_part_of_the_context_with_its_own_spaces() -> None:
    context = " (A  \u202f\tb) c"
    prediction = predicted(context, logits_of(10, {5: 2}, {6: 2}))  # [CLS] who ? [SEP] ( a b ) c [SEP]
    assert texts(prediction)[0] == "A b"  # as the original writes it
    assert spans.answers(context, prediction)[0][0] == "A  \u202f\tb"


CONTEXTS = [
    "a b c d e f g h " * 9,
    "(A) caf\u00e9 \u200b  cafe\u0301",
    "\U0001f600 \u05e9\u05dc \u202ba b\u202c c.",
    "",
    "b",
]


@pytest.fixture
def data(tmp_path: Path) -> tuple[reading.Questions, windows.Windows, list[np.ndarray]]:
    """Questions on texts of all kinds, their windows, and logits with many ties."""
    path = tmp_path / "data.json"
    paragraphs = [
        {"context": context, "qas": [{"id": f"{i}\u00e9{j}", "question": "who? a" + " b" * j} for j in range(3)]}
        for i, context in enumerate(CONTEXTS)
    ]
    path.write_text(json.dumps({"data": [{"title": "", "paragraphs": paragraphs}]}))
    questions = reading.read(path)
    made = windows.make(questions, TOKENIZER, windows.Lengths(16, 5, 4))
    rng = np.random.default_rng(0)
    return (
        questions,
        made,
        [rng.integers(-3, 4, (size, 2)).astype(np.float32) / 3 for size in np.diff(made.features.offsets)],
    )


def batches(logits: list[np.ndarray], size: int) -> Iterator[Top]:
    return (top(logits[low : low + size], 20) for low in range(0, len(logits), size))


@pytest.mark.parametrize("negative", [False, True])
def test_every_answer_is_part_of_its_context(data, negative: bool) -> None:
    questions, made, logits = data
    predictions = list(spans.predict([(questions, made)], batches(logits, 4), TOKENIZER, negative=negative))
    assert [prediction.id for prediction in predictions] == [question.id for question in questions]
    for question, prediction in zip(questions, predictions, strict=True):
        context = questions.context(question)
        found = spans.answers(context, prediction)
        assert all(answer.text == context[answer.start : answer.end] for answer in found)
        named = [entry.text for entry in prediction.entries if entry.text != "empty"]
        assert [" ".join(WORD.findall(answer.text)) for answer in found] == named
        assert sum(prediction.probabilities) == pytest.approx(1)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_files_are_what_json_writes_however_windows_arrive(data, size: int, negative: bool, tmp_path: Path) -> None:
    questions, made, logits = data
    predictions = list(spans.predict([(questions, made)], batches(logits, 7), TOKENIZER, negative=negative))
    arriving = spans.predict([(questions, made)], batches(logits, size), TOKENIZER, negative=negative)
    chosen = spans.write_n_best(tmp_path / spans.N_BEST, arriving)
    spans.write_predictions(tmp_path, chosen, threshold=0.25)
    n_best = {
        prediction.id: [
            {
                "text": entry.text,
                "probability": probability,
                "start_logit": entry.start_logit,
                "end_logit": entry.end_logit,
            }
            for entry, probability in zip(prediction.entries, prediction.probabilities, strict=True)
        ]
        for prediction in predictions
    }
    answers = {
        prediction.id: "" if negative and prediction.null_odds > 0.25 else prediction.best for prediction in predictions
    }
    written = {spans.N_BEST: n_best, spans.PREDICTIONS: answers}
    if negative:
        written[spans.NULL_ODDS] = {prediction.id: prediction.null_odds for prediction in predictions}
        assert "" in answers.values() and any(answers.values())
    assert {path.name for path in tmp_path.iterdir()} - {"data.json"} == set(written)
    for name, content in written.items():
        assert (tmp_path / name).read_text() == json.dumps(content, indent=4) + "\n"


def test_parts_are_answered_as_the_whole_is(tmp_path: Path, data, monkeypatch: pytest.MonkeyPatch) -> None:
    questions, made, logits = data
    monkeypatch.setattr(reading, "PART", 5)
    lengths = windows.Lengths(16, 5, 4)
    parts = [(part, windows.make(part, TOKENIZER, lengths)) for part in reading.parts(questions.source)]
    assert len(parts) > 2
    found, wanted = (list(spans.predict(p, batches(logits, 7), TOKENIZER)) for p in (parts, [(questions, made)]))
    assert found == wanted


def test_files_without_questions(tmp_path: Path) -> None:
    assert spans.write_n_best(tmp_path / spans.N_BEST, []) == []
    spans.write_predictions(tmp_path, [])
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["{}\n", "{}\n"]


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    def failing() -> Iterator[spans.Prediction]:
        yield predicted("a", logits_of(6, {4: 1}, {4: 1}))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        spans.write_n_best(tmp_path / spans.N_BEST, failing())
    assert not list(tmp_path.iterdir())


def test_the_threshold_decides_strictly() -> None:
    chosen = spans.Chosen("1", "a", 0.5)
    assert (chosen.answer(0.5), chosen.answer(0.4)) == ("a", "")
    assert spans.Chosen("1", "a", None).answer(-1e9) == "a"
