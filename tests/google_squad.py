"""SQuAD of google-research/bert, slow and step by step, as run_squad.py does it: examples, windows, predictions.

Written from the description of that code, to test a fast implementation against. Deliberate differences: no padding
(a window's logits are those of its tokens, so that no padding can stand among the top n), and two crashes mended,
each marked "Mended" where it happens. Characters of the categories Co, Cn and Cs are dropped as in google_tokenizer.
"""

from __future__ import annotations

import collections
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import google_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class Tokenizer:
    """Google's tokenizer, which remembers the texts that it has seen.

    transformers: with the three rules in which that library's words differ from Google's. Words over 100 letters are
    [UNK] (Google: 200), a literal "[SEP]" in the text is the special token (Google: "[", "sep", "]"), and a capital
    sigma is lowered without regard to its place in the word.
    """

    def __init__(self, vocab: Sequence[str], lowercase: bool = True, transformers: bool = False) -> None:
        self.vocab = {token: i for i, token in enumerate(vocab)}
        self.lowercase = lowercase
        self.transformers = transformers
        self.seen: dict[str, list[str]] = {}
        self.special = [token for token in SPECIAL if token in self.vocab]

    def tokenize(self, text: str) -> list[str]:
        if text not in self.seen:
            self.seen[text] = self.tokenize_new(text)
        return self.seen[text]

    def tokenize_new(self, text: str) -> list[str]:
        if not self.transformers:
            return self.tokenize_plain(text, longest=200)
        tokens: list[str] = []
        for part in re.split("(" + "|".join(re.escape(token) for token in self.special) + ")", text):
            if part in self.special:
                tokens.append(part)
            else:
                part = part.replace("Σ", "σ") if self.lowercase else part
                tokens += self.tokenize_plain(part, longest=100)
        return tokens

    def tokenize_plain(self, text: str, longest: int) -> list[str]:
        return [
            piece
            for word in google_tokenizer.basic(text, self.lowercase)
            for piece in (["[UNK]"] if len(word) > longest else self.wordpieces(word))
        ]

    def wordpieces(self, word: str) -> list[str]:
        """google_tokenizer.wordpieces without its limit of 100 letters."""
        pieces: list[str] = []
        start = 0
        while start < len(word):
            end = len(word)
            while end > start and ("##" if start else "") + word[start:end] not in self.vocab:
                end -= 1
            if end == start:
                return ["[UNK]"]
            pieces.append(("##" if start else "") + word[start:end])
            start = end
        return pieces

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [self.vocab[token] for token in tokens]


# Examples


@dataclass
class SquadExample:
    """A question; positions are words of doc_tokens, both included, -1 if impossible, None outside training."""

    qas_id: str
    question_text: str
    doc_tokens: list[str]
    orig_answer_text: str | None = None
    start_position: int | None = None
    end_position: int | None = None
    is_impossible: bool = False


def is_whitespace(c: str) -> bool:
    return c == " " or c == "\t" or c == "\r" or c == "\n" or ord(c) == 0x202F


def split_into_words(paragraph_text: str) -> tuple[list[str], list[int]]:
    """doc_tokens and, for every character, the number of its word; whitespace has that of the word before it."""
    doc_tokens: list[str] = []
    char_to_word_offset: list[int] = []
    prev_is_whitespace = True
    for c in paragraph_text:
        if is_whitespace(c):
            prev_is_whitespace = True
        else:
            if prev_is_whitespace:
                doc_tokens.append(c)
            else:
                doc_tokens[-1] += c
            prev_is_whitespace = False
        char_to_word_offset.append(len(doc_tokens) - 1)
    return doc_tokens, char_to_word_offset


