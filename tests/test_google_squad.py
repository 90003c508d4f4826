"""The slow transcriptions of SQuAD and of its evaluators themselves, on cases worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import google_squad
from google_squad import (
    DocSpan,
    InputFeatures,
    RawResult,
    SquadExample,
    Tokenizer,
    check_is_max_context,
    convert_examples_to_features,
    get_best_indexes,
    get_final_text,
    improve_answer_span,
    read_squad_examples,
    split_into_windows,
    split_into_words,
    write_predictions,
)
from google_squad_evaluate import (
    average_precision,
    compute_f1,
    evaluate_1,
    evaluate_2,
    f1_score,
    find_best_thresh,
    normalize_answer,
)

VOCAB = [
    *google_squad.SPECIAL,
    *"who led the british from 1854 to 5 in ja ##panese ##ese [ sep ] steve smith ' s .".split(),
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(VOCAB)


def squad(context: str, *qas: dict[str, Any]) -> dict[str, Any]:
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def question(qas_id: str, *answers: tuple[str, int], text: str = "who led", **more: Any) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": start} for answer, start in answers]
    return {"id": qas_id, "question": text, "answers": found, **more}


# The tokenizer


def test_where_transformers_differs() -> None:
    vocab = [*VOCAB, "x", "##x", "##ς", "##σ"]
    google, transformers = Tokenizer(vocab), Tokenizer(vocab, transformers=True)
    assert google.tokenize("who[SEP]led") == ["who", "[", "sep", "]", "led"]
    assert transformers.tokenize("who[SEP]led") == ["who", "[SEP]", "led"]
    for length, ours, theirs in ((100, 100, 100), (101, 101, 1), (200, 200, 1), (201, 1, 1)):
        assert (len(google.tokenize("x" * length)), len(transformers.tokenize("x" * length))) == (ours, theirs)
    assert google.tokenize("xΣ") == ["x", "##ς"]  # a final sigma
    assert transformers.tokenize("xΣ") == ["x", "##σ"]


# Examples


def test_words_and_characters() -> None:
    words, word_of = split_into_words(" a\tbc\u202f\n\r d\u00a0e")
    assert words == ["a", "bc", "d\u00a0e"]
    assert word_of == [-1, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2]


def test_training_wants_one_answer() -> None:
    data = squad("a b", question("two", ("a", 0), ("b", 2)))
    with pytest.raises(ValueError, match="exactly 1 answer"):
        read_squad_examples(data, is_training=True)
    (example,) = read_squad_examples(data, is_training=False)
    assert (example.start_position, example.orig_answer_text) == (None, None)
    (example,) = read_squad_examples(google_squad.with_first_answers(data), is_training=True)
    assert (example.start_position, example.end_position, example.orig_answer_text) == (0, 0, "a")
    assert len(data["data"][0]["paragraphs"][0]["qas"][0]["answers"]) == 2


def test_answers_that_are_not_there_are_dropped() -> None:
    data = squad(
        "one two  three\u00a0four",
        question("inside a word", ("wo", 5)),
        question("wrong place", ("two", 0)),
        question("other whitespace", ("two\nthree", 4)),
        question("no-break space", ("three\u00a0four", 9)),
    )
    dropped: list[str] = []
    examples = read_squad_examples(data, is_training=True, dropped=dropped)
    assert dropped == ["wrong place", "no-break space"]
    assert [(e.qas_id, e.start_position, e.end_position) for e in examples] == [
        ("inside a word", 1, 1),
        # Nine characters from character 4 end inside "three".
        ("other whitespace", 1, 2),
    ]


def test_impossible_questions() -> None:
    data = squad("a b", question("no", is_impossible=True), question("yes", ("b", 2), is_impossible=False))
    read = read_squad_examples(data, is_training=True, version_2_with_negative=True)
    assert [(e.start_position, e.end_position, e.orig_answer_text, e.is_impossible) for e in read] == [
        (-1, -1, "", True),
        (1, 1, "b", False),
    ]
    assert not any(e.is_impossible for e in read_squad_examples(data, is_training=False, version_2_with_negative=True))
    with pytest.raises(ValueError, match="exactly 1 answer"):
        read_squad_examples(data, is_training=True)


def test_shuffle_is_that_of_the_seed() -> None:
    examples = [SquadExample(str(i), "", []) for i in range(5)]
    google_squad.shuffle_for_training(examples)
    # Of Python's generator, whose shuffle has been the same since 3.2.
    assert [e.qas_id for e in examples] == ["4", "2", "1", "0", "3"]


# Windows


@pytest.mark.parametrize(
    ("n_tokens", "room", "stride", "expected"),
    [
        (0, 5, 2, []),
        (5, 5, 2, [(0, 5)]),
        (6, 5, 2, [(0, 5), (2, 4)]),
        (9, 5, 2, [(0, 5), (2, 5), (4, 5)]),
        (10, 3, 9, [(0, 3), (3, 3), (6, 3), (9, 1)]),  # a step beyond the window is the window
    ],
)
def test_windows(n_tokens: int, room: int, stride: int, expected: list[tuple[int, int]]) -> None:
    assert [(span.start, span.length) for span in split_into_windows(n_tokens, room, stride)] == expected


def test_max_context() -> None:
    # Token 3 has 1 to its right in the first and 1 to its left in the second, as long as the first: it is the first's.
    spans = [DocSpan(0, 5), DocSpan(2, 5)]
    owners = [[i for i in range(2) if check_is_max_context(spans, i, position)] for position in range(7)]
    assert owners == [[0], [0], [0], [0], [1], [1], [1]]
    # Of equal smaller sides, here of token 3, a longer window's counts more.
    spans = [DocSpan(0, 5), DocSpan(2, 6)]
    owners = [[i for i in range(2) if check_is_max_context(spans, i, position)] for position in range(8)]
    assert owners == [[0], [0], [0], [1], [1], [1], [1], [1]]


def test_improved_spans(tokenizer: Tokenizer) -> None:
    words = tokenizer.tokenize("in ( 1854 - 5 ) . japanese")
    assert words == ["in", "[UNK]", "1854", "[UNK]", "5", "[UNK]", ".", "ja", "##panese"]
    assert improve_answer_span(words, 1, 5, tokenizer, "1854") == (2, 2)
    assert improve_answer_span(words, 1, 5, tokenizer, "- 5") == (3, 4)
    assert improve_answer_span(words, 7, 8, tokenizer, "japan") == (7, 8)  # no piece "##pan": the whole word
    assert improve_answer_span(words, 2, 4, tokenizer, "the") == (2, 4)
    # The first of several.
    assert improve_answer_span(["a", "b", "a"], 0, 2, Tokenizer([*VOCAB, "a", "b"]), "a") == (0, 0)


def test_features_of_a_short_text(tokenizer: Tokenizer) -> None:
    data = squad("from (1854) Japanese.", question("q", ("1854", 6), text="who led the british"))
    examples = read_squad_examples(data, is_training=True)
    first, second = convert_examples_to_features(examples, tokenizer, 10, 3, 3, is_training=True)
    # Room for 10 - 3 - 3 = 4 tokens of: from ( 1854 ) ja ##panese .
    assert first == InputFeatures(
        unique_id=1000000000,
        example_index=0,
        doc_span_index=0,
        tokens=["[CLS]", "who", "led", "the", "[SEP]", "from", "[UNK]", "1854", "[UNK]", "[SEP]"],
        token_to_orig_map={5: 0, 6: 1, 7: 1, 8: 1},
        # ")" is last in the first window and first in the second, of equal length: the first has it.
        token_is_max_context={5: True, 6: True, 7: True, 8: True},
        input_ids=[2, 5, 6, 7, 3, 9, 1, 10, 1, 3],
        segment_ids=[0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        start_position=7,
        end_position=7,
    )
    assert second == InputFeatures(
        unique_id=1000000001,
        example_index=0,
        doc_span_index=1,
        tokens=["[CLS]", "who", "led", "the", "[SEP]", "[UNK]", "ja", "##panese", ".", "[SEP]"],
        token_to_orig_map={5: 1, 6: 2, 7: 2, 8: 2},
        token_is_max_context={5: False, 6: True, 7: True, 8: True},
        input_ids=[2, 5, 6, 7, 3, 1, 14, 15, 24, 3],
        segment_ids=[0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        start_position=0,
        end_position=0,
    )


def test_labels(tokenizer: Tokenizer) -> None:
    data = squad("the british led . the british", question("q", ("led . the", 12), is_impossible=False))
    examples = read_squad_examples(data, is_training=True)
    features = convert_examples_to_features(examples, tokenizer, 9, 1, 64, is_training=True)
    # [CLS] who led [SEP], then windows of 4 at 0, 1, 2; the answer is tokens 2 to 4, which the first cuts off.
    assert [(f.start_position, f.end_position) for f in features] == [(0, 0), (5, 7), (4, 6)]
    # No tokens of the document are those of half a word: the label is the whole word.
    half = read_squad_examples(squad("the british led", question("q", ("brit", 4))), is_training=True)
    (feature,) = convert_examples_to_features(half, tokenizer, 20, 1, 64, is_training=True)
    assert (feature.start_position, feature.end_position) == (5, 5)
    unlabelled = convert_examples_to_features(examples, tokenizer, 9, 1, 64, is_training=False)
    assert {(f.start_position, f.end_position) for f in unlabelled} == {(None, None)}


def test_labels_of_impossible_questions(tokenizer: Tokenizer) -> None:
    data = squad("the british led", question("q", is_impossible=True))
    examples = read_squad_examples(data, is_training=True, version_2_with_negative=True)
    (feature,) = convert_examples_to_features(examples, tokenizer, 20, 1, 64, is_training=True)
    assert (feature.start_position, feature.end_position, feature.is_impossible) == (0, 0, True)


@pytest.mark.slow  # test_squad_windows.py counts them, too
def test_number_of_windows_of_the_development_file(shared: Path) -> None:
    parsed = json.loads((shared / "data/squad/dev-v1.1.json").read_text())
    vocab = (shared / "data/vocab/bert-base-uncased-vocab.txt").read_text().split("\n")
    tokenizer = Tokenizer([token.strip() for token in vocab])
    examples = read_squad_examples(parsed, is_training=False)
    assert len(examples) == 10570
    assert len(convert_examples_to_features(examples, tokenizer, 384, 128, 64, is_training=False)) == 10833


# Predictions


@pytest.mark.parametrize(
    ("pred", "orig", "expected"),
    [
        ("steve smith", "Steve Smith's", "Steve Smith"),
        ("steve smith ' s", "Steve  Smith's", "Steve  Smith's"),
        ("resume", "my Résumé.", "Résumé"),
        ("resume", "my Re\u0301sume\u0301.", "my Re\u0301sume\u0301."),  # as many letters less: not aligned
        ("[UNK]", "(1854)", "(1854)"),  # not found
        ("1854", "(1854)", "1854"),
        ("中", "a中b", "中"),
    ],
)
def test_final_text(pred: str, orig: str, expected: str) -> None:
    assert get_final_text(pred, orig, do_lower_case=True) == expected


def test_final_text_keeps_case_apart() -> None:
    assert get_final_text("steve", "Steve's", do_lower_case=False) == "Steve's"
    assert get_final_text("Steve", "Steve's", do_lower_case=False) == "Steve"


def test_best_indexes_of_equals_are_the_first() -> None:
    assert get_best_indexes([1.0, 3.0, 1.0, 3.0, 2.0], 4) == [1, 3, 4, 0]


def logits(n: int, **values: float) -> list[float]:
    """-10 but at the given places: logits(3, at1=2.0)."""
    found = [-10.0] * n
    for place, value in values.items():
        found[int(place.removeprefix("at"))] = value
    return found


def short_text(tokenizer: Tokenizer) -> tuple[list[SquadExample], list[InputFeatures]]:
    """[CLS] who led [SEP] the british led ja ##panese [SEP], in one window."""
    examples = read_squad_examples(squad("The British led Japanese", question("q")), is_training=False)
    features = convert_examples_to_features(examples, tokenizer, 64, 32, 64, is_training=False)
    assert features[0].tokens == "[CLS] who led [SEP] the british led ja ##panese [SEP]".split()
    return examples, features


