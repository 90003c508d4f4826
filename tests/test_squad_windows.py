"""Windows, held against hand-made cases and against slow definitions; the whole of run_squad.py is held elsewhere."""

from __future__ import annotations

import json
import os
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from google_tokenizer import basic
from minibert import files
from minibert.errors import ConfigError, DataError
from minibert.squad import cache, reading, windows
from minibert.squad.words import SPACES, Cutter, WordTable
from minibert.tokenizer import Tokenizer

VOCAB = "[PAD] [UNK] [CLS] [SEP] [MASK] who was he ? ( ) - . a b c d e f g h cafe ##s ##b 1895 1943 un ##able ##\u03c3"
TOKENIZER = Tokenizer.from_vocab(VOCAB.split())


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minibert" / "squad"


def asked(tmp_path: Path, *paragraphs: tuple[str, list[dict[str, Any]]]) -> reading.Questions:
    """Questions on these contexts, as from a file; each gets an id and, where it has none, the text "who?"."""
    ids = iter(range(100))
    data = [
        {"context": context, "qas": [{"id": str(next(ids)), "question": "who?", "answers": [], **qa} for qa in qas]}
        for context, qas in paragraphs
    ]
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": data}]}))
    return reading.read(path)


def answer(text: str, start: int) -> dict[str, Any]:
    return {"answers": [{"text": text, "answer_start": start}]}


def tokens(made: windows.Windows, window: int) -> str:
    ids = made.features.ids[slice(*made.features.offsets[window : window + 2])]
    return " ".join(TOKENIZER.vocab[i] for i in ids)


def labelled(made: windows.Windows, window: int) -> str:
    start, end = made.labels[window]
    return " ".join(tokens(made, window).split(" ")[start : end + 1])


def test_a_text_in_one_window(tmp_path: Path) -> None:
    made = windows.make(asked(tmp_path, ("a (unable) b", [{}])), TOKENIZER, windows.Lengths())
    assert tokens(made, 0) == "[CLS] who ? [SEP] a ( un ##able ) b [SEP]"
    assert made.features.segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert made.token_words.tolist() == [0, 1, 1, 1, 1, 2]
    assert (made.word_starts.tolist(), made.word_ends.tolist()) == ([0, 2, 11], [1, 10, 12])
    assert (made.first.tolist(), made.begin.tolist(), made.labels.shape) == ([4], [0], (0, 2))


def test_a_long_text_takes_windows_a_stride_apart(tmp_path: Path) -> None:
    questions = asked(tmp_path, ("a b c d e f g h", [answer("d e", 6), answer("b", 2)]), ("a", [answer("a", 0)]))
    made = windows.make(questions, TOKENIZER, windows.Lengths(9, 2, 2), negative=False)
    own = [window for window in range(len(made)) if made.question[window] == 0]
    assert [tokens(made, window).split("[SEP]")[1].strip() for window in own] == ["a b c d", "c d e f", "e f g h"]
    assert made.begin.tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert made.question.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert [made.of_question(i) for i in range(3)] == [range(0, 3), range(3, 6), range(6, 7)]
    assert [labelled(made, window) for window in range(7)] == ["[CLS]", "d e", "[CLS]", "b", "[CLS]", "[CLS]", "a"]
    # c is second to last in the first window and first in the second; of equally good places the first counts.
    assert [kept.tolist() for kept in made.maximal(range(0, 3))] == [
        [True, True, True, False],
        [False, True, True, False],
        [False, True, True, True],
    ]


@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_no_window_more_than_needed(size: int, tmp_path: Path) -> None:
    context = " ".join("abcdefgh"[:size])
    made = windows.make(asked(tmp_path, (context, [{}])), TOKENIZER, windows.Lengths(9, 3, 2))
    assert len(made) == (2 if size <= 7 else 3)
    assert tokens(made, len(made) - 1).endswith(f"{context[-1]} [SEP]")


