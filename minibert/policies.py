"""Policies of recomputation: what each layer keeps for the backward pass, and what is computed again there.

A policy is text, a letter for each layer from the first: `k` keeps everything, `c` ("cheap") all but the results of its
attention and of its first LayerNorm, which are made again from their inputs. Layers in parentheses keep nothing but
what goes into them: the backward pass computes them again, and then as it says inside. So `(k)(k)k` is three layers,
of which two are computed again one by one, and in `((k)k)kk` the first two are computed again together, and then the
first of them once more. Whatever the policy, the bits are the same.
"""

from __future__ import annotations

from typing import Literal

from minibert.errors import ConfigError

Policy = tuple["Literal['k', 'c'] | Policy", ...]
NAMES = ("none", "cheap", "layers", "segments:K")


def spelled(name: str, layers: int) -> str:
    """A policy by name, in letters; one in letters as it is. ConfigError for a name that is none.

    none keeps everything; cheap as above; layers computes every layer again by itself; segments:K keeps one layer's
    input in K. The last part is not computed again, because its backward pass comes at once.
    """
    if _letters(name):
        return name
    kind, _, size = name.partition(":")
    if kind == "segments" and size.isdecimal() and int(size) >= 1:
        whole, rest = divmod(layers, int(size))
        parts = [int(size)] * whole + [rest] * (rest > 0)
        return "".join(f"({spelled('layers', part)})" for part in parts[:-1]) + spelled("layers", parts[-1])
    if kind not in ("none", "cheap", "layers") or size:
        raise ConfigError(f"recompute {name} is none of {', '.join(NAMES)}, K being a number of layers")
    return {"none": "k" * layers, "cheap": "c" * layers, "layers": "(k)" * (layers - 1) + "k"}[kind]


def parse(text: str, layers: int) -> Policy:
    """The policy that a text means, for a model of so many layers: a name of NAMES, or letters and parentheses."""
    policy = _letters(spelled(text, layers))
    if length(policy) != layers:
        raise ConfigError(f"recompute {text}: is a policy for {length(policy)} layers, the model has {layers}")
    return policy


def check(text: str) -> None:
    """ConfigError if a text is no policy for any number of layers."""
    spelled(text, 1)


def _letters(text: str) -> Policy:
    """The policy of a text in letters and parentheses; () for any other."""
    if not set(text) <= set("kc()"):
        return ()
    stack: list[list] = [[]]
    for letter in text:
        if letter == "(":
            stack.append([])
        elif letter != ")":
            stack[-1].append(letter)
        elif len(stack) > 1 and stack[-1]:
            inner = tuple(stack.pop())
            stack[-1].append(inner)
        else:
            return ()
    return tuple(stack[0]) if len(stack) == 1 else ()


def length(policy: Policy) -> int:
    """How many layers a policy is for."""
    return sum(length(part) if isinstance(part, tuple) else 1 for part in policy)
