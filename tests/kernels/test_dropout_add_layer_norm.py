"""Dropout, residual sum and LayerNorm: the definition's gradients, and Numba against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from bits import assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.dropout_add_layer_norm import cpu, reference
from packed import BATCHES, PRIMES, exact, floats, pack

EPS = 1e-12
KEY = (2**63 + 11, 512 * 7 + 9)


def compute(backend, batch, rate, x, residual, gamma, beta, dy):
    """(y, mean, rstd, dx, dresidual, dgamma, dbeta); the last two are added to ones."""
    float_type, tokens = x.dtype, (batch.positions, batch.examples)
    y, dx, dresidual = (unwritten(x.shape, float_type) for _ in range(3))
    mean, rstd = (unwritten(x.shape[:1], float_type) for _ in range(2))
    dgamma, dbeta = np.ones_like(gamma), np.ones_like(beta)
    scratch = np.full(backend.workspace(*x.shape), 0xFF, np.uint8)
    backend.forward(y, mean, rstd, x, residual, gamma, beta, *tokens, EPS, rate, *KEY)
    backend.backward(
        dx, dresidual, dgamma, dbeta, dy, x, residual, mean, rstd, gamma, *tokens, rate, *KEY, scratch
    )  # fmt: skip
    return y, mean, rstd, dx, dresidual, dgamma, dbeta


def make(t, c, shift=0.0):
    rng = np.random.default_rng(t * 1000 + c)
    x, residual = floats(rng, t, c, shift=shift), floats(rng, t, c, shift=shift)
    return x, residual, floats(rng, c), floats(rng, c), floats(rng, t, c)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_reference_gradients(rate):
    batch = pack((3, 1, 4))
    x, residual, gamma, beta, _ = exact(*make(8, 24))

    def function(*inputs):
        return compute(reference, batch, rate, *inputs, np.zeros_like(x))[0]

    def vjp(dy):
        dx, dresidual, dgamma, dbeta = compute(reference, batch, rate, x, residual, gamma, beta, dy)[3:]
        return [dx, dresidual, dgamma - 1, dbeta - 1]

    assert_gradients(function, vjp, [x, residual, gamma, beta])


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize(
    ("lengths", "c", "rate"),
    [(lengths, c, rate) for lengths in BATCHES.values() for c, rate in [(1, 0.1), (24, 0.5), (96, 0.0), (768, 0.1)]],
)
def test_numba(lengths, c, rate, shift):
    batch, inputs = pack(lengths), make(sum(lengths), c, shift)
    if c == 1:
        inputs = tuple(array * np.float32(0) + 1 for array in inputs)  # z - mean = 0: only exact zeros are right
    names = ("y", "mean", "rstd", "dx", "dresidual", "dgamma", "dbeta")
    results = [compute(backend, batch, rate, *data)
               for backend, data in [(cpu, inputs), (reference, inputs), (reference, exact(*inputs))]]  # fmt: skip
    for name, got, naive, wanted in zip(names, *results, strict=True):
        assert_as_accurate(got, naive, wanted, floor=5e-7, what=name)  # four roundings: naive's luck with few elements


def test_threads_and_packing_change_no_bit():
    batch = pack(PRIMES)
    inputs = make(len(batch.positions), 96)
    assert_same_bits(lambda: compute(cpu, batch, 0.1, *inputs))
    y, *_, dx, _, _, _ = compute(cpu, batch, 0.1, *inputs)
    x, residual, gamma, beta, dy = inputs
    alone = batch._replace(positions=batch.positions[-127:], examples=batch.examples[-127:])
    y_alone, *_, dx_alone, _, _, _ = compute(cpu, alone, 0.1, x[-127:], residual[-127:], gamma, beta, dy[-127:])
    np.testing.assert_array_equal(y_alone, y[-127:])
    np.testing.assert_array_equal(dx_alone, dx[-127:])
