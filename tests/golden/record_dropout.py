"""Writes dropout.json beside this file: vectors that every backend's dropout must reproduce.

Plain integers, an element at a time, nothing shared with minibert: a second spelling of what
kernels/common/philox.py defines. The first three words are the published known answers of the Random123 library
(tests/kat_vectors, lines "philox4x32 10"). A mask's row is hexadecimal, its first element the highest bit, 1 kept.

    python tests/golden/record_dropout.py
"""

from __future__ import annotations

import json
from pathlib import Path

KNOWN_ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""
SEEDS = (0, 1234, 2**64 - 1, 0x0123456789ABCDEF)
STREAMS = (0, 512 * 343 + 8 * 11 + 2, 2**32 - 1)


def philox(counter: list[int], seed: int) -> list[int]:
    a, b, c, d = counter
    low, high = seed % 2**32, seed >> 32
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ low, q % 2**32, (p >> 32) ^ d ^ high, p % 2**32
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def kept(counter: list[int], element: int, rate: float, seed: int) -> str:
    word = philox(counter, seed)[element // 2]
    bits = word >> 16 if element % 2 else word & 0xFFFF
    return str(int(bits >= round(65536 * rate)))


def row(elements: list[str]) -> str:
    bits = "".join(elements)
    return f"{int(bits.ljust(-(-len(bits) // 8) * 8, '0'), 2):0{-(-len(bits) // 8) * 2}x}"


def hidden(positions: list[int], examples: list[int], c: int, rate: float, seed: int, stream: int) -> dict:
    rows = [
        row([kept([i // 8, position, example, stream], i % 8, rate, seed) for i in range(c)])
        for position, example in zip(positions, examples, strict=True)
    ]
    return {"positions": positions, "examples": examples, "c": c, "rate": rate, "seed": seed, "stream": stream,
            "kept": rows}  # fmt: skip


def attention(length: int, heads: int, example: int, rate: float, seed: int, stream: int) -> dict:
    def element(h: int, q: int, k: int) -> str:
        counter = [k // 16 * 4 + k % 8 // 2, h * 65536 + q // 16 * 8 + q % 8, example, stream]
        return kept(counter, k % 2 + 2 * (q % 16 >= 8) + 4 * (k % 16 >= 8), rate, seed)

    rows = [[row([element(h, q, k) for k in range(length)]) for q in range(length)] for h in range(heads)]
    return {"length": length, "heads": heads, "example": example, "rate": rate, "seed": seed, "stream": stream,
            "kept": rows}  # fmt: skip


def record() -> dict:
    words = []
    for line in KNOWN_ANSWERS.split("\n")[1:-1]:
        numbers = [int(word, 16) for word in line.split()]
        words.append({"counter": numbers[:4], "seed": numbers[5] << 32 | numbers[4], "words": numbers[6:]})
    for i, seed in enumerate(SEEDS):
        counter = [96 * i, 511 - i, 3667 * i, STREAMS[i % 3]]
        words.append({"counter": counter, "seed": seed, "words": philox(counter, seed)})
    return {
        "words": words,
        "hidden": [
            hidden([0, 1, 511], [0, 0, 3667], 24, 0.1, SEEDS[1], STREAMS[0]),
            hidden([17, 2**20], [7, 2**31 - 1], 13, 0.5, SEEDS[2], STREAMS[2]),
            hidden([52, 0], [31, 32], 768, 0.1, SEEDS[3], STREAMS[1]),
            hidden([3], [5], 64, 0.999, SEEDS[0], STREAMS[1]),
            hidden([3], [5], 9, 0.0, SEEDS[0], STREAMS[1]),
        ],
        "attention": [
            attention(1, 2, 0, 0.5, SEEDS[0], STREAMS[0]),
            attention(37, 3, 3667, 0.1, SEEDS[3], STREAMS[1]),
            attention(18, 1, 2**31 - 1, 0.5, SEEDS[2], STREAMS[2]),
        ],
    }


if __name__ == "__main__":
    Path(__file__).with_name("dropout.json").write_text(json.dumps(record(), indent=1) + "\n")
