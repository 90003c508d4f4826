"""SQuAD's JSON: what is read from it, and what is said about files that are wrong."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minibert.errors import DataError
from minibert.squad import reading


def whole() -> dict[str, Any]:
    """Two articles, three texts, four questions; built anew so that a test can spoil it."""
    asked = {"id": "q1", "question": "Who?", "answers": [{"text": "Bell", "answer_start": 0}]}
    impossible = {"id": "q2", "question": "Where?", "answers": [], "is_impossible": True}
    unanswered = {"id": "q3", "question": "When?"}
    last = {"id": "q4", "question": "", "answers": [], "is_impossible": False}
    return {
        "version": "x",
        "data": [
            {"title": "A", "paragraphs": [{"context": "Bell rang.", "qas": [asked, impossible]}]},
            {
                "paragraphs": [
                    {"context": "", "qas": [unanswered]},
                    {"context": "Caf\u00e9 \U0001f600", "qas": [last]},
                ]
            },
        ],
    }


def test_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text("\ufeff" + json.dumps(whole()))
    questions = reading.read(path)
    assert questions.paragraphs == (("Bell rang.", 0), ("", 1), ("Caf\u00e9 \U0001f600", 1))
    assert list(questions) == [
        ("q1", "Who?", 0, (("Bell", 0),), None),
        ("q2", "Where?", 0, (), True),
        ("q3", "When?", 1, (), None),
        ("q4", "", 2, (), False),
    ]
    assert questions.context(questions.questions[3]) == "Caf\u00e9 \U0001f600"
    assert len(questions.sha256()) == 64


def test_the_checksum_is_of_the_content(tmp_path: Path) -> None:
    for name, answer in (("a", "Bell"), ("b", "Bell"), ("c", "bell")):
        data = whole()
        first_question(data)["answers"][0]["text"] = answer
        (tmp_path / name).write_text(json.dumps(data, indent=len(name)))
    a, b, c = (reading.read(tmp_path / name).sha256() for name in "abc")
    assert a == b != c


def first_question(data: dict[str, Any]) -> dict[str, Any]:
    return data["data"][0]["paragraphs"][0]["qas"][0]


def spoiled(change: Callable[[dict[str, Any]], Any]) -> str:
    data = whole()
    change(data)
    return json.dumps(data)


WRONG = {
    '{"data": [\n  {,': "at character 14: not valid JSON",
    '{"data": [' + "[" * 100_000: "not valid JSON",
    '{"data": [1' + "0" * 5000 + "]}": "not valid JSON",
    '{"data": [{"paragraphs": [{"context: 3}]}]}': "at character 27: not valid JSON",
    "[]": "is no JSON object",
    '{"data": 3}': '"data" is no list',
    '{"data": []}': "the file: has no questions",
    '{"paragraphs": []}': 'has no "data"',
    " \n": "is empty",
    '{"data": [3]}': "article 1: is not an object",
    spoiled(lambda d: d["data"][1].pop("paragraphs")): 'article 2: has no "paragraphs"',
    spoiled(lambda d: d["data"][1]["paragraphs"][1].pop("context")): 'article 2, paragraph 2: has no "context"',
    spoiled(lambda d: d["data"][1]["paragraphs"][1].update(context=None)): '"context" is None, which is not a text',
    spoiled(lambda d: d["data"][1]["paragraphs"][0].update(qas={})): '"qas" is {}, which is not a list',
    spoiled(lambda d: first_question(d).pop("id")): 'article 1, paragraph 1, question 1: has no "id"',
    spoiled(lambda d: first_question(d).update(id=7)): '"id" is 7, which is not a text',
    spoiled(lambda d: first_question(d).update(id="q3")): "id 'q3' stands in article 1 too",
    spoiled(lambda d: first_question(d).pop("question")): "question 1 (id 'q1'): has no \"question\"",
    spoiled(lambda d: first_question(d).update(answers="Bell")): "\"answers\" is 'Bell', which is not a list",
    spoiled(lambda d: first_question(d).update(answers=["Bell"])): "(id 'q1'), answer 1: is not an object",
    spoiled(lambda d: first_question(d)["answers"][0].pop("text")): 'answer 1: has no "text"',
    spoiled(lambda d: first_question(d)["answers"][0].update(answer_start=True)): "True, which is not a number",
    spoiled(lambda d: first_question(d)["answers"][0].update(answer_start=1.5)): "1.5, which is not a number",
    spoiled(lambda d: first_question(d).update(is_impossible="no")): "'no', which is not true or false",
    spoiled(lambda d: first_question(d).update(question="ab\ud800")): '"question": character 2: a lone surrogate',
}


@pytest.mark.parametrize(("text", "wanted"), WRONG.items(), ids=WRONG.values())
def test_what_is_wrong_is_said_in_one_line(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        reading.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and wanted in message and "; " in message
    assert "\n" not in message and len(message) < 400


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        reading.read(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"data": "\xe9"}')
    with pytest.raises(DataError, match="latin.json: at character 0: not valid JSON .'utf-8'"):
        reading.read(tmp_path / "latin.json")


def test_parts_are_the_whole_and_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(whole()))
    questions = reading.read(path)
    for size, wanted in ((1, ["q1 q2", "q3", "q4"]), (3, ["q1 q2 q3", "q4"]), (5, ["q1 q2 q3 q4"])):
        monkeypatch.setattr(reading, "PART", size)
        parts = reading.parts(path)
        for _ in range(2):
            assert [" ".join(question.id for question in part) for part in parts] == wanted
        assert [paragraph for part in parts for paragraph in part.paragraphs] == list(questions.paragraphs)
        found = [(part, question) for part in parts for question in part]
        for (part, one), same in zip(found, questions, strict=True):
            assert one._replace(paragraph=same.paragraph) == same
            assert part.paragraphs[one.paragraph] == questions.paragraphs[same.paragraph]


def test_parts_are_checked_at_once_and_against_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dev.json"
    monkeypatch.setattr(reading, "PART", 1)
    path.write_text(spoiled(lambda d: d["data"][1]["paragraphs"][1].pop("context")))
    with pytest.raises(DataError, match='article 2, paragraph 2: has no "context"'):
        reading.parts(path)
    path.write_text(json.dumps(whole()))
    parts = reading.parts(path)
    path.write_text(json.dumps(whole()) + " ")
    with pytest.raises(DataError, match="has changed"):
        list(parts)


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(json.dumps(whole()),))
    writer.start()
    parts = reading.parts(path)
    writer.join()
    for _ in range(2):
        assert [len(part) for part in parts] == [4]


def test_one_question() -> None:
    questions = reading.single("Who?", "Bell rang.")
    assert [questions.context(question) for question in questions] == ["Bell rang."]
    assert questions.sha256() != reading.single("Who?", "Bell rings.").sha256()
    with pytest.raises(DataError, match="the context: character 1: a lone surrogate"):
        reading.single("Who?", "a\udc00")


def test_the_real_files(shared: Path) -> None:
    one, two = (reading.read(shared / f"data/squad/dev-v{version}.json") for version in ("1.1", "2.0"))
    assert (one.paragraphs[-1].article, len(one)) == (47, 10570)
    assert (two.paragraphs[-1].article, len(two)) == (34, 11873)
    assert sum(bool(question.impossible) for question in two) == 5945
    for question in (*one, *two):
        context = (one if question.impossible is None else two).context(question)
        assert all(context[start : start + len(text)] == text for text, start in question.answers)
