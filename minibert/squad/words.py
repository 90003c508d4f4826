"""Google's words and pieces, exactly, each distinct word cut once (google-research/bert:tokenization.py).

run_squad.py splits a text at five characters and tokenizes each word by itself, so what a word becomes does not depend
on where it stands: a table of the distinct words, a tenth of all, is all that needs tokenizing, and no alignment with
the text is needed afterwards. Unlike minibert.tokenizer, which follows transformers, words have up to 200 letters and
a "[SEP]" in a text is three words.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
from numpy.typing import NDArray

from minibert.errors import CheckpointError
from minibert.tokenizer import GOOGLES_LONGEST, Tokenizer

SPACES = " \t\r\n\u202f"  # run_squad.py's; all other spaces stand inside its words
WORD = re.compile(f"[^{SPACES}]+")
IDEOGRAPHS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
BLOCK = 1 << 20  # characters that are split at once


class _Characters(dict[int, str]):
    """A table for str.translate that asks `rule` about each character when it first meets it."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self.rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self.rule(chr(code))
        return self[code]


class Cutter:
    """Google's tokenizer with the vocabulary and the flags of a Tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises CheckpointError where tokens stand behind the vocabulary, which Google's code has no rule for."""
        if tokenizer.vocab_size > len(tokenizer.vocab):
            token = next(token.content for id, token in sorted(tokenizer.added.items()) if id >= len(tokenizer.vocab))
            raise CheckpointError(f"the tokenizer's added tokens ({token}, ...) are for classifiers, not for SQuAD")
        self._lowercase = tokenizer.lowercase
        self._strip = tokenizer.lowercase if tokenizer.strip_accents is None else tokenizer.strip_accents
        self._cleaned = _Characters(_with_ideographs_apart if tokenizer.chinese else _cleaned)
        self._split = _Characters(_split_without_marks if self._strip else _split)
        self._ids = {token: i for i, token in enumerate(tokenizer.vocab)}
        self._unknown = tokenizer.unk_id
        self._longest = max(map(len, tokenizer.vocab))

    def words(self, text: str) -> list[str]:
        """BasicTokenizer's: cleaned, in lower case where the model is, punctuation apart."""
        text = text.translate(self._cleaned)
        if self._lowercase:
            text = text.lower()
        if self._strip:
            text = unicodedata.normalize("NFD", text)
        return text.translate(self._split).split()

    def pieces(self, text: str) -> list[int]:
        """The ids of the text's WordPieces."""
        ids: list[int] = []
        for word in self.words(text):
            if len(word) > GOOGLES_LONGEST:
                ids.append(self._unknown)
            elif (whole := self._ids.get(word)) is not None:
                ids.append(whole)
            else:
                ids.extend(self._word_pieces(word))
        return ids

    def _word_pieces(self, word: str) -> list[int]:
        """Greedily the longest piece that the vocabulary has; [UNK] for a word that does not come out."""
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                if (piece := self._ids.get(prefix + word[start:end])) is not None:
                    break
            else:
                return [self._unknown]
            ids.append(piece)
            start = end
        return ids


@dataclass(frozen=True, eq=False)
class Texts:
    """The words of n texts, end to end: text i has words[offsets[i]:offsets[i + 1]].

    words: numbers of a WordTable, (N,) int32; starts, ends: characters of the word's own text, (N,) int32.
    """

    words: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of n texts, end to end: text i has ids[offsets[i]:offsets[i + 1]].

    ids: (N,) int32; firsts: the first token of each word of Texts, counted from its text's, (words,) int32.
    """

    ids: NDArray[np.int32]
    firsts: NDArray[np.int32]
    offsets: NDArray[np.int64]


class WordTable:
    """The distinct words of texts: all texts are split first, then each word is cut once."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)

    def split(self, texts: Sequence[str]) -> Texts:
        """The words of the texts, which this table counts from now on."""
        blocks = [self._split_block(block) for block in _blocks(texts)]
        if not blocks:
            nothing = np.empty(0, np.int32)
            return Texts(nothing, nothing, nothing, np.zeros(1, np.int64))
        words, starts, ends, lengths = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return Texts(words, starts, ends, offsets_of(lengths))

    def _split_block(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], ...]:
        joined = "\n".join(texts)
        found = WORD.findall(joined)
        codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        space = np.ones(len(codes) + 2, bool)  # one before and one after the text
        space[1:-1] = np.isin(codes, [ord(c) for c in SPACES])
        edges = np.flatnonzero(space[1:] != space[:-1])
        starts, ends = edges[0::2], edges[1::2]
        begins = offsets_of([len(text) + 1 for text in texts])
        lengths = np.diff(np.searchsorted(starts, begins))
        shift = np.repeat(begins[:-1], lengths)
        words = np.fromiter(map(self._numbers.__getitem__, found), np.int32, len(found))
        return words, (starts - shift).astype(np.int32), (ends - shift).astype(np.int32), lengths

    def tokens(self, cutter: Cutter, *parts: Texts) -> list[Tokens]:
        """The tokens of texts that this table has split."""
        pieces = [cutter.pieces(word) for word in self._numbers]
        offsets = offsets_of([len(ids) for ids in pieces])
        flat = np.fromiter(chain.from_iterable(pieces), np.int32, offsets[-1])
        return [_tokens(texts, flat, offsets) for texts in parts]


def _tokens(texts: Texts, pieces: NDArray[np.int32], piece_offsets: NDArray[np.int64]) -> Tokens:
    starts = piece_offsets[texts.words]
    lengths = piece_offsets[texts.words + 1] - starts
    before = offsets_of(lengths)
    offsets = before[texts.offsets]
    firsts = before[:-1] - np.repeat(offsets[:-1], np.diff(texts.offsets))
    return Tokens(pieces[ranges(starts, lengths)], firsts.astype(np.int32), offsets)


def offsets_of(lengths: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Where parts of these lengths begin, and at last where they end: (n + 1,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """starts[0], starts[0] + 1, ... for lengths[0] numbers, then from starts[1] on, and so forth."""
    offsets = offsets_of(lengths)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])


def _blocks(texts: Sequence[str]) -> list[Sequence[str]]:
    """The texts in runs of about BLOCK characters."""
    ends = offsets_of([len(text) for text in texts])[1:]
    cuts = np.unique(np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, BLOCK)[1:]))
    bounds = [0, *cuts.tolist(), len(texts)]
    return [texts[low:high] for low, high in zip(bounds[:-1], bounds[1:], strict=True) if low < high]


def _cleaned(character: str) -> str:
    if character in " \t\n\r":
        return " "
    category = unicodedata.category(character)
    if character == "\ufffd" or category in ("Cc", "Cf"):
        return ""
    return " " if category == "Zs" else character


def _with_ideographs_apart(character: str) -> str:
    code = ord(character)
    return f" {character} " if any(low <= code <= high for low, high in IDEOGRAPHS) else _cleaned(character)


def _split(character: str) -> str:
    """Spaces around punctuation; all of ASCII that is no letter, figure or space counts as such, "$" and "^" too."""
    punctuation = unicodedata.category(character).startswith("P") or (
        "!" <= character <= "~" and not character.isalnum()
    )
    return f" {character} " if punctuation else character


def _split_without_marks(character: str) -> str:
    return "" if unicodedata.category(character) == "Mn" else _split(character)
