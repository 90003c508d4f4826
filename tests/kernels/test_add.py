"""A sum of two arrays, in place too, in both types of storage."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import as_bf16, assert_same_bits, through_bf16, unwritten
from minibert.kernels.add import cpu, reference

SHAPES = pytest.mark.parametrize("shape", [(0, 7), (1, 1), (17, 24), (15, 16), (1200, 768)], ids=str)


def operands(shape):
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape).astype(np.float32) for _ in range(2))


def assert_adds(backend, a, b, wanted):
    def add():
        y = unwritten(a.shape, a.dtype)
        backend.forward(y, a, b)
        np.testing.assert_array_equal(y, wanted)
        return (y,)

    assert_same_bits(add)
    backend.forward(a, a, b)
    np.testing.assert_array_equal(a, wanted)


@pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("add")])
@SHAPES
def test_adds(backend, shape):
    a, b = operands(shape)
    assert_adds(backend, a, b, (a.astype(np.float64) + b).astype(np.float32))


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("add")])
@SHAPES
def test_adds_bf16(shape, backend):
    a, b = (through_bf16(x) for x in operands(shape))
    assert_adds(backend, as_bf16(a), as_bf16(b), as_bf16(a + b))
