"""From logits to answers and their files, as google-research/bert:run_squad.py writes them (write_predictions)."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from minibert import files
from minibert.squad.reading import Questions
from minibert.squad.windows import Windows
from minibert.squad.words import Cutter
from minibert.tokenizer import Tokenizer

PREDICTIONS, N_BEST, NULL_ODDS = "predictions.json", "nbest_predictions.json", "null_odds.json"
NO_WINDOW = 1000000.0  # the original's null score before the first window


class Top(NamedTuple):
    """The highest logits of some windows, highest first and of equals the first in the window.

    values: (S, 2, n) float32, of start and end; places: (S, 2, n) int32, counted from [CLS], -1 for no more;
    null: (S, 2) float32, the two logits of [CLS].
    """

    values: NDArray[np.float32]
    places: NDArray[np.int32]
    null: NDArray[np.float32]


class Entry(NamedTuple):
    """One of the n best: its text, "" for no answer, and the characters of the context that it is."""

    text: str
    start_logit: float
    end_logit: float
    start: int
    end: int

    @property
    def score(self) -> float:
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Prediction:
    """A question's n best answers, best first; null_odds is the score of no answer less the best answer's, or None."""

    id: str
    entries: list[Entry]
    probabilities: list[float]
    null_odds: float | None

    @property
    def chosen(self) -> Chosen:
        return Chosen(self.id, self.best, self.null_odds)

    @property
    def best(self) -> str:
        """The best answer, where there may be none the best that is one."""
        return self.entries[0].text if self.null_odds is None else _first_answer(self.entries).text


class Chosen(NamedTuple):
    """What is kept of a prediction: its best answer, and how much better no answer is."""

    id: str
    text: str
    null_odds: float | None

    def answer(self, threshold: float) -> str:
        return "" if self.null_odds is not None and self.null_odds > threshold else self.text


class Answer(NamedTuple):
    """context[start:end] == text; no answer is "" at 0."""

    text: str
    probability: float
    start: int
    end: int


def predict(
    parts: Iterable[tuple[Questions, Windows]],
    tops: Iterable[Top],
    tokenizer: Tokenizer,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    negative: bool = False,
) -> Iterator[Prediction]:
    """The predictions in the order of the questions; `tops` are those of the windows in their order, in any batches.

    parts: questions and their windows. negative: there may be no answer (SQuAD 2.0).
    """
    rows = (row for top in tops for row in zip(top.values, top.places, top.null, strict=True))
    cutter = Cutter(tokenizer)
    for questions, windows in parts:
        text = _Text(questions, windows, tokenizer.vocab, cutter, 0)
        counts = np.bincount(windows.question, minlength=len(questions)).tolist()
        begin = 0
        for question, count in zip(questions, counts, strict=True):
            if question.paragraph != text.paragraph:
                text = _Text(questions, windows, tokenizer.vocab, cutter, question.paragraph)
            own, scored = range(begin, begin + count), list(islice(rows, count))
            begin += count
            candidates = _candidates(windows, own, scored, max_answer_length)
            ids = windows.features.ids[slice(*windows.features.offsets[[own.start, own.stop]])].tolist()
            entries = _entries(candidates, text, ids, _null(scored) if negative else None, n_best)
            null_odds = _null_odds(entries, scored) if negative else None
            yield Prediction(question.id, entries, _softmax([entry.score for entry in entries]), null_odds)


def answers(context: str, prediction: Prediction) -> list[Answer]:
    """The n best as parts of the context, with probabilities."""
    return [
        Answer(context[entry.start : entry.end], probability, entry.start, entry.end)
        for entry, probability in zip(prediction.entries, prediction.probabilities, strict=True)
        if entry.start < entry.end or not entry.text
    ]


def write_all(folder: Path, predictions: Iterable[Prediction], negative: bool, threshold: float = 0.0) -> int:
    """Writes all files as the predictions come; how many there were. `negative`: there may be no answer."""
    count = 0
    odds_file = _object(folder / NULL_ODDS) if negative else contextlib.nullcontext()
    with _object(folder / PREDICTIONS) as said, _object(folder / N_BEST) as n_best, odds_file as odds:
        for prediction in predictions:
            said.add(prediction.id, json.dumps(prediction.chosen.answer(threshold)))
            n_best.add(prediction.id, _n_best_json(prediction))
            if odds:
                odds.add(prediction.id, json.dumps(prediction.null_odds))
            count += 1
    return count


def write_n_best(path: Path, predictions: Iterable[Prediction]) -> list[Chosen]:
    """Writes nbest_predictions.json as the predictions come; returns what the other files need."""
    chosen = []
    with _object(path) as n_best:
        for prediction in predictions:
            n_best.add(prediction.id, _n_best_json(prediction))
            chosen.append(prediction.chosen)
    return chosen


def write_predictions(folder: Path, chosen: Sequence[Chosen], threshold: float = 0.0) -> None:
    """Writes predictions.json, and null_odds.json where there may be no answer."""
    with _object(folder / PREDICTIONS) as said:
        for each in chosen:
            said.add(each.id, json.dumps(each.answer(threshold)))
    if any(each.null_odds is not None for each in chosen):
        with _object(folder / NULL_ODDS) as odds:
            for each in chosen:
                odds.add(each.id, json.dumps(each.null_odds))


Row = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]  # of Top, for one window


class _Candidate(NamedTuple):
    """A span of `size` tokens: `place` is its first among those of the question's windows, `token` among the text's."""

    place: int
    token: int
    size: int
    start_logit: float
    end_logit: float


def _candidates(windows: Windows, own: range, rows: list[Row], max_answer_length: int) -> Iterator[_Candidate]:
    """The pairs of a start and an end that can be an answer, by the sum of their logits, in the original's order."""
    if not rows:
        return
    values = np.stack([row[0] for row in rows]).astype(np.float64)  # as the original's sums
    places = np.stack([row[1] for row in rows])
    first = windows.first[own.start : own.stop]
    begins, lengths = windows.parts(own)
    inside = (places >= first[:, None, None]) & (places < (first + lengths)[:, None, None])  # of the text's part
    if len(own) > 1:
        for kept, place, here, maximal in zip(inside[:, 0], places[:, 0], first, windows.maximal(own), strict=True):
            kept[kept] = maximal[place[kept] - here]
    starts, ends = places[:, 0, :, None], places[:, 1, None, :]
    allowed = inside[:, 0, :, None] & inside[:, 1, None, :] & (ends >= starts) & (ends - starts < max_answer_length)
    window, i, j = np.nonzero(allowed)
    order = np.argsort(-(values[window, 0, i] + values[window, 1, j]), kind="stable")
    offsets = windows.features.offsets[own.start : own.stop] - windows.features.offsets[own.start]
    for low in range(0, len(order), 64):  # few are looked at
        w, s, e = (numbers[order[low : low + 64]] for numbers in (window, i, j))
        start = places[w, 0, s]
        columns = (
            offsets[w] + start,
            begins[w] + start - first[w],
            places[w, 1, e] - start + 1,
            values[w, 0, s],
            values[w, 1, e],
        )
        yield from map(_Candidate._make, zip(*(column.tolist() for column in columns), strict=True))


