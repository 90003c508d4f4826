"""A sum of two arrays, in place too."""

from __future__ import annotations

import numpy as np
import pytest
from bits import unwritten

from minibert.kernels.add import cpu, reference


@pytest.mark.parametrize("backend", [reference, cpu])
@pytest.mark.parametrize("shape", [(0, 7), (1, 1), (17, 24), (257, 768)], ids=str)
def test_adds(backend, shape):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    wanted = np.array([x + y for x, y in zip(a.flat, b.flat, strict=True)], np.float32).reshape(shape)
    y = unwritten(shape)
    backend.forward(y, a, b)
    np.testing.assert_array_equal(y, wanted)
    backend.forward(a, a, b)
    np.testing.assert_array_equal(a, wanted)
