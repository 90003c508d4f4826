"""The tokenizer of google-research/bert, slow and step by step, as tokenization.py and run_classifier.py do it.

Written from the description of that code. Two deliberate differences, both transformers': words over 100 letters
are [UNK] (Google: 200), and every character of category C is dropped, private and unassigned ones included.
"""

from __future__ import annotations

import unicodedata

LONGEST = 100
CJK = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
       (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]  # fmt: skip


def basic(text: str, lowercase: bool) -> list[str]:
    """Words: cleaned, CJK characters apart, lower case without accents, punctuation apart."""
    cleaned = []
    for letter in text:
        if letter in "\t\n\r" or unicodedata.category(letter) == "Zs":
            cleaned.append(" ")
        elif letter in "\0\ufffd" or unicodedata.category(letter).startswith("C"):
            continue
        elif any(low <= ord(letter) <= high for low, high in CJK):
            cleaned.append(f" {letter} ")
        else:
            cleaned.append(letter)
    words = []
    for word in "".join(cleaned).split():
        if lowercase:
            decomposed = unicodedata.normalize("NFD", word.lower())
            word = "".join(letter for letter in decomposed if unicodedata.category(letter) != "Mn")
        start = True
        for letter in word:
            if is_punctuation(letter):
                words.append(letter)
                start = True
            elif start:
                words.append(letter)
                start = False
            else:
                words[-1] += letter
    return [part for word in words for part in word.split()]


def is_punctuation(letter: str) -> bool:
    code = ord(letter)
    ascii_marks = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_marks or unicodedata.category(letter).startswith("P")


def wordpieces(word: str, vocab: dict[str, int]) -> list[str]:
    """The longest known piece from the left, again and again; [UNK] for the whole word where one is missing."""
    if len(word) > LONGEST:
        return ["[UNK]"]
    pieces: list[str] = []
    start = 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocab:
                pieces.append(piece)
                start = end
                break
        else:
            return ["[UNK]"]
    return pieces


def tokenize(text: str, vocab: dict[str, int], lowercase: bool = True) -> list[str]:
    return [piece for word in basic(text, lowercase) for piece in wordpieces(word, vocab)]


def truncate_seq_pair(tokens_a: list[str], tokens_b: list[str], max_length: int) -> None:
    """Takes a token from the end of the longer, from b in a tie, until both fit."""
    while len(tokens_a) + len(tokens_b) > max_length:
        if len(tokens_a) > len(tokens_b):
            tokens_a.pop()
        else:
            tokens_b.pop()


def pack(tokens_a: list[str], tokens_b: list[str], max_seq_length: int) -> tuple[list[str], list[int]]:
    """Tokens and segments of one example; changes neither argument."""
    tokens_a, tokens_b = list(tokens_a), list(tokens_b)
    if tokens_b:
        truncate_seq_pair(tokens_a, tokens_b, max_seq_length - 3)
    elif len(tokens_a) > max_seq_length - 2:
        tokens_a = tokens_a[: max_seq_length - 2]
    tokens = ["[CLS]", *tokens_a, "[SEP]"]
    segments = [0] * len(tokens)
    if tokens_b:
        tokens += [*tokens_b, "[SEP]"]
        segments += [1] * (len(tokens_b) + 1)
    return tokens, segments
