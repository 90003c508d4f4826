"""WordPiece text to token ids, packed end to end: what transformers makes of the text, cut as Google cuts it.

Words and characters follow transformers' BertTokenizer (google-research/bert:tokenization.py, but words over
100 letters are [UNK] and a literal "[SEP]" in the text is the special token, unless Google's rules are asked for).
Pairs are cut as in google-research/bert:run_classifier.py: one token at a time from the longer text, from the second
in a tie.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from minibert import files
from minibert.errors import CheckpointError, ConfigError, DataError

REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # that save() writes
ADDED = "added_tokens.json"
SPECIAL = (*REQUIRED, "[MASK]")
LONGEST_WORD, GOOGLES_LONGEST = 100, 200  # letters; what is longer is [UNK]
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
RULES = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}  # BertJapaneseTokenizer has others
SLICE = 4096  # pairs handed to the library at once, so that its objects stay few


@dataclass(frozen=True, eq=False)
class Features:
    """Token ids of n examples, end to end, without padding.

    ids: (N,) int32; segments: (N,) int8, 1 for the second text and its [SEP]; offsets: (n + 1,) int64.
    Example i is ids[offsets[i]:offsets[i + 1]].
    """

    ids: NDArray[np.int32]
    segments: NDArray[np.int8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Tokenizer:
    """BERT's WordPiece over one vocabulary; make one with load() or from_vocab()."""

    def __init__(
        self,
        vocab: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        chinese: bool = True,
        added: Mapping[int, tokenizers.AddedToken] | None = None,
        google: bool = False,
        max_length: int | None = None,
        source: str = "vocabulary",
    ) -> None:
        """vocab: one token per id; strip_accents: None means as lowercase; source: named in errors.

        added: tokens by id that are looked for in the text before it is cut into words, such as "[E1]" for an entity;
        they stand in the vocabulary or, with the next ids, behind it. google: words may have 200 letters, and a literal
        "[SEP]" is three words, as in Google's own code. max_length: tokens of the longest input that the model was made
        for, where a checkpoint tells.
        """
        self.max_length = max_length
        self.vocab, self.added = tuple(vocab), dict(added or {})
        self.lowercase, self.strip_accents, self.chinese = lowercase, strip_accents, chinese
        ids = _checked_ids(self.vocab, source)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (ids[token] for token in REQUIRED)
        self._library = _library_tokenizer(ids, lowercase, strip_accents, chinese, google)
        self._add(source)

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """The tokenizer of a checkpoint directory: vocab.txt, or tokenizer.json's vocabulary without it.

        Casing comes from tokenizer_config.json, then tokenizer.json. Google's own directories have neither;
        there a vocabulary with capitals in over one piece in a hundred is a cased one. CheckpointError where words are
        cut by another rule than BERT's.
        """
        directory = Path(directory)
        config = _read_json(directory / "tokenizer_config.json")
        for key, rule in RULES.items():
            if config.get(key) not in (None, rule):
                value = f"{config[key]!r:.40}"
                raise CheckpointError(f"{directory}: the tokenizer's {key} is {value}; minibert has BERT's, {rule!r}")
        whole = _read_json(directory / "tokenizer.json")
        path = directory / "vocab.txt"
        if path.is_file():
            vocab = _read_vocab(path)
        elif whole:
            path = directory / "tokenizer.json"
            vocab = _vocab_of(whole, path)
        else:
            raise CheckpointError(f"{directory}: no vocab.txt or tokenizer.json; put the model's there")
        normalizer = whole.get("normalizer") or {}
        return cls(
            vocab,
            lowercase=_flag(config, "do_lower_case", normalizer, "lowercase", not _cased(vocab), path),
            strip_accents=_flag(config, "strip_accents", normalizer, "strip_accents", None, path),
            chinese=_flag(config, "tokenize_chinese_chars", normalizer, "handle_chinese_chars", True, path),
            added=_added(directory, config, whole),
            google=_is_google(whole),
            max_length=_max_length(config),
            source=str(path),
        )

    @classmethod
    def from_vocab(cls, vocab: Iterable[str] | Path, lowercase: bool = True, google: bool = False) -> Tokenizer:
        """A tokenizer from tokens in the order of their ids, or from a vocab.txt; `google` as above."""
        if isinstance(vocab, (str, Path)):
            return cls(_read_vocab(Path(vocab)), lowercase=lowercase, google=google, source=str(vocab))
        return cls(tuple(vocab), lowercase=lowercase, google=google)

    @property
    def vocab_size(self) -> int:
        """Ids in use, those of added tokens included."""
        return len(self.vocab) + sum(id >= len(self.vocab) for id in self.added)

    @property
    def cased(self) -> bool:
        """Whether the vocabulary has pieces with capitals, beyond a few."""
        return _cased(self.vocab)

    def _add(self, source: str) -> None:
        """Adds the added tokens to the library, which gives them the next ids, or those that the vocabulary has."""
        for id, token in sorted(self.added.items()):
            self._library.add_special_tokens([token]) if token.special else self._library.add_tokens([token])
            if self._library.token_to_id(token.content) != id:
                raise CheckpointError(
                    f"{source}: the added token {token.content[:80]!r} has id {id}, which the vocabulary does not "
                    "leave for it; take the files from one place"
                )

    def encode(self, pairs: Sequence[tuple[str, str | None]], max_seq_length: int) -> Features:
        """[CLS] A [SEP] or [CLS] A [SEP] B [SEP] for each pair, at most max_seq_length tokens.

        A second text that is None or has no tokens left is left out with its [SEP], as in Google's code.
        """
        if max_seq_length < 3:
            raise ConfigError(f"max_seq_length {max_seq_length}: at least 3, for [CLS], [SEP] and [SEP]")
        slices = [
            self._encode_slice(pairs[start : start + SLICE], start, max_seq_length)
            for start in range(0, len(pairs), SLICE)
        ]
        if not slices:
            return Features(np.empty(0, np.int32), np.empty(0, np.int8), np.zeros(1, np.int64))
        ids, segments, lengths = (np.concatenate(parts) for parts in zip(*slices, strict=True))
        return Features(ids, segments, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def _encode_slice(
        self, pairs: Sequence[tuple[str, str | None]], start: int, max_seq_length: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.int64]]:
        encoded = self._pieces([text for a, b in pairs for text in (a, b or "")], start)
        first, second = encoded[0::2], encoded[1::2]
        keep_a, keep_b = truncated_lengths(
            np.fromiter(map(len, first), np.int64, len(pairs)),
            np.fromiter(map(len, second), np.int64, len(pairs)),
            max_seq_length,
        )
        lengths = 2 + keep_a + keep_b + (keep_b > 0)
        ids = np.empty(lengths.sum(), np.int32)
        segments = np.zeros(lengths.sum(), np.int8)
        at = 0
        for a, b, n_a, n_b in zip(first, second, keep_a.tolist(), keep_b.tolist(), strict=True):
            middle = at + 1 + n_a
            ids[at], ids[middle] = self.cls_id, self.sep_id
            ids[at + 1 : middle] = a.ids[:n_a]
            at = middle + 1
            if n_b:
                ids[at : at + n_b], ids[at + n_b] = b.ids[:n_b], self.sep_id
                segments[at : at + n_b + 1] = 1
                at += n_b + 1
        return ids, segments, lengths

    def _pieces(self, texts: list[str], start: int) -> list[tokenizers.Encoding]:
        try:
            return self._library.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            # The library does not say which input: one that is no string, or one with a lone surrogate.
            for i, text in enumerate(texts):
                if not isinstance(text, str):
                    raise DataError(f"pair {start + i // 2}: {text!r:.40} is no string; give text") from None
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    where = f"pair {start + i // 2}: character {error.start}"
                    raise DataError(f"{where}: a lone surrogate, which is no text; remove it") from None
            raise

    def save(self, directory: Path | str, max_length: int = 512) -> None:
        """Writes what transformers' AutoTokenizer loads; each file is whole or not there.

        max_length: the tokens of the longest input that the model was made for, at which transformers warns or cuts.
        """
        directory = Path(directory)
        special = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL if token in self.vocab}
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.chinese,
            "model_max_length": max_length,
            **special,
        }
        texts = (
            "".join(f"{token}\n" for token in self.vocab),
            self._library.to_str(pretty=False),
            json.dumps(config, indent=2) + "\n",
            json.dumps(special, indent=2) + "\n",
        )
        for name, text in zip(FILES, texts, strict=True):
            files.write_whole(directory / name, text.encode())
        (directory / ADDED).unlink(missing_ok=True)  # another tokenizer's: of this one tokenizer.json says all


