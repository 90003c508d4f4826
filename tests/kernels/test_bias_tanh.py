"""Bias and tanh: the definition against slopes, kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.bias_tanh import cpu, reference


def inputs(s: int, c: int, shift: float = 0):
    rng = np.random.default_rng(s + c)
    x, bias, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((s, c), (c,), (s, c)))
    return x + np.float32(shift), bias, dy


def both(backend, x, bias, dy):
    """y, dx and dbias, which starts from 0.5 because kernels must add."""
    y, dx, dbias = unwritten(x.shape, x.dtype), unwritten(x.shape, x.dtype), np.full(bias.size, 0.5, x.dtype)
    backend.forward(y, x, bias)
    backend.backward(dx, dbias, dy, y)
    return y, dx, dbias


def test_reference_gradients():
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((5, 7)), rng.standard_normal(7)

    def forward(x, bias):
        y = np.empty_like(x)
        reference.forward(y, x, bias)
        return y

    def vjp(dy):
        dx, dbias = np.empty_like(x), np.zeros_like(bias)
        reference.backward(dx, dbias, dy, forward(x, bias))
        return dx, dbias

    assert_gradients(forward, vjp, (x, bias))


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("bias_tanh")])
@pytest.mark.parametrize("shift", [0, 3, -100])
@pytest.mark.parametrize("shape", [(0, 24), (1, 1), (3, 7), (17, 768), (257, 96)], ids=str)
def test_is_as_accurate_as_numpy(shape, shift, backend):
    x, bias, dy = inputs(*shape, shift)
    got, naive = (both(which, x, bias, dy) for which in (backend, reference))
    exact = both(reference, *(a.astype(np.float64) for a in (x, bias, dy)))
    for name, *three in zip(("y", "dx", "dbias"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


def test_same_bits_for_any_count_of_threads():
    x, bias, dy = inputs(257, 768)
    assert_same_bits(lambda: both(cpu, x, bias, dy))