def test_predictions_and_their_files(tokenizer: Tokenizer) -> None:
    examples, features = short_text(tokenizer)
    result = RawResult(logits(10, at5=2.0, at7=1.0), logits(10, at6=2.5, at8=1.0, at2=9.0))
    predictions, nbest, odds = write_predictions(
        examples, features, {1000000000: result}, n_best_size=3, max_answer_length=2
    )
    assert predictions == '{\n    "q": "British led"\n}\n'
    assert odds is None
    total = 1 + math.exp(2.0 - 4.5)
    # Pairs of starts 5, 7, 0 and ends 2, 6, 8 that are allowed: 5-6 and 7-8; 5-8 is too long.
    assert json.loads(nbest) == {
        "q": [
            {"text": "British led", "probability": 1 / total, "start_logit": 2.0, "end_logit": 2.5},
            {
                "text": "Japanese",
                "probability": math.exp(2.0 - 4.5) / total,
                "start_logit": 1.0,
                "end_logit": 1.0,
            },
        ]
    }
    assert nbest.startswith('{\n    "q": [\n        {\n            "text": "British led",\n            "probability": ')


def test_equal_texts_are_one(tokenizer: Tokenizer) -> None:
    examples = read_squad_examples(squad("the british the", question("q")), is_training=False)
    features = convert_examples_to_features(examples, tokenizer, 64, 32, 64, is_training=False)
    # Tokens 4 to 6. The first "the" scores 1 + 2, the last 2 + 0.5, the whole text 1 + 0.5.
    result = RawResult(logits(8, at4=1.0, at6=2.0), logits(8, at4=2.0, at6=0.5))
    _, nbest, _ = write_predictions(examples, features, {1000000000: result}, n_best_size=2)
    found = [(e["text"], e["start_logit"], e["end_logit"]) for e in json.loads(nbest)["q"]]
    assert found == [("the", 1.0, 2.0), ("the british the", 1.0, 0.5)]