def _null(rows: list[Row]) -> Entry:
    """No answer, with the logits of the window that scores it lowest."""
    entries = [Entry("", float(start), float(end), 0, 0) for _, _, (start, end) in rows]
    return min(entries, key=lambda entry: entry.score, default=Entry("", 0.0, 0.0, 0, 0))


def _null_odds(entries: list[Entry], rows: list[Row]) -> float:
    null = _null(rows).score if rows else NO_WINDOW
    best = _first_answer(entries)
    return null - best.start_logit - best.end_logit


def _entries(
    candidates: Iterator[_Candidate], text: _Text, ids: list[int], null: Entry | None, n_best: int
) -> list[Entry]:
    """The n best, each text once, and no answer among them or behind them."""
    entries: list[Entry] = []
    seen: set[str] = set()
    for candidate in candidates:
        # No answer stands behind candidates of the same score, and is appended to a full list too.
        if null and candidate.start_logit + candidate.end_logit < null.score:
            entries.append(null)
            null = None
        if len(entries) >= n_best:
            break
        entry = text.entry(candidate, ids)
        if entry.text not in seen:
            seen.add(entry.text)
            entries.append(entry)
    if null:
        entries.append(null)
    # Where there is nothing to choose from, the original says "empty", or in SQuAD 2.0 ends in an error.
    if not any(entry.text for entry in entries):
        entries.insert(0, Entry("empty", 0.0, 0.0, 0, 0))
    return entries


def _first_answer(entries: list[Entry]) -> Entry:
    return next(entry for entry in entries if entry.text)


