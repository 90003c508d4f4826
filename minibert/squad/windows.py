"""Questions and texts as windows of tokens, equal to those of google-research/bert:run_squad.py but for padding.

A window is [CLS] question [SEP] part of the text [SEP]; a long text takes several, `doc_stride` tokens apart.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minibert.errors import ConfigError
from minibert.squad import answers, cache
from minibert.squad.reading import Questions
from minibert.squad.words import Cutter, Tokens, WordTable, offsets_of, ranges
from minibert.tokenizer import Features, Tokenizer

FORMAT = 1  # of what is cached: count up when windows change
BLOCK = 4096  # windows that are put together at once


@dataclass(frozen=True)
class Lengths:
    """Tokens in a window, from one window's text to the next one's, and of a question at most."""

    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64

    def __post_init__(self) -> None:
        if self.doc_stride < 1 or self.max_query_length < 1:
            raise ConfigError(
                f"--doc-stride {self.doc_stride} and --max-query-length {self.max_query_length} must be at least 1"
            )
        if self.max_seq_length <= self.max_query_length + 3:
            raise ConfigError(
                f"--max-seq-length {self.max_seq_length} leaves no room for the text beside --max-query-length "
                f"{self.max_query_length} and three special tokens: give more than {self.max_query_length + 3}, or "
                f"--max-query-length {max(1, self.max_seq_length // 4)}"
            )


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of all questions, in their order; a question whose text has no tokens has none.

    features: the tokens. Of each window: question: its number, (n,) int32; first: where the text's part begins in it,
    (n,) int32; begin: which token of the text that is, (n,) int32; labels: start and end of the answer in it, 0 and 0
    where the answer is not in it, (n, 2) int32, or (0, 2) where the windows are not for training.
    Of each text: token_words: the word of each token, token_offsets[i]:token_offsets[i + 1] are text i's; word_starts
    and word_ends: the characters of each word, word_offsets likewise.
    dropped: numbers of the questions whose answer is not in the text, which training leaves out as Google's code does.
    """

    features: Features
    question: NDArray[np.int32]
    first: NDArray[np.int32]
    begin: NDArray[np.int32]
    labels: NDArray[np.int32]
    token_words: NDArray[np.int32]
    token_offsets: NDArray[np.int64]
    word_starts: NDArray[np.int32]
    word_ends: NDArray[np.int32]
    word_offsets: NDArray[np.int64]
    dropped: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.question)

    def of_question(self, number: int) -> range:
        """The numbers of a question's windows."""
        low, high = np.searchsorted(self.question, [number, number + 1]).tolist()
        return range(low, high)

    def parts(self, windows: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the texts' parts of these windows begin in the text, and how many tokens they have."""
        rows = slice(windows.start, windows.stop)
        sizes = np.diff(self.features.offsets[windows.start : windows.stop + 1])
        return self.begin[rows].astype(np.int64), (sizes - self.first[rows] - 1).astype(np.int64)

    def maximal(self, windows: range) -> list[NDArray[np.bool_]]:
        """For each window of a question, given all of them, which tokens of its part have no better window."""
        begins, lengths = self.parts(windows)
        return maximal_context(tuple(begins.tolist()), tuple(lengths.tolist()))


def prepare(questions: Questions, tokenizer: Tokenizer, lengths: Lengths, negative: bool | None = None) -> Windows:
    """The windows of a file's questions, from the user's cache where they were made before.

    negative: None for windows without labels; for training, whether questions may be impossible to answer (SQuAD 2.0).
    """
    if negative is not None:
        answers.check(questions, negative)
    described = json.dumps(
        {
            "format": FORMAT,
            "unicode": unicodedata.unidata_version,
            "data": questions.sha256(),
            "vocabulary": tokenizer.vocab,
            "flags": (tokenizer.lowercase, tokenizer.strip_accents, tokenizer.chinese),
            "lengths": asdict(lengths),
            "negative": negative,
        }
    )
    key = hashlib.sha256(described.encode()).hexdigest()
    return _windows(cache.arrays(key, lambda: _arrays(questions, tokenizer, lengths, negative)))


def make(questions: Questions, tokenizer: Tokenizer, lengths: Lengths, negative: bool | None = None) -> Windows:
    """As prepare(), in memory and without the cache: for a part of a file, or few questions."""
    if negative is not None:
        answers.check(questions, negative)
    return _windows(cache.in_memory(_arrays(questions, tokenizer, lengths, negative)))


def _windows(arrays: dict[str, NDArray[Any]]) -> Windows:
    features = Features(arrays.pop("ids"), arrays.pop("segments"), arrays.pop("offsets"))
    return Windows(features, **arrays)


def _arrays(questions: Questions, tokenizer: Tokenizer, lengths: Lengths, negative: bool | None) -> cache.Blocks:
    """What Windows holds, by name, in blocks."""
    table = WordTable()
    texts = table.split([paragraph.context for paragraph in questions.paragraphs])
    asked = table.split([question.text for question in questions])
    targets = None if negative is None else answers.targets(questions, negative)
    expected = table.split(targets.texts if targets else [])
    documents, queries, expected_tokens = table.tokens(Cutter(tokenizer), texts, asked, expected)
    del table

    paragraph = np.fromiter((question.paragraph for question in questions), np.int64, len(questions))
    tokens = np.diff(documents.offsets)[paragraph]
    query = np.minimum(np.diff(queries.offsets), lengths.max_query_length)
    room = lengths.max_seq_length - 3 - query
    if targets:
        span = answers.spans(questions, targets, texts, documents, expected_tokens)
        tokens[span.dropped] = 0  # no windows
    step = np.minimum(room, min(lengths.doc_stride, lengths.max_seq_length))  # a number of any size
    windows = np.where(tokens > room, 1 - (room - tokens) // step, tokens > 0)  # 1 + (tokens - room) / step, upwards
    number = np.repeat(np.arange(len(questions)), windows)
    begin = step[number] * (np.arange(len(number)) - np.repeat(offsets_of(windows)[:-1], windows))
    part = np.minimum(tokens[number] - begin, room[number])
    first = query[number] + 2
    plan = _Plan(documents, queries, number, paragraph[number], begin, first, part, tokenizer)
    labels = _labels(span.tokens[number], begin, first, part) if targets else np.empty((0, 2), np.int32)
    return {
        "ids": plan.ids(),
        "segments": plan.segments(),
        "offsets": [offsets_of(first + part + 1)],
        "question": [number.astype(np.int32)],
        "first": [first.astype(np.int32)],
        "begin": [begin.astype(np.int32)],
        "labels": [labels],
        "token_words": [_token_words(documents, texts.offsets)],
        "token_offsets": [documents.offsets],
        "word_starts": [texts.starts],
        "word_ends": [texts.ends],
        "word_offsets": [texts.offsets],
        "dropped": [span.dropped if targets else np.empty(0, np.int32)],
    }


@dataclass(frozen=True, eq=False)
class _Plan:
    """What of which question and text goes into each window; the tokens are put together block by block."""

    documents: Tokens
    queries: Tokens
    question: NDArray[np.int64]
    paragraph: NDArray[np.int64]
    begin: NDArray[np.int64]
    first: NDArray[np.int64]
    part: NDArray[np.int64]
    tokenizer: Tokenizer

    def ids(self) -> Iterator[NDArray[np.int32]]:
        for low in range(0, max(1, len(self.question)), BLOCK):
            rows = slice(low, low + BLOCK)
            first, part = self.first[rows], self.part[rows]
            offsets = offsets_of(first + part + 1)
            starts, query = offsets[:-1], first - 2
            ids = np.full(offsets[-1], self.tokenizer.sep_id, np.int32)
            ids[starts] = self.tokenizer.cls_id
            asked = ranges(self.queries.offsets[self.question[rows]], query)
            ids[ranges(starts + 1, query)] = self.queries.ids[asked]
            read = ranges(self.documents.offsets[self.paragraph[rows]] + self.begin[rows], part)
            ids[ranges(starts + first, part)] = self.documents.ids[read]
            yield ids

    def segments(self) -> Iterator[NDArray[np.int8]]:
        for low in range(0, max(1, len(self.question)), BLOCK):
            first, part = self.first[low : low + BLOCK], self.part[low : low + BLOCK]
            both = np.stack([first, part + 1], axis=1).ravel()
            yield np.repeat(np.tile(np.array([0, 1], np.int8), len(first)), both)


def _labels(
    span: NDArray[np.int64], begin: NDArray[np.int64], first: NDArray[np.int64], part: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Start and end of each window's answer (n, 2), from its [CLS] on, which both are unless it holds all of it."""
    relative = span - begin[:, None]
    labels = relative + first[:, None]
    held = (relative[:, 0] >= 0) & (relative[:, 1] < part)
    # Words without a token, such as a zero-width space, can put an end before its start, outside of the window.
    held &= ((labels >= 0) & (labels <= (first + part)[:, None])).all(axis=1)
    return np.where(held[:, None], labels, 0).astype(np.int32)


def _token_words(documents: Tokens, word_offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """The number of each token's word, counted from its text's."""
    words_of = np.diff(word_offsets)
    firsts = documents.firsts + np.repeat(documents.offsets[:-1], words_of)
    lengths = np.diff(firsts, append=documents.offsets[-1])
    number = np.arange(len(firsts), dtype=np.int32) - np.repeat(word_offsets[:-1].astype(np.int32), words_of)
    return np.repeat(number, lengths)


@lru_cache(maxsize=16)  # a paragraph's questions follow each other and mostly share their lengths
def maximal_context(begins: Sequence[int], lengths: Sequence[int]) -> list[NDArray[np.bool_]]:
    """For each window of a text, which of its tokens have their best context there: run_squad.py's maximal context.

    The best is the one with the largest smaller side, plus a hundredth of the window's length; of equals the first.
    Each window is compared with the best so far, so the work is proportional to what the windows hold.
    """
    if len(begins) == 1:
        return [np.ones(lengths[0], bool)]
    size = begins[-1] + lengths[-1] if begins else 0
    best, owner = np.full(size, -1.0), np.zeros(size, np.int64)
    for window, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
        place = np.arange(length)
        score = np.minimum(place, length - 1 - place) + 0.01 * length
        part = slice(begin, begin + length)
        owner[part] = np.where(score > best[part], window, owner[part])
        best[part] = np.maximum(score, best[part])
    return [owner[begin : begin + length] == i for i, (begin, length) in enumerate(zip(begins, lengths, strict=True))]
