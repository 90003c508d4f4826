"""Chosen rows, there and back."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import as_bf16, from_bf16, unwritten
from checks import assert_gradients
from minibert.kernels.take_rows import cpu, reference

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("take_rows")])


SHAPES = pytest.mark.parametrize("shape", [(0, 24), (1, 1), (17, 7), (257, 768)], ids=str)


def test_reference_gradients():
    x = np.random.default_rng(0).standard_normal((7, 3))
    rows = np.array([6, 0, 2], np.int32)

    def forward(x):
        y = unwritten((3, 3), np.float64)
        reference.forward(y, x, rows)
        return y

    def vjp(dy):
        dx = unwritten(x.shape, np.float64)
        reference.backward(dx, dy, rows)
        return (dx,)

    assert_gradients(forward, vjp, (x,))


def make(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    return x, rng.permutation(shape[0])[: (shape[0] + 1) // 2].astype(np.int32)


def there_and_back(backend, x, rows):
    """x[rows], and its rows put back into zeros."""
    y, dx = unwritten((rows.size, x.shape[1])), unwritten(x.shape, x.dtype)
    backend.forward(y, x, rows)
    backend.backward(dx, y, rows)
    return y, dx


def assert_taken(y, dx, x, rows):
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(y[i], x[row])
    for t in range(len(x)):
        np.testing.assert_array_equal(dx[t], x[t] if t in rows else 0)


@BACKENDS
@SHAPES
def test_rows(backend, shape):
    x, rows = make(shape)
    assert_taken(*there_and_back(backend, x, rows), x, rows)


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("take_rows")])
@SHAPES
def test_bf16_rows_come_out_as_float32(shape, backend):
    x, rows = make(shape)
    stored = as_bf16(x)
    y, dx = there_and_back(backend, stored, rows)
    assert_taken(y, from_bf16(dx), from_bf16(stored), rows)
