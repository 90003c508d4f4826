"""Dropout's masks in jax.numpy, bit for bit those of kernels/common/philox.py, which has the layout and the reasons.

JAX has no 64-bit integers unless all of a program has, so products of 32 bits are put together from halves of 16.
Words stand in a leading axis: on a TPU a short last axis would be padded to 128.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minibert.kernels.common.philox import KEY_STEPS, MULTIPLIERS, ROUNDS, WORD, scale, threshold
from minibert.random import SITES, Key


def pack(key: Key) -> np.ndarray:
    """A step's key as the traced functions take it: the seed's low and high word and the step's stream, (3,) uint32."""
    return np.array([key.seed & WORD, key.seed >> 32 & WORD, key.at("embedding").stream], np.uint32)


def at(key: jax.Array | None, site: str, layer: Any = 0) -> jax.Array | None:
    """The key of one dropout, as `Key.at`; `layer` may be traced. None stays None: evaluation."""
    if key is None:
        return None
    return jnp.asarray(key).at[2].add(jnp.uint32(layer) * 8 + SITES[site])


def words(c0: Any, c1: Any, c2: Any, key: jax.Array) -> jax.Array:
    """Philox4x32-10 of counters that broadcast to one shape (...), the last word being the key's stream: (4, ...)."""
    a, b, c, d = jnp.broadcast_arrays(*(jnp.asarray(w, jnp.uint32) for w in (c0, c1, c2, key[2])))
    key0, key1 = key[0], key[1]
    for _ in range(ROUNDS):
        (p_high, p_low), (q_high, q_low) = _product(a, MULTIPLIERS[0]), _product(c, MULTIPLIERS[1])
        a, b, c, d = q_high ^ b ^ key0, q_low, p_high ^ d ^ key1, p_low
        key0, key1 = key0 + jnp.uint32(KEY_STEPS[0]), key1 + jnp.uint32(KEY_STEPS[1])
    return jnp.stack([a, b, c, d])


def _product(a: jax.Array, b: int) -> tuple[jax.Array, jax.Array]:
    """The high and the low 32 bits of a b."""
    low, high = jnp.uint32(b & 0xFFFF), jnp.uint32(b >> 16)
    a_low, a_high = a & 0xFFFF, a >> 16
    middle = a_high * low + (a_low * low >> 16)
    other = a_low * high + (middle & 0xFFFF)
    return a_high * high + (middle >> 16) + (other >> 16), a * jnp.uint32(b)


def _kept(drawn: jax.Array, rate: float) -> jax.Array:
    """Whether each of the eight elements of a block is kept: (4, ...) words to (8, ...)."""
    halves = jnp.stack([drawn & 0xFFFF, drawn >> 16], 1)
    return (halves >= threshold(rate)).reshape(8, *drawn.shape[1:])


def hidden_mask(length: int, c: int, examples: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Which columns of the first `length` tokens of `examples` (B,) are kept: (B, L, C)."""
    position, block = np.ogrid[:length, : -(-c // 8)]
    drawn = words(block, position, examples[:, None, None], key)
    kept = jnp.moveaxis(_kept(drawn, rate), 0, -1)  # (B, L, blocks, 8)
    return kept.reshape(*kept.shape[:2], -1)[..., :c]


def attention_mask(length: int, heads: int, examples: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Which probabilities of `examples` (B,) are kept: (B, H, L, L), query before key."""
    tiles = -(-length // 16)
    h, q, k = np.ogrid[:heads, : 8 * tiles, : 4 * tiles]
    kept = _kept(words(k, h << 16 | q, examples[:, None, None, None], key), rate)
    # Element e of a block: k % 2 is its lowest bit, q // 8 % 2 the next, k // 8 % 2 the highest.
    kept = kept.reshape(2, 2, 2, examples.shape[0], heads, tiles, 8, tiles, 4)
    kept = kept.transpose(3, 4, 5, 1, 6, 7, 0, 8, 2).reshape(examples.shape[0], heads, 16 * tiles, 16 * tiles)
    return kept[..., :length, :length]


def apply(x: jax.Array, kept: jax.Array, rate: float) -> jax.Array:
    """x where it is kept, scaled up, and 0 elsewhere; in float32, because bf16 knows no scale closer than 0.2 %."""
    return jnp.where(kept, x.astype(jnp.float32) * scale(rate), 0)


def hidden(x: jax.Array, examples: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout of (B, L, C) or its first tokens; without a key, which means evaluation, x itself."""
    if key is None or threshold(rate) == 0:
        return x
    return apply(x, hidden_mask(x.shape[1], x.shape[2], examples, rate, key), rate)


def attention(p: jax.Array, examples: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """The same of attention's probabilities (B, H, L, L)."""
    if key is None or threshold(rate) == 0:
        return p
    return apply(p, attention_mask(p.shape[-1], p.shape[1], examples, rate, key), rate)
