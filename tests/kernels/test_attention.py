"""Attention over packed sequences: the definition's gradients, and Numba against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from bits import assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.attention import cpu, cpu_bf16, reference
from minibert.kernels.common.philox import attention_mask
from packed import BATCHES, PRIMES, exact, floats, pack

KEY = (2**63 + 11, 512 * 7 + 9)


def compute(backend, batch, heads, rate, qkv, dy):
    """(y, lse, dqkv)."""
    y, dqkv = unwritten(dy.shape, dy.dtype), unwritten(qkv.shape, qkv.dtype)
    lse = unwritten((len(dy), heads), np.float32 if qkv.dtype == np.uint16 else qkv.dtype)
    longest = int(np.diff(batch.offsets).max(initial=0))
    scratch = np.full(backend.workspace(len(dy), longest, heads, dy.shape[1]), 0xFF, np.uint8)
    tail = (batch.offsets, batch.examples, heads, rate, *KEY, scratch)
    backend.forward(y, lse, qkv, *tail)
    backend.backward(dqkv, dy, y, lse, qkv, *tail)
    return y, lse, dqkv


def make(t, c, shift=0.0, size=1.0):
    """qkv and dy. Keys and values are shifted, queries are not: logits of 1e5 would leave float32 no digits of p."""
    rng = np.random.default_rng(t * 1000 + c)
    qkv = floats(rng, t, 3 * c) * np.float32(size)
    qkv[:, c:] += np.float32(shift)
    return qkv, floats(rng, t, c)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_reference_gradients(rate):
    batch = pack((3, 0, 1, 18))
    qkv, dy = exact(*make(22, 24))

    def function(qkv):
        return compute(reference, batch, 3, rate, qkv, dy)[0]

    assert_gradients(function, lambda dy: [compute(reference, batch, 3, rate, qkv, dy)[2]], [qkv])


CASES = [(name, heads, d, rate) for name in BATCHES for heads, d, rate in [(3, 8, 0.5), (8, 12, 0.0), (2, 64, 0.1)]]
CASES += [("primes", 12, 32, 0.1), ("primes", 12, 64, 0.1), ("primes", 2, 5, 0.1), ("primes", 1, 1, 0.1)]


@pytest.mark.parametrize("data", [{}, {"shift": 100.0}, {"size": 16.0}], ids=["plain", "shifted", "huge"])
@pytest.mark.parametrize(("name", "heads", "d", "rate"), CASES)
def test_numba(name, heads, d, rate, data):
    batch = pack(BATCHES[name])
    inputs = make(sum(BATCHES[name]), heads * d, **data)
    results = [compute(backend, batch, heads, rate, *arrays)
               for backend, arrays in [(cpu, inputs), (reference, inputs), (reference, exact(*inputs))]]  # fmt: skip
    for what, got, naive, wanted in zip(("y", "lse", "dqkv"), *results, strict=True):
        assert_as_accurate(got, naive, wanted, k=3, floor=5e-7, what=what)


def test_gradients_of_shifted_keys_are_as_accurate_as_numpy():
    """Keys far from zero multiply what P's sum and the mean of M dP are rounded by, which is to stay small."""
    batch, ratios = pack((512,)), []
    for seed in range(6):
        qkv, dy = floats(rng := np.random.default_rng(seed), 512, 72), floats(rng, 512, 24)
        qkv[:, 24:] += np.float32(100)
        got, naive, wanted = (
            compute(backend, batch, 3, 0.5, *arrays)[2]
            for backend, arrays in [(cpu, (qkv, dy)), (reference, (qkv, dy)), (reference, exact(qkv, dy))]
        )
        ratios.append(np.abs(got - wanted).max() / np.abs(naive - wanted).max())
    assert np.mean(ratios) < 1.5


def test_huge_logits_are_huge():
    """The case above means what it says: logits beyond 1e3, where exponentials of unshifted scores overflow."""
    qkv, _ = make(512, 128, size=16.0)
    assert np.abs(qkv[:, :64] @ qkv[:, 128:192].T / 8).max() > 1e3


def test_one_key_gets_its_mask():
    """With one token, p = 1: the output is v times that element's multiplier."""
    batch = pack((1,) * 40)
    qkv, dy = make(40, 24)
    y = compute(cpu, batch, 3, 0.5, qkv, dy)[0]
    masks = np.array([attention_mask(1, 3, example, 0.5, *KEY)[:, 0, 0] for example in batch.examples])
    assert 0 < (masks > 0).sum() < masks.size
    np.testing.assert_array_equal(y.reshape(40, 3, 8), qkv[:, 48:].reshape(40, 3, 8) * masks[..., None])


def test_threads_and_packing_change_no_bit():
    batch = pack(PRIMES)
    qkv, dy = make(len(batch.positions), 96)
    assert_same_bits(lambda: compute(cpu, batch, 3, 0.1, qkv, dy))
    whole = compute(cpu, batch, 3, 0.1, qkv, dy)
    alone = pack((127,), [batch.examples[-1]])
    for got, wanted in zip(compute(cpu, alone, 3, 0.1, qkv[-127:], dy[-127:]), whole, strict=True):
        np.testing.assert_array_equal(got, wanted[-127:])


@pytest.mark.parametrize("backend", [cpu, cpu_bf16], ids=["fp32", "bf16"])
def test_scratch_of_fewer_threads_is_refused(backend):
    """Threads that were added after `workspace` was asked would write beyond it."""
    batch = pack((5, 37))
    qkv, dy = np.zeros((42, 72), np.float32), np.zeros((42, 24), np.float32)
    scratch = np.zeros(backend.workspace(42, 37, 3, 24) // 2, np.uint8)
    with pytest.raises(ValueError, match="bytes of scratch"):
        backend.forward(dy, dy, qkv, batch.offsets, batch.examples, 3, 0.0, *KEY, scratch)