def read_squad_examples(
    parsed: dict[str, Any],
    is_training: bool,
    version_2_with_negative: bool = False,
    dropped: list[str] | None = None,
) -> list[SquadExample]:
    """dropped: takes the ids of the questions left out because their answer is not in the text."""
    examples = []
    for entry in parsed["data"]:
        for paragraph in entry["paragraphs"]:
            doc_tokens, char_to_word_offset = split_into_words(paragraph["context"])
            for qa in paragraph["qas"]:
                example = SquadExample(qa["id"], qa["question"], doc_tokens)
                if is_training:
                    if version_2_with_negative:
                        example.is_impossible = qa["is_impossible"]
                    if len(qa["answers"]) != 1 and not example.is_impossible:
                        raise ValueError("For training, each question should have exactly 1 answer.")
                    if example.is_impossible:
                        example.start_position = -1
                        example.end_position = -1
                        example.orig_answer_text = ""
                    else:
                        answer = qa["answers"][0]
                        example.orig_answer_text = answer["text"]
                        answer_offset = answer["answer_start"]
                        answer_length = len(answer["text"])
                        example.start_position = char_to_word_offset[answer_offset]
                        example.end_position = char_to_word_offset[answer_offset + answer_length - 1]
                        actual_text = " ".join(doc_tokens[example.start_position : example.end_position + 1])
                        # Python's split(), which knows more whitespace than is_whitespace().
                        cleaned_answer_text = " ".join(answer["text"].strip().split())
                        if actual_text.find(cleaned_answer_text) == -1:
                            if dropped is not None:
                                dropped.append(qa["id"])
                            continue
                examples.append(example)
    return examples