@pytest.mark.parametrize("stride", [100, 10**30])
def test_a_stride_beyond_the_window_leaves_nothing_out(tmp_path: Path, stride: int) -> None:
    made = windows.make(asked(tmp_path, ("a b c d e f g h", [{}])), TOKENIZER, windows.Lengths(8, stride, 2))
    assert made.begin.tolist() == [0, 3, 6]


def better_windows(begins: list[int], lengths: list[int]) -> list[list[bool]]:
    """run_squad.py's _check_is_max_context, token by token."""

    def owner(token: int) -> int:
        scores = [
            min(token - begin, begin + length - 1 - token) + 0.01 * length if begin <= token < begin + length else -1.0
            for begin, length in zip(begins, lengths, strict=True)
        ]
        return scores.index(max(scores))

    return [
        [owner(begin + i) == window for i in range(length)]
        for window, (begin, length) in enumerate(zip(begins, lengths, strict=True))
    ]


@pytest.mark.parametrize(
    ("size", "room", "stride"),
    [(1000, 300, 101), (700, 250, 7), (50, 3, 1), (502, 300, 200), (9, 9, 1), (301, 300, 300)],
)
def test_maximal_context_is_the_original_loops(size: int, room: int, stride: int) -> None:
    begins = [0]
    while begins[-1] + room < size:
        begins.append(begins[-1] + min(room, stride))
    lengths = [min(room, size - begin) for begin in begins]
    got = windows.maximal_context(tuple(begins), tuple(lengths))
    assert [kept.tolist() for kept in got] == better_windows(begins, lengths)
    assert sum(kept.sum() for kept in got) == size


def test_the_answer_is_narrowed_to_its_tokens(tmp_path: Path) -> None:
    context = "he was (1895-1943)."
    questions = asked(tmp_path, (context, [answer("1895", 8), answer("895-1", 9), answer("was", 3)]))
    made = windows.make(questions, TOKENIZER, windows.Lengths(), negative=False)
    # Half of a number is no token: its words are the answer, as in the original.
    assert [labelled(made, window) for window in range(3)] == ["1895", "( 1895 - 1943 ) .", "was"]


def test_an_answer_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    wrong = [answer("b", 0), answer("a", 77), answer("a", -77), answer("a b", 2), answer("d", 6)]
    questions = asked(tmp_path, ("a b c d", [answer("c", 4), *wrong[:4], wrong[4]]), ("", [answer("a", 0)]))
    made = windows.make(questions, TOKENIZER, windows.Lengths(), negative=False)
    assert made.dropped.tolist() == [1, 2, 3, 4, 6]
    assert made.question.tolist() == [0, 5]


def test_an_answer_in_a_text_of_spaces_is_left_out(tmp_path: Path) -> None:
    questions = asked(tmp_path, (" \t", [answer(" ", 0), answer("", 1)]))
    made = windows.make(questions, TOKENIZER, windows.Lengths(), negative=False)
    assert made.dropped.tolist() == [0, 1] and len(made) == 0


def test_spaces_of_an_answer_do_not_count(tmp_path: Path) -> None:
    made = windows.make(
        asked(tmp_path, ("a  b\tc d", [answer("b\tc ", 3)])), TOKENIZER, windows.Lengths(), negative=False
    )
    assert labelled(made, 0) == "b c"


def test_impossible_questions(tmp_path: Path) -> None:
    qas = [{"is_impossible": True}, {"is_impossible": False, **answer("b", 2)}]
    questions = asked(tmp_path, ("a b", qas))
    made = windows.make(questions, TOKENIZER, windows.Lengths(), negative=True)
    assert [labelled(made, window) for window in range(2)] == ["[CLS]", "b"]
    with pytest.raises(DataError, match="question '0': 0 answers; training needs exactly one.*squad2"):
        windows.make(questions, TOKENIZER, windows.Lengths(), negative=False)