def test_the_longest_answer_and_the_length_of_the_list(tokenizer: Tokenizer) -> None:
    examples, features = short_text(tokenizer)
    results = {1000000000: RawResult(logits(10, at5=2.0, at6=1.0), logits(10, at7=2.0, at6=0.5))}

    def texts(n_best_size: int, max_answer_length: int) -> list[str]:
        _, nbest, _ = write_predictions(examples, features, results, n_best_size, max_answer_length)
        return [entry["text"] for entry in json.loads(nbest)["q"]]

    assert texts(1, 2) == ["empty"]
    assert texts(1, 3) == ["British led Ja"]
    assert texts(2, 3) == ["British led Ja", "led Ja"]  # of four


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(6, 7, "Japanese"), (6, 6, "Ja"), (7, 7, "panese"), (5, 7, "(Japanese")]
)
def test_pieces_of_a_word(start: int, end: int, expected: str) -> None:
    examples = read_squad_examples(squad("the (Japanese)", question("q")), is_training=False)
    brackets = Tokenizer([*VOCAB, "(", ")"])
    features = convert_examples_to_features(examples, brackets, 64, 32, 64, is_training=False)
    assert features[0].tokens == "[CLS] who led [SEP] the ( ja ##panese ) [SEP]".split()
    result = RawResult(logits(10, **{f"at{start}": 1.0}), logits(10, **{f"at{end}": 1.0}))
    predictions, _, _ = write_predictions(examples, features, {1000000000: result})
    assert json.loads(predictions) == {"q": expected}


