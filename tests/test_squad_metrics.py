"""SQuAD's evaluators: cases computed by hand, figures of the official scripts, and searches tried by brute force."""

from __future__ import annotations

import json
import math
import random

import pytest

from minibert.errors import DataError
from minibert.squad import metrics
from minibert.squad.metrics import Gold, best_threshold, cross_fit, evaluate_squad, evaluate_squad2


def small(seed: int) -> tuple[list[Gold], dict[str, str], dict[str, float]]:
    """Up to twelve questions of four articles, with many equal null odds; every prediction is a text."""
    draw = random.Random(seed)
    questions = [
        Gold(str(i), draw.choice([(), ("red cat",), ("red dog", "the red")]), draw.randrange(4))
        for i in range(draw.randrange(1, 13))
    ]
    predictions = {question.id: draw.choice(["red", "red cat", "dog"]) for question in questions}
    ids = draw.sample(list(predictions), len(predictions))
    return questions, predictions, {id: draw.choice([-2.5, -1, 0, 0.5, 3]) for id in ids}


# --- a single answer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        ("The Cat, the DOG & a mouse!", "cat dog mouse"),
        ("a an the", ""),
        ("...?!", ""),
        ("theatre Ana", "theatre ana"),
        ("U.S.A.", "usa"),
        ("a-an", "aan"),
        ("the\u2014end", "\u2014end"),
        ("  two\t\nlines\u00a0here ", "two lines here"),
        ("Über\u2019s “Straße”", "über\u2019s “straße”"),
        ("İ", "i̇"),
        ("東京 \U0001f600", "東京 \U0001f600"),
    ],
)
def test_normalize(text, normal):
    assert metrics.normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("the cat sat", ["cat sat down"], 0, 0.8),  # 2 of 2 words, 2 of 3
        ("x x y", ["x y y"], 0, 2 / 3),  # a word counts as often as both have it
        ("cat", ["dog", "Cat!", "cat sat"], 1, 1),
        ("cat", ["dog"], 0, 0),
        ("red cat", ["red", "red big cat"], 0, 0.8),  # F1 of the better answer
        ("", ["cat"], 0, 0),
        ("cat", ["the"], 0, 0),
    ],
)
def test_score(prediction, answers, exact, f1):
    for both_empty in (0, 1):
        assert metrics.score(prediction, answers, both_empty) == (exact, pytest.approx(f1, rel=1e-15))


@pytest.mark.parametrize("prediction", ["", "the", "?!", "a - an"])
@pytest.mark.parametrize("answer", ["", "The", "..."])
def test_nothing_equals_nothing_but_shares_no_word_in_squad_1(prediction, answer):
    assert metrics.score(prediction, [answer], both_empty=0) == (1, 0)
    assert metrics.score(prediction, [answer], both_empty=1) == (1, 1)


# --- SQuAD 1.1


def test_squad_by_hand():
    questions = [Gold("a", ["cat"], 0), Gold("b", ["red cat", "blue"], 0), Gold("c", ["dog"], 1), Gold("d", ["?"], 1)]
    predictions = {"a": "The cat.", "b": "red", "d": "", "of another file": "x"}
    assert metrics.without_prediction(questions, predictions) == ["c"]
    f1 = 100.0 * (1 + 2 / 3) / 4
    assert evaluate_squad(questions, predictions) == {"exact_match": 50.0, "f1": pytest.approx(f1, rel=1e-15)}
    assert evaluate_squad(questions, {}) == {"exact_match": 0.0, "f1": 0.0}


def test_squad_needs_questions_and_their_answers():
    with pytest.raises(DataError, match="no questions"):
        evaluate_squad([], {})
    with pytest.raises(DataError, match="question b has no answers"):
        evaluate_squad([Gold("a", ["x"], 0), Gold("b", [], 0)], {"a": "x", "b": "x"})


# --- SQuAD 2.0

