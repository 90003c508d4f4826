"""Chosen rows, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from bits import unwritten
from checks import assert_gradients
from minibert.kernels.take_rows import cpu, reference

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu])


@BACKENDS
def test_gradients(backend):
    x = np.random.default_rng(0).standard_normal((7, 3))
    rows = np.array([6, 0, 2], np.int32)

    def forward(x):
        y = unwritten((3, 3), np.float64)
        backend.forward(y, x, rows)
        return y

    def vjp(dy):
        dx = unwritten(x.shape, np.float64)
        backend.backward(dx, dy, rows)
        return (dx,)

    assert_gradients(forward, vjp, (x,))


@BACKENDS
@pytest.mark.parametrize("shape", [(0, 24), (1, 1), (17, 7), (257, 768)], ids=str)
def test_rows(backend, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    rows = rng.permutation(shape[0])[: (shape[0] + 1) // 2].astype(np.int32)
    y, dx = unwritten((rows.size, shape[1])), unwritten(shape)
    backend.forward(y, x, rows)
    backend.backward(dx, y, rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(y[i], x[row])
    for t in range(shape[0]):
        np.testing.assert_array_equal(dx[t], x[t] if t in rows else 0)
