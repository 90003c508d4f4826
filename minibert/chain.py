"""The cheapest policy of recomputation that fits into memory: a dynamic programme over the layers.

Layers of a BERT are alike, so what can be done with a chain of them depends on how many they are and on the memory that
is left. The first one is kept, kept cheaply, or becomes with some of its successors a part that is computed again: its
input is stored and the rest of the chain gets the memory that this leaves; when the backward pass has come back to it,
the part is a chain of its own with all that memory. After Beaumont, Eyraud-Dubois, Herrmann, Joly and Shilova, "Optimal
checkpointing for heterogeneous chains: how to train deep neural networks with limited memory", 2019.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from minibert.memory import LayerUse

GRAIN = 8  # parts of a layer's input that memory is counted in
CHEAP = 0.15  # what the cheap policy computes again, in forward passes of a layer
COPIES = 0.05  # the same for a part's input that waits in the host's memory: a guess, copies run beside the kernels
BACKWARD = 2.0  # a backward pass, in forward passes


class Found(NamedTuple):
    """A policy, as text, and what it computes again, in forward passes of a layer."""

    work: float
    policy: str


def cheapest(layers: int, room: int, use: LayerUse, host: bool = False) -> Found | None:
    """The policy with the least work whose activations and passing arrays take at most `room` bytes; None: there is
    none. `host`: whether inputs may wait in the host's memory.
    """
    grain = max(1, use.input // GRAIN)
    size, kept, cheap, forward, backward = (
        -(-n // grain) for n in (use.input, use.kept, use.cheap, use.forward + use.kept, use.backward)
    )

    @cache
    def best(count: int, room: int, host: bool) -> Found | None:
        """Of a chain of `count` layers whose input is stored elsewhere, with `room` for everything else; if `host`, it
        is let go when it waits in the host's memory.
        """
        if count == 0:
            return Found(0, "")
        options = []
        for letter, keeps, work in (("k", kept, 0.0), ("c", cheap, CHEAP)):
            if room >= keeps + backward and (rest := best(count - 1, room - keeps, host)):
                options.append(Found(work + rest.work, letter + rest.policy))
                if not options[0].work:
                    return options[0]
        for part in range(1, count):
            if room < size + forward:
                break
            if (again := best(part, room, False)) is None:
                continue
            if rest := best(count - part, room - size, host):
                options.append(Found(part + again.work + rest.work, f"({again.policy}){rest.policy}"))
            if host and (rest := best(count - part, room, host)):  # the input's place is free for that of the rest
                options.append(Found(part + COPIES + again.work + rest.work, f"[{again.policy}]{rest.policy}"))
        return min(options, key=lambda found: found.work, default=None)

    found = [best(layers, room // grain, False)]
    if host:
        found.append(best(layers, room // grain - size, True))  # less that of an input which comes back ahead of time
    return min(filter(None, found), key=lambda found: found.work, default=None)


def slowdown(policy: str, layers: int) -> float:
    """The time of a step with this policy, as a multiple of that of keeping everything."""
    depth, again = 0, 0.0
    for letter in policy:
        depth += {"(": 1, ")": -1, "[": 1, "]": -1}.get(letter, 0)
        again += {"k": depth, "c": depth + CHEAP, "[": COPIES}.get(letter, 0.0)
    return 1 + again / (layers * (1 + BACKWARD))