QUESTIONS = [
    Gold("a", ["cat"], 0),
    Gold("b", [], 0),
    Gold("c", ["red dog"], 1),
    Gold("d", (), 2),
    Gold("e", ["the"], 2),
]
PREDICTIONS = {"a": "cat", "b": "", "c": "dog", "d": "fish", "e": "the"}
ODDS = {"d": 2.0, "a": -1.0, "c": 0.5, "b": 3, "e": 0.75}


def test_squad2_by_hand():
    assert evaluate_squad2(QUESTIONS, PREDICTIONS) == {
        "exact": 60.0, "f1": pytest.approx(100 * (3 + 2 / 3) / 5, rel=1e-15), "total": 5,
        "HasAns_exact": 100 * 2 / 3, "HasAns_f1": pytest.approx(100 * (2 + 2 / 3) / 3, rel=1e-15), "HasAns_total": 3,
        "NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2,
    }  # fmt: skip


def test_squad2_with_null_odds_by_hand():
    """Above 1 are b and d, which is right of both. Sorted: a, c, e, d, b; found: 1, 1 2/3, 2 2/3 at most."""
    got = evaluate_squad2(QUESTIONS, PREDICTIONS, ODDS)
    assert list(got) == [
        "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total", "NoAns_exact", "NoAns_f1", "NoAns_total",
        "best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh", "pr_exact_ap", "pr_f1_ap", "pr_oracle_ap",
    ]  # fmt: skip
    assert (got["exact"], got["NoAns_exact"], got["NoAns_f1"]) == (80.0, 100.0, 100.0)
    assert (got["best_exact"], got["best_exact_thresh"]) == (80.0, 0.75)
    assert (got["best_f1"], got["best_f1_thresh"]) == (pytest.approx(100 * (4 + 2 / 3) / 5, rel=1e-15), 0.75)
    assert got["pr_exact_ap"] == pytest.approx(100 * (1 * 1 / 3 + 2 / 3 * 1 / 3), rel=1e-14)
    assert got["pr_f1_ap"] == pytest.approx(100 * (1 / 3 + 5 / 6 * 2 / 9 + 8 / 9 * 1 / 3), rel=1e-14)
    assert got["pr_oracle_ap"] == pytest.approx(100.0, rel=1e-14)


def test_a_threshold_makes_predictions_above_it_empty():
    assert evaluate_squad2(QUESTIONS, PREDICTIONS, ODDS, 0.5)["HasAns_exact"] == 100 / 3  # not c's, whose odds it is
    assert evaluate_squad2(QUESTIONS, PREDICTIONS, ODDS, 0.49)["HasAns_f1"] == 100 / 3
    assert evaluate_squad2(QUESTIONS, PREDICTIONS, ODDS, -5)["exact"] == 40.0


def test_an_answer_of_which_nothing_is_left_does_not_count_beside_others():
    assert evaluate_squad2([Gold("a", ["the", "cat"], 0)], {"a": ""})["exact"] == 0.0
    assert evaluate_squad2([Gold("a", ["the", "?"], 0)], {"a": ""})["exact"] == 100.0


def test_an_empty_prediction_for_what_has_no_answer_costs_the_search_nothing():
    got = evaluate_squad2([Gold("a", [], 0), Gold("b", ["x"], 0)], {"a": "", "b": "x"}, {"a": -1.0, "b": 0.5})
    assert (got["best_exact"], got["best_exact_thresh"], got["best_f1"]) == (100.0, 0.5, 100.0)


def test_parts_that_are_not_there_have_no_keys():
    answerable, unanswerable = QUESTIONS[:1], QUESTIONS[1:2]
    assert not any(key.startswith("NoAns") for key in evaluate_squad2(answerable, PREDICTIONS, ODDS))
    got = evaluate_squad2(unanswerable, PREDICTIONS, ODDS)
    assert not any(key.startswith(("HasAns", "pr_")) for key in got) and got["best_f1"] == 100.0


