"""SQuAD's JSON, 1.1 and 2.0: paragraphs and their questions, checked (google-research/bert:run_squad.py)."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minibert import files, remote
from minibert.errors import DataError
from minibert.squad.entries import entries

PART = 256  # questions that are held at a time where not all are needed at once
LARGEST_ARTICLE = 1 << 30  # characters: converted data may be all in one
ADVICE = "fetch it with `minibert download squad`, or give a file in SQuAD's format"
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a number", bool: "true or false"}
T = TypeVar("T")


class Paragraph(NamedTuple):
    """A text and the number of its article."""

    context: str
    article: int


class Question(NamedTuple):
    """One question; `paragraph` is its text's number, `answers` are texts and where they start in it.

    impossible: None where the file does not say, as in SQuAD 1.1.
    """

    id: str
    text: str
    paragraph: int
    answers: tuple[tuple[str, int], ...]
    impossible: bool | None


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of a file, or of a part of it, in its order, and their paragraphs."""

    source: str
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    def context(self, question: Question) -> str:
        return self.paragraphs[question.paragraph].context

    def sha256(self) -> str:
        """The checksum of all but the source."""
        return hashlib.sha256(json.dumps([self.paragraphs, self.questions]).encode()).hexdigest()


def read(path: Path | str) -> Questions:
    """The questions of a file; DataError says where in it something is wrong.

    Answers may be missing, as in a test file. What training needs of them is checked by windows.prepare().
    """
    [whole] = _parts(Path(remote.local(path)), sys.maxsize)
    return whole


def parts(path: Path | str) -> Iterable[Questions]:
    """The same in parts, of which one at a time is in memory. All are checked now, and read anew for each loop."""
    path = Path(remote.local(path))
    return _File(path) if path.is_file() else [read(path)]  # a pipe can be read only once


def single(question: str, context: str) -> Questions:
    """One question on one text, without an answer."""
    for name, text in (("question", question), ("context", context)):
        _check_text(text, f"the {name}")
    asked = Question("question", question, 0, (), None)
    return Questions("the question", (Paragraph(context, 0),), (asked,))


class _File:
    """A file's questions, part by part."""

    def __init__(self, path: Path) -> None:
        self.path, self.checked = path, False
        self.version = self._version()
        for _ in self:  # what is wrong with it is said before anything is made of it
            pass
        self.checked = True

    def __iter__(self) -> Iterator[Questions]:
        if self._version() != self.version:
            raise DataError(f"{self.path}: has changed since it was checked; begin again")
        yield from _parts(self.path, PART, self.checked)

    def _version(self) -> tuple[int, ...]:
        with files.one_line(self.path, "read", DataError):
            found = self.path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns


def _parts(path: Path, size: int, checked: bool = False) -> Iterator[Questions]:
    """The questions of a file, in parts that end with the paragraph in which they have `size`.

    Of one that was `checked` before no id stands twice, and none is remembered.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; {ADVICE}")
    return _Reader(str(path), checked).parts(entries(path, "data", ADVICE, LARGEST_ARTICLE), size)


class _Reader:
    """Collects what one file holds; `source` is named in errors."""

    def __init__(self, source: str, checked: bool) -> None:
        self.source, self.checked = source, checked
        self.paragraphs: list[Paragraph] = []
        self.questions: list[Question] = []
        self.seen: dict[str, int] = {}  # the article of each id

    def parts(self, articles: Iterable[Any], size: int) -> Iterator[Questions]:
        for number, article in enumerate(articles):
            where = f"article {number + 1}"
            for i, paragraph in enumerate(self.field(article, "paragraphs", list, where)):
                self.read_paragraph(paragraph, number, f"{where}, paragraph {i + 1}")
                if len(self.questions) >= size:
                    yield self.part()
        if not (self.seen or self.checked):
            raise self.error("the file", "has no questions", ADVICE)
        if self.questions:
            yield self.part()

    def part(self) -> Questions:
        """What was collected since the last part."""
        part = Questions(self.source, tuple(self.paragraphs), tuple(self.questions))
        self.paragraphs, self.questions = [], []
        return part

    def read_paragraph(self, raw: Any, article: int, where: str) -> None:
        self.paragraphs.append(Paragraph(self.text(raw, "context", where), article))
        for i, question in enumerate(self.field(raw, "qas", list, where)):
            self.read_question(question, article, f"{where}, question {i + 1}")

    def read_question(self, raw: Any, article: int, where: str) -> None:
        name = self.text(raw, "id", where)
        if name in self.seen:
            other = f"article {self.seen[name] + 1}"
            raise self.error(where, f"id {name!r:.60} stands in {other} too", "give each question its own")
        if not self.checked:
            self.seen[name] = article
        where = f"{where} (id {name!r:.60})"
        answers = self.field(raw, "answers", list, where) if "answers" in raw else []
        impossible = self.field(raw, "is_impossible", bool, where) if "is_impossible" in raw else None
        self.questions.append(
            Question(
                name,
                self.text(raw, "question", where),
                len(self.paragraphs) - 1,
                tuple(self.answer(answer, f"{where}, answer {i + 1}") for i, answer in enumerate(answers)),
                impossible,
            )
        )

    def answer(self, raw: Any, where: str) -> tuple[str, int]:
        return self.text(raw, "text", where), self.field(raw, "answer_start", int, where)

    def text(self, parent: Any, key: str, where: str) -> str:
        value = self.field(parent, key, str, where)
        _check_text(value, f'{self.source}: {where}: "{key}"')
        return value

    def field(self, parent: Any, key: str, kind: type[T], where: str) -> T:
        if not isinstance(parent, dict):
            raise self.error(where, "is not an object", "compare the file with SQuAD's")
        if key not in parent:
            raise self.error(where, f'has no "{key}"', "compare the file with SQuAD's")
        value = parent[key]
        if type(value) is not kind:  # not isinstance: true is an int to Python
            raise self.error(where, f'"{key}" is {value!r:.40}, which is not {KINDS[kind]}', "correct it")
        return value

    def error(self, where: str, wrong: str, advice: str) -> DataError:
        return DataError(f"{self.source}: {where}: {wrong}; {advice}")


def _check_text(text: str, where: str) -> None:
    if not isinstance(text, str):
        raise DataError(f"{where} is {text!r:.40}: give a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a UTF-16 pair, which is no text.
        raise DataError(f"{where}: character {error.start}: a lone surrogate; remove it") from None
