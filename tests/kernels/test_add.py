"""A sum of two arrays, in place too."""

from __future__ import annotations

import numpy as np
import pytest

from bits import assert_same_bits, unwritten
from minibert.kernels.add import cpu, reference


@pytest.mark.parametrize("backend", [reference, cpu])
@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (17, 24), (1200, 768)], ids=str)
def test_adds(backend, shape):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    wanted = (a.astype(np.float64) + b).astype(np.float32)

    def add():
        y = unwritten(shape)
        backend.forward(y, a, b)
        np.testing.assert_array_equal(y, wanted)
        return (y,)

    assert_same_bits(add)
    backend.forward(a, a, b)
    np.testing.assert_array_equal(a, wanted)
