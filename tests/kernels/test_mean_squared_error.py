"""Squared error: the definition against slopes, kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.mean_squared_error import cpu, reference


def both(backend, x, target, dloss):
    loss, dx = unwritten((len(x),), x.dtype), unwritten(x.shape, x.dtype)
    backend.forward(loss, x, target)
    backend.backward(dx, dloss, x, target)
    return loss, dx


def test_reference_gradients():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((5, 1)), rng.standard_normal(5)

    def forward(x):
        return both(reference, x, target, target)[0]

    assert_gradients(forward, lambda dloss: both(reference, x, target, dloss)[1:], (x,))


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("mean_squared_error")])
@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("s", [0, 1, 3, 17, 257])
def test_is_as_accurate_as_numpy(s, shift, backend):
    rng = np.random.default_rng(s)
    x, target, dloss = (rng.standard_normal(shape).astype(np.float32) for shape in ((s, 1), (s,), (s,)))
    x += np.float32(shift)
    got, naive = (both(which, x, target, dloss) for which in (backend, reference))
    exact = both(reference, *(a.astype(np.float64) for a in (x, target, dloss)))
    for name, *three in zip(("loss", "dx"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)
