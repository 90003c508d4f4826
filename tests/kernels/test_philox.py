"""Dropout's bits: published answers, recorded masks, statistics, and Numba against the definition."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minibert.kernels.common import philox, philox_cpu
from minibert.kernels.devices.cpu import jit

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "dropout.json").read_text())


def unpack(rows: list[str], length: int) -> np.ndarray:
    return np.array([np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8))[:length] for row in rows], bool)


@pytest.mark.parametrize("case", GOLDEN["words"])
def test_words(case):
    assert philox.words(*case["counter"], case["seed"]).tolist() == case["words"]
    drawn = philox_cpu.philox4x32(
        *(np.uint32(w) for w in case["counter"]), *philox_cpu.settings(0, case["seed"], 0)[2:4]
    )
    assert list(drawn) == case["words"]


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
def _attention(out, drawn, heads, example, dropout):
    for head in range(heads):
        for first in range(0, out.shape[1], 16):
            philox_cpu.attention_words(out[head, first : first + 16], drawn, first, head, example, dropout)


@pytest.mark.parametrize("c", [1, 8, 13, 24, 129, 768])
def test_numba_draws_the_same_hidden_bits(c):
    positions, examples = np.array([0, 5, 511], np.int32), np.array([9, 2**31 - 1, 0], np.int32)
    room = philox_cpu.hidden_room(c)
    memory = np.zeros(3 * room + 16, np.uint32)
    drawn = memory[-memory.ctypes.data % 64 // 4 :][: 3 * room].reshape(3, room)
    _hidden(drawn, c, positions, examples, philox_cpu.settings(0.1, 2**63 + 5, 77))
    mask = philox.hidden_mask(positions, examples, c, 0.1, 2**63 + 5, 77)
    np.testing.assert_array_equal(drawn.view(np.uint16)[:, :c] >= philox.threshold(0.1), mask > 0)


@pytest.mark.parametrize("length", [1, 16, 37, 512])
def test_numba_draws_the_same_attention_bits(length):
    keys = -(-length // 16) * 16
    drawn = np.zeros((2, keys, keys // 2), np.uint32)
    _attention(drawn, np.zeros((4, keys // 4), np.uint32), 2, 31, philox_cpu.settings(0.1, 2**40 + 5, 77))
    mask = philox.attention_mask(length, 2, 31, 0.1, 2**40 + 5, 77)
    bits = drawn.view(np.uint16)[:, :length, :length]
    np.testing.assert_array_equal(bits >= philox.threshold(0.1), mask > 0)


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
