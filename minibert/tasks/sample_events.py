"""What the sample's sentences are made of: syllables of names, numbers, and events with their templates.

All of it is made up. Templates of train and dev differ; the words of dev's all occur in train's.
"""

from __future__ import annotations

from dataclasses import dataclass, field


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A name is a start and an end.
STARTS = _words(
    "Al Bar Bel Bran Cal Car Cor Dal Del Dor Ed El Fal Far Fen Gal Gar Glen Hal Har Hol Jas Kel Ken Kin Lan Lar Lin "
    "Lor Mal Mar Mel Mor Nor Ol Or Pal Par Pel Quin Ral Ran Ros Sal Sel Sten Tal Tar Tor Ul Val Ver Wal Wil Yar Zel"
)
ENDS = {
    "company": _words("co dex gen line lux net pro sys tec tron vex via zon"),
    "person": _words("den der ding ert ick ley low man ner sen son ster win"),
    "city": _words("bridge burg bury dale field ford haven mouth port ton view ville wick"),
}
TRADES = _words("Bank Corp Foods Group Holdings Industries Motors Systems")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_TO_TWENTY = _words(
    "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_TENS = _words("thirty forty fifty sixty seventy eighty ninety")
NUMBERS = {str(n): word for n, word in enumerate(_TO_TWENTY, 3)} | {f"{n}0": word for n, word in enumerate(_TENS, 3)}

# What a slot of a template is filled with.
KINDS = {
    "a": "company", "b": "company", "p": "person", "q": "person", "r": "person",
    "t": "city", "u": "city", "n": "number", "m": "number", "d": "day",
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What can happen, and the words for it.

    `facts` are the slots that every sentence fills: a clause tells some, a detail the others. The pairs in `swaps` make
    another story when they trade places. `<x|y>` is a choice of words; a name of `states` in braces stands for its
    first or its second choice of words, by how the event went.
    """

    facts: str
    swaps: tuple[str, ...]
    clauses: tuple[str, ...]
    details: tuple[str, ...]
    states: dict[str, tuple[str, str]] = field(default_factory=dict)

    def templates(self, unseen: bool) -> list[str]:
        """Clause and detail in either order: a third of the combinations is unseen in training."""
        found = []
        for i, clause in enumerate(self.clauses):
            for j, detail in enumerate(self.details):
                for k, template in enumerate((f"{clause} {detail}", f"{detail} , {clause}")):
                    if ((i + j + k) % 3 == 0) == unseen:
                        found.append(template)
        return found


FRAMES = (
    "{X}",
    "{X} on {d}",
    "on {d} , {X}",
    "{r} said {X}",
    "{X} , {r} said",
    "according to {r} , {X}",
    "<officials|reports> said {X}",
    "it was <announced|reported> that {X}",
)

_PLACE = ("in {t}", "in the city of {t}", "in the <town|region> of {t}")

EVENTS = (
    Event(
        "abn", ("ab",),
        (
            "{a} <bought|acquired> {b}",
            "{b} was <bought|acquired> by {a}",
            "{a} took over {b}",
            "{b} was sold to {a}",
            "{b} was taken over by {a}",
        ),
        (
            "for {n} million dollars",
            "in a {n} million dollar <deal|transaction>",
            "in a <deal|transaction> <worth|valued at> {n} million dollars",
        ),
    ),
    Event(
        "abn", ("ab",),
        (
            "{a} <sued|took legal action against> {b}",
            "{b} was sued by {a}",
            "{a} took {b} to court",
            "{b} was taken to court by {a}",
            "a <lawsuit|court case> was <filed|brought> against {b} by {a}",
            "{b} <faced|received> a <lawsuit|court case> from {a}",
        ),
        ("for {n} million dollars", "over {n} million dollars", "in a <dispute|fight> over {n} million dollars"),
    ),
    Event(
        "anm", ("nm",),
        (
            "{a} <shares|stock> {s} {n} percent",
            "<shares|stock> of {a} {s} by {n} percent",
            "{a} <shares|stock> <closed|ended> {n} percent {h}",
            "there was a {g} of {n} percent in {a} <shares|stock>",
            "a {n} percent {g} <took|moved> {a} <shares|stock>",
        ),
        ("to {m} dollars", "to a price of {m} dollars", "to {m} dollars a share"),
        {
            "s": ("rose|climbed|gained|jumped", "fell|dropped|slid|declined"),
            "g": ("rise|gain|jump", "fall|drop|decline"),
            "h": ("higher|up", "lower|down"),
        },
    ),
    Event(
        "anm", ("nm",),
        (
            "{a} <earned|made> {n} million dollars this year",
            "{a} <posted|reported> a profit of {n} million dollars this year",
            "profit at {a} was {n} million dollars this year",
            "this year brought {a} a profit of {n} million dollars",
            "this year {a} <earned|made> {n} million dollars",
        ),
        ("after {m} million last year", "against {m} million last year", "following {m} million a year ago"),
    ),
    Event(
        "apq", ("pq",),
        (
            "{p} <replaced|succeeded> {q}",
            "{q} was <replaced|succeeded> by {p}",
            "{p} took over from {q}",
            "{q} made way for {p}",
            "{p} was <named|appointed> to <replace|succeed> {q}",
        ),
        ("as <chairman|head> of {a}", "at the <head|top> of {a}", "in the <role|job> of <chairman|head> of {a}"),
    ),
    Event(
        "tnm", ("nm",),
        (
            "{n} people <died|were killed> and {m} were <hurt|injured>",
            "{m} people were <hurt|injured> and {n} <died|were killed>",
            "a <fire|storm> killed {n} people and <hurt|injured> {m}",
            "a <fire|storm> <hurt|injured> {m} people and killed {n}",
            "{m} people were <hurt|injured> in a <fire|storm> that killed {n}",
        ),
        _PLACE,
    ),
    Event(
        "abt", ("ab",),
        (
            "<regulators|officials> {s} the <takeover|purchase> of {b} by {a}",
            "the <takeover|purchase> of {b} by {a} was {v}",
            "a <bid|plan> by {a} to <buy|acquire> {b} was {v}",
            "<regulators|officials> {s} a <bid|plan> by {a} to <buy|acquire> {b}",
            "{a} was {w} to <buy|acquire> {b}",
        ),
        _PLACE,
        {
            "s": ("approved|cleared|did not block", "rejected|blocked|did not approve"),
            "v": ("approved|cleared|not blocked|not rejected", "rejected|blocked|not approved|not cleared"),
            "w": ("allowed|able|cleared", "not allowed|not able|unable"),
        },
    ),
    Event(
        "atunm", ("nm", "tu"),
        (
            "{a} {s} {n} <jobs|posts> in {t} and {m} in {u}",
            "{a} {s} {m} <jobs|posts> in {u} and {n} in {t}",
            "{n} <jobs|posts> in {t} and {m} in {u} were {v} by {a}",
            "{m} <jobs|posts> in {u} and {n} in {t} were {v} by {a}",
            "in {t} {n} <jobs|posts> and in {u} {m} were {v} by {a}",
        ),
        ("<as part of|under> a plan", "<in line with|following> a plan", "under a new plan"),
        {"s": ("added|created", "cut|eliminated"), "v": ("added|created", "cut|eliminated")},
    ),
    Event(
        "tun", ("tu",),
        (
            "{t} <beat|defeated> {u}",
            "{u} was <beaten|defeated> by {t}",
            "{u} lost to {t}",
            "{t} won against {u}",
            "{t} won the <game|final> against {u}",
            "{u} lost the <game|final> to {t}",
        ),
        ("by {n} points", "by a margin of {n} points", "with a <margin|difference> of {n} points"),
    ),
    Event(
        "pqn", ("pq",),
        (
            "judge {p} <sent|sentenced> {q} to prison",
            "{q} was <sent|sentenced> to prison by judge {p}",
            "{q} <got|received> a prison <term|sentence> from judge {p}",
            "judge {p} gave {q} a prison <term|sentence>",
            "a prison <term|sentence> was given to {q} by judge {p}",
        ),
        ("for {n} years", "for a <time|period> of {n} years", "for the next {n} years"),
    ),
    Event(
        "pq", ("pq",),
        (
            "{p} {s} {q}",
            "{q} was {s} by {p}",
            "{q} <got|received> {g} from {p}",
            "{p} spoke {h} {q}",
            "there was {g} from {p} for {q}",
        ),
        ("over the plan", "for the plan", "because of the plan"),
        {
            "s": ("praised|backed|supported", "criticized|attacked|opposed"),
            "g": ("praise|support", "criticism|opposition"),
            "h": ("in favor of|for", "against"),
        },
    ),
    Event(
        "abnm", ("ab", "nm"),
        (
            "{a} <sold|delivered> {n} <planes|aircraft> and {m} trucks to {b}",
            "{b} <got|received> {m} trucks and {n} <planes|aircraft> from {a}",
            "{n} <planes|aircraft> and {m} trucks were <sold|delivered> to {b} by {a}",
            "{a} <supplied|provided> {b} with {m} trucks and {n} <planes|aircraft>",
            "{b} was <supplied|provided> with {n} <planes|aircraft> and {m} trucks by {a}",
        ),
        ("under a <contract|deal>", "<as part of|in line with> a <contract|deal>", "under a new <contract|deal>"),
    ),
    Event(
        "tnm", ("nm",),
        (
            "{n} <lawmakers|members> voted for the <law|bill> and {m} against it",
            "{m} <lawmakers|members> voted against the <law|bill> and {n} for it",
            "the <law|bill> was <backed|supported> by {n} <lawmakers|members> and opposed by {m}",
            "the <law|bill> passed by {n} votes to {m}",
            "{m} <lawmakers|members> opposed the <law|bill> and {n} <backed|supported> it",
        ),
        _PLACE,
    ),
    Event(
        "atun", ("tu",),
        (
            "{a} will <move|transfer> workers from {t} to {u}",
            "{a} will <move|transfer> workers to {u} from {t}",
            "{a} workers will <go|move> from {t} to {u}",
            "{a} workers will leave {t} for {u}",
            "workers will be <moved|transferred> to {u} from {t} by {a}",
        ),
        ("in {n} months", "<within|over> {n} months", "in a <time|period> of {n} months"),
    ),
    Event(
        "abn", ("ab",),
        (
            "{a} <lent|loaned> money to {b}",
            "{b} borrowed money from {a}",
            "{b} <got|received> a loan from {a}",
            "{a} gave {b} a loan",
            "a loan was given to {b} by {a}",
        ),
        ("at {n} percent", "at a rate of {n} percent", "at an <interest|lending> rate of {n} percent"),
    ),
    Event(
        "pqtn", ("pq",),
        (
            "{p} <beat|defeated> {q}",
            "{q} was <beaten|defeated> by {p}",
            "{q} lost to {p}",
            "{p} won against {q}",
            "{p} won the <election|vote> against {q}",
            "{q} lost the <election|vote> to {p}",
        ),
        ("by {n} percent in {t}", "in {t} by {n} percent", "in {t} by a margin of {n} percent"),
    ),
    Event(
        "abn", ("ab",),
        (
            "{a} was {s} than {b}",
            "{b} was {h} {a}",
            "{a} had {s} <sales|revenue> than {b}",
            "<sales|revenue> at {a} was {s} than at {b}",
            "<sales|revenue> at {b} was {h} that of {a}",
        ),
        ("by {n} million dollars", "by a margin of {n} million dollars", "with a difference of {n} million dollars"),
        {"s": ("larger|bigger|higher", "smaller|lower"), "h": ("behind|below", "ahead of|above")},
    ),
    Event(
        "atn", (),
        (
            "{a} workers {s} a strike",
            "a strike {s} at {a}",
            "workers at {a} {w}",
            "a strike by {a} workers {s}",
            "a strike was {v} by {a} workers",
        ),
        ("in {t} after {n} days", "after {n} days in {t}", "following {n} days of talks in {t}"),
        {
            "s": ("began|started", "ended|stopped"),
            "v": ("begun|started", "ended|stopped"),
            "w": ("left work|stopped work|went on strike", "returned to work|went back to work|ended a strike"),
        },
    ),
    Event(
        "atn", (),
        (
            "{a} {s} {n} <stores|shops>",
            "{n} <stores|shops> were {s} by {a}",
            "the number of {a} <stores|shops> {x} by {n}",
            "{n} {a} <stores|shops> were {s}",
            "there was a {g} of {n} in the number of {a} <stores|shops>",
        ),
        _PLACE,
        {
            "s": ("opened", "closed|shut"),
            "x": ("rose|climbed", "fell|dropped"),
            "g": ("rise|gain|jump", "fall|drop|decline"),
        },
    ),
    Event(
        "tnm", ("nm",),
        (
            "the central bank <changed|moved> rates from {n} percent to {m} percent",
            "rates <went|moved> to {m} percent from {n} percent",
            "rates were <changed|moved> from {n} percent to {m} percent",
            "the <interest|lending> rate <went|moved> from {n} percent to {m} percent",
            "the central bank <changed|moved> rates to {m} percent from {n} percent",
        ),
        _PLACE,
    ),
    Event(
        "pqt", ("pq",),
        (
            "{p} <left|spoke> before {q}",
            "{q} <left|spoke> after {p}",
            "{p} <left|spoke> ahead of {q}",
            "{p} was followed by {q}",
            "{q} followed {p}",
        ),
        _PLACE,
    ),
)  # fmt: skip