def test_starts_only_where_context_is_greatest(tokenizer: Tokenizer) -> None:
    examples = read_squad_examples(squad("the british led steve smith", question("q")), is_training=False)
    features = convert_examples_to_features(examples, tokenizer, 9, 1, 64, is_training=False)
    assert [f.tokens[4:-1] for f in features] == [
        ["the", "british", "led", "steve"],
        ["british", "led", "steve", "smith"],
    ]
    # Each scores higher in the other window, "steve" as token 7 of the first and "british" as token 4 of the second.
    results = {
        1000000000: RawResult(logits(9, at7=9.0, at5=1.0), logits(9, at7=9.0)),
        1000000001: RawResult(logits(9, at4=5.0, at6=2.0), logits(9, at7=3.0)),
    }
    _, nbest, _ = write_predictions(examples, features, results, n_best_size=2)
    assert [entry["text"] for entry in json.loads(nbest)["q"]] == ["british led steve", "steve smith"]


def test_no_valid_span(tokenizer: Tokenizer) -> None:
    examples, features = short_text(tokenizer)
    result = RawResult(logits(10, at1=1.0), logits(10, at1=1.0))
    files = write_predictions(examples, features, {1000000000: result}, n_best_size=1)
    assert json.loads(files[0]) == {"q": "empty"}
    assert json.loads(files[1]) == {"q": [{"text": "empty", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}]}


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, ""), (1.5, "British"), (2.0, "British")])
def test_null_scores(tokenizer: Tokenizer, threshold: float, expected: str) -> None:
    examples, features = short_text(tokenizer)
    result = RawResult(logits(10, at0=2.5, at5=2.0), logits(10, at0=2.0, at5=1.0))
    predictions, nbest, odds = write_predictions(
        examples,
        features,
        {1000000000: result},
        n_best_size=2,
        version_2_with_negative=True,
        null_score_diff_threshold=threshold,
    )
    assert json.loads(predictions) == {"q": expected}
    assert odds == '{\n    "q": 1.5\n}\n'
    assert [(e["text"], e["start_logit"], e["end_logit"]) for e in json.loads(nbest)["q"]] == [
        ("", 2.5, 2.0),
        ("British", 2.0, 1.0),
    ]


