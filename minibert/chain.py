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
BACKWARD = 2.0  # a backward pass, in forward passes


class Found(NamedTuple):
    """A policy, as text, and what it computes again, in forward passes of a layer."""

    work: float
    policy: str


def cheapest(layers: int, room: int, use: LayerUse) -> Found | None:
    """The policy with the least work whose activations and passing arrays take at most `room` bytes; None: there is
    none.
    """
    grain = max(1, use.input // GRAIN)
    size, kept, cheap, forward, backward = (
        -(-n // grain) for n in (use.input, use.kept, use.cheap, use.forward + use.kept, use.backward)
    )

    @cache
    def best(count: int, room: int) -> Found | None:
        """Of a chain of `count` layers whose input is stored elsewhere, with `room` for everything else."""
        if count == 0:
            return Found(0, "")
        options = []
        for letter, keeps, work in (("k", kept, 0.0), ("c", cheap, CHEAP)):
            if room >= keeps + backward and (rest := best(count - 1, room - keeps)):
                options.append(Found(work + rest.work, letter + rest.policy))
                if not options[0].work:
                    return options[0]
        for part in range(1, count):
            if room < size + forward:
                break
            if (rest := best(count - part, room - size)) and (again := best(part, room)):
                options.append(Found(part + again.work + rest.work, f"({again.policy}){rest.policy}"))
        return min(options, key=lambda found: found.work, default=None)

    return best(layers, room // grain)


def slowdown(policy: str, layers: int) -> float:
    """The time of a step with this policy, as a multiple of that of keeping everything."""
    depth, again = 0, 0.0
    for letter in policy:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        again += {"k": depth, "c": depth + CHEAP}.get(letter, 0.0)
    return 1 + again / (layers * (1 + BACKWARD))
