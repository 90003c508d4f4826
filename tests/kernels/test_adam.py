"""Adam: known steps by hand, the test vector of Google's optimizer, kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, one
from checks import assert_as_accurate
from minibert.kernels.adam import cpu, reference

BERT = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "correction1": 1.0, "correction2": 1.0}
BACKENDS = pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("adam")])


@BACKENDS
def test_google_test_vector(backend):
    """100 steps at rate 0.2 towards w = [0.4, 0.2, -0.5], as in optimization_test.py of google-research/bert."""
    target = np.array([0.4, 0.2, -0.5], np.float32)
    w = np.array([0.1, -0.2, -0.1], np.float32)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for _ in range(100):
        backend.update(w, m, v, 2 * (w - target) / np.float32(3), scale=one(1.0), lr=0.2, decay=0.0, **BERT)
    np.testing.assert_allclose(w, target, rtol=1e-2, atol=1e-2)


@BACKENDS
def test_first_step_by_hand(backend):
    """g' = 0.5 * 4 = 2; m = 0.2, v = 0.004; u = 0.2 / (sqrt 0.004 + 1e-6) + 0.01 * 3."""
    p, m, v, g = (np.array([number], np.float32) for number in (3, 0, 0, 4))
    backend.update(p, m, v, g, scale=one(0.5), lr=0.1, decay=0.01, **BERT)
    assert (m[0], v[0], g[0]) == (pytest.approx(0.2), pytest.approx(0.004), 4)
    assert p[0] == pytest.approx(3 - 0.1 * (0.2 / (0.004**0.5 + 1e-6) + 0.03), rel=1e-6)


@BACKENDS
def test_correction_makes_the_first_step_a_sign(backend):
    """With both corrections the first step is lr * g / |g|, whatever g's size."""
    p, m, v = (np.zeros(2, np.float32) for _ in range(3))
    settings = {**BERT, "eps": 0.0, "correction1": 1 - 0.9, "correction2": 1 - 0.999}
    backend.update(p, m, v, np.array([1e-3, -50], np.float32), scale=one(1.0), lr=0.25, decay=0.0, **settings)
    np.testing.assert_allclose(p, [-0.25, 0.25], rtol=1e-5)


def ten_steps(backend, n: int, dtype=np.float32):
    rng = np.random.default_rng(n)
    p, m, v = rng.standard_normal(n).astype(np.float32), np.zeros(n), np.zeros(n)
    p, m, v = p.astype(dtype), m.astype(dtype), v.astype(dtype)
    for step in range(1, 11):
        g = (rng.standard_normal(n) * 10.0 ** rng.integers(-6, 3, n)).astype(np.float32).astype(dtype)
        corrections = {"correction1": 1 - 0.9**step, "correction2": 1 - 0.999**step}
        backend.update(p, m, v, g, scale=one(0.37, dtype), lr=0.01, decay=0.1, **{**BERT, **corrections})
    return p, m, v


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("adam")])
@pytest.mark.parametrize("n", [0, 1, 17, 40_001])
def test_is_as_accurate_as_numpy(n, backend):
    got, naive, exact = ten_steps(backend, n), ten_steps(reference, n), ten_steps(reference, n, np.float64)
    for name, *three in zip("pmv", got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@gpus.needs_compiler
def test_gpu_parts_of_buffers_may_begin_anywhere():
    """Addresses that are no multiple of 16 bytes, in some arrays and in all."""
    rng = np.random.default_rng(0)
    buffers = [rng.random(50).astype(np.float32) for _ in "pmvg"]
    wanted = [buffer.copy() for buffer in buffers]
    for starts in ((1, 0, 0, 0), (0, 0, 2, 0), (3, 3, 3, 3)):
        for backend, arrays in ((gpus.Emulated("adam"), buffers), (reference, wanted)):
            parts = (array[start : start + 37] for array, start in zip(arrays, starts, strict=True))
            backend.update(*parts, scale=one(0.5), lr=0.1, decay=0.1, **BERT)
    for buffer, other in zip(buffers, wanted, strict=True):
        np.testing.assert_allclose(buffer, other, rtol=1e-5)


@pytest.mark.parametrize("backend", gpus.backends("adam"))
@pytest.mark.parametrize("n", [1, 17, 4099])
def test_the_copy_is_p_rounded(n, backend):
    rng = np.random.default_rng(n)
    arrays = [rng.random(n).astype(np.float32) for _ in "pmvg"]
    copy, wanted = np.full(n, 0xFFFF, np.uint16), np.full(n, 0xFFFF, np.uint16)
    backend.update(*arrays, scale=one(0.5), lr=0.1, decay=0.0, copy=copy, **BERT)
    reference.update(
        arrays[0], *(np.zeros_like(arrays[0]) for _ in "mvg"), scale=one(0.0), lr=0.0, decay=0.0, copy=wanted, **BERT
    )
    np.testing.assert_array_equal(copy, wanted)


def test_same_bits_for_any_count_of_threads():
    assert_same_bits(lambda: ten_steps(cpu, 100_001))