def test_the_null_score_is_the_least_of_all_windows(tokenizer: Tokenizer) -> None:
    examples = read_squad_examples(squad("the british led steve smith", question("q")), is_training=False)
    features = convert_examples_to_features(examples, tokenizer, 9, 1, 64, is_training=False)
    results = {
        1000000000: RawResult(logits(9, at0=1.0, at4=2.0), logits(9, at0=1.0, at4=2.0)),
        1000000001: RawResult(logits(9, at0=0.5, at4=-1.0), logits(9, at0=-2.0, at4=-1.0)),
    }
    _, nbest, odds = write_predictions(examples, features, results, n_best_size=1, version_2_with_negative=True)
    assert odds is not None and json.loads(odds) == {"q": 0.5 - 2.0 - 4.0}
    # One best span fills the list; the null answer follows it all the same.
    found = [(e["text"], e["start_logit"], e["end_logit"]) for e in json.loads(nbest)["q"]]
    assert found == [("the", 2.0, 2.0), ("", 0.5, -2.0)]


def test_only_null_answers(tokenizer: Tokenizer) -> None:
    examples, features = short_text(tokenizer)
    result = RawResult(logits(10, at0=1.0), logits(10, at0=2.0))
    predictions, nbest, odds = write_predictions(
        examples, features, {1000000000: result}, n_best_size=1, version_2_with_negative=True
    )
    assert odds is not None
    assert (json.loads(predictions), json.loads(odds)) == ({"q": ""}, {"q": 3.0})
    assert [(e["text"], e["start_logit"]) for e in json.loads(nbest)["q"]] == [("empty", 0.0), ("", 1.0)]