def test_squad2_leaves_out_what_has_no_prediction():
    assert evaluate_squad2(QUESTIONS, {"a": "cat"}, ODDS)["total"] == 1
    with pytest.raises(DataError, match="no question has a prediction"):
        evaluate_squad2(QUESTIONS, {"another": "cat"})
    with pytest.raises(DataError, match="question e has a prediction but no null odds"):
        evaluate_squad2(QUESTIONS, PREDICTIONS, {id: 0.0 for id in "abcd"})


def test_the_official_search_s_threshold_of_answering_nothing_is_0():
    questions, predictions, odds = [Gold("a", [], 0), Gold("b", [], 0)], {"a": "x", "b": "y"}, {"a": -3.0, "b": -2.0}
    got = evaluate_squad2(questions, predictions, odds)
    assert (got["best_f1"], got["best_f1_thresh"]) == (100.0, 0.0)
    assert evaluate_squad2(questions, predictions, odds, best_threshold(questions, predictions, odds))["f1"] == 100.0


def test_equal_null_odds_count_in_the_order_of_their_file():
    """The official search looks between them, where no threshold is; ours does not."""
    questions, predictions = [Gold("a", ["x"], 0), Gold("b", [], 0)], {"a": "x", "b": "y"}
    assert evaluate_squad2(questions, predictions, {"a": 1.0, "b": 1.0})["best_f1"] == 100.0
    assert evaluate_squad2(questions, predictions, {"b": 1.0, "a": 1.0})["best_f1"] == 50.0
    assert best_threshold(questions, predictions, {"a": 1.0, "b": 1.0}) < 1


@pytest.mark.parametrize("seed", range(40))
def test_the_best_threshold_is_that_of_trying_all(seed):
    questions, predictions, odds = small(seed)
    tried = {odd: evaluate_squad2(questions, predictions, odds, odd)["f1"] for odd in [-math.inf, *odds.values()]}
    found = evaluate_squad2(questions, predictions, odds, best_threshold(questions, predictions, odds))["f1"]
    assert found == pytest.approx(max(tried.values()), rel=1e-12)
    distinct = {id: odd + i / 1000 for i, (id, odd) in enumerate(odds.items())}
    official = evaluate_squad2(questions, predictions, distinct)
    if official["best_f1_thresh"]:
        assert official["best_f1_thresh"] == best_threshold(questions, predictions, distinct)


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_that_of_its_definition(seed):
    """For each place of a threshold: precision times what recall gains."""
    questions, predictions, odds = small(seed)
    questions.append(Gold("sure", ["red"], 0))
    predictions["sure"], odds["sure"] = "red", 0.5
    worth = {q.id: metrics.score(predictions[q.id], q.answers, 1)[1] if q.answers else 0 for q in questions}
    area = recall = 0.0
    for odd in sorted(set(odds.values())):
        above = [id for id in odds if odds[id] <= odd]
        found = sum(worth[id] for id in above)
        area += found / len(above) * (found / sum(bool(q.answers) for q in questions) - recall)
        recall = found / sum(bool(q.answers) for q in questions)
    assert evaluate_squad2(questions, predictions, odds)["pr_f1_ap"] == pytest.approx(100 * area, rel=1e-12)


# --- thresholds found on other articles


def test_each_fold_has_the_threshold_of_the_others():
    """Article 0 is best at 0 (answering a), article 1 at -1 (answering nothing of it): each with the other's."""
    questions = [Gold("a", ["x"], 7), Gold("b", [], 7), Gold("c", [], 9), Gold("d", [], 9)]
    predictions, odds = dict.fromkeys("abcd", "x"), {"a": 0.0, "b": 1.0, "c": 0.0, "d": 2.0}
    got = cross_fit(questions, predictions, odds)
    assert got is not None and got.thresholds == (math.nextafter(0.0, -1), 0.0)
    assert (got.exact, got.f1) == (50.0, 50.0)  # b right, a not; d right, c not
    assert cross_fit(questions[:2], predictions, odds) is None


