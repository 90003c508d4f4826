"""TriviaQA as SQuAD 1.1: each question with each of its documents, cut, and the place where an answer first occurs.

After utils/convert_to_squad_format.py of mandarjoshi90/triviaqa, with these differences: the text stands as it is, not
as words joined by spaces; an answer is found as whole words, at its first place whichever alias it is, and quoted as it
is written there; pairs without an answer are left out, on which BERT's run_squad.py would stop.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from minibert import files
from minibert.errors import DataError
from minibert.squad.entries import entries

ADVICE = "give a TriviaQA file with answers, such as wikipedia-train.json"
FOLDERS = {"EntityPages": "wikipedia", "SearchResults": "web"}  # where the documents of each list stand
TOKEN = re.compile(r"\w+|[^\w\s]")
WORD = re.compile(r"[^\W_]+(?:[\u0300-\u036f]+[^\W_]*)*")  # with accents that are characters of their own
ARTICLES = frozenset(("a", "an", "the"))

Aliases = Mapping[str, Sequence[tuple[str, ...]]]  # by the first word, longest first


class Pair(NamedTuple):
    """A question, its answers and one of its documents."""

    question: str
    text: str
    answers: Sequence[str]
    folder: str
    filename: str
    title: str

    @property
    def id(self) -> str:
        return f"{self.question}--{self.filename}"


@dataclass
class Summary:
    """What became of a file's questions and their documents."""

    questions: int = 0
    documents: int = 0
    written: int = 0
    repeated: int = 0
    missing: list[str] = field(default_factory=list)  # files
    without_match: list[str] = field(default_factory=list)  # ids of pairs
    questions_without_match: list[str] = field(default_factory=list)  # none of whose documents was written

    def counts(self) -> dict[str, int]:
        return {name: value if isinstance(value, int) else len(value) for name, value in asdict(self).items()}


def convert(qa: Path, evidence: Path, out: Path, max_tokens: int = 800, seed: int = 42) -> Summary:
    """Writes the pairs of the TriviaQA file `qa` to `out`, in an order drawn by `seed`; says what it left out.

    evidence: the folder of `wikipedia` and `web`; nothing outside it is read. Raises DataError for a malformed file,
    and where not one document is there: then `out` is not touched.
    """
    pairs = list(_pairs(qa))  # all that is kept in memory of the questions: web-train.json has pages for each as well
    if out.exists() and out.samefile(qa):
        raise DataError(f"{out}: would replace the questions it is made from; give another name")
    summary = Summary(questions=len({pair.question for pair in pairs}), documents=len(pairs))
    random.Random(seed).shuffle(pairs)

    def write(file: BinaryIO) -> None:
        file.write(b'{"version": "1.1", "data": [')
        for article in _articles(pairs, evidence, max_tokens, summary):
            file.write(b",\n" if summary.written else b"\n")
            file.write(json.dumps(article).encode())
            summary.written += 1
        if len(summary.missing) + summary.repeated == len(pairs):
            raise DataError(f"{evidence}: holds no document of {qa}; give the folder of wikipedia and web")
        file.write(b"\n]}\n")

    files.write_whole(out, write)
    return summary


def cut(document: str, max_tokens: int) -> str:
    """The document up to the end of its max_tokens-th word or punctuation mark."""
    document, end = document.strip(), 0
    for number, token in enumerate(TOKEN.finditer(document)):
        if number == max_tokens:
            break
        end = token.end()
    return document[:end]


def find(context: str, aliases: Aliases) -> tuple[str, int] | None:
    """The first alias in the context, as written there, and where; of two that begin at one place the longer.

    Compared without case, punctuation and articles, as TriviaQA's evaluation does.
    """
    found = _words(context)
    words = [word for word, _ in found]
    for i, word in enumerate(words):
        for alias in aliases.get(word, ()):
            if alias == tuple(words[i : i + len(alias)]):
                start, end = found[i][1].start(), found[i + len(alias) - 1][1].end()
                return context[start:end], start
    return None


def by_first_word(answers: Sequence[str]) -> Aliases:
    """Answers as find() takes them; what has no words but articles is dropped."""
    split = {tuple(word for word, _ in _words(answer)) for answer in answers}
    aliases: dict[str, list[tuple[str, ...]]] = {}
    for alias in sorted(filter(None, split), key=len, reverse=True):
        aliases.setdefault(alias[0], []).append(alias)
    return aliases


def _words(text: str) -> list[tuple[str, re.Match[str]]]:
    """Words in lower case, articles left out, and where they stand."""
    words = ((match[0].lower(), match) for match in WORD.finditer(text))
    return [(word, match) for word, match in words if word not in ARTICLES]


def _articles(pairs: Sequence[Pair], evidence: Path, max_tokens: int, summary: Summary) -> Iterator[dict[str, Any]]:
    """The articles of SQuAD's JSON, one per pair that has an answer; `summary` counts the others."""
    seen: set[str] = set()
    matched: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            summary.repeated += 1
            continue
        seen.add(pair.id)
        document = _read(evidence, pair)
        if document is None:
            summary.missing.append(f"{pair.folder}/{pair.filename}")
            continue
        context = cut(document, max_tokens)
        if (found := find(context, by_first_word(pair.answers))) is None:
            summary.without_match.append(pair.id)
            continue
        matched.add(pair.question)
        answer = {"text": found[0], "answer_start": found[1]}
        qa = {"id": pair.id, "question": pair.text, "answers": [answer]}
        yield {"title": pair.title, "paragraphs": [{"context": context, "qas": [qa]}]}
    summary.questions_without_match += sorted({pair.question for pair in pairs} - matched)


def _read(evidence: Path, pair: Pair) -> str | None:
    """The document's text, None where there is no such file; DataError for a name that leads out of the folder."""
    try:
        root = os.path.realpath(evidence)
        path = Path(os.path.realpath(os.path.join(root, pair.folder, pair.filename)))
    except ValueError:  # a NUL, or half of a UTF-16 pair
        return None
    if not path.is_relative_to(root):
        raise DataError(
            f"question {pair.question}: its document {pair.filename[:200]!r} is not inside {evidence}: "
            "get the questions again, and put real folders there instead of links"
        )
    if not os.path.isfile(path):
        return None
    with files.one_line(path, "read", DataError):
        return path.read_bytes().decode("utf-8", "replace")


def _pairs(qa: Path) -> Iterator[Pair]:
    """Every question with every document it names."""
    for number, entry in enumerate(entries(qa, "Data", ADVICE), 1):
        where = f"{qa}: entry {number} of Data"
        question = _get(_checked(entry, dict, where), "QuestionId", str, where)
        where = f"{qa}: question {question[:200]}"
        text, answer = _get(entry, "Question", str, where), _get(entry, "Answer", dict, where)
        answers = _get(answer, "NormalizedAliases", list, where) + _get(answer, "HumanAnswers", list, where, [])
        answers = [_checked(alias, str, f"{where}: an answer") for alias in answers]
        for key, folder in FOLDERS.items():
            for page in _get(entry, key, list, where, []):
                filename = _get(_checked(page, dict, f"{where}: an entry of {key}"), "Filename", str, where)
                yield Pair(question, text, answers, folder, filename, _get(page, "Title", str, where, ""))


def _get(entry: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """The value of a key, which must be there unless it has a default."""
    if key not in entry and default is None:
        raise DataError(f"{where}: no {key!r}; {ADVICE}")
    return _checked(entry.get(key, default), kind, f"{where}: {key}")


def _checked(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise DataError(f"{what} is of type {type(value).__name__}, not {kind.__name__}; get the file again")
    return value