def test_empty_context(tokenizer: Tokenizer) -> None:
    examples = read_squad_examples(squad(" \n", question("q")), is_training=False)
    assert convert_examples_to_features(examples, tokenizer, 64, 32, 64, is_training=False) == []
    assert json.loads(write_predictions(examples, [], {})[0]) == {"q": "empty"}
    predictions, nbest, odds = write_predictions(examples, [], {}, version_2_with_negative=True)
    assert odds is not None
    assert (json.loads(predictions), json.loads(odds)) == ({"q": ""}, {"q": 1000000.0})
    assert [e["text"] for e in json.loads(nbest)["q"]] == ["empty", ""]


def test_files_are_ascii_in_the_order_of_the_questions(tokenizer: Tokenizer) -> None:
    data = squad("led é", question("z"), question("a"))
    examples = read_squad_examples(data, is_training=False)
    features = convert_examples_to_features(examples, tokenizer, 64, 32, 64, is_training=False)
    result = RawResult(logits(7, at5=1.0), logits(7, at5=1.0))
    predictions, _, _ = write_predictions(examples, features, {f.unique_id: result for f in features})
    assert predictions == '{\n    "z": "\\u00e9",\n    "a": "\\u00e9"\n}\n'


# Evaluation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's hat, an hour", "cats hat hour"),
        ("a-the", "athe"),  # punctuation goes first
        ("the", ""),
        ("?!", ""),
        ("Straße", "straße"),
        ("«the» Éa", "« » éa"),  # punctuation is ASCII's, words are Unicode's
        ("a\u00a0an\u3000b", "b"),
    ],
)
def test_normalization(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_f1_of_both_versions() -> None:
    # 2 of 3 predicted, 2 of 4 wanted: 2 * (2/3 * 1/2) / (2/3 + 1/2) = 4/7.
    assert f1_score("x y z", "x y v w") == pytest.approx(4 / 7, abs=1e-15)
    assert compute_f1("x y v w", "x y z") == f1_score("x y z", "x y v w")
    assert f1_score("x x x", "x") == 0.5
    assert (f1_score("the", "a"), compute_f1("the", "a"), compute_f1("", "x"), compute_f1("x", "y")) == (0, 1, 0, 0)


def test_version_1() -> None:
    data = squad("", question("one", ("x", 0), ("The x y", 0)), question("two", ("z", 0)), question("three", ("w", 0)))
    found = evaluate_1(data["data"], {"one": "x y!", "two": "z u", "unknown": "w"})
    assert found == {"exact_match": 100.0 / 3, "f1": 100.0 * (1 + 2 / 3) / 3}


def two_of_each() -> list[dict[str, Any]]:
    data = squad("", question("h1", ("x", 0)), question("h2", ("y z", 0)), question("n1"), question("n2"))
    return data["data"]


def test_version_2_without_odds() -> None:
    found = evaluate_2(two_of_each(), {"h1": "x", "h2": "y", "n1": "", "n2": "w"})
    assert found == {
        "exact": 50.0,
        "f1": 100.0 * (1 + 2 / 3 + 1 + 0) / 4,
        "total": 4,
        "HasAns_exact": 50.0,
        "HasAns_f1": 100.0 * (1 + 2 / 3) / 2,
        "HasAns_total": 2,
        "NoAns_exact": 50.0,
        "NoAns_f1": 50.0,
        "NoAns_total": 2,
    }


def test_version_2_with_odds() -> None:
    preds = {"h1": "x", "h2": "y", "n1": "", "n2": "w"}
    odds = {"h1": -3.0, "h2": 1.5, "n1": 4.0, "n2": -1.0}
    found = evaluate_2(two_of_each(), preds, odds, precision_recall=True)
    # Odds above 1 make h2 unanswered, which is wrong, and n1, which is right.
    assert (found["exact"], found["f1"], found["HasAns_f1"]) == (50.0, 50.0, 50.0)
    # From 2 unanswered: h1 3, n2 2, h2 2 (f1 2 2/3), n1 the same: best behind h1.
    assert (found["best_exact"], found["best_exact_thresh"]) == (75.0, -3.0)
    assert (found["best_f1"], found["best_f1_thresh"]) == (75.0, -3.0)
    # Exact: precision 1 at recall 1/2, then nothing more. F1: 1/2 + (1 2/3 of 3) times 1/3.
    assert found["pr_exact_ap"] == 50.0
    assert found["pr_f1_ap"] == pytest.approx(100.0 * (1 / 2 + 5 / 9 * 1 / 3), abs=1e-12)
    assert found["pr_oracle_ap"] == pytest.approx(100.0 * (1 / 2 + 2 / 3 * 1 / 2), abs=1e-12)
    assert list(found)[9:] == [
        "best_exact",
        "best_exact_thresh",
        "best_f1",
        "best_f1_thresh",
        "pr_exact_ap",
        "pr_f1_ap",
        "pr_oracle_ap",
    ]


def test_the_threshold_of_version_2_is_strict() -> None:
    preds = {"h1": "x", "h2": "y z", "n1": "w", "n2": "w"}
    found = evaluate_2(two_of_each(), preds, {"h1": 1.0, "h2": 1.1, "n1": 1.0, "n2": 1.1})
    assert (found["HasAns_exact"], found["NoAns_exact"]) == (50.0, 50.0)
    found = evaluate_2(two_of_each(), preds, {"h1": 1.0, "h2": 1.1, "n1": 1.0, "n2": 1.1}, na_prob_thresh=0.5)
    assert (found["HasAns_exact"], found["NoAns_exact"]) == (0.0, 100.0)


def test_no_threshold_is_better_than_none() -> None:
    found = evaluate_2(two_of_each(), dict.fromkeys(["h1", "h2", "n1", "n2"], ""), {"h1": 1, "h2": 2, "n1": 0, "n2": 3})
    assert (found["best_exact"], found["best_exact_thresh"]) == (50.0, 0.0)


def test_golden_answers_that_say_nothing() -> None:
    # An answer of articles and punctuation only does not count among the answers, but the question has one.
    data = squad("", question("q", ("the.", 0), ("x", 0)), question("r", ("!", 0)))["data"]
    found = evaluate_2(data, {"q": "", "r": "a"})
    assert (found["exact"], found["HasAns_total"], "NoAns_total" in found) == (50.0, 2, False)


def test_best_threshold_between_equal_odds() -> None:
    # The sort is stable: with equal odds the one that stands first is counted first, and a best score may stand
    # between the two although no threshold parts them.
    has_ans, scores = {"n": False, "h": True}, {"h": 1.0, "n": 0.0}
    assert find_best_thresh({"h": "x", "n": "y"}, scores, {"h": 0.5, "n": 0.5}, has_ans) == (100.0, 0.5)
    assert find_best_thresh({"h": "x", "n": "y"}, scores, {"n": 0.5, "h": 0.5}, has_ans) == (50.0, 0.0)


def test_odds_of_unknown_questions_do_not_count() -> None:
    preds, odds = {"h": "x", "n": "y", "?": "z"}, {"?": 0.1, "h": 0.5, "n": 0.7}
    assert find_best_thresh(preds, {"h": 1.0, "n": 0.0}, odds, {"n": False, "h": True}) == (100.0, 0.5)


def test_average_precision_steps_over_equal_odds() -> None:
    has_ans, scores = {"n": False, "h": True}, {"h": 1.0, "n": 0.0}
    assert average_precision(scores, {"h": 0.5, "n": 0.5}, 1, has_ans) == 50.0
    assert average_precision(scores, {"h": 0.4, "n": 0.5}, 1, has_ans) == 100.0


def test_what_the_originals_fail_on() -> None:
    none = squad("", question("q"))["data"]
    with pytest.raises(ValueError):
        evaluate_1(none, {"q": ""})
    with pytest.raises(ZeroDivisionError):
        evaluate_1([], {})
    with pytest.raises(KeyError):
        evaluate_2(two_of_each(), {"h1": "x"})
