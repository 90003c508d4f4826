"""The tokenizer against recorded ids of transformers and against a literal transcription of Google's code."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from golden.record_tokens import HASHED, NASTY, VOCAB, digest
from google_tokenizer import pack, tokenize, truncate_seq_pair
from minibert import tasks
from minibert.errors import CheckpointError, ConfigError, DataError, MinibertError
from minibert.squad.words import Cutter
from minibert.tokenizer import SLICE, Features, Tokenizer, truncated_lengths

GOLDEN = json.loads((Path(__file__).parent / "golden" / "tokens.json").read_text())
LONG = 1 << 20

# Texts of which transformers makes other words than Google: literal special tokens, and final sigma, which Python
# lowers by its place in the word and Rust by itself.
ONLY_TRANSFORMERS = [text for text in NASTY if "[SEP]" in text or "Σ" in text]


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.from_vocab(VOCAB)


@pytest.fixture(scope="module")
def ids(ours: Tokenizer) -> dict[str, int]:
    return {token: i for i, token in enumerate(ours.vocab)}


def rows(features: Features) -> list[list[int]]:
    return [part.tolist() for part in np.split(features.ids, features.offsets[1:-1])]


def texts_of(shared: Path, name: str, split: str) -> list[tuple[str, str | None]]:
    return [(e.text_a, e.text_b) for e in tasks.get(name).read(split, shared / "data" / "glue")]


@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_awkward_texts_as_transformers(name: str) -> None:
    ours = Tokenizer.from_vocab(VOCAB, lowercase=name == "uncased")
    found = rows(ours.encode([(text, None) for text in NASTY], LONG))
    for text, mine, theirs in zip(NASTY, found, GOLDEN[name], strict=True):
        assert mine == theirs, ascii(text)


@pytest.mark.parametrize(("name", "split"), HASHED)
def test_whole_tasks_as_transformers(shared: Path, ours: Tokenizer, name: str, split: str) -> None:
    features = ours.encode(texts_of(shared, name, split), LONG)
    assert digest(features.ids, np.diff(features.offsets)) == GOLDEN["sha256"][f"{name} {split}"]


def assert_as_google(ours: Tokenizer, ids: dict[str, int], pairs: list, lengths: tuple[int, ...]) -> None:
    tokens = [(tokenize(a, ids), tokenize(b or "", ids)) for a, b in pairs]
    for max_seq_length in lengths:
        features = ours.encode(pairs, max_seq_length)
        for i, (a, b) in enumerate(tokens):
            wanted, segments = pack(a, b, max_seq_length)
            part = slice(features.offsets[i], features.offsets[i + 1])
            assert [ours.vocab[token] for token in features.ids[part]] == wanted, pairs[i]
            assert features.segments[part].tolist() == segments
            assert (features.offsets[i + 1] - features.offsets[i]) == len(wanted) <= max_seq_length


def test_awkward_pairs_as_google(ours: Tokenizer, ids: dict[str, int]) -> None:
    texts = [text for text in NASTY if text not in ONLY_TRANSFORMERS]
    pairs = [*itertools.product(texts, texts[::5]), *((text, None) for text in texts)]
    assert_as_google(ours, ids, pairs, (3, 4, 5, 16, 33, 128))


@pytest.mark.parametrize("name", ["mrpc", "rte", "cola", "sts-b"])
def test_a_sample_of_real_pairs_as_google(shared: Path, ours: Tokenizer, ids: dict[str, int], name: str) -> None:
    pairs = [pair for split in ("train", "dev", "test") for pair in texts_of(shared, name, split)]
    assert_as_google(ours, ids, random.Random(1).sample(pairs, 1000), (16, 33, 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mrpc", "rte", "cola", "sts-b"])
def test_all_real_pairs_as_google(shared: Path, ours: Tokenizer, ids: dict[str, int], name: str) -> None:
    pairs = [pair for split in ("train", "dev", "test") for pair in texts_of(shared, name, split)]
    assert_as_google(ours, ids, pairs, (16, 33, 128))


def test_truncation_in_closed_form_is_googles_loop() -> None:
    for max_seq_length in (3, 4, 5, 10, 13):
        sizes = list(itertools.product(range(16), range(1, 16)))
        keep_a, keep_b = truncated_lengths(*np.array(sizes).T, max_seq_length)
        for i, (a, b) in enumerate(sizes):
            tokens_a, tokens_b = ["a"] * a, ["b"] * b
            truncate_seq_pair(tokens_a, tokens_b, max_seq_length - 3)
            assert (keep_a[i], keep_b[i]) == (len(tokens_a), len(tokens_b))
    assert [int(n[0]) for n in truncated_lengths(np.array([4]), np.array([4]), 10)] == [4, 3]


def test_features(ours: Tokenizer) -> None:
    features = ours.encode([("one two", "three"), ("one", None), ("one", ""), ("one", " \t")], 128)
    assert [[ours.vocab[i] for i in row] for row in rows(features)] == [
        ["[CLS]", "one", "two", "[SEP]", "three", "[SEP]"],
        *[["[CLS]", "one", "[SEP]"]] * 3,
    ]
    assert features.segments.tolist() == [0, 0, 0, 0, 1, 1] + [0] * 9
    assert (features.ids.dtype, features.segments.dtype, features.offsets.dtype) == (
        np.int32,
        np.int8,
        np.int64,
    )
    assert len(features) == 4 and (features.offsets[0 + 1] - features.offsets[0]) == 6
    empty = ours.encode([], 128)
    assert len(empty) == 0 and empty.offsets.tolist() == [0] and empty.ids.dtype == np.int32


def test_slices_are_put_together(ours: Tokenizer) -> None:
    pairs = [(f"number {i}", None if i % 3 else f"and {i % 7}") for i in range(2 * SLICE + 5)]
    features = ours.encode(pairs, 9)
    assert len(features) == len(pairs) and features.offsets[-1] == len(features.ids) == len(features.segments)
    for i in (0, SLICE - 1, SLICE, 2 * SLICE + 4):
        alone = ours.encode([pairs[i]], 9)
        part = slice(features.offsets[i], features.offsets[i + 1])
        assert features.ids[part].tolist() == alone.ids.tolist()
        assert features.segments[part].tolist() == alone.segments.tolist()


@pytest.mark.parametrize("lowercase", [True, False])
def test_save_and_load(tmp_path: Path, lowercase: bool) -> None:
    saved = Tokenizer.from_vocab(VOCAB, lowercase=lowercase)
    saved.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"
    ]  # fmt: skip
    assert (tmp_path / "vocab.txt").read_bytes() == VOCAB.read_bytes()
    wanted = saved.encode([(text, None) for text in NASTY], 64).ids.tolist()
    for missing in (None, "vocab.txt", "tokenizer_config.json"):
        if missing:
            (tmp_path / missing).unlink()
        loaded = Tokenizer.load(tmp_path)
        assert loaded.vocab == saved.vocab and loaded.lowercase is lowercase
        assert loaded.encode([(text, None) for text in NASTY], 64).ids.tolist() == wanted


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("without", [None, "tokenizer.json", "vocab.txt"])
def test_transformers_loads_what_is_saved(tmp_path: Path, lowercase: bool, without: str | None) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed: the peers extra has it")
    from transformers import AutoTokenizer

    saved = Tokenizer.from_vocab(VOCAB, lowercase=lowercase)
    saved.save(tmp_path, max_length=LONG)
    if without:
        (tmp_path / without).unlink()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.cls_token_id, theirs.sep_token_id, theirs.pad_token_id) == (
        saved.cls_id,
        saved.sep_id,
        saved.pad_id,
    )
    assert theirs.model_max_length == LONG
    pairs = [(text, "and another") for text in NASTY]
    assert rows(saved.encode(pairs, LONG)) == theirs([a for a, _ in pairs], [b for _, b in pairs])["input_ids"]
    assert theirs.decode(theirs("two words")["input_ids"], skip_special_tokens=True) == "two words"


def test_casing_without_a_configuration(tmp_path: Path, shared: Path) -> None:
    for name, lowercase in (
        ("base-uncased", True),
        ("base-cased", False),
        ("base-multilingual-cased", False),
    ):
        (tmp_path / "vocab.txt").write_bytes((shared / "data" / "vocab" / f"bert-{name}-vocab.txt").read_bytes())
        assert Tokenizer.load(tmp_path).lowercase is lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert Tokenizer.load(tmp_path).lowercase is True


def test_a_real_checkpoint(shared: Path) -> None:
    loaded = Tokenizer.load(shared / "checkpoints" / "all-MiniLM-L6-v2")
    assert loaded.vocab_size == 30522 and loaded.lowercase
    mrpc = loaded.encode(texts_of(shared, "mrpc", "train"), 128)
    assert len(mrpc.ids) / len(mrpc) == pytest.approx(53.2, abs=0.1)


SPECIALS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", b"", "vocab.txt: empty"),
        ("vocab.txt", SPECIALS.encode() + b"a\nb\na\n", "'a' stands on line 5 and again on 7"),
        ("vocab.txt", SPECIALS.encode() + b"a\n\nb\n", "line 6 is empty"),
        ("vocab.txt", b"[PAD]\n[UNK]\n[SEP]\na\n", r"no \[CLS\]"),
        ("vocab.txt", SPECIALS.encode() + b"a\n\xff\n", "line 6 is not UTF-8"),
        ("tokenizer.json", b"{", "tokenizer.json: not valid JSON"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {}}}', "not a WordPiece tokenizer"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 0, "b": 7}}}', "ids are not 0 to 1"),
        ("tokenizer.json", b'{"model": {"vocab": [["a", 0]]}}', "not a WordPiece tokenizer"),
        ("tokenizer.json", json.dumps({"model": {"vocab": {"a\nb": 0}}}).encode(), r"token 0 is 'a\\nb'"),
        ("tokenizer.json", b'{"model": {"vocab": {"\\ud800": 0}}}', r"token 0 is '\\ud800'"),
        ("other.txt", b"", "no vocab.txt or tokenizer.json"),
    ],
)
def test_bad_vocabularies(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_bad_configuration(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(SPECIALS)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": "yes"}')
    with pytest.raises(CheckpointError, match="do_lower_case is 'yes'"):
        Tokenizer.load(tmp_path)


ADDED = {  # with their ids behind VOCAB's, and one that stands in it
    30522: {"content": "[E1]", "normalized": True, "special": False},
    30523: {"content": "covid19", "normalized": True, "special": False},
    30524: {"content": "<ent>", "normalized": False, "special": True},
    6: {"content": "[unused5]", "normalized": False, "special": True},
}
# transformers' ids of them in: "The [E1] covid19 <ent> case", "a[e1]b <ENT> COVID19 [unused5]"
WITH_ADDED = [
    [101, 1996, 30522, 30523, 30524, 2553, 102],
    [101, 1037, 30522, 1038, 1026, 4372, 2102, 1028, 30523, 6, 102],
]


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_added_tokens(tmp_path: Path, place: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(VOCAB.read_bytes())
    content = {
        "tokenizer.json": {"added_tokens": [{"id": id, **token} for id, token in ADDED.items()]},
        "tokenizer_config.json": {"added_tokens_decoder": {str(id): token for id, token in ADDED.items()}},
        "added_tokens.json": {token["content"]: id for id, token in ADDED.items()},
    }[place]
    (tmp_path / place).write_text(json.dumps(content))
    loaded = Tokenizer.load(tmp_path)
    texts = ["The [E1] covid19 <ent> case", "a[e1]b <ENT> COVID19 [unused5]"]
    if place == "added_tokens.json":  # which does not tell that <ent> is special, and its case counts
        texts[1] = texts[1].replace("<ENT>", "< ent >")
    found = rows(loaded.encode([(text, None) for text in texts], LONG))
    assert found == WITH_ADDED and loaded.vocab_size == 30525
    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert rows(again.encode([(text, None) for text in texts], LONG)) == WITH_ADDED and again.vocab_size == 30525
    assert (tmp_path / "again" / "vocab.txt").read_bytes() == VOCAB.read_bytes()
    with pytest.raises(CheckpointError, match=r"added tokens \(\[E1\]"):
        Cutter(loaded)


@pytest.mark.parametrize(
    "tokens", [{"x": 30523}, {"x": 7}, {"the": 30522}, {"": 30522}, {"x\ny": 30522}, {"x": "30522"}, {"x": -1}]
)
def test_added_tokens_that_do_not_fit(tmp_path: Path, tokens: dict[str, int]) -> None:
    (tmp_path / "vocab.txt").write_bytes(VOCAB.read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps(tokens))
    with pytest.raises(CheckpointError, match="added token"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("rule", [{"word_tokenizer_type": "mecab"}, {"subword_tokenizer_type": "character"}])
def test_other_rules_of_words_are_refused(tmp_path: Path, rule: dict[str, str]) -> None:
    (tmp_path / "vocab.txt").write_bytes(VOCAB.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(rule))
    with pytest.raises(CheckpointError, match=f"{next(iter(rule))} is '{next(iter(rule.values()))}'"):
        Tokenizer.load(tmp_path)


def test_odd_vocabularies_that_are_right(tmp_path: Path) -> None:
    text = "\ufeff" + SPECIALS.replace("\n", "\r\n") + "a\u2028b\r\n\u3000"  # CRLF, tokens that look like spaces
    (tmp_path / "vocab.txt").write_bytes(text.encode())
    loaded = Tokenizer.load(tmp_path)
    assert loaded.vocab[4:] == ("a\u2028b", "\u3000") and loaded.vocab[0] == "[PAD]"
    # Without [MASK] in the vocabulary its literal must not get an id past the end.
    assert loaded.encode([("[MASK]", None)], 16).ids.max() < loaded.vocab_size


def test_bad_calls(ours: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="max_seq_length 2"):
        ours.encode([("a", "b")], 2)
    good = [("a", "b")] * SLICE
    with pytest.raises(DataError, match=f"pair {SLICE + 1}: character 1: a lone surrogate"):
        ours.encode([*good, ("a", "b"), ("a", "b\ud83d")], 8)
    with pytest.raises(MinibertError, match="pair 0: 7 is no string"):
        ours.encode([(7, "b")], 8)  # type: ignore[list-item]
