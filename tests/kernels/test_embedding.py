"""Embedding with LayerNorm and dropout: the definition's gradients, and kernels against the definition."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import gpus
from bits import as_bf16, assert_same_bits, from_bf16, through_bf16, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.embedding import cpu, reference
from packed import BATCHES, PRIMES, exact, floats, pack

EPS = 1e-12
KEY = (2**63 + 11, 512 * 7 + 9)
WORDS = 41
BACKENDS = pytest.mark.parametrize("backend", [cpu, *gpus.backends("embedding")])


def compute(backend, batch, rate, word, position, segment, gamma, beta, dy, dy2=None):
    """(y, mean, rstd, dword, dposition, dsegment, dgamma, dbeta); parameters' gradients are added to ones."""
    tokens = len(batch.positions)
    ids = (batch.examples * 7 + batch.positions**2).astype(np.int32) % WORDS  # words come again and again
    segments = (batch.positions % 3 == 0).astype(np.int32)
    indices = (ids, segments, batch.positions, batch.examples)
    y = unwritten(dy.shape, dy.dtype)
    mean, rstd = (unwritten((tokens,), gamma.dtype) for _ in range(2))
    gradients = [np.ones_like(array) for array in (word, position, segment, gamma, beta)]
    scratch = np.full(backend.workspace(*dy.shape), 0xFF, np.uint8)
    backend.forward(y, mean, rstd, *indices, word, position, segment, gamma, beta, EPS, rate, *KEY)
    backend.backward(
        *gradients, dy, dy2, mean, rstd, *indices, word, position, segment, gamma, rate, *KEY, scratch
    )  # fmt: skip
    return y, mean, rstd, *gradients


def make(t, c, shift=0.0):
    rng = np.random.default_rng(t * 1000 + c)
    tables = [floats(rng, rows, c, shift=shift) for rows in (WORDS, 512, 2)]
    return *tables, floats(rng, c), floats(rng, c), floats(rng, t, c)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_reference_gradients(rate):
    batch = pack((3, 1, 4))
    *parameters, dy = exact(*make(8, 24))

    def function(*inputs):
        return compute(reference, batch, rate, *inputs, dy)[0]

    def vjp(dy):
        return [gradient - 1 for gradient in compute(reference, batch, rate, *parameters, dy)[3:]]

    assert_gradients(function, vjp, parameters)


NAMES = ("y", "mean", "rstd", "dword", "dposition", "dsegment", "dgamma", "dbeta")
CASES = pytest.mark.parametrize(
    ("lengths", "c", "rate"),
    [(lengths, c, rate) for lengths in BATCHES.values() for c, rate in [(24, 0.5), (96, 0.0), (768, 0.1)]],
)


def bf16(backend, batch, rate, word, position, segment, gamma, beta, *gradients):
    """`compute` with y, dy and dy2 stored as bf16; y comes back as float32."""
    y, *rest = compute(backend, batch, rate, word, position, segment, gamma, beta, *map(as_bf16, gradients))
    return from_bf16(y), *rest


@BACKENDS
@pytest.mark.parametrize("shift", [0.0, 100.0])
@CASES
def test_float32(lengths, c, rate, shift, backend):
    batch, inputs = pack(lengths), make(sum(lengths), c, shift)
    results = [compute(which, batch, rate, *data)
               for which, data in [(backend, inputs), (reference, inputs), (reference, exact(*inputs))]]  # fmt: skip
    for name, got, naive, wanted in zip(NAMES, *results, strict=True):
        assert_as_accurate(got, naive, wanted, floor=5e-7, what=name)  # four roundings: naive's luck with few elements


@BACKENDS
@pytest.mark.parametrize("shift", [0.0, 100.0])
@CASES
def test_bf16(lengths, c, rate, shift, backend):
    """Beside NumPy in float32 on the same rounded dy, y rounded once."""
    batch, (*parameters, dy) = pack(lengths), make(sum(lengths), c, shift)
    inputs = *parameters, through_bf16(dy)
    y, *rest = compute(reference, batch, rate, *inputs)
    wanted = compute(reference, batch, rate, *exact(*inputs))
    for name, *three in zip(NAMES, bf16(backend, batch, rate, *inputs), (through_bf16(y), *rest), wanted, strict=True):
        assert_as_accurate(*three, floor=5e-7, what=name)


def test_a_second_gradient_is_added_by_the_reference():
    batch, (*parameters, dy) = pack((3, 1, 4)), exact(*make(8, 24))
    dy2 = dy[::-1] * 2
    two, one = (compute(reference, batch, 0.1, *parameters, *gradients) for gradients in ((dy, dy2), (dy + dy2,)))
    for name, got, wanted in zip(NAMES, two, one, strict=True):
        np.testing.assert_array_equal(got, wanted, name)


@BACKENDS
@pytest.mark.parametrize("kernel", [compute, bf16], ids=["fp32", "bf16"])
@CASES
def test_a_second_gradient_is_added_in_float32(lengths, c, rate, kernel, backend):
    """Rounding the sum to bf16 would show in dbeta, which is float32."""
    batch, (*parameters, dy) = pack(lengths), make(sum(lengths), c)
    inputs = *parameters, through_bf16(dy), through_bf16(dy[::-1] * np.float32(0.3))
    y, *rest = compute(reference, batch, rate, *inputs)
    naive = through_bf16(y) if kernel is bf16 else y, *rest
    wanted = compute(reference, batch, rate, *exact(*inputs))
    for name, *three in zip(NAMES, kernel(backend, batch, rate, *inputs), naive, wanted, strict=True):
        assert_as_accurate(*three, floor=5e-7, what=name)


@pytest.mark.parametrize("kernel", [partial(compute, cpu), partial(bf16, cpu)], ids=["fp32", "bf16"])
def test_threads_change_no_bit(kernel):
    batch = pack(PRIMES)
    inputs = make(len(batch.positions), 96)
    assert_same_bits(lambda: kernel(batch, 0.1, *inputs))


def test_packing_changes_no_bit():
    batch = pack(PRIMES)
    inputs = make(len(batch.positions), 96)
    alone = batch._replace(positions=batch.positions[-127:], examples=batch.examples[-127:])
    y = compute(cpu, batch, 0.1, *inputs)[0]
    y_alone = compute(cpu, alone, 0.1, *inputs[:-1], inputs[-1][-127:])[0]
    np.testing.assert_array_equal(y_alone, y[-127:])


@gpus.needs_compiler
def test_gpu_sorts_more_tokens_than_a_block_in_any_order_of_threads():
    batch = pack((500, 401, 300))
    inputs = make(len(batch.positions), 20)
    got, *others = (compute(gpus.Emulated("embedding", order=order), batch, 0.1, *inputs) for order in (0, 1, 7))
    naive, wanted = (compute(reference, batch, 0.1, *data) for data in (inputs, exact(*inputs)))
    for name, *three in zip(NAMES, got, naive, wanted, strict=True):
        assert_as_accurate(*three, floor=5e-7, what=name)
    for other in others:
        for name, one, two in zip(NAMES, got, other, strict=True):
            np.testing.assert_array_equal(one, two, name)