def truncated_lengths(
    a: NDArray[np.int64], b: NDArray[np.int64], max_seq_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many tokens of each text stay, (n,) each; the closed form of Google's token-by-token loop.

    The loop ends with the shorter text untouched, or with both at half the room; in a tie it takes from b,
    so that of an odd room a gets the larger half. A text alone has one [SEP] less to leave room for.
    """
    room = max_seq_length - 3
    keep_a = np.minimum(a, np.maximum(room - b, room - room // 2))
    keep_b = np.minimum(b, np.maximum(room - a, room // 2))
    return np.where(b == 0, np.minimum(a, room + 1), keep_a), keep_b


def _library_tokenizer(
    ids: dict[str, int], lowercase: bool, strip_accents: bool | None, chinese: bool, google: bool
) -> tokenizers.Tokenizer:
    longest = GOOGLES_LONGEST if google else LONGEST_WORD
    library = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=longest)
    )
    library.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece(prefix="##")
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    # A special token that the vocabulary lacks would get an id past the embedding table.
    if not google:
        library.add_special_tokens([token for token in SPECIAL if token in ids])
    return library


def _checked_ids(vocab: tuple[str, ...], source: str) -> dict[str, int]:
    if not vocab:
        raise CheckpointError(f"{source}: empty; it needs one token per line")
    ids: dict[str, int] = {}
    for i, token in enumerate(vocab):
        if not token:
            raise CheckpointError(f"{source}: line {i + 1} is empty; every id needs a token")
        if not _is_line(token):
            raise CheckpointError(f"{source}: token {i} is {token[:80]!r}, no line of text; fetch the file again")
        if token in ids:
            raise CheckpointError(f"{source}: {token!r} stands on line {ids[token] + 1} and again on {i + 1}")
        ids[token] = i
    if missing := [token for token in REQUIRED if token not in ids]:
        raise CheckpointError(f"{source}: no {', '.join(missing)}; it is not a vocabulary of BERT")
    return ids


def _read_vocab(path: Path) -> list[str]:
    with files.one_line(path, "read", CheckpointError):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CheckpointError(f"{path}: line {line} is not UTF-8; fetch the file again") from None
    # Not splitlines(): tokens such as U+2028 are line ends to it.
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]


def _vocab_of(whole: dict[str, Any], path: Path) -> list[str]:
    model = whole.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    kind = model.get("type", "WordPiece") if isinstance(model, dict) else None
    if kind != "WordPiece" or not isinstance(vocab, dict):
        raise CheckpointError(f"{path}: not a WordPiece tokenizer; minibert reads BERT's only")
    tokens = {i: token for token, i in vocab.items() if isinstance(i, int)}
    if sorted(tokens) != list(range(len(vocab))):
        raise CheckpointError(f"{path}: the vocabulary's ids are not 0 to {len(vocab) - 1}, each once")
    return [tokens[i] for i in range(len(tokens))]


def _added(directory: Path, config: dict[str, Any], whole: dict[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """The tokens that were added to BERT's own, by id, from any of the three places where transformers has them."""
    listed = [entry for entry in _objects(whole.get("added_tokens")) if "id" in entry]
    decoder = config.get("added_tokens_decoder")
    for id, entry in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(entry, dict) and id.isascii() and id.isdecimal():
            listed.append({**entry, "id": int(id[:9])})
    listed += [{"id": id, "content": token} for token, id in _read_json(directory / ADDED).items()]
    added: dict[int, tokenizers.AddedToken] = {}
    for entry in listed:
        id, content = entry["id"], entry.get("content")
        if type(id) is not int or not isinstance(content, str) or not content or not _is_line(content):
            raise CheckpointError(f"{directory}: the added token {ascii(entry)[:80]} has no id, or no line of text")
        if content not in SPECIAL:
            flags = {name: entry[name] for name in FLAGS if isinstance(entry.get(name), bool)}
            added.setdefault(id, tokenizers.AddedToken(content, **flags))
    return added


def _is_google(whole: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is that of one with Google's rules."""
    model = whole.get("model")
    return isinstance(model, dict) and model.get("max_input_chars_per_word") == GOOGLES_LONGEST


def _max_length(config: dict[str, Any]) -> int | None:
    """model_max_length; None where it says nothing. transformers has 10^30 for that."""
    value = config.get("model_max_length")
    return value if type(value) is int and value >= 3 else None


def _is_line(token: str) -> bool:
    """Whether vocab.txt can hold the token: JSON also has line ends and halves of UTF-16 pairs."""
    return not any(letter in "\r\n" or "\ud800" <= letter <= "\udfff" for letter in token)


def _objects(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _read_json(path: Path) -> dict[str, Any]:
    return files.read_json(path, CheckpointError) if path.exists() else {}


def _flag(config: dict[str, Any], key: str, normalizer: Any, twin: str, default: Any, path: Path) -> Any:
    """config[key], else the normalizer's word for it, else the default."""
    value = config.get(key, normalizer.get(twin, default) if isinstance(normalizer, dict) else default)
    if not isinstance(value, bool) and value is not default:
        raise CheckpointError(f"{path.parent}: the tokenizer's {key} is {value!r}; make it true or false")
    return value


def _cased(vocab: Sequence[str]) -> bool:
    # Google's uncased English vocabulary has two stray capitals in 30,522 tokens, the cased one 8,368 in
    # 28,996.
    capitals = sum(token != token.lower() and not token.startswith("[") for token in vocab)
    return capitals * 100 > len(vocab)
