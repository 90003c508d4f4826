"""Which tokens of its text answer a question in training, as google-research/bert:run_squad.py finds them."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minibert.errors import DataError
from minibert.squad.reading import Questions
from minibert.squad.words import Texts, Tokens


@dataclass(frozen=True, eq=False)
class Targets:
    """The answers to train on: the questions that have one, its text and where it starts."""

    questions: list[int]
    texts: list[str]
    starts: list[int]


@dataclass(frozen=True, eq=False)
class Spans:
    """tokens: first and last token of each question's answer, (n, 2), -1 for none; dropped: questions without."""

    tokens: NDArray[np.int64]
    dropped: NDArray[np.int32]


def check(questions: Questions, negative: bool) -> None:
    """DataError unless training can take the questions: each one answer, or with `negative` none where impossible."""
    for question in questions:
        where = f"{questions.source}: question {question.id!r:.60}"
        if negative and question.impossible is None:
            raise DataError(f'{where}: no "is_impossible"; give a file of SQuAD 2.0, or train task squad')
        if not (negative and question.impossible) and len(question.answers) != 1:
            advice = (
                "a file of SQuAD 2.0 needs task squad2" if question.impossible else "a dev file cannot be trained on"
            )
            raise DataError(f"{where}: {len(question.answers)} answers; training needs exactly one; {advice}")


def targets(questions: Questions, negative: bool) -> Targets:
    """The answers of those questions that have one."""
    numbers = [i for i, question in enumerate(questions) if not (negative and question.impossible)]
    chosen = [questions.questions[i].answers[0] for i in numbers]
    return Targets(numbers, [text for text, _ in chosen], [start for _, start in chosen])


def spans(questions: Questions, wanted: Targets, texts: Texts, documents: Tokens, expected: Tokens) -> Spans:
    """The answers' tokens in their texts; `expected` are the tokens of the answers by themselves."""
    found = np.full((len(questions), 2), -1, np.int64)
    dropped = []
    paragraph, starts, ends, firsts = -1, [0], [0], [0]
    for i, (number, text, character) in enumerate(zip(wanted.questions, wanted.texts, wanted.starts, strict=True)):
        question = questions.questions[number]
        if question.paragraph != paragraph:
            paragraph = question.paragraph
            words = slice(*texts.offsets[paragraph : paragraph + 2].tolist())
            low, high = documents.offsets[paragraph : paragraph + 2].tolist()
            starts, ends = texts.starts[words].tolist(), texts.ends[words].tolist()
            firsts = [*documents.firsts[words].tolist(), high - low]
        span = _words(questions.context(question), starts, ends, text, character)
        if span is None:
            dropped.append(number)
            continue
        # Lists as in the original, where a number below 0 counts from the end.
        first = firsts[:-1][span[0]]
        last = firsts[span[1] + 1] - 1
        target = expected.ids[expected.offsets[i] : expected.offsets[i + 1]].tolist()
        found[number] = _improved(documents.ids[low + first : low + last + 1].tolist(), first, last, target)
    return Spans(found, np.array(dropped, np.int32))


def _words(context: str, starts: list[int], ends: list[int], answer: str, start: int) -> tuple[int, int] | None:
    """The first and last word that the answer touches; None where its text is not in them."""
    last = start + len(answer) - 1
    if not starts or not (-len(context) <= start < len(context) and -len(context) <= last < len(context)):
        return None
    # Before the first word this is -1, the last word to a Python list, as in the original.
    low, high = (bisect_right(starts, place % len(context)) - 1 for place in (start, last))
    words = " ".join(context[a:b] for a, b in zip(starts[low : high + 1], ends[low : high + 1], strict=True))
    return (low, high) if " ".join(answer.split()) in words else None


def _improved(tokens: list[int], first: int, last: int, target: list[int]) -> tuple[int, int]:
    """The first run of `target` in the words' tokens, from `first` to `last`: "1895" of "(1895-1943)"; else all."""
    for shift in range(len(tokens) - len(target) + 1 if target else 0):
        if tokens[shift : shift + len(target)] == target:
            return first + shift, first + shift + len(target) - 1
    return first, last
