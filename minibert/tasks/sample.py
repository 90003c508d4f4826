"""The embedded sample: sentence pairs in MRPC's layout, made from a seed, and the small model that comes with them.

A pair tells an event (a purchase, a verdict, a vote ...) twice: its facts fill two templates, which differ in the
order of clauses, voice, synonyms and the details they leave out. In a paraphrase the facts are the same. Otherwise one
thing differs: two roles or numbers trade places, a name or number is another, or what rose falls. Neither words nor
their overlap give the label away: both kinds of pairs are steered to the same overlap, numbers are written both ways
(12, twelve), and a denial may be a paraphrase ("blocked", "did not approve"). Who did what must be compared.

Training and dev pairs share no template and no name; names are made of syllables, which they share. Draws are integer
hashing, so a seed gives the same text on every machine and version.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from minibert import files
from minibert.tasks import Example
from minibert.tasks.sample_events import DAYS, ENDS, EVENTS, FRAMES, KINDS, NUMBERS, STARTS, TRADES, Event

SIZES = {"train": 2400, "dev": 400, "test": 400}
# What fits the packaged model, which one run of tools/pretrain_sample.py made.
DEFAULTS = {"learning_rate": 1e-4, "epochs": 3.0, "max_seq_length": 64}

PARAPHRASES = 0.53
CANDIDATES = 12  # renderings of which the one with the wanted overlap is taken


def examples(split: str, seed: int = 0) -> list[Example]:
    """The pairs of train, dev or test; label 1 is a paraphrase."""
    pairs = []
    for i in range(SIZES[split]):
        draws = _Draws(seed, tuple(SIZES).index(split), i)
        pairs.append(_pair(draws, str(i), unseen=split != "train", label=int(draws.fraction() < PARAPHRASES)))
    return pairs


def passages(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Text to pre-train on: events told twice with train's templates and names, from draws of their own."""
    pairs = (_pair(_Draws(seed, 3, i), str(i), unseen=False, label=1) for i in range(count))
    return [(e.text_a, e.text_b or "") for e in pairs]


def write(directory: Path) -> None:
    """Writes train.tsv, dev.tsv and test.tsv in MRPC's layout."""
    for split in SIZES:
        test = split == "test"
        lines = [f"{'index' if test else 'Quality'}\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for i, e in enumerate(examples(split)):
            lines.append(f"{i if test else e.label}\t{2 * i}\t{2 * i + 1}\t{e.text_a}\t{e.text_b}")
        files.write_whole(directory / f"{split}.tsv", ("\n".join(lines) + "\n").encode())


def folder() -> Path:
    """Where its files lie, in the user's cache; they are written where they are not."""
    place = files.user_cache() / "sample"
    write(place)
    return place


def model_path() -> Path:
    """The checkpoint directory of the packaged model."""
    return Path(__file__).parent.parent / "models" / "sample"


def overlap(a: str, b: str) -> float:
    """Words that both sentences have among all words of theirs (Jaccard's index)."""
    x, y = set(a.lower().split()), set(b.lower().split())
    return len(x & y) / len(x | y)


class _Draws:
    """A stream of integers that depends on the keys alone: SplitMix64 (Steele, Lea and Flood 2014)."""

    def __init__(self, *keys: int) -> None:
        self.state = 0
        for key in keys:
            self.state = self.word() ^ key

    def word(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def below(self, n: int) -> int:
        return (self.word() >> 32) * n >> 32

    def fraction(self) -> float:
        return self.below(1 << 24) / (1 << 24)

    def choice(self, items: Sequence[str]) -> str:
        return items[self.below(len(items))]


def _pair(draws: _Draws, name: str, unseen: bool, label: int) -> Example:
    """One pair; `unseen` takes the templates and names that training does not."""
    event = EVENTS[draws.below(len(EVENTS))]
    facts = {"state": draws.choice("01")}
    for slot, kind in KINDS.items():
        facts[slot] = _value(draws, kind, facts, unseen)
    retold = facts if label else _changed(draws, event, facts, unseen)
    templates = event.templates(unseen)
    first = _tell(draws, event, facts, templates)
    others = [_tell(draws, event, retold, templates) for _ in range(CANDIDATES)]
    wanted = 0.35 + 0.45 * draws.fraction()
    second = min((o for o in others if o != first), key=lambda o: abs(overlap(first, o) - wanted))
    return Example(name, first, second, label)


def _value(draws: _Draws, kind: str, taken: dict[str, str], unseen: bool) -> str:
    """A name, number or day that is not yet taken. Each name is either for training or unseen in it."""
    while True:
        if kind == "number":
            value = draws.choice(tuple(NUMBERS))
        elif kind == "day":
            value = draws.choice(DAYS)
        else:
            start, end = draws.below(len(STARTS)), draws.below(len(ENDS[kind]))
            if ((start + 2 * end) % 4 == 0) != unseen:
                continue
            value = STARTS[start] + ENDS[kind][end]
        if value not in taken.values():
            return value


def _changed(draws: _Draws, event: Event, facts: dict[str, str], unseen: bool) -> dict[str, str]:
    """The facts with one thing different."""
    ways = ["swap"] * (3 * bool(event.swaps)) + ["state"] * (2 * bool(event.states)) + ["value"]
    way = draws.choice(ways)
    if way == "swap":
        pair = draws.choice(event.swaps)
        return facts | {pair[0]: facts[pair[1]], pair[1]: facts[pair[0]]}
    if way == "state":
        return facts | {"state": "10"[int(facts["state"])]}
    slot = draws.choice(event.facts)
    return facts | {slot: _value(draws, KINDS[slot], facts, unseen)}


def _tell(draws: _Draws, event: Event, facts: dict[str, str], templates: list[str]) -> str:
    """A sentence: a template in a frame, its slots filled, then words chosen."""

    def fill(match: re.Match[str]) -> str:
        slot = match[1]
        if slot in event.states:
            return f"<{event.states[slot][int(facts['state'])]}>"
        value, kind = facts[slot], KINDS[slot]
        if kind == "number" and draws.below(2):
            return NUMBERS[value]
        if kind == "company" and draws.below(3) == 0:
            return f"{value} {TRADES[sum(map(ord, value)) % len(TRADES)]}"  # each has its own
        return value

    text = draws.choice(FRAMES).replace("{X}", draws.choice(templates))
    text = re.sub(r"\{(.)\}", fill, text)
    text = re.sub(r"<(.*?)>", lambda m: draws.choice(m[1].split("|")), text)
    text = re.sub(r"\ba (?=eight|eleven|8|11|18)", "an ", text)
    return f"{text[0].upper()}{text[1:]} ."