@pytest.mark.parametrize("seed", range(10))
def test_a_fold_s_own_questions_do_not_move_its_threshold(seed):
    questions, predictions, odds = small(seed)
    questions += [Gold(f"more {article}", ["red"], article) for article in range(4)]
    predictions |= {question.id: "red" for question in questions[-4:]}
    odds |= {question.id: 0.25 for question in questions[-4:]}
    first = questions[0].article
    inside = {question.id for question in questions if question.article == first}
    before = cross_fit(questions, predictions, odds)
    after = cross_fit(questions, {id: "dog" if id in inside else text for id, text in predictions.items()}, odds)
    assert before is not None and after is not None and len(before.thresholds) == 4
    assert before.thresholds[0] == after.thresholds[0] and before != after


# --- all of SQuAD

OFFICIAL: dict[str, dict[str, float]] = {
    "v1.1": {
        "exact_match": 66.75496688741723,
        "f1": 67.8290524732124,
    },
    "v2.0": {
        "exact": 70.50450602206688,
        "f1": 71.08046484898742,
        "total": 11873,
        "HasAns_exact": 56.62955465587044,
        "HasAns_f1": 57.7831240135,
        "HasAns_total": 5928,
        "NoAns_exact": 84.33978132884778,
        "NoAns_f1": 84.33978132884778,
        "NoAns_total": 5945,
        "best_exact": 72.75330581992756,
        "best_exact_thresh": -4.994,
        "best_f1": 73.22849158852428,
        "best_f1_thresh": -4.994,
        "pr_exact_ap": 42.034032167985835,
        "pr_f1_ap": 43.69908759782926,
        "pr_oracle_ap": 94.4749250079016,
    },
}


def test_digits_of_the_official_scripts(shared):
    """On dev-v1.1 and dev-v2.0, with predictions made by rule; the figures are those of the two scripts' functions."""
    for version, figures in OFFICIAL.items():
        data = json.loads((shared / "data" / "squad" / f"dev-{version}.json").read_text())["data"]
        questions, predictions, odds = [], {}, {}
        for number, article in enumerate(data):
            for paragraph in article["paragraphs"]:
                words = paragraph["context"].split()
                for qa in paragraph["qas"]:
                    answers, n = [answer["text"] for answer in qa["answers"]], len(questions)
                    said = answers[0] if answers and n % 3 else " ".join(words[n % len(words) :][: n % 5])
                    questions.append(Gold(qa["id"], answers, number))
                    predictions[qa["id"]], odds[qa["id"]] = said, (n * 7919 % 10007) / 1000 - 5 - 2 * len(answers)
        one = version == "v1.1"
        got = evaluate_squad(questions, predictions) if one else evaluate_squad2(questions, predictions, odds, -3)
        # Equal to the last digit in Python 3.11; from 3.12 on `sum` rounds otherwise, in the script as here.
        assert got == pytest.approx(figures, rel=1e-14) and list(got) == list(figures)


# --- files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"q1": 3}', "question q1 is not a text"),
        ('{"q1": null}', "question q1 is not a text"),
        ('{"q1": "a", "q1": "b"}', "stands twice"),
        ('{"q1": "a",}', "line 1 column"),
        ('["a"]', "not a JSON object"),
    ],
)
def test_bad_predictions_are_one_line(tmp_path, text, message):
    (tmp_path / "predictions.json").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        metrics.read_predictions(tmp_path / "predictions.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ['"1"', "true", "1e999", "NaN", "null", "[1]", "1" + "0" * 400])
def test_bad_null_odds_are_one_line(tmp_path, value):
    (tmp_path / "odds.json").write_text(f'{{"q1": {value}}}')
    with pytest.raises(DataError, match="q1 are no number|NaN is not JSON"):
        metrics.read_null_odds(tmp_path / "odds.json")


def test_files_of_a_run_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"q1": "a", "q2": ""}')
    (tmp_path / "b.json").write_text('{"q1": -3, "q2": 1e3}')
    assert metrics.read_predictions(tmp_path / "a.json") == {"q1": "a", "q2": ""}
    assert metrics.read_null_odds(tmp_path / "b.json") == {"q1": -3, "q2": 1000.0}