def _softmax(scores: list[float]) -> list[float]:
    highest = max(scores)
    exponentials = [math.exp(score - highest) for score in scores]
    total = 0.0
    for value in exponentials:  # not sum(), which compensates for rounding and gives other last digits
        total += value
    return [value / total for value in exponentials]


class _Text:
    """One text, from which the texts of candidates are taken."""

    def __init__(
        self, questions: Questions, windows: Windows, vocab: tuple[str, ...], cutter: Cutter, paragraph: int
    ) -> None:
        self.paragraph, self.context = paragraph, questions.paragraphs[paragraph].context
        self.vocab, self.cutter = vocab, cutter
        words = slice(*windows.word_offsets[paragraph : paragraph + 2])
        self.bounds = list(zip(windows.word_starts[words].tolist(), windows.word_ends[words].tolist(), strict=True))
        self.token_words = windows.token_words[slice(*windows.token_offsets[paragraph : paragraph + 2])].tolist()
        self.read: dict[int, str] = {}  # words as the model reads them

    def entry(self, candidate: _Candidate, ids: list[int]) -> Entry:
        """A candidate with its text; `ids` are the tokens of the question's windows."""
        place, token, size, start_logit, end_logit = candidate
        first, last = self.token_words[token], self.token_words[token + size - 1]
        bounds = self.bounds[first : last + 1]
        original = " ".join([self.context[a:b] for a, b in bounds])
        read = " ".join(filter(None, map(self.read_word, range(first, last + 1))))
        predicted = joined_pieces([self.vocab[i] for i in ids[place : place + size]])
        begin, stop = final_span(predicted, original, read)
        start, end = _character(bounds, begin), _character(bounds, stop - 1) + 1
        return Entry(original[begin:stop], start_logit, end_logit, start, end)

    def read_word(self, word: int) -> str:
        if word not in self.read:
            self.read[word] = " ".join(self.cutter.words(self.context[slice(*self.bounds[word])]))
        return self.read[word]


def joined_pieces(tokens: list[str]) -> str:
    """WordPieces as text."""
    return " ".join(" ".join(tokens).replace(" ##", "").replace("##", "").split())


def final_span(predicted: str, original: str, read: str) -> tuple[int, int]:
    """Which characters of the original words the predicted text is, which lacks their capitals and accents.

    The original's get_final_text: the prediction is found in `read`, the words as the model reads them, and the
    characters that are no spaces are counted off. Where that cannot be done, it is all the words.
    """
    whole = (0, len(original))
    if predicted == read or not predicted:  # most are; counting off would give the same
        return whole
    found = read.find(predicted)
    letters = [i for i, character in enumerate(original) if character != " "]
    if found < 0 or len(letters) != len(read) - read.count(" "):
        return whole
    before = found - read.count(" ", 0, found)
    last = before + len(predicted) - predicted.count(" ") - 1
    return letters[before], letters[last] + 1


def _character(bounds: list[tuple[int, int]], place: int) -> int:
    """The context's character for one of the words at these bounds joined by single spaces."""
    for start, end in bounds:
        if place < end - start:
            return start + place
        place -= end - start + 1
    raise IndexError(place)


def _n_best_json(prediction: Prediction) -> str:
    """The n best as json.dumps(indent=4) writes them in an object; that is slow, so numbers are written at once."""
    lines = []
    for entry, probability in zip(prediction.entries, prediction.probabilities, strict=True):
        numbers = json.dumps([probability, entry.start_logit, entry.end_logit])[1:-1].split(", ")
        pairs = zip(
            ("text", "probability", "start_logit", "end_logit"), (json.dumps(entry.text), *numbers), strict=True
        )
        lines.append(
            "        {\n" + ",\n".join(f'            "{key}": {value}' for key, value in pairs) + "\n        }"
        )
    return "[\n" + ",\n".join(lines) + "\n    ]"


class _Object:
    """A JSON object that is being written, as json.dumps(indent=4) would."""

    def __init__(self, file: BinaryIO):
        self.file, self.empty = file, True

    def add(self, key: str, value: str) -> None:
        """Adds a key and its value, which is JSON."""
        self.file.write(f"{'{' if self.empty else ','}\n    {json.dumps(key)}: {value}".encode())
        self.empty = False


@contextlib.contextmanager
def _object(path: Path) -> Iterator[_Object]:
    """An object to be filled, which then stands in a file."""
    with files.whole(path) as file:
        yield (made := _Object(file))
        file.write(b"{}\n" if made.empty else b"\n}\n")
