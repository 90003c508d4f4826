"""Dropout's bits: published answers, recorded masks, statistics, and Numba against the definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minibert.kernels.attention import queries
from minibert.kernels.common import lanes, philox, philox_cpu, philox_lanes
from minibert.kernels.devices.compiling import jit

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "dropout.json").read_text())


def unpack(rows: list[str], length: int) -> np.ndarray:
    return np.array([np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8))[:length] for row in rows], bool)


def aligned(count: int) -> np.ndarray:
    """So many words on a line."""
    memory = np.zeros(count + 16, np.uint32)
    return memory[-memory.ctypes.data % 64 // 4 :][:count]


@jit
def _words(out, c0, c1, c2, c3, key0, key1):
    """The words of eight counters, all alike, twice on a line each."""
    none = np.uint64(0)
    counters = lanes.longs(c0, none), lanes.longs(c1, none), lanes.longs(c2, none), lanes.longs(c3, none)
    words = philox_lanes.philox4x32(counters[0], counters[1], counters[2], counters[3], key0, key1)
    for i in range(4):
        lanes.store(np.intp(out.ctypes.data) + 64 * i, lanes.lower_halves(words[i], words[i]))


@pytest.mark.parametrize("case", GOLDEN["words"])
def test_words(case):
    assert philox.words(*case["counter"], case["seed"]).tolist() == case["words"]
    drawn = aligned(64)
    _words(drawn, *(np.uint64(w) for w in case["counter"]), *philox_cpu.settings(0, case["seed"], 0)[2:4])
    assert drawn.reshape(4, 16).T.tolist() == [case["words"]] * 16


@pytest.mark.parametrize("case", GOLDEN["hidden"], ids=lambda case: f"{case['c']} {case['rate']}")
def test_hidden_mask(case):
    positions, examples = np.array(case["positions"], np.int32), np.array(case["examples"], np.int32)
    mask = philox.hidden_mask(positions, examples, case["c"], case["rate"], case["seed"], case["stream"], np.float64)
    kept = unpack(case["kept"], case["c"])
    np.testing.assert_array_equal(mask, kept * philox.scale(case["rate"]))


@pytest.mark.parametrize("case", GOLDEN["attention"], ids=lambda case: f"{case['length']} {case['rate']}")
def test_attention_mask(case):
    arguments = [case[name] for name in ("length", "heads", "example", "rate", "seed", "stream")]
    kept = np.array([unpack(rows, case["length"]) for rows in case["kept"]])
    np.testing.assert_array_equal(philox.attention_mask(*arguments, np.float64), kept * philox.scale(case["rate"]))


@jit
def _hidden(drawn, c, positions, examples, dropout):
    for t in range(positions.size):
        philox_cpu.hidden_words(drawn[t].ctypes.data, c, positions[t], examples[t], dropout)


@jit
def _attention(out, length, head, example, dropout):
    for block in range(out.shape[0]):
        queries.draw(np.intp(out[block].ctypes.data), 16 * block, length, head, example, dropout)


@pytest.mark.parametrize("c", [1, 8, 13, 24, 129, 768])
def test_numba_draws_the_same_hidden_bits(c):
    positions, examples = np.array([0, 5, 511], np.int32), np.array([9, 2**31 - 1, 0], np.int32)
    room = philox_cpu.hidden_room(c)
    drawn = aligned(3 * room).reshape(3, room)
    _hidden(drawn, c, positions, examples, philox_cpu.settings(0.1, 2**63 + 5, 77))
    mask = philox.hidden_mask(positions, examples, c, 0.1, 2**63 + 5, 77)
    np.testing.assert_array_equal(drawn.view(np.uint16)[:, :c] >= philox.threshold(0.1), mask > 0)


@pytest.mark.parametrize("length", [1, 16, 37, 512])
def test_numba_draws_the_same_attention_bits(length):
    dropout, mask = philox_cpu.settings(0.1, 2**40 + 5, 77), philox.attention_mask(length, 2, 31, 0.1, 2**40 + 5, 77)
    down, tall = -(-length // 16), -(-length // 32)
    for head in range(2):
        # Queries in sixteens; keys in blocks of 32, whose bits are the first of two tiles: pairs of keys, queries.
        drawn = aligned(down * tall * 512).reshape(down, tall, 2, 16, 16)
        _attention(drawn.reshape(down, -1), length, head, 31, dropout)
        bits = drawn[:, :, 0].view(np.uint16).reshape(down, tall * 16, 16, 2)
        bits = bits.transpose(0, 2, 1, 3).reshape(16 * down, 32 * tall)[:length, :length]
        np.testing.assert_array_equal(bits >= philox.threshold(0.1), mask[head] > 0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_and_independence(rate):
    """The share kept, and that of neighbours in every direction, lies within five standard deviations."""
    mask = philox.attention_mask(256, 2, 3, rate, 42, 0, np.float64)
    assert abs(mask.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / mask.size)
    centred = (mask - 1) * np.sqrt((1 - rate) / rate)
    for axis in range(3):
        for step in (1, 2, 8, 16):
            if step < mask.shape[axis]:
                ahead, behind = np.split(centred, [step], axis)[1], np.split(centred, [-step], axis)[0]
                assert abs((ahead * behind).mean()) < 5 / np.sqrt(ahead.size)


def test_every_scalar_matters():
    ones = np.ones(1, np.int32)
    masks = [
        philox.hidden_mask(ones * position, ones * example, 512, 0.5, seed, stream).tobytes()
        for position, example, seed, stream in [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1),
                                                (1, 1, 1 + 2**32, 1), (1, 1, 1, 2)]
    ]  # fmt: skip
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, 0.999999])
def test_rates_that_keep_nothing_are_refused(rate):
    with pytest.raises(ValueError, match="not in"):
        philox.threshold(rate)
