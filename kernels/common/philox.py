"""Dropout's random bits, in NumPy: the definition that every backend must reproduce bit for bit.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011) turns a counter of
four 32-bit words and a key of two into four random words; nothing is remembered between calls. The key is the seed.
The counter says which eight elements are meant, in terms of the example and never of the batch around it, so that
a mask depends neither on packing nor on padding, micro-batch, thread or device:

    word 0   block of eight elements
    word 1   position inside the example
    word 2   number of the example in the data set
    word 3   stream: step * 512 + layer * 8 + site, computed by the caller

Element e of the block takes 16 bits: the low half of word e // 2 for even e, the high half for odd e. It is kept
where these are >= round(65536 * rate), and then multiplied by 65536 / (65536 - round(65536 * rate)).

Hidden arrays (T, C): column c of a token is element c % 8 of block c // 8; word 1 is the token's position.

Attention (H, L, L): word 1 is head << 16 | (q // 16) * 8 + q % 8, word 0 is (k // 16) * 4 + (k % 8) // 2, and the
element is k % 2 + 2 * ((q // 8) % 2) + 4 * ((k // 8) % 2), q and k being the query's and the key's position.
These eight are what one thread holds of two adjacent m16n8 accumulator tiles of `mma.sync`, and of the m16k16
operand that they become in the product with V: rows q and q + 8, columns k, k + 1, k + 8 and k + 9. A GPU kernel
so draws exactly the bits that its thread needs, in the order of its registers, with one call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1
ROUNDS = 10
WORD = 0xFFFFFFFF


def threshold(rate: float) -> int:
    """The least 16 bits that are kept; ValueError unless 0 <= rate < 1 and something is kept."""
    least = round(65536 * rate)
    if not 0 <= least < 65536:
        raise ValueError(f"dropout rate {rate} is not in [0, 1)")
    return least


def scale(rate: float) -> float:
    """What kept elements are multiplied by: the inverse of the exact share that is kept."""
    return 65536 / (65536 - threshold(rate))


def words(c0: Any, c1: Any, c2: Any, c3: Any, seed: int) -> np.ndarray:
    """Philox4x32-10 of counters that broadcast to one shape (...): uint32 (..., 4)."""
    a, b, c, d = (w.astype(np.uint64) for w in np.broadcast_arrays(c0, c1, c2, c3))
    key0, key1 = seed & WORD, seed >> 32 & WORD
    half, low = np.uint64(32), np.uint64(WORD)
    for _ in range(ROUNDS):
        p, q = a * np.uint64(MULTIPLIERS[0]), c * np.uint64(MULTIPLIERS[1])  # 32 x 32 bits: no overflow
        a, b = q >> half ^ b ^ np.uint64(key0), q & low
        c, d = p >> half ^ d ^ np.uint64(key1), p & low
        key0, key1 = key0 + KEY_STEPS[0] & WORD, key1 + KEY_STEPS[1] & WORD
    return np.stack([a, b, c, d], -1).astype(np.uint32)


def halves(drawn: np.ndarray) -> np.ndarray:
    """uint32 (..., 4) words as the 16 bits of their eight elements: uint16 (..., 8)."""
    return np.stack([drawn & 0xFFFF, drawn >> 16], -1).astype(np.uint16).reshape(*drawn.shape[:-1], 8)


def multipliers(bits: np.ndarray, rate: float, dtype: Any) -> np.ndarray:
    """0 for dropped elements, `scale` for kept ones."""
    return np.where(bits >= threshold(rate), scale(rate), 0).astype(dtype)


def hidden_mask(
    positions: np.ndarray, examples: np.ndarray, c: int, rate: float, seed: int, stream: int, dtype: Any = np.float32
) -> np.ndarray:
    """The multipliers of T tokens: (T, C)."""
    if threshold(rate) == 0:
        return np.ones((len(positions), c), dtype)
    blocks = np.arange(-(-c // 8))
    drawn = words(blocks, positions[:, None], examples[:, None], stream, seed)
    return multipliers(halves(drawn).reshape(len(positions), 8 * len(blocks))[:, :c], rate, dtype)


def attention_mask(
    length: int, heads: int, example: int, rate: float, seed: int, stream: int, dtype: Any = np.float32
) -> np.ndarray:
    """The multipliers of one sequence's probabilities: (H, L, L), query before key."""
    if threshold(rate) == 0:
        return np.ones((heads, length, length), dtype)
    h, q, k = np.ogrid[:heads, :length, :length]
    drawn = words(k // 16 * 4 + k % 8 // 2, h << 16 | q // 16 * 8 + q % 8, example, stream, seed)
    element = k % 2 + q // 8 % 2 * 2 + k // 8 % 2 * 4
    bits = np.take_along_axis(halves(drawn), np.broadcast_to(element, drawn.shape[:3])[..., None], -1)
    return multipliers(bits[..., 0], rate, dtype)
