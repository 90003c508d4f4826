"""The official evaluators of SQuAD 1.1 and 2.0, step by step, as evaluate-v1.1.py and evaluate-v2.0.py do it.

Written from the description of those programs. What they fail on fails here with the same exception: a question
without answers in 1.1, a missing prediction in 2.0, no question at all. 2.0 adds its scores with Python's sum(),
whose last digit differs from 3.12 on, where it compensates for rounding.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Iterator
from typing import Any

Data = list[dict[str, Any]]  # what "data" holds in a file of SQuAD
Scores = dict[str, float]  # by the question's id


def questions(dataset: Data) -> Iterator[dict[str, Any]]:
    for article in dataset:
        for paragraph in article["paragraphs"]:
            yield from paragraph["qas"]


def normalize_answer(s: str) -> str:
    """Lower case without ASCII punctuation, articles and extra whitespace, in this order."""
    s = s.lower()
    exclude = set(string.punctuation)
    s = "".join(ch for ch in s if ch not in exclude)
    s = re.sub(r"\b(a|an|the)\b", " ", s)
    return " ".join(s.split())


def f1_of_tokens(prediction_tokens: list[str], gold_tokens: list[str]) -> float:
    common = collections.Counter(prediction_tokens) & collections.Counter(gold_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(gold_tokens)
    return (2 * precision * recall) / (precision + recall)


# 1.1


def f1_score(prediction: str, ground_truth: str) -> float:
    return f1_of_tokens(normalize_answer(prediction).split(), normalize_answer(ground_truth).split())


def exact_match_score(prediction: str, ground_truth: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(ground_truth)


def metric_max_over_ground_truths(
    metric: Callable[[str, str], float], prediction: str, ground_truths: list[str]
) -> float:
    return max(metric(prediction, ground_truth) for ground_truth in ground_truths)


def evaluate_1(dataset: Data, predictions: dict[str, str]) -> dict[str, float]:
    """A missing prediction counts 0."""
    f1: float = 0
    exact_match: float = 0
    total = 0
    for qa in questions(dataset):
        total += 1
        if qa["id"] not in predictions:
            continue
        ground_truths = [answer["text"] for answer in qa["answers"]]
        prediction = predictions[qa["id"]]
        exact_match += metric_max_over_ground_truths(exact_match_score, prediction, ground_truths)
        f1 += metric_max_over_ground_truths(f1_score, prediction, ground_truths)
    return {"exact_match": 100.0 * exact_match / total, "f1": 100.0 * f1 / total}


# 2.0


def evaluate_2(
    dataset: Data,
    preds: dict[str, str],
    na_probs: Scores | None = None,
    na_prob_thresh: float = 1.0,
    precision_recall: bool = False,
) -> dict[str, float]:
    """na_probs: what null_odds.json holds; precision_recall: what the original computes when it is to draw curves."""
    given = na_probs is not None
    if na_probs is None:
        na_probs = {k: 0.0 for k in preds}
    qid_to_has_ans = {qa["id"]: bool(qa["answers"]) for qa in questions(dataset)}
    has_ans_qids = [k for k, v in qid_to_has_ans.items() if v]
    no_ans_qids = [k for k, v in qid_to_has_ans.items() if not v]
    exact_raw, f1_raw = get_raw_scores(dataset, preds)
    exact_thresh = apply_no_ans_threshold(exact_raw, na_probs, qid_to_has_ans, na_prob_thresh)
    f1_thresh = apply_no_ans_threshold(f1_raw, na_probs, qid_to_has_ans, na_prob_thresh)

    out_eval = make_eval_dict(exact_thresh, f1_thresh, list(exact_thresh))
    if has_ans_qids:
        merge_eval(out_eval, make_eval_dict(exact_thresh, f1_thresh, has_ans_qids), "HasAns")
    if no_ans_qids:
        merge_eval(out_eval, make_eval_dict(exact_thresh, f1_thresh, no_ans_qids), "NoAns")
    if given:
        best_exact, exact_threshold = find_best_thresh(preds, exact_raw, na_probs, qid_to_has_ans)
        best_f1, f1_threshold = find_best_thresh(preds, f1_raw, na_probs, qid_to_has_ans)
        out_eval["best_exact"] = best_exact
        out_eval["best_exact_thresh"] = exact_threshold
        out_eval["best_f1"] = best_f1
        out_eval["best_f1_thresh"] = f1_threshold
    if given and precision_recall and has_ans_qids:
        oracle = {k: float(v) for k, v in qid_to_has_ans.items()}
        for name, scores in (("pr_exact", exact_raw), ("pr_f1", f1_raw), ("pr_oracle", oracle)):
            ap = average_precision(scores, na_probs, len(has_ans_qids), qid_to_has_ans)
            merge_eval(out_eval, {"ap": ap}, name)
    return out_eval


def get_tokens(s: str) -> list[str]:
    return normalize_answer(s).split() if s else []


def compute_exact(a_gold: str, a_pred: str) -> int:
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks = get_tokens(a_gold)
    pred_toks = get_tokens(a_pred)
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        # One side says that there is no answer: 1 where both do, else 0.
        return int(gold_toks == pred_toks)
    return f1_of_tokens(pred_toks, gold_toks)


def get_raw_scores(dataset: Data, preds: dict[str, str]) -> tuple[Scores, Scores]:
    exact_scores: Scores = {}
    f1_scores: Scores = {}
    for qa in questions(dataset):
        gold_answers = [a["text"] for a in qa["answers"] if normalize_answer(a["text"])]
        if not gold_answers:
            gold_answers = [""]
        if qa["id"] not in preds:
            continue
        a_pred = preds[qa["id"]]
        exact_scores[qa["id"]] = max(compute_exact(a, a_pred) for a in gold_answers)
        f1_scores[qa["id"]] = max(compute_f1(a, a_pred) for a in gold_answers)
    return exact_scores, f1_scores


def apply_no_ans_threshold(
    scores: Scores, na_probs: Scores, qid_to_has_ans: dict[str, bool], na_prob_thresh: float
) -> Scores:
    new_scores: Scores = {}
    for qid, s in scores.items():
        pred_na = na_probs[qid] > na_prob_thresh
        if pred_na:
            new_scores[qid] = float(not qid_to_has_ans[qid])
        else:
            new_scores[qid] = s
    return new_scores


def make_eval_dict(exact_scores: Scores, f1_scores: Scores, qid_list: list[str]) -> dict[str, float]:
    total = len(qid_list)
    return {
        "exact": 100.0 * sum(exact_scores[k] for k in qid_list) / total,
        "f1": 100.0 * sum(f1_scores[k] for k in qid_list) / total,
        "total": total,
    }


def merge_eval(main_eval: dict[str, float], new_eval: dict[str, float], prefix: str) -> None:
    for k in new_eval:
        main_eval[f"{prefix}_{k}"] = new_eval[k]


def find_best_thresh(
    preds: dict[str, str], scores: Scores, na_probs: Scores, qid_to_has_ans: dict[str, bool]
) -> tuple[float, float]:
    """Score and threshold; starts where every question is unanswered and lets one after the other be answered.

    The score after each question is taken, even between questions of equal odds.
    """
    cur_score: float = sum(1 for k in qid_to_has_ans if not qid_to_has_ans[k])
    best_score = cur_score
    best_thresh = 0.0
    qid_list = sorted(na_probs, key=lambda k: na_probs[k])
    for qid in qid_list:
        if qid not in scores:
            continue
        if qid_to_has_ans[qid]:
            diff = scores[qid]
        elif preds[qid]:
            diff = -1
        else:
            diff = 0
        cur_score += diff
        if cur_score > best_score:
            best_score = cur_score
            best_thresh = na_probs[qid]
    return 100.0 * best_score / len(scores), best_thresh


def average_precision(scores: Scores, na_probs: Scores, num_true_pos: int, qid_to_has_ans: dict[str, bool]) -> float:
    qid_list = sorted(na_probs, key=lambda k: na_probs[k])
    true_pos = 0.0
    last_r = 0.0
    avg_prec = 0.0
    for i, qid in enumerate(qid_list):
        if qid_to_has_ans[qid]:
            true_pos += scores[qid]
        cur_p = true_pos / float(i + 1)
        cur_r = true_pos / float(num_true_pos)
        if i == len(qid_list) - 1 or na_probs[qid] != na_probs[qid_list[i + 1]]:
            # A threshold can be put behind this question: the next has other odds.
            avg_prec += cur_p * (cur_r - last_r)
            last_r = cur_r
    return 100.0 * avg_prec
