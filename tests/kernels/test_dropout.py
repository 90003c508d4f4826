"""Dropout of token rows: kernels give the definition's bits."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import assert_same_bits, unwritten
from checks import assert_gradients
from minibert.kernels.dropout import cpu, reference
from packed import BATCHES, PRIMES, floats, pack

KEY = (2**63 + 11, 512 * 7 + 9)


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("dropout")])
@pytest.mark.parametrize("c", [1, 24, 96, 768])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_same_bits_as_the_definition(lengths, rate, c, backend):
    batch = pack(lengths)
    x = floats(np.random.default_rng(0), sum(lengths), c)
    y, dx, wanted = unwritten(x.shape), unwritten(x.shape), unwritten(x.shape)
    reference.forward(wanted, x, batch.positions, batch.examples, rate, *KEY)
    backend.forward(y, x, batch.positions, batch.examples, rate, *KEY)
    backend.backward(dx, x, batch.positions, batch.examples, rate, *KEY)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(dx, wanted)  # linear: backward is forward
    if rate == 0:
        np.testing.assert_array_equal(y, x)


def test_reference_gradient():
    batch = pack((3, 4))

    def function(x):
        y = np.empty_like(x)
        reference.forward(y, x, batch.positions, batch.examples, 0.3, *KEY)
        return y

    def vjp(dy):
        dx = unwritten(dy.shape, np.float64)
        reference.backward(dx, dy, batch.positions, batch.examples, 0.3, *KEY)
        return [dx]

    assert_gradients(function, vjp, [np.random.default_rng(0).standard_normal((7, 24))])


def test_threads_and_packing_change_no_bit():
    batch = pack(PRIMES)
    x = floats(np.random.default_rng(0), len(batch.positions), 96)

    def compute():
        y = unwritten(x.shape)
        cpu.forward(y, x, batch.positions, batch.examples, 0.1, *KEY)
        return [y]

    assert_same_bits(compute)
    whole = compute()[0]
    alone = unwritten((127, 96))  # the last sequence in a batch of its own
    cpu.forward(alone, x[-127:], batch.positions[-127:], batch.examples[-127:], 0.1, *KEY)
    np.testing.assert_array_equal(alone, whole[-127:])
