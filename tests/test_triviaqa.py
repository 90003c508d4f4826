"""TriviaQA to SQuAD: cutting, finding answers, what is left out and counted, and files that are wrong or hostile."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from commands import minibert_in_process
from minibert import files
from minibert.errors import DataError
from minibert.squad import entries, triviaqa

DOCUMENT = "Jude lives in Yorkshire.\n\nShe was born in the “City of York”, and York it is."


def entry(id: str = "q1", aliases: tuple[str, ...] = ("york",), pages: tuple[str, ...] = ("a.txt",)) -> dict:
    return {
        "QuestionId": id, "Question": "Where?", "Answer": {"NormalizedAliases": list(aliases), "Value": "York"},
        "EntityPages": [{"Filename": page, "Title": "A page"} for page in pages],
        "SearchResults": [{"Filename": "1/1_2.txt"}],
    }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with evidence for entry()."""
    for name, text in (("wikipedia/a.txt", DOCUMENT), ("web/1/1_2.txt", "YORK!")):
        path = tmp_path / "evidence" / name
        path.parent.mkdir(parents=True)
        path.write_text(text, "utf-8")
    return tmp_path


def converted(place: Path, *entries: object, **options: int) -> tuple[dict[str, tuple[str, int, str]], dict[str, int]]:
    """{id: (answer, start, context)} of what is written, and the counts; every start is checked."""
    (place / "qa.json").write_text(json.dumps({"Data": entries, "Split": "train"}))
    summary = triviaqa.convert(place / "qa.json", place / "evidence", place / "out.json", **options)
    return answers(place / "out.json"), summary.counts()


