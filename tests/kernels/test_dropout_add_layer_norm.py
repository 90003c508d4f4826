"""Dropout, residual sum and LayerNorm: the definition's gradients, and kernels against the definition."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import gpus
from bits import as_bf16, assert_same_bits, from_bf16, through_bf16, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.errors import BackendError
from minibert.kernels.dropout_add_layer_norm import cpu, reference
from packed import BATCHES, PRIMES, exact, floats, pack

EPS = 1e-12
KEY = (2**63 + 11, 512 * 7 + 9)
BACKENDS = pytest.mark.parametrize("backend", [cpu, *gpus.backends("dropout_add_layer_norm")])


def compute(backend, batch, rate, x, residual, gamma, beta, dy, dy2=None):
    """(y, mean, rstd, dx, dresidual, dgamma, dbeta); the last two are added to ones."""
    float_type, tokens = x.dtype, (batch.positions, batch.examples)
    y, dx, dresidual = (unwritten(x.shape, float_type) for _ in range(3))
    mean, rstd = (unwritten(x.shape[:1], gamma.dtype) for _ in range(2))
    dgamma, dbeta = np.ones_like(gamma), np.ones_like(beta)
    scratch = np.full(backend.workspace(*x.shape), 0xFF, np.uint8)
    backend.forward(y, mean, rstd, x, residual, gamma, beta, *tokens, EPS, rate, *KEY)
    backend.backward(
        dx, dresidual, dgamma, dbeta, dy, dy2, x, residual, mean, rstd, gamma, *tokens, rate, *KEY, scratch
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


NAMES = ("y", "mean", "rstd", "dx", "dresidual", "dgamma", "dbeta")
# On a GPU in bf16 threads have 1, 1, 1, 2, 3 and 4 groups of columns, which rows of 264 and 1,064 do not fill.
SIZES = (1, 0.1), (24, 0.5), (96, 0.0), (264, 0.1), (768, 0.1), (1064, 0.1)
CASES = pytest.mark.parametrize(
    ("lengths", "c", "rate"),
    [(lengths, c, rate) for lengths in BATCHES.values() for c, rate in SIZES],
)


def bf16(backend, batch, rate, x, residual, gamma, beta, *gradients):
    """`compute` with x, residual, dy, dy2, y, dx and dresidual stored as bf16; the last three come back as float32."""
    results = compute(backend, batch, rate, as_bf16(x), as_bf16(residual), gamma, beta, *map(as_bf16, gradients))
    return [from_bf16(result) if result.dtype == np.uint16 else result for result in results]


def as_stored(results):
    """Results in float32, those rounded that `bf16` stores."""
    stored = ("y", "dx", "dresidual")
    return [through_bf16(array) if name in stored else array for name, array in zip(NAMES, results, strict=True)]


@BACKENDS
@pytest.mark.parametrize("shift", [0.0, 100.0])
@CASES
def test_float32(lengths, c, rate, shift, backend):
    batch, inputs = pack(lengths), make(sum(lengths), c, shift)
    if c == 1:
        inputs = tuple(array * np.float32(0) + 1 for array in inputs)  # z - mean = 0: only exact zeros are right
    results = [compute(which, batch, rate, *data)
               for which, data in [(backend, inputs), (reference, inputs), (reference, exact(*inputs))]]  # fmt: skip
    for name, got, naive, wanted in zip(NAMES, *results, strict=True):
        assert_as_accurate(got, naive, wanted, floor=5e-7, what=name)  # four roundings: naive's luck with few elements


@BACKENDS
@pytest.mark.parametrize("shift", [0.0, 100.0])
@CASES
def test_bf16(lengths, c, rate, shift, backend):
    """Beside NumPy in float32 on the same rounded numbers, its results rounded once."""
    batch, (x, residual, gamma, beta, dy) = pack(lengths), make(sum(lengths), c, shift)
    if c == 1:
        x, residual, gamma, beta, dy = (array * np.float32(0) + 1 for array in (x, residual, gamma, beta, dy))
    inputs = through_bf16(x), through_bf16(residual), gamma, beta, through_bf16(dy)
    naive = as_stored(compute(reference, batch, rate, *inputs))
    wanted = compute(reference, batch, rate, *exact(*inputs))
    for name, *three in zip(NAMES, bf16(backend, batch, rate, *inputs), naive, wanted, strict=True):
        assert_as_accurate(*three, floor=5e-7, what=name)


def test_a_second_gradient_is_added_by_the_reference():
    batch, (*inputs, dy) = pack((3, 1, 4)), exact(*make(8, 24))
    dy2 = dy[::-1] * 2
    two, one = (compute(reference, batch, 0.1, *inputs, *gradients) for gradients in ((dy, dy2), (dy + dy2,)))
    for name, got, wanted in zip(NAMES, two, one, strict=True):
        np.testing.assert_array_equal(got, wanted, name)


@BACKENDS
@pytest.mark.parametrize("kernel", [compute, bf16], ids=["fp32", "bf16"])
@CASES
def test_a_second_gradient_is_added_in_float32(lengths, c, rate, kernel, backend):
    """Rounding the sum to bf16 would show in dbeta, which is float32."""
    batch, (*inputs, dy) = pack(lengths), make(sum(lengths), c)
    x, residual, dy, dy2 = map(through_bf16, (*inputs[:2], dy, dy[::-1] * np.float32(0.3)))
    inputs = x, residual, *inputs[2:]
    got = kernel(backend, batch, rate, *inputs, dy, dy2)
    naive = compute(reference, batch, rate, *inputs, dy, dy2)
    naive = as_stored(naive) if kernel is bf16 else naive
    wanted = compute(reference, batch, rate, *exact(*inputs, dy, dy2))
    for name, *three in zip(NAMES, got, naive, wanted, strict=True):
        assert_as_accurate(*three, floor=5e-7, what=name)


@BACKENDS
@pytest.mark.parametrize(("c", "value"), [(768, 46146.17), (1000, 12345.678), (7, 1e6), (8, 3.0)])
def test_equal_values_far_from_0_have_no_deviation(c, value, backend):
    """Their variance, a difference, may be rounded to below 0."""
    x, zeros, ones = np.full((5, c), value, np.float32), np.zeros((5, c), np.float32), np.ones((5, c), np.float32)
    y, *rest = compute(backend, pack((5,)), 0.0, x, zeros, ones[0], zeros[0], ones)
    assert np.abs(y).max() < 0.1 and all(np.isfinite(found).all() for found in rest)


@BACKENDS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_stays_visible_in_its_row(bad, backend):
    batch, inputs = pack((40,)), make(40, 24)
    inputs[0][17, 5], inputs[4][23, 7] = bad, bad
    for y, _, _, dx, *_ in (kernel(backend, batch, 0.5, *inputs) for kernel in (compute, bf16)):
        assert np.isnan(y[17]).all() and np.isfinite(np.delete(y, 17, 0)).all()
        assert not np.isfinite(dx[[17, 23]]).any() and np.isfinite(np.delete(dx, [17, 23], 0)).all()


@pytest.mark.parametrize("kernel", [partial(compute, cpu), partial(bf16, cpu)], ids=["fp32", "bf16"])
def test_threads_change_no_bit(kernel):
    batch = pack(PRIMES)
    inputs = make(len(batch.positions), 96)
    assert_same_bits(lambda: kernel(batch, 0.1, *inputs))


def test_packing_changes_no_bit():
    batch = pack(PRIMES)
    inputs = make(len(batch.positions), 96)
    y, *_, dx, _, _, _ = compute(cpu, batch, 0.1, *inputs)
    x, residual, gamma, beta, dy = inputs
    alone = batch._replace(positions=batch.positions[-127:], examples=batch.examples[-127:])
    y_alone, *_, dx_alone, _, _, _ = compute(cpu, alone, 0.1, x[-127:], residual[-127:], gamma, beta, dy[-127:])
    np.testing.assert_array_equal(y_alone, y[-127:])
    np.testing.assert_array_equal(dx_alone, dx[-127:])


@gpus.needs_compiler
def test_gpu_any_order_of_threads_gives_the_same_bits():
    """A row of four warps, the last one's columns partly missing."""
    batch = pack((9, 4))
    inputs = make(13, 771)
    got, *others = (
        compute(gpus.Emulated("dropout_add_layer_norm", order=order), batch, 0.1, *inputs) for order in (0, 1, 7)
    )
    for name, *three in zip(NAMES, got, *others, strict=True):
        assert len({array.tobytes() for array in three}) == 1, name
    wanted = compute(reference, batch, 0.1, *exact(*inputs))
    for name, *three in zip(NAMES, got, compute(reference, batch, 0.1, *inputs), wanted, strict=True):
        assert_as_accurate(*three, floor=5e-7, what=name)


def test_gpu_says_how_long_a_row_may_be():
    with pytest.raises(BackendError, match="at most 5120 columns, got 5121"):
        compute(gpus.Emulated("dropout_add_layer_norm"), pack((1,)), 0.1, *make(1, 5121))