def test_what_training_cannot_take(tmp_path: Path) -> None:
    two = {"answers": [{"text": "a", "answer_start": 0}] * 2}
    with pytest.raises(DataError, match="2 answers; training needs exactly one"):
        windows.prepare(asked(tmp_path, ("a", [two])), TOKENIZER, windows.Lengths(), negative=False)
    with pytest.raises(DataError, match="question '0': no \"is_impossible\""):
        windows.prepare(asked(tmp_path, ("a", [answer("a", 0)])), TOKENIZER, windows.Lengths(), negative=True)


@pytest.mark.parametrize("lengths", [(67, 128, 64), (384, 0, 64), (384, 128, 0)])
def test_lengths_without_room(lengths: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        windows.Lengths(*lengths)


def test_texts_without_tokens_have_no_windows(tmp_path: Path) -> None:
    nothing = ("", " \t\u202f", "\u200b\u0301 \0")
    questions = asked(tmp_path, *((context, [{}]) for context in nothing), ("a", [{"question": ""}]))
    made = windows.make(questions, TOKENIZER, windows.Lengths())
    assert made.question.tolist() == [3] and tokens(made, 0) == "[CLS] [SEP] a [SEP]"
    assert len(windows.make(asked(tmp_path, ("", [{}])), TOKENIZER, windows.Lengths())) == 0


def test_a_long_question_is_cut(tmp_path: Path) -> None:
    made = windows.make(asked(tmp_path, ("a", [{"question": "b " * 1000}])), TOKENIZER, windows.Lengths(20, 5, 3))
    assert tokens(made, 0) == "[CLS] b b b [SEP] a [SEP]"


def test_a_million_characters(tmp_path: Path) -> None:
    questions = asked(tmp_path, ("a " * 500_000, [{}]), ("b" * 1_000_000, [{}]))
    made = windows.make(questions, TOKENIZER, windows.Lengths())
    assert len(made.of_question(0)) == 1 + -(-(500_000 - 379) // 128)
    assert tokens(made, len(made) - 1) == "[CLS] who ? [SEP] [UNK] [SEP]"


# What Google's tokenization.py gives, by hand from its rules.
WORDS = {
    "Caf\u00e9s": "cafes",
    "Cafe\u0301": "cafe",
    "a\u200bb": "ab",  # zero-width space: a control character, dropped
    "a\u00a0b\u2028c": "a b c",
    "a\0b\ufffdc\x0bd": "abcd",
    "\u4e2d\u6587a": "\u4e2d \u6587 a",
    "[SEP]": "[ sep ]",
    "$5^2~": "$ 5 ^ 2 ~",
    "\u00bfa\u2014b": "\u00bf a \u2014 b",
    "\u05e9\u05b8\u05dc": "\u05e9\u05dc",  # a Hebrew vowel sign is a mark
    "\u039f\u0394\u039f\u03a3": "\u03bf\u03b4\u03bf\u03c2",  # a sigma at the end of a word
    "\u0130": "i",
    "\U0001f468\u200d\U0001f469": "\U0001f468\U0001f469",
    "\ue000a": "\ue000a",  # for private use: transformers drops it
    "\ud55c": "\u1112\u1161\u11ab",
}


@pytest.mark.parametrize(("text", "wanted"), WORDS.items(), ids=map(ascii, WORDS))
def test_words_are_googles(text: str, wanted: str) -> None:
    assert Cutter(TOKENIZER).words(text) == wanted.split(" ")


def test_words_of_a_cased_model_keep_capitals_and_accents() -> None:
    cutter = Cutter(Tokenizer.from_vocab(VOCAB.split(), lowercase=False))
    assert cutter.words("Caf\u00e9 \u4e2d\u6587.") == ["Caf\u00e9", "\u4e2d", "\u6587", "."]


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_of_random_characters_are_googles(lowercase: bool) -> None:
    cutter = Cutter(Tokenizer.from_vocab(VOCAB.split(), lowercase=lowercase))
    rng = np.random.default_rng(0)
    known = np.array([c for c in map(chr, range(0x30000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")])
    for length in (1, 3, 10, 30):
        for row in rng.integers(len(known), size=(1000, length)):
            text = "".join(rng.permutation([*known[row], *"a A \u03a3."[: length // 2]]))
            assert cutter.words(text) == basic(text, lowercase), ascii(text)


def test_pieces() -> None:
    def named(text: str) -> str:
        return " ".join(TOKENIZER.vocab[i] for i in Cutter(TOKENIZER).pieces(text))

    assert named("Unables cafe? unx") == "un ##able ##s cafe ? [UNK]"
    assert named("a" + "b" * 199) == "a" + " ##b" * 199
    assert named("a" + "b" * 200) == "[UNK]"
    assert named("[SEP] [UNK]") == "[UNK] [UNK] [UNK] [UNK] [UNK] [UNK]"


HOSTILE = [
    "",
    " ",
    "a",
    "\u202fa\u00a0b \u202f\u202fc",
    "e\u0301\u0301 \u0301 \u0301x",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600",
    "\u05e9\u05dc\u05d5\u05dd \u200f\u202babc\u202c",
    "\u200b \u200b a\u200b",
    "\0 a\0b",
    "\u2028\u2029\x85\x1c x",
    "\u4e2d\u6587 \uf900",
    "x" * 3000 + " " + "y",
]


def test_the_words_of_many_texts_are_each_texts_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minibert.squad.words.BLOCK", 50)
    table, cutter = WordTable(), Cutter(TOKENIZER)
    texts = table.split(HOSTILE)
    [made] = table.tokens(cutter, texts)
    for i, text in enumerate(HOSTILE):
        own = slice(*texts.offsets[i : i + 2])
        found = [text[a:b] for a, b in zip(texts.starts[own], texts.ends[own], strict=True)]
        lines = "".join("\n" if c in SPACES else c for c in text).split("\n")
        assert found == [word for word in lines if word]
        pieces = [cutter.pieces(word) for word in found]
        assert made.ids[slice(*made.offsets[i : i + 2])].tolist() == sum(pieces, []) == cutter.pieces(text)
        assert made.firsts[own].tolist() == [sum(map(len, pieces[:k])) for k in range(len(pieces))]


def test_pieces_agree_with_the_library_where_the_text_is_plain(shared: Path) -> None:
    tokenizer = Tokenizer.from_vocab(shared / "data/vocab/bert-base-uncased-vocab.txt")
    questions = reading.read(shared / "data/squad/dev-v1.1.json")
    plain = [paragraph.context for paragraph in questions.paragraphs if paragraph.context.isascii()]
    cutter = Cutter(tokenizer)
    features = tokenizer.encode([(text, None) for text in plain], 10_000)
    assert len(plain) > 1000
    for i, text in enumerate(plain):
        assert cutter.pieces(text) == features.ids[features.offsets[i] + 1 : features.offsets[i + 1] - 1].tolist()


@pytest.fixture(scope="module")
def real(shared: Path) -> tuple[reading.Questions, Tokenizer]:
    questions = reading.read(shared / "data/squad/dev-v1.1.json")
    return questions, Tokenizer.from_vocab(shared / "data/vocab/bert-base-uncased-vocab.txt")


def test_as_many_windows_as_published(real: tuple[reading.Questions, Tokenizer]) -> None:
    assert len(windows.make(*real, windows.Lengths())) == 10_833


def test_words_of_the_cache_are_those_of_memory(real: tuple[reading.Questions, Tokenizer], own_cache: Path) -> None:
    made, kept, again = (prepare(*real, windows.Lengths()) for prepare in (windows.make, *[windows.prepare] * 2))
    assert same(made, kept) and same(made, again)
    assert len(list(own_cache.iterdir())) == 1


def same(a: windows.Windows, b: windows.Windows) -> bool:
    def arrays(made: windows.Windows) -> list[np.ndarray]:
        return [*vars(made.features).values(), *(part for part in vars(made).values() if isinstance(part, np.ndarray))]

    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


@pytest.fixture
def small(tmp_path: Path) -> reading.Questions:
    return asked(tmp_path, ("a b c d e f g h", [answer("d e", 6), answer("b", 0)]), ("a", [answer("a", 0)]))


def test_what_is_cached_is_not_made_again(small: reading.Questions, monkeypatch: pytest.MonkeyPatch) -> None:
    made = windows.prepare(small, TOKENIZER, windows.Lengths(), negative=False)
    monkeypatch.setattr(windows, "_arrays", None)
    assert same(made, windows.prepare(small, TOKENIZER, windows.Lengths(), negative=False))


def test_other_settings_and_data_are_kept_apart(small: reading.Questions, own_cache: Path, tmp_path: Path) -> None:
    lengths = windows.Lengths()
    cased = Tokenizer.from_vocab(VOCAB.split(), lowercase=False)
    more = Tokenizer.from_vocab([*VOCAB.split(), "x"])
    windows.prepare(small, TOKENIZER, lengths)
    windows.prepare(small, TOKENIZER, lengths, negative=False)
    windows.prepare(small, TOKENIZER, windows.Lengths(doc_stride=127))
    windows.prepare(small, cased, lengths)
    windows.prepare(small, more, lengths)
    windows.prepare(asked(tmp_path, ("a b", [{}])), TOKENIZER, lengths)
    assert len(list(own_cache.iterdir())) == 6


@pytest.mark.parametrize("where", [0, 100, -1, -33, -41, -60])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_made_anew(where: int, damage: str, small: reading.Questions, own_cache: Path) -> None:
    made = windows.make(small, TOKENIZER, windows.Lengths(), negative=False)
    windows.prepare(small, TOKENIZER, windows.Lengths(), negative=False)
    [path] = own_cache.iterdir()
    good = path.read_bytes()
    place = where % len(good)
    bad = {"flip": good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :], "cut": good[:place], "empty": b""}
    path.write_bytes(bad[damage])
    assert same(made, windows.prepare(small, TOKENIZER, windows.Lengths(), negative=False))
    assert path.read_bytes() == good


def test_files_that_nobody_used_for_long_are_removed(small: reading.Questions, own_cache: Path) -> None:
    windows.prepare(small, TOKENIZER, windows.Lengths())
    [used] = own_cache.iterdir()
    month = time.time() - 31 * 86400
    others = {name: own_cache / name for name in ("a.arrays", ".b.arrays.0123.tmp", "c.arrays", "train-v1.1.json")}
    for path in (used, *others.values()):
        path.touch()
        os.utime(path, (month, month))
    os.utime(others["c.arrays"], (month + 2 * 86400,) * 2)
    windows.prepare(small, TOKENIZER, windows.Lengths())  # nothing is written, so nothing is cleared up
    assert used.stat().st_mtime > month + 86400 and all(path.exists() for path in others.values())
    windows.prepare(small, TOKENIZER, windows.Lengths(doc_stride=127))
    assert [name for name, path in others.items() if path.exists()] == ["c.arrays", "train-v1.1.json"]
    assert used.exists() and len(list(own_cache.iterdir())) == 4


def test_without_a_place_to_write_windows_stay_in_memory(small: reading.Questions, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(files, "user_cache", lambda: tmp_path / "file")
    made = windows.prepare(small, TOKENIZER, windows.Lengths())
    assert same(made, windows.make(small, TOKENIZER, windows.Lengths()))


def test_cached_arrays_are_mapped_and_cannot_be_written(own_cache: Path) -> None:
    made = cache.arrays("key", lambda: {"a": iter([np.arange(3), np.arange(2)]), "none": [np.empty((0, 2), np.int8)]})
    assert made["a"].tolist() == [0, 1, 2, 0, 1] and made["none"].shape == (0, 2)
    assert not made["a"].flags.writeable and not made["a"].flags.owndata
