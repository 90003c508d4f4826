"""SQuAD's JSON, 1.1 and 2.0: paragraphs and their questions, checked (google-research/bert:run_squad.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minibert import remote
from minibert.errors import DataError
from minibert.tasks import rows

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
    """A file's questions in its order, its paragraphs and the titles of its articles; sha256 is the file's text's."""

    source: str
    sha256: str
    articles: tuple[str, ...]
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.questions)

    def context(self, question: Question) -> str:
        return self.paragraphs[question.paragraph].context


def read(path: Path | str) -> Questions:
    """The questions of a file; DataError says where in it something is wrong.

    Answers may be missing, as in a test file. What training needs of them is checked by windows.prepare().
    """
    path = Path(remote.local(path))
    text = rows.read_text(path, ADVICE)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return _Reader(str(path)).read(_parsed(text, path), sha256)


def single(question: str, context: str) -> Questions:
    """One question on one text, without an answer."""
    for name, text in (("question", question), ("context", context)):
        _check_text(text, f"the {name}")
    asked = Question("question", question, 0, (), None)
    sha256 = hashlib.sha256(json.dumps([question, context]).encode()).hexdigest()
    return Questions("the question", sha256, ("",), (Paragraph(context, 0),), (asked,))


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: {where}: not JSON ({error.msg}); fetch the file again") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise DataError(f"{path}: not JSON ({str(error) or 'too deep'}); fetch the file again") from None


class _Reader:
    """Collects what one file holds; `source` is named in errors."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.articles: list[str] = []
        self.paragraphs: list[Paragraph] = []
        self.questions: list[Question] = []
        self.seen: dict[str, str] = {}  # where each id stands

    def read(self, whole: Any, sha256: str) -> Questions:
        if not isinstance(whole, dict):
            raise self.error("the file", "is not an object", 'SQuAD\'s format begins with {"data": [')
        for i, article in enumerate(self.field(whole, "data", list, "the file")):
            self.read_article(article, f"article {i + 1}")
        if not self.questions:
            raise self.error("the file", "has no questions", ADVICE)
        return Questions(self.source, sha256, tuple(self.articles), tuple(self.paragraphs), tuple(self.questions))

    def read_article(self, article: Any, where: str) -> None:
        paragraphs = self.field(article, "paragraphs", list, where)
        title = article.get("title", "")
        self.articles.append(title if isinstance(title, str) else "")
        for i, paragraph in enumerate(paragraphs):
            place = f"{where}, paragraph {i + 1}"
            self.paragraphs.append(Paragraph(self.text(paragraph, "context", place), len(self.articles) - 1))
            for j, question in enumerate(self.field(paragraph, "qas", list, place)):
                self.read_question(question, f"{place}, question {j + 1}")

    def read_question(self, raw: Any, where: str) -> None:
        name = self.text(raw, "id", where)
        if name in self.seen:
            raise self.error(where, f"id {name!r:.60} stands in {self.seen[name]} too", "give each question its own")
        self.seen[name] = where
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
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a UTF-16 pair, which is no text.
        raise DataError(f"{where}: character {error.start}: a lone surrogate; remove it") from None