def answers(path: Path) -> dict[str, tuple[str, int, str]]:
    found = {}
    for article in json.loads(path.read_bytes())["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                (answer,), context = qa["answers"], paragraph["context"]
                start, text = answer["answer_start"], answer["text"]
                assert text and context[start : start + len(text)] == text
                found[qa["id"]] = text, start, context
    return found


# --- texts


def test_a_document_is_cut_after_so_many_words_and_marks():
    assert triviaqa.cut(" \nIt's 3.5  km.\n\nFar", 100) == "It's 3.5  km.\n\nFar"
    assert [triviaqa.cut("It's 3.5  km.", n) for n in (1, 2, 4, 7, 8)] == [
        "It",
        "It'",
        "It's 3",
        "It's 3.5  km",
        "It's 3.5  km.",
    ]
    assert triviaqa.cut(" \n", 5) == ""


@pytest.mark.parametrize(
    ("alias", "found"),
    [
        ("york", "York"),  # not in Yorkshire
        ("City of York", "City of York"),
        ("born in city", "born in the “City"),  # articles do not count
        ("the city_of york!", "City of York"),
        ("york it", "York it"),
        ("yorkshire she", "Yorkshire.\n\nShe"),
        ("is", "is"),
        ("is not", None),  # the document ends before
        ("ork", None),
        ("the", None),
        ("", None),
        ("?", None),
    ],
)
def test_answers_are_found_as_whole_words(alias, found):
    got = triviaqa.find(DOCUMENT, triviaqa.by_first_word([alias]))
    assert (got and got[0]) == found
    assert got is None or DOCUMENT[got[1] :].startswith(got[0])


def test_the_first_place_wins_then_the_longer_alias():
    aliases = triviaqa.by_first_word(["it is", "york", "York and", "city", "York, and York"])
    assert triviaqa.find(DOCUMENT, aliases) == ("City", DOCUMENT.index("City"))
    assert triviaqa.find("It was York and York.", aliases) == ("York and York", 7)


@pytest.mark.parametrize(
    ("text", "alias", "answer"),
    [
        ("In the 30’s.", "30 s", "30’s"),
        ("the U.S. Army", "u s army", "U.S. Army"),
        ("In İstanbul.", "i̇stanbul", "İstanbul"),
        ("Pele\u0301 plays", "pele\u0301", "Pele\u0301"),
        ("\u05de\u05d0 \u05d1\u05d2 \U0001f600", "\u05d1\u05d2", "\u05d1\u05d2"),
        ("a \U0001f600\u200bYork\u200f.", "york", "York"),
    ],
)
def test_answers_in_any_script_are_quoted_as_they_stand(text, alias, answer):
    assert triviaqa.find(text, triviaqa.by_first_word([alias])) == (answer, text.index(answer))


# --- files


def test_a_file_is_converted(place):
    found, counts = converted(place, entry(pages=("a.txt", "a.txt", "gone.txt")), entry("q2", ("paris",)))
    assert found == {"q1--a.txt": ("York", DOCUMENT.index("York”"), DOCUMENT), "q1--1/1_2.txt": ("YORK", 0, "YORK!")}
    assert counts == {
        "questions": 2, "documents": 6, "written": 2, "repeated": 1, "missing": 1, "without_match": 2,
        "questions_without_match": 1,
    }  # fmt: skip


def test_the_answer_must_stand_in_what_is_kept(place):
    assert set(converted(place, entry(), max_tokens=12)[0]) == {"q1--1/1_2.txt"}


def test_people_s_answers_count_too(place):
    asked = entry(aliases=("paris",))
    asked["Answer"]["HumanAnswers"] = ["The Yorkshire"]
    assert converted(place, asked)[0]["q1--a.txt"][0] == "Yorkshire"


def test_the_seed_decides_the_order(place):
    asked = [entry(f"q{i}") for i in range(20)]
    first, again, other = (list(converted(place, *asked, seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again and sorted(first) == sorted(other) and first != other


def test_nothing_found_is_still_a_file(place):
    assert converted(place, entry(aliases=("paris",))) == ({}, {
        "questions": 1, "documents": 2, "written": 0, "repeated": 0, "missing": 0, "without_match": 2,
        "questions_without_match": 1,
    })  # fmt: skip


def test_bytes_that_are_no_text_are_replaced(place):
    (place / "evidence/wikipedia/a.txt").write_bytes(b"\xff\xfe in York\x80 it is")
    assert converted(place, entry())[0]["q1--a.txt"][:2] == ("York", 6)


@pytest.mark.parametrize(
    "name", ["../../secret.txt", "1/../../../secret.txt", "{place}/secret.txt", "link.txt", "linked/secret.txt"]
)
def test_nothing_outside_is_read(place, name):
    (place / "secret.txt").write_text("York")
    os.symlink(place / "secret.txt", place / "evidence/wikipedia/link.txt")
    os.symlink(place, place / "evidence/wikipedia/linked")
    with pytest.raises(DataError, match="question q1: its document .* is not inside"):
        converted(place, entry(pages=(name.format(place=place),)))
    assert not (place / "out.json").exists()


@pytest.mark.parametrize("name", ["", ".", "a\0b", "\ud800", "x" * 5000, "a.txt/b", "loop", "pipe"])
def test_what_is_no_file_is_missing(place, name):
    os.symlink("loop", place / "evidence/wikipedia/loop")
    os.mkfifo(place / "evidence/wikipedia/pipe")
    found, counts = converted(place, entry(pages=(name,)))
    assert set(found) == {"q1--1/1_2.txt"} and counts["missing"] == 1


def broken(**changes: object) -> dict:
    return {key: value for key, value in (entry() | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (7, "entry 1 of Data is of type int"),
        (broken(QuestionId=None), "entry 1 of Data: no 'QuestionId'"),
        (broken(QuestionId=3), "entry 1 of Data: QuestionId is of type int"),
        (broken(Question=None), "question q1: no 'Question'"),
        (broken(Answer=None), "question q1: no 'Answer'; give a TriviaQA file with answers"),
        (broken(Answer={"Value": "x"}), "question q1: no 'NormalizedAliases'"),
        (broken(Answer={"NormalizedAliases": [1]}), "question q1: an answer is of type int"),
        (broken(EntityPages={}), "question q1: EntityPages is of type dict"),
        (broken(EntityPages=["a.txt"]), "question q1: an entry of EntityPages is of type str"),
        (broken(EntityPages=[{}]), "question q1: no 'Filename'"),
        (broken(SearchResults=[{"Filename": None}]), "question q1: Filename is of type NoneType"),
    ],
)
def test_a_malformed_question_is_named(place, asked, message):
    with pytest.raises(DataError, match=message) as raised:
        converted(place, asked)
    assert str(raised.value).startswith(str(place / "qa.json")) and "\n" not in str(raised.value)
    assert not (place / "out.json").exists()


def test_a_folder_without_documents_is_refused_and_the_old_file_stays(place):
    (place / "out.json").write_text("old")
    (place / "evidence").rename(place / "elsewhere")
    with pytest.raises(DataError, match="evidence: holds no document of"):
        converted(place, entry())
    assert (place / "out.json").read_text() == "old"


def test_the_questions_are_not_replaced(place):
    converted(place, entry())
    with pytest.raises(DataError, match="would replace"):
        triviaqa.convert(place / "qa.json", place / "evidence", place / "qa.json")


# --- the command


def test_the_command_counts_on_stderr(place):
    converted(place, entry(pages=("a.txt", "gone.txt")), entry("q2", ("paris",)))
    done = minibert_in_process("convert-triviaqa", place / "qa.json", place / "evidence", place / "new.json")
    assert (done.code, done.out) == (0, "")
    counts, missing, unmatched = done.err.splitlines()
    assert dict(pair.split("=") for pair in counts.split())["written"] == "2"
    assert (missing, unmatched) == ("missing: wikipedia/gone.txt", "questions without a match: q2")
    assert len(answers(place / "new.json")) == 2


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"Data": 3}', b'{"Data": [}', b"{}", b"\xff", b"[" * 100000])
def test_a_bad_file_is_one_line(place, content):
    if content is not None:
        (place / "qa.json").write_bytes(content)
    done = minibert_in_process("convert-triviaqa", place / "qa.json", place / "evidence", place / "new.json")
    assert done.code == 1 and done.err.startswith(f"minibert: {place / 'qa.json'}") and done.err.count("\n") == 1
    assert not (place / "new.json").exists()


@pytest.mark.parametrize("name", ["wikipedia-train", "wikipedia-dev", "web-train", "web-dev"])
def test_the_sample_converts(shared, tmp_path, name):
    folder = shared / "data" / "triviaqa"
    summary = triviaqa.convert(folder / "qa" / f"{name}.json", folder / "evidence", tmp_path / "out.json")
    found = answers(tmp_path / "out.json")
    assert (
        len(found) == summary.written == {"wikipedia-train": 5, "wikipedia-dev": 0, "web-train": 5, "web-dev": 1}[name]
    )
    assert all(len(triviaqa.TOKEN.findall(context)) <= 800 for _, _, context in found.values())
    assert not summary.missing and summary.written + len(summary.without_match) == summary.documents


# --- large files, an entry at a time


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        '{"Data": [], "Version": 1.0}',
        ' { "Version" : -1.5e-3 ,\n"Data":[{"a": "]}é\\u00e9\\ud83d\\ude00\\"" , "b": [1, {}]},[ ], 12],"V":12e2}\n ',
        '{"Other": {"Data": [3]}, "Data": [1.25, true], "": ""}',
    ],
)
def test_entries_are_those_of_the_whole_file(tmp_path, monkeypatch, text, block):
    (tmp_path / "qa.json").write_text(text, "utf-8")
    monkeypatch.setattr(files, "CHUNK", block)
    assert list(entries.entries(tmp_path / "qa.json", "Data", "look again")) == json.loads(text)["Data"]


WRONG = r"qa.json: (at character [0-9]+: not valid JSON .*; get the file again|.*(is|has) .*; look again)"


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "[]", "7", "{", "{}", '{"Data"', '{"Data":', '{"Data": [', '{"Data": [1', '{"Data": [1,',
        '{"Data": [1]', '{"Data": [1,]}',
        '{"Data": [1 2]}', '{"Data": [1}', '{"Data": [1]]', '{"Data": 3}', '{"Other": []}',
        '{"Data": [1]} x', '{"Data": [1]}{"Data": [1]}', '{"Data": [1], "Data": [2]}', '{"Data": [1], }', '{1: 2}',
        '{"Data": [{"a": 1, "a": 2}]}', '{"Data": [NaN]}', '{"Data": ["\n"]}', '{"Data": [tru]}', '{"Data": [1e]}',
        '{"Data": [01]}', '{"Data" [1]}', '{"Data": [' + "[" * 100000 + "]}", '{"Data": [' + "1" * 9999 + "]}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_what_is_no_json_is_refused(tmp_path, monkeypatch, text, block):
    (tmp_path / "qa.json").write_text(text)
    monkeypatch.setattr(files, "CHUNK", block if len(text) < 1000 else 1 << 20)
    with pytest.raises(DataError, match=WRONG) as caught:
        list(entries.entries(tmp_path / "qa.json", "Data", "look again"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_entry_without_end_is_not_read_to_the_end(tmp_path, monkeypatch):
    (tmp_path / "qa.json").write_text('{"Data": ["' + "x" * 10000 + '"]}')
    monkeypatch.setattr(files, "CHUNK", 10)
    monkeypatch.setattr(entries, "LARGEST", 1000)
    with pytest.raises(DataError, match="at character 10: not valid JSON .Unterminated string"):
        list(entries.entries(tmp_path / "qa.json", "Data", "look again"))


def test_memory_holds_an_entry_not_the_file(tmp_path):
    one = json.dumps({"text": "x" * 10_000})
    (tmp_path / "qa.json").write_text('{"Data": [' + ",".join([one] * 3000) + "]}")
    tracemalloc.start()
    assert sum(1 for _ in entries.entries(tmp_path / "qa.json", "Data", "look again")) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * files.CHUNK, "of 30 MB"
