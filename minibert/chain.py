"""The cheapest policy of recomputation that fits into memory: a dynamic programme over the layers.

Layers of a BERT are alike but for the last, so what can be done with a chain of them depends on how many they are, on
whether the last is among them and on the memory that is left. The first one is kept, kept cheaply, or becomes with some
of its successors a part that is computed again: its input is stored and the rest of the chain gets the memory that this
leaves; when the backward pass has come back to it, the part is a chain of its own with all that memory. After Beaumont,
Eyraud-Dubois, Herrmann, Joly and Shilova, "Optimal checkpointing for heterogeneous chains: how to train deep neural
networks with limited memory", 2019.
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


def cheapest(layers: int, room: int, use: LayerUse, last: LayerUse, host: bool = False) -> Found | None:
    """The policy with the least work whose activations and passing arrays take at most `room` bytes; None: there is
    none. `last`: what the last layer takes; `host`: whether inputs may wait in the host's memory.
    """
    grain = max(1, use.input // GRAIN)
    size, forward = -(-use.input // grain), -(-(use.full.forward + use.full.stays) // grain)
    ways = {
        end: [
            (letter, -(-kept.stays // grain), -(-kept.backward // grain), work)
            for letter, kept, work in (("k", layer.full, 0.0), ("c", layer.cheap, CHEAP))
        ]
        for end, layer in ((False, use), (True, last))
    }

    @cache
    def best(count: int, room: int, end: bool, host: bool) -> Found | None:
        """Of a chain of `count` layers whose input is stored elsewhere, with `room` for everything else; `end`: the
        model's last layer is its own; if `host`, its input is let go when it waits in the host's memory.
        """
        if count == 0:
            return Found(0, "")
        options = []
        for letter, stays, backward, work in ways[end and count == 1]:
            if room >= stays + backward and (rest := best(count - 1, room - stays, end, host)):
                options.append(Found(work + rest.work, letter + rest.policy))
                if not options[0].work:
                    return options[0]
        for part in range(1, count):
            if room < size + forward:
                break
            if (again := best(part, room, False, False)) is None:
                continue
            if rest := best(count - part, room - size, end, host):
                options.append(Found(part + again.work + rest.work, f"({again.policy}){rest.policy}"))
            if host and (rest := best(count - part, room, end, host)):  # the input's place is free for the rest's
                options.append(Found(part + COPIES + again.work + rest.work, f"[{again.policy}]{rest.policy}"))
        return min(options, key=lambda found: found.work, default=None)

    found = [best(layers, room // grain, True, False)]
    if host:  # less an input that comes back ahead of time
        found.append(best(layers, room // grain - size, True, True))
    return min(filter(None, found), key=lambda found: found.work, default=None)


def taken(layers: int, use: LayerUse, last: LayerUse) -> int:
    """The bytes that keeping everything takes, in the terms of `cheapest`."""
    before = (layers - 1) * use.full.stays
    return max(before + use.full.backward * (layers > 1), before + last.full.stays + last.full.backward)


def slowdown(policy: str, layers: int) -> float:
    """The time of a step with this policy, as a multiple of that of keeping everything."""
    depth, again = 0, 0.0
    for letter in policy:
        depth += {"(": 1, ")": -1, "[": 1, "]": -1}.get(letter, 0)
        again += {"k": depth, "c": depth + CHEAP, "[": COPIES}.get(letter, 0.0)
    return 1 + again / (layers * (1 + BACKWARD))
