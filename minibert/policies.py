"""Policies of recomputation: what each layer keeps for the backward pass, and what is computed again there.

A policy is text, a letter for each layer from the first: `k` keeps everything, `c` ("cheap") all but the results of its
attention and of its first LayerNorm, which are made again from their inputs. Layers in parentheses keep nothing but
what goes into them: the backward pass computes them again, and then as it says inside. So `(k)(k)k` is three layers,
of which two are computed again one by one, and in `((k)k)kk` the first two are computed again together, and then the
first of them once more. In square brackets even that input is not kept: it waits in the host's memory, where the device
has one of its own. Whatever the policy, the bits are the same.
"""

from __future__ import annotations

from typing import Literal

from minibert.errors import ConfigError, did_you_mean

Policy = tuple["Literal['k', 'c'] | Policy", ...]
NAMES = ("none", "cheap", "layers", "host", "segments:K")
CLOSING = {")": "(", "]": "["}


class Hosted(tuple["Literal['k', 'c'] | Policy", ...]):
    """A part in square brackets: its input waits in the host's memory."""


def spelled(name: str, layers: int) -> str:
    """A policy by name, in letters; one in letters as it is. ConfigError for a name that is none.

    none keeps everything; cheap as above; layers computes every layer again by itself; host does, too, with the inputs
    in the host's memory; segments:K keeps one layer's input in K. The last part is not computed again, because its
    backward pass comes at once.
    """
    if _letters(name):
        return name
    kind, _, size = name.partition(":")
    if kind == "segments" and size.isdecimal() and int(size) >= 1:
        whole, rest = divmod(layers, int(size))
        parts = [int(size)] * whole + [rest] * (rest > 0)
        return "".join(f"({spelled('layers', part)})" for part in parts[:-1]) + spelled("layers", parts[-1])
    if kind not in NAMES[:-1] or size:
        choice = ", ".join(("auto", *NAMES))
        raise ConfigError(f"unknown recompute policy {name:.40}{did_you_mean(name, NAMES[:-1])}; there are {choice}")
    again = {"layers": "(k)", "host": "[k]"}
    return again[kind] * (layers - 1) + "k" if kind in again else {"none": "k", "cheap": "c"}[kind] * layers


def parse(text: str, layers: int) -> Policy:
    """The policy that a text means, for a model of so many layers: a name of NAMES, or letters and brackets."""
    policy = _letters(spelled(text, layers))
    if length(policy) != layers:
        raise ConfigError(f"recompute {text}: is a policy for {length(policy)} layers, the model has {layers}")
    return policy


def check(text: str, layers: int | None = None) -> None:
    """ConfigError if a text is no policy for any number of layers, or names more than the model's `layers`."""
    spelled(text, 1)
    if layers and text.startswith("segments:") and int(text.partition(":")[2]) > layers:
        raise ConfigError(
            f"recompute {text}: the model has {layers} layers, and so many in one segment are --recompute layers"
        )


def hosted(text: str) -> bool:
    """Whether inputs of layers wait in the host's memory."""
    return "[" in spelled(text, 2)


def _letters(text: str) -> Policy:
    """The policy of a text in letters and brackets; () for any other."""
    if not set(text) <= set("kc()[]"):
        return ()
    stack: list[list] = [[""]]  # of the parts that are open, each after the bracket that opened it
    for letter in text:
        if letter in CLOSING.values():
            stack.append([letter])
        elif letter not in CLOSING:
            stack[-1].append(letter)
        elif len(stack[-1]) > 1 and stack[-1][0] == CLOSING[letter]:
            inner = stack.pop()[1:]
            stack[-1].append(Hosted(inner) if letter == "]" else tuple(inner))
        else:
            return ()
    return tuple(stack[0][1:]) if len(stack) == 1 else ()


def length(policy: Policy) -> int:
    """How many layers a policy is for."""
    return sum(length(part) if isinstance(part, tuple) else 1 for part in policy)