def with_first_answers(parsed: dict[str, Any]) -> dict[str, Any]:
    """The same data with the first answer of each question only, so that development data can be read as training."""
    copy = json.loads(json.dumps(parsed))
    for entry in copy["data"]:
        for paragraph in entry["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["answers"] = qa["answers"][:1]
    return copy


def shuffle_for_training(examples: list[SquadExample]) -> None:
    """In place, before the windows are made."""
    random.Random(12345).shuffle(examples)


# Windows


@dataclass
class DocSpan:
    start: int
    length: int


@dataclass
class InputFeatures:
    """A window. Positions are tokens of the window, both included, and None outside training."""

    unique_id: int
    example_index: int
    doc_span_index: int
    tokens: list[str] = field(default_factory=list)
    token_to_orig_map: dict[int, int] = field(default_factory=dict)
    token_is_max_context: dict[int, bool] = field(default_factory=dict)
    input_ids: list[int] = field(default_factory=list)
    segment_ids: list[int] = field(default_factory=list)
    start_position: int | None = None
    end_position: int | None = None
    is_impossible: bool = False


def convert_examples_to_features(
    examples: list[SquadExample],
    tokenizer: Tokenizer,
    max_seq_length: int,
    doc_stride: int,
    max_query_length: int,
    is_training: bool,
) -> list[InputFeatures]:
    """The windows of all examples, without padding."""
    features = []
    unique_id = 1000000000
    for example_index, example in enumerate(examples):
        query_tokens = tokenizer.tokenize(example.question_text)
        if len(query_tokens) > max_query_length:
            query_tokens = query_tokens[0:max_query_length]

        tok_to_orig_index = []
        orig_to_tok_index = []
        all_doc_tokens = []
        for i, token in enumerate(example.doc_tokens):
            orig_to_tok_index.append(len(all_doc_tokens))
            for sub_token in tokenizer.tokenize(token):
                tok_to_orig_index.append(i)
                all_doc_tokens.append(sub_token)

        if is_training:
            tok_start_position, tok_end_position = answer_tokens(example, orig_to_tok_index, all_doc_tokens, tokenizer)

        max_tokens_for_doc = max_seq_length - len(query_tokens) - 3
        doc_spans = split_into_windows(len(all_doc_tokens), max_tokens_for_doc, doc_stride)
        for doc_span_index, doc_span in enumerate(doc_spans):
            feature = InputFeatures(unique_id, example_index, doc_span_index, is_impossible=example.is_impossible)
            feature.tokens = ["[CLS]", *query_tokens, "[SEP]"]
            feature.segment_ids = [0] * len(feature.tokens)
            for i in range(doc_span.length):
                position = doc_span.start + i
                feature.token_to_orig_map[len(feature.tokens)] = tok_to_orig_index[position]
                feature.token_is_max_context[len(feature.tokens)] = check_is_max_context(
                    doc_spans, doc_span_index, position
                )
                feature.tokens.append(all_doc_tokens[position])
                feature.segment_ids.append(1)
            feature.tokens.append("[SEP]")
            feature.segment_ids.append(1)
            feature.input_ids = tokenizer.convert_tokens_to_ids(feature.tokens)

            if is_training and not example.is_impossible:
                doc_start = doc_span.start
                doc_end = doc_span.start + doc_span.length - 1
                if tok_start_position >= doc_start and tok_end_position <= doc_end:
                    doc_offset = len(query_tokens) + 2
                    feature.start_position = tok_start_position - doc_start + doc_offset
                    feature.end_position = tok_end_position - doc_start + doc_offset
                else:
                    feature.start_position = 0
                    feature.end_position = 0
            if is_training and example.is_impossible:
                feature.start_position = 0
                feature.end_position = 0

            features.append(feature)
            unique_id += 1
    return features


def split_into_windows(n_tokens: int, max_tokens_for_doc: int, doc_stride: int) -> list[DocSpan]:
    doc_spans = []
    start_offset = 0
    while start_offset < n_tokens:
        length = n_tokens - start_offset
        if length > max_tokens_for_doc:
            length = max_tokens_for_doc
        doc_spans.append(DocSpan(start_offset, length))
        if start_offset + length == n_tokens:
            break
        start_offset += min(length, doc_stride)
    return doc_spans


def answer_tokens(
    example: SquadExample, orig_to_tok_index: list[int], all_doc_tokens: list[str], tokenizer: Tokenizer
) -> tuple[int, int]:
    """The answer as tokens of the whole document, both ends included; -1 if impossible."""
    if example.is_impossible:
        return -1, -1
    assert example.start_position is not None and example.end_position is not None
    assert example.orig_answer_text is not None
    tok_start_position = orig_to_tok_index[example.start_position]
    if example.end_position < len(example.doc_tokens) - 1:
        tok_end_position = orig_to_tok_index[example.end_position + 1] - 1
    else:
        tok_end_position = len(all_doc_tokens) - 1
    return improve_answer_span(
        all_doc_tokens, tok_start_position, tok_end_position, tokenizer, example.orig_answer_text
    )


def improve_answer_span(
    doc_tokens: list[str], input_start: int, input_end: int, tokenizer: Tokenizer, orig_answer_text: str
) -> tuple[int, int]:
    """The first span inside, longest first from each start, whose tokens are those of the answer."""
    tok_answer_text = " ".join(tokenizer.tokenize(orig_answer_text))
    for new_start in range(input_start, input_end + 1):
        for new_end in range(input_end, new_start - 1, -1):
            text_span = " ".join(doc_tokens[new_start : new_end + 1])
            if text_span == tok_answer_text:
                return new_start, new_end
    return input_start, input_end


def check_is_max_context(doc_spans: list[DocSpan], cur_span_index: int, position: int) -> bool:
    """Whether of all windows that hold the token this one has the most text on both its sides; a tie: the first."""
    best_score = None
    best_span_index = None
    for span_index, doc_span in enumerate(doc_spans):
        end = doc_span.start + doc_span.length - 1
        if position < doc_span.start or position > end:
            continue
        num_left_context = position - doc_span.start
        num_right_context = end - position
        score = min(num_left_context, num_right_context) + 0.01 * doc_span.length
        if best_score is None or score > best_score:
            best_score = score
            best_span_index = span_index
    return cur_span_index == best_span_index


# Predictions


@dataclass
class RawResult:
    """A window's logits, one of each kind per token, as Python's floats."""

    start_logits: list[float]
    end_logits: list[float]


@dataclass
class PrelimPrediction:
    feature_index: int
    start_index: int
    end_index: int
    start_logit: float
    end_logit: float


@dataclass
class NbestPrediction:
    text: str
    start_logit: float
    end_logit: float


def write_predictions(
    all_examples: list[SquadExample],
    all_features: list[InputFeatures],
    all_results: dict[int, RawResult],
    n_best_size: int = 20,
    max_answer_length: int = 30,
    do_lower_case: bool = True,
    version_2_with_negative: bool = False,
    null_score_diff_threshold: float = 0.0,
) -> tuple[str, str, str | None]:
    """The texts of predictions.json, nbest_predictions.json and, in version 2, null_odds.json (else None).

    all_results: logits by the feature's unique_id.
    """
    example_index_to_features = collections.defaultdict(list)
    for feature in all_features:
        example_index_to_features[feature.example_index].append(feature)

    all_predictions = {}
    all_nbest_json = {}
    scores_diff_json = {}
    for example_index, example in enumerate(all_examples):
        features = example_index_to_features[example_index]
        results = [all_results[feature.unique_id] for feature in features]

        prelim_predictions = valid_spans(features, results, n_best_size, max_answer_length)
        score_null = 1000000.0
        null = PrelimPrediction(0, 0, 0, 0.0, 0.0)
        if version_2_with_negative:
            for feature_index, result in enumerate(results):
                feature_null_score = result.start_logits[0] + result.end_logits[0]
                if feature_null_score < score_null:
                    score_null = feature_null_score
                    null = PrelimPrediction(feature_index, 0, 0, result.start_logits[0], result.end_logits[0])
            prelim_predictions.append(null)
        prelim_predictions = sorted(prelim_predictions, key=lambda x: x.start_logit + x.end_logit, reverse=True)

        nbest = distinct_texts(example, features, prelim_predictions, n_best_size, do_lower_case)
        if version_2_with_negative:
            if all(entry.text != "" for entry in nbest):
                nbest.append(NbestPrediction("", null.start_logit, null.end_logit))
            # Mended: the original has no best non-null entry here and fails on it.
            if all(entry.text == "" for entry in nbest):
                nbest.insert(0, NbestPrediction("empty", 0.0, 0.0))
        if not nbest:
            nbest.append(NbestPrediction("empty", 0.0, 0.0))

        probs = softmax([entry.start_logit + entry.end_logit for entry in nbest])
        all_nbest_json[example.qas_id] = [
            {
                "text": entry.text,
                "probability": probability,
                "start_logit": entry.start_logit,
                "end_logit": entry.end_logit,
            }
            for entry, probability in zip(nbest, probs, strict=True)
        ]
        if not version_2_with_negative:
            all_predictions[example.qas_id] = nbest[0].text
        else:
            best_non_null_entry = next(entry for entry in nbest if entry.text)
            score_diff = score_null - best_non_null_entry.start_logit - best_non_null_entry.end_logit
            scores_diff_json[example.qas_id] = score_diff
            if score_diff > null_score_diff_threshold:
                all_predictions[example.qas_id] = ""
            else:
                all_predictions[example.qas_id] = best_non_null_entry.text

    return (
        json.dumps(all_predictions, indent=4) + "\n",
        json.dumps(all_nbest_json, indent=4) + "\n",
        json.dumps(scores_diff_json, indent=4) + "\n" if version_2_with_negative else None,
    )


def valid_spans(
    features: list[InputFeatures], results: list[RawResult], n_best_size: int, max_answer_length: int
) -> list[PrelimPrediction]:
    """Every allowed pair of a window's best starts and best ends, window after window."""
    prelim_predictions = []
    for feature_index, (feature, result) in enumerate(zip(features, results, strict=True)):
        start_indexes = get_best_indexes(result.start_logits, n_best_size)
        end_indexes = get_best_indexes(result.end_logits, n_best_size)
        for start_index in start_indexes:
            for end_index in end_indexes:
                if start_index >= len(feature.tokens):
                    continue
                if end_index >= len(feature.tokens):
                    continue
                if start_index not in feature.token_to_orig_map:
                    continue
                if end_index not in feature.token_to_orig_map:
                    continue
                if not feature.token_is_max_context.get(start_index, False):
                    continue
                if end_index < start_index:
                    continue
                if end_index - start_index + 1 > max_answer_length:
                    continue
                prelim_predictions.append(
                    PrelimPrediction(
                        feature_index,
                        start_index,
                        end_index,
                        result.start_logits[start_index],
                        result.end_logits[end_index],
                    )
                )
    return prelim_predictions


def distinct_texts(
    example: SquadExample,
    features: list[InputFeatures],
    prelim_predictions: list[PrelimPrediction],
    n_best_size: int,
    do_lower_case: bool,
) -> list[NbestPrediction]:
    """The first n_best_size spans that differ in their text; the span at [CLS] has none."""
    seen_predictions = set()
    nbest: list[NbestPrediction] = []
    for pred in prelim_predictions:
        if len(nbest) >= n_best_size:
            break
        final_text = ""
        if pred.start_index > 0:
            # Mended: the original asks for the feature of the null span too, which an empty context does not have.
            final_text = text_of_span(example, features[pred.feature_index], pred, do_lower_case)
            if final_text in seen_predictions:
                continue
        seen_predictions.add(final_text)
        nbest.append(NbestPrediction(final_text, pred.start_logit, pred.end_logit))
    return nbest


def text_of_span(example: SquadExample, feature: InputFeatures, pred: PrelimPrediction, do_lower_case: bool) -> str:
    tok_tokens = feature.tokens[pred.start_index : pred.end_index + 1]
    orig_doc_start = feature.token_to_orig_map[pred.start_index]
    orig_doc_end = feature.token_to_orig_map[pred.end_index]
    orig_tokens = example.doc_tokens[orig_doc_start : orig_doc_end + 1]

    tok_text = " ".join(tok_tokens)
    tok_text = tok_text.replace(" ##", "")
    tok_text = tok_text.replace("##", "")
    tok_text = tok_text.strip()
    tok_text = " ".join(tok_text.split())
    orig_text = " ".join(orig_tokens)
    return get_final_text(tok_text, orig_text, do_lower_case)


def get_final_text(pred_text: str, orig_text: str, do_lower_case: bool) -> str:
    """The part of orig_text that pred_text was made of; orig_text where the two cannot be aligned."""
    tok_text = " ".join(google_tokenizer.basic(orig_text, do_lower_case))
    start_position = tok_text.find(pred_text)
    if start_position == -1:
        return orig_text
    end_position = start_position + len(pred_text) - 1

    orig_ns_text, orig_ns_to_s_map = strip_spaces(orig_text)
    tok_ns_text, tok_ns_to_s_map = strip_spaces(tok_text)
    if len(orig_ns_text) != len(tok_ns_text):
        return orig_text

    tok_s_to_ns_map = {tok_index: i for i, tok_index in tok_ns_to_s_map.items()}
    if start_position not in tok_s_to_ns_map:
        return orig_text
    orig_start_position = orig_ns_to_s_map[tok_s_to_ns_map[start_position]]
    if end_position not in tok_s_to_ns_map:
        return orig_text
    orig_end_position = orig_ns_to_s_map[tok_s_to_ns_map[end_position]]
    return orig_text[orig_start_position : orig_end_position + 1]


def strip_spaces(text: str) -> tuple[str, dict[int, int]]:
    """text without its spaces, and where in text each remaining character stood; other whitespace stays."""
    ns_chars = []
    ns_to_s_map = {}
    for i, c in enumerate(text):
        if c == " ":
            continue
        ns_to_s_map[len(ns_chars)] = i
        ns_chars.append(c)
    return "".join(ns_chars), ns_to_s_map


def get_best_indexes(logits: list[float], n_best_size: int) -> list[int]:
    """The n-best indexes, highest first; of equals the first comes first."""
    index_and_score = sorted(enumerate(logits), key=lambda x: x[1], reverse=True)
    return [index for index, _ in index_and_score[:n_best_size]]


def softmax(scores: list[float]) -> list[float]:
    max_score = max(scores)
    exp_scores = []
    total_sum = 0.0
    for score in scores:
        x = math.exp(score - max_score)
        exp_scores.append(x)
        total_sum += x
    return [x / total_sum for x in exp_scores]
