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
    "company": _words("co dex gen line lux mart net pro sys tec tron via zon"),
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

# Slots of templates, and what fills them.
KINDS = {
    "a": "company", "b": "company", "p": "person", "q": "person", "r": "person",
    "t": "city", "u": "city", "n": "number", "m": "number", "d": "day",
}  # fmt: skip


@dataclass(frozen=True)
class Event:
    """What can happen, and the ways to tell it.

    In a template `{a}` is a slot, `<x|y>` a choice of words and `[...]` a detail that may be left out. Every template
    tells the `facts`, a string of slots; the pairs in `swaps` are those that make another story when they trade
    places. A name of `states` in braces stands for the first or the second choice of words, by how the event went.
    """

    facts: str
    swaps: tuple[str, ...]
    train: tuple[str, ...]
    dev: tuple[str, ...]
    states: dict[str, tuple[str, str]] = field(default_factory=dict)


EVENTS = (
    Event(
        "abn", ("ab",),
        train=(
            "{a} <bought|acquired> {b} for {n} million dollars [on {d}]",
            "{b} was <bought|acquired|taken over> by {a} [on {d}] for {n} million dollars",
            "{a} <paid|spent> {n} million dollars to <buy|acquire|take over> {b} [, {r} said]",
            "[on {d} ,] {b} was sold to {a} in a <deal|transaction> <worth|valued at> {n} million dollars",
            "in a {n} million dollar <deal|transaction> , {a} <bought|took over> {b}",
            "{b} said {a} had <agreed to pay|paid> {n} million dollars for it",
        ),
        dev=(
            "[{r} said] {n} million dollars was <paid|spent> by {a} for {b}",
            "for {n} million dollars {b} has <agreed to be bought|agreed to be acquired> by {a} [, it was said on {d}]",
            "a <deal|transaction> in which {a} <acquired|bought> {b} was valued at {n} million dollars",
        ),
    ),
    Event(
        "abn", ("ab",),
        train=(
            "{a} <sued|took legal action against> {b} for {n} million dollars [in {t}]",
            "{b} was sued by {a} [in {t}] for {n} million dollars",
            "[on {d} ,] {b} was taken to court by {a} , which is <seeking|demanding> {n} million dollars",
            "{a} is <seeking|demanding> {n} million dollars from {b} in a <lawsuit|court case> [filed on {d}]",
            "a {n} million dollar <lawsuit|court case> was <filed|brought> against {b} by {a}",
        ),
        dev=(
            "[in {t} ,] {a} <filed|brought> a {n} million dollar <lawsuit|court case> against {b}",
            "{n} million dollars is what {a} is <demanding|seeking> from {b} in court [, {r} said]",
            "{b} , sued by {a} [on {d}] , is in court over a <lawsuit|case> for {n} million dollars",
        ),
    ),
    Event(
        "anm", ("nm",),
        train=(
            "shares of {a} {s} {n} percent to {m} dollars a share [on {d}]",
            "[on {d} ,] {a} shares {s} to {m} dollars , a {g} of {n} percent",
            "stock in {a} {s} by {n} percent and <closed|ended> at {m} dollars",
            "at {m} dollars , {a} stock was {n} percent {h} [on {d}]",
            "a {n} percent {g} <took|brought> {a} shares to {m} dollars [, {r} said]",
        ),
        dev=(
            "[{r} said] the stock of {a} <closed|ended> {n} percent {h} at {m} dollars",
            "{a} {s} by {n} percent [on {d}] , to {m} dollars a share",
            "the shares <ended|closed> at {m} dollars after a {n} percent {g} in {a} stock",
        ),
        states={
            "s": ("rose|climbed|gained|jumped", "fell|dropped|slid|declined"),
            "g": ("rise|gain|jump", "fall|drop|decline"),
            "h": ("higher|up", "lower|down"),
        },
    ),
    Event(
        "anm", ("nm",),
        train=(
            "{a} <earned|made> {n} million dollars this year and {m} million last year",
            "{a} <posted|reported> a profit of {n} million dollars , <compared with|against> {m} million a year ago",
            "profit at {a} was {n} million dollars , <after|following> {m} million last year [, {r} said]",
            "[on {d} ,] {a} <said|reported> it <made|earned> {m} million dollars last year but {n} million this year",
            "<after|following> a profit of {m} million dollars a year ago , {a} <earned|made> {n} million",
        ),
        dev=(
            "this year {a} made a profit of {n} million dollars , last year {m} million [, it reported on {d}]",
            "compared with {m} million dollars a year ago , profit was {n} million at {a}",
            "[{r} said] {a} had earned {m} million dollars last year <and|but> {n} million this year",
        ),
    ),
    Event(
        "apq", ("pq",),
        train=(
            "{p} <replaced|succeeded> {q} as <chairman|head> of {a} [on {d}]",
            "{q} was <replaced|succeeded> by {p} as <head|chairman> of {a}",
            "{a} , which {q} <led|ran> , has <named|appointed> {p} to <replace|succeed> {q} as <chairman|head>",
            "[on {d} ,] {q} <stepped down|resigned> as <chairman|head> of {a} and {p} <took over|was appointed>",
            "{p} will <lead|run> {a} in place of {q} , who <left|resigned|stepped down>",
        ),
        dev=(
            "after {q} <left|resigned> [on {d}] , {p} was <named|appointed> <head|chairman> of {a}",
            "the <chairman|head> of {a} will be {p} , who will <succeed|replace> {q}",
            "{a} will be <led|run> by {p} in the place of {q} [, {r} said]",
        ),
    ),
    Event(
        "tnm", ("nm",),
        train=(
            "a <fire|crash|storm> in {t} killed {n} people and <hurt|injured> {m} [on {d}]",
            "{n} people <died|were killed> and {m} were <hurt|injured> when a <fire|storm> <hit|struck> {t}",
            "[on {d} ,] {m} people were <hurt|injured> and {n} <died|were killed> in {t}",
            "<police|officials> said {n} people had died in {t} , where {m} were <in hospital|injured>",
            "the number of dead in {t} was {n} , while {m} people were <hurt|injured>",
        ),
        dev=(
            "in {t} {n} people were <killed|dead> and {m} in hospital [, <police|officials> said on {d}]",
            "{m} people were <injured|hurt> in {t} , where a <fire|storm> killed {n}",
            "[{r} said] the <storm|fire> that <struck|hit> {t} <injured|hurt> {m} people while {n} died",
        ),
    ),
    Event(
        "ab", ("ab",),
        train=(
            "<regulators|officials> {s} a <plan|bid> by {a} to <buy|acquire> {b} [on {d}]",
            "the <takeover|purchase> of {b} by {a} was {v} by <regulators|officials> [in {t}]",
            "[on {d} ,] the <bid|offer> that {a} made for {b} was {v}",
            "{a} would {w} {b} , <regulators|officials> <said|decided>",
            "<regulators|officials> [in {t}] {s} the <purchase|takeover> of {b} , <planned|proposed> by {a}",
        ),
        dev=(
            "a <takeover|purchase> in which {a} would <acquire|buy> {b} was {v} [on {d}]",
            "{b} <said|reported> that <officials|regulators> {s} the <offer|bid> by {a}",
            "[in {t} ,] <officials|regulators> <said|decided> that {a} will {w} {b}",
        ),
        states={
            "s": ("approved|cleared|backed|did not block", "rejected|blocked|did not approve|refused"),
            "v": ("approved|cleared|not rejected", "rejected|blocked|not approved|not cleared"),
            "w": ("be able to buy|be allowed to buy", "be unable to buy|not be allowed to buy|not be able to buy"),
        },
    ),
    Event(
        "atunm", ("nm", "tu"),
        train=(
            "{a} {s} {n} jobs in {t} and {m} in {u} [on {d}]",
            "{a} said it {s} {m} <jobs|posts> in {u} and {n} in {t}",
            "[on {d} ,] {n} workers in {t} and {m} in {u} {w} at {a}",
            "at {a} , {m} workers {w} in {u} and {n} in {t} [, {r} said]",
        ),
        dev=(
            "in {t} {n} <posts|jobs> and in {u} {m} {x} by {a}",
            "[{r} said] {m} <jobs|posts> in {u} and {n} in {t} {x} by {a}",
            "{a} said {n} workers {w} in {t} , {m} in {u} [on {d}]",
        ),
        states={
            "s": ("added|created", "cut|eliminated"),
            "w": ("were hired|found work|got jobs", "were dismissed|lost work|lost jobs"),
            "x": ("were added|were created", "were cut|were eliminated"),
        },
    ),
    Event(
        "tun", ("tu",),
        train=(
            "{t} <beat|defeated> {u} by {n} points [on {d}]",
            "{u} <lost|was beaten> by {n} points to {t} [on {d}]",
            "[on {d} ,] {u} was <beaten|defeated> by {t} , which won by {n} points",
            "{t} won by {n} points against {u} in the <final|game>",
            "in the <game|final> {u} <lost to|was defeated by> {t} by {n} points",
        ),
        dev=(
            "it was {n} points by which {t} <defeated|beat> {u} [on {d}]",
            "{t} won the <game|final> by {n} points and {u} lost [it]",
            "[{r} said] {u} was {n} points down when it lost to {t}",
        ),
    ),
    Event(
        "pqn", ("pq",),
        train=(
            "judge {p} <sentenced|sent> {q} to {n} years in prison [on {d}]",
            "{q} was <sentenced|sent> to prison for {n} years by judge {p} [in {t}]",
            "[in {t} ,] {q} <got|received> a {n} year prison <term|sentence> from judge {p}",
            "a prison <term|sentence> of {n} years was given to {q} by judge {p}",
            "judge {p} <said|decided> {q} must <serve|spend> {n} years in prison",
        ),
        dev=(
            "{n} years in prison is what {q} <received|got> from judge {p} [in {t}]",
            "judge {p} has given {q} a <term|sentence> of {n} years [on {d}]",
            "{q} will <spend|serve> {n} years in prison , judge {p} <decided|said>",
        ),
    ),
    Event(
        "pq", ("pq",),
        train=(
            "{p} {s} {q} <over|for> the plan [on {d}]",
            "{q} was {v} by {p} <over|for> the plan [in {t}]",
            "[on {d} ,] {p} {s} the plan of {q}",
            "what {q} <planned|proposed> was {v} by {p} [in {t}]",
            "{q} <presented|announced> a plan and {p} {s} it",
        ),
        dev=(
            "a plan <announced|presented> by {q} was {v} by {p} [on {d}]",
            "[in {t} ,] {q} was {v} for the plan by {p}",
            "when {q} <presented|announced> the plan , {p} {s} {q}",
        ),
        states={
            "s": ("praised|backed|supported", "criticized|attacked|opposed"),
            "v": ("praised|backed|supported", "criticized|attacked|opposed"),
        },
    ),
    Event(
        "abnm", ("ab", "nm"),
        train=(
            "{a} <sold|delivered> {n} <planes|aircraft> and {m} trucks to {b} [on {d}]",
            "{b} will <receive|get> {m} trucks and {n} <planes|aircraft> from {a}",
            "{a} <supplied|provided> {b} with {n} <planes|aircraft> and {m} trucks [, {r} said]",
            "[on {d} ,] {n} <planes|aircraft> and {m} trucks were <sold|delivered> to {b} by {a}",
            "{b} was <supplied|provided> with {m} trucks and {n} <planes|aircraft> by {a}",
        ),
        dev=(
            "{m} trucks and {n} <aircraft|planes> were <received|bought> by {b} from {a}",
            "[{r} said] {a} <provided|supplied> {n} <aircraft|planes> and {m} trucks to {b}",
            "from {a} , {b} <got|bought> {n} <aircraft|planes> and {m} trucks [on {d}]",
        ),
    ),
    Event(
        "tnm", ("nm",),
        train=(
            "<lawmakers|members> in {t} voted {n} to {m} <for|in favor of> the <law|bill> [on {d}]",
            "{n} <lawmakers|members> in {t} voted for the <law|bill> and {m} against it",
            "[on {d} ,] the <law|bill> was <backed|supported> by {n} <lawmakers|members> in {t} and opposed by {m}",
            "in {t} , {m} <lawmakers|members> voted against the <bill|law> and {n} in favor",
            "the <bill|law> passed by {n} votes to {m} in {t} [, {r} said]",
        ),
        dev=(
            "[{r} said] {m} <members|lawmakers> opposed the <bill|law> in {t} while {n} <supported|backed> it",
            "by {n} votes to {m} , <members|lawmakers> in {t} passed the <bill|law> [on {d}]",
            "the <law|bill> in {t} was <supported|backed> by {n} votes , with {m} against",
        ),
    ),
    Event(
        "atun", ("tu",),
        train=(
            "{a} will <move|transfer> {n} workers from {t} to {u} [in {m} months]",
            "{n} workers will be <moved|transferred> to {u} from {t} by {a}",
            "[on {d} ,] {a} <moved|transferred> its {n} workers in {t} to {u}",
            "{a} said its {n} workers will leave {t} and <go|move> to {u}",
            "from {t} , {n} workers of {a} will <go|move> to {u} [, {r} said]",
        ),
        dev=(
            "{n} {a} workers in {t} will <move|go> to {u} [, it said on {d}]",
            "to {u} from {t} , {a} <transferred|moved> {n} workers",
            "[{r} said] {u} will get {n} workers <transferred|moved> by {a} from {t}",
        ),
    ),
    Event(
        "abn", ("ab",),
        train=(
            "{a} <lent|loaned> {b} {n} million dollars [on {d}]",
            "{b} borrowed {n} million dollars from {a} [, {r} said]",
            "{b} <got|received> a {n} million dollar loan from {a}",
            "[on {d} ,] a loan of {n} million dollars was <given|made> to {b} by {a}",
            "{b} <owes|must repay> {a} {n} million dollars",
        ),
        dev=(
            "{n} million dollars was <lent|loaned> to {b} by {a} [on {d}]",
            "[{r} said] {a} made {b} a loan of {n} million dollars",
            "{n} million dollars was borrowed by {b} , which must repay {a}",
        ),
    ),
    Event(
        "pqtn", ("pq",),
        train=(
            "{p} <defeated|beat> {q} by {n} percent in the {t} <election|vote>",
            "{q} lost the {t} <election|vote> to {p} by {n} percent [on {d}]",
            "in the {t} <election|vote> {q} was <beaten|defeated> by {p} by {n} percent",
            "[on {d} ,] {p} won the <vote|election> in {t} against {q} by {n} percent",
            "{p} will be mayor of {t} after <beating|defeating> {q} by {n} percent",
        ),
        dev=(
            "the mayor of {t} will be {p} , who won against {q} by {n} percent [on {d}]",
            "{q} was {n} percent down in {t} and lost the <vote|election> to {p}",
            "[on {d} ,] by {n} percent , {q} was <defeated|beaten> in {t} by {p}",
        ),
    ),
    Event(
        "abn", ("ab",),
        train=(
            "{a} is {s} than {b} by {n} million dollars in <sales|revenue> [on {d}]",
            "{b} is {n} million dollars {h} {a} in <sales|revenue> [, {r} said]",
            "[on {d} ,] {a} <reported|posted> {n} million dollars {k} in <sales|revenue> than {b}",
            "in <sales|revenue> , {b} is {n} million dollars {h} {a}",
        ),
        dev=(
            "by {n} million dollars in <revenue|sales> , {a} is {s} than {b}",
            "[{r} said] {b} , in <revenue|sales> {n} million dollars {h} {a} , <closed|ended> the year",
            "<revenue|sales> at {a} was {n} million dollars {k} than at {b} [on {d}]",
        ),
        states={"s": ("larger|bigger", "smaller"), "h": ("behind|below", "ahead of|above"), "k": ("more", "less")},
    ),
    Event(
        "atn", (),
        train=(
            "{n} workers at {a} in {t} {s} a strike [on {d}]",
            "a strike by {n} {a} workers {v} in {t} [on {d}]",
            "[on {d} ,] {n} workers in {t} {w} at {a}",
            "{a} workers in {t} were on strike and {n} of them {w} [on {d}]",
            "{a} said {n} of its workers in {t} had {x} a strike",
        ),
        dev=(
            "in {t} {n} {a} workers {s} a strike [, {r} said]",
            "a strike {v} [on {d}] at {a} in {t} with {n} workers",
            "{a} workers in {t} , {n} of them , {w} [on {d}]",
        ),
        states={
            "s": ("began|started", "ended|stopped"),
            "v": ("began|started", "ended|stopped"),
            "w": ("left work|stopped work", "returned to work|went back to work"),
            "x": ("begun|started", "ended|stopped"),
        },
    ),
    Event(
        "atn", (),
        train=(
            "{a} {s} {n} <stores|shops> in {t} [on {d}]",
            "{n} <stores|shops> in {t} were {v} by {a} [, {r} said]",
            "[on {d} ,] the number of {a} <stores|shops> in {t} {x} by {n}",
            "{a} said it had {v} {n} <stores|shops> in {t}",
            "in {t} , {a} {w} {n} of its <stores|shops>",
        ),
        dev=(
            "{a} <stores|shops> in {t} , {n} of them , were {v} [on {d}]",
            "[{r} said] {n} {a} <shops|stores> {v} in {t}",
            "{t} has {n} {y} <shops|stores> after {a} {s} them",
        ),
        states={
            "s": ("opened", "closed|shut"),
            "v": ("opened", "closed|shut"),
            "w": ("opened", "closed|shut"),
            "x": ("rose|climbed", "fell|dropped"),
            "y": ("more", "less"),
        },
    ),
    Event(
        "tnm", ("nm",),
        train=(
            "the central bank in {t} <changed|moved> rates from {n} percent to {m} percent",
            "rates in {t} <went|moved> to {m} percent from {n} percent [on {d}]",
            "[on {d} ,] the <interest|lending> rate in {t} was <changed|moved> to {m} percent from {n}",
            "from {n} percent , rates in {t} <moved|went> to {m} percent [, {r} said]",
        ),
        dev=(
            "to {m} percent from {n} percent <moved|went> the <lending|interest> rate in {t} [on {d}]",
            "in {t} the central bank <changed|moved> rates from {n} percent to {m}",
            "[{r} said] rates at the central bank in {t} were {n} percent and <went|moved> to {m} percent",
        ),
    ),
)  # fmt: skip
