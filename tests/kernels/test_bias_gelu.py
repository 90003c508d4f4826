"""Bias and GELU: the definition against slopes and known values, Numba against the definition."""

from __future__ import annotations

import numba
import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, as_bf16, assert_same_bits, from_bf16, through_bf16, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels import devices
from minibert.kernels.bias_gelu import cpu, reference
from minibert.kernels.common import lanes
from minibert.kernels.common.gelu import gelu_and_slope_lanes

BACKENDS = [cpu, *gpus.backends("bias_gelu")]
FORMS = pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])


def inputs(t: int, f: int, shift: float = 0, spread: float = 1):
    rng = np.random.default_rng(t + f)
    x, bias, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((t, f), (f,), (t, f)))
    return x * np.float32(spread) + np.float32(shift), bias, dy


def both(backend, x, bias, dy, tanh):
    """y, dx and dbias, which starts from 0.5 because kernels must add."""
    y, dx, dbias = unwritten(x.shape, x.dtype), unwritten(x.shape, x.dtype), np.full(bias.size, 0.5, x.dtype)
    backend.forward(y, x, bias, tanh)
    backend.backward(dx, dbias, dy, x, bias, tanh, np.full(backend.workspace(*x.shape), 255, np.uint8))
    return y, dx, dbias


@FORMS
def test_reference_gradients(tanh):
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((5, 7)), rng.standard_normal(7)

    def forward(x, bias):
        y = np.empty_like(x)
        reference.forward(y, x, bias, tanh)
        return y

    def vjp(dy):
        dx, dbias = np.empty_like(x), np.zeros_like(bias)
        reference.backward(dx, dbias, dy, x, bias, tanh, np.empty(0, np.uint8))
        return dx, dbias

    assert_gradients(forward, vjp, (x, bias))


@pytest.mark.parametrize(("tanh", "wanted"), [(False, 0.8413447460685429), (True, 0.8411919906082768)])
def test_known_values(tanh, wanted):
    """GELU(1): Phi(1) from tables, and what the tanh form makes of it."""
    y = np.zeros((1, 1))
    reference.forward(y, np.ones((1, 1)), np.zeros(1), tanh)
    assert y[0, 0] == pytest.approx(wanted, abs=1e-12)


@FORMS
@pytest.mark.parametrize(("shift", "spread"), [(0, 1), (100, 1), (-100, 1), (0, 5), (0, 1e4)])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 24), (1, 1), (3, 7), (17, 96), (257, 24), (300, 384)], ids=str)
def test_is_as_accurate_as_numpy(shape, shift, spread, tanh, backend):
    x, bias, dy = inputs(*shape, shift, spread)
    got, naive = (both(which, x, bias, dy, tanh) for which in (backend, reference))
    exact = both(reference, *(a.astype(np.float64) for a in (x, bias, dy)), tanh)
    for name, *three in zip(("y", "dx", "dbias"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@FORMS
@pytest.mark.parametrize("backend", gpus.backends("bias_gelu"))
@pytest.mark.parametrize("shape", [(0, 24), (3, 7), (70, 96)], ids=str)
def test_in_bf16_it_is_rounded_once(shape, tanh, backend):
    x, bias, dy = (through_bf16(a) for a in inputs(*shape))
    y, dx, dbias = both_in_bf16(backend, x, bias, dy, tanh)
    naive = both(reference, x, bias, dy, tanh)
    exact = both(reference, *(a.astype(np.float64) for a in (x, bias, dy)), tanh)
    for got, plain, wanted in zip((y, dx), naive[:2], exact[:2], strict=True):
        assert_as_accurate(got, through_bf16(plain), wanted, floor=FEW_ULPS)
    assert_as_accurate(dbias, naive[2], exact[2], floor=FEW_ULPS)


def both_in_bf16(backend, x, bias, dy, tanh):
    """`both` with all but bias stored as bf16, dx in dy's place."""
    y, slopes, dbias = unwritten(x.shape, np.uint16), as_bf16(dy), np.full(bias.size, 0.5, np.float32)
    backend.forward(y, as_bf16(x), bias, tanh)
    scratch = np.full(backend.workspace(*x.shape), 255, np.uint8)
    backend.backward(slopes, dbias, slopes, as_bf16(x), bias, tanh, scratch)
    return from_bf16(y), from_bf16(slopes), dbias


@FORMS
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_visible(tanh, backend):
    x, bias, dy = inputs(3, 24)
    x[1, 5] = np.nan
    y, dx, dbias = both(backend, x, bias, dy, tanh)
    assert np.argwhere(np.isnan(y)).tolist() == np.argwhere(np.isnan(dx)).tolist() == [[1, 5]]
    assert np.isnan(dbias[5]) and np.isnan(dbias).sum() == 1


@FORMS
@pytest.mark.parametrize("backend", BACKENDS)
def test_however_far_out_gelu_is_h_or_0(tanh, backend):
    x = np.array([[-3e38, -1e20, -2e19, -15, 15, 2e19, 1e20, 3e38]], np.float32)
    y, dx, _ = both(backend, x, np.zeros(8, np.float32), np.ones_like(x), tanh)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(dx, x > 0)


@FORMS
def test_same_bits_for_any_count_of_threads(tanh):
    x, bias, dy = inputs(700, 24)
    assert_same_bits(lambda: both(cpu, x, bias, dy, tanh))


@FORMS
def test_dx_may_be_dy(tanh):
    x, bias, dy = inputs(17, 24)
    _, dx, _ = both(cpu, x, bias, dy, tanh)
    cpu.backward(dy, bias.copy(), dy, x, bias, tanh, np.empty(cpu.workspace(17, 24), np.uint8))
    np.testing.assert_array_equal(dy, dx)


@pytest.mark.parametrize(("tanh", "value", "slope"), [(False, 1e-7, 2e-7), (True, 2e-7, 5e-7)], ids=["erf", "tanh"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_error_at_every_point(tanh, value, slope, backend):
    """Not against the largest result but where it is, since the fits could be off in one place only."""
    if backend is not cpu:
        value, slope = 2 * value, 2 * slope  # a card's 2 to the x is right to two units in the last place
    x = np.linspace(-20, 20, 40_000, dtype=np.float32).reshape(-1, 8)
    bias, ones = np.zeros(8, np.float32), np.ones_like(x)
    y, dx, _ = both(backend, x, bias, ones, tanh)
    exact_y, exact_dx, _ = both(reference, *(a.astype(np.float64) for a in (x, bias, ones)), tanh)
    assert (np.abs(y - exact_y) / np.maximum(1, np.abs(x))).max() <= value
    assert np.abs(dx - exact_dx).max() <= slope


@FORMS
def test_gelu_beside_its_slope(tanh):
    """For the feed-forward half: within 2e-7 max(1, |h|), as its docstring says, and 5e-7; far out h or 0, 1 or 0."""

    @numba.njit
    def over(y, slope, h):
        for i in range(0, h.size, 16):
            both = gelu_and_slope_lanes(lanes.load(np.intp(h.ctypes.data) + 4 * i), tanh)
            lanes.store(np.intp(y.ctypes.data) + 4 * i, both[0])
            lanes.store(np.intp(slope.ctypes.data) + 4 * i, both[1])

    device = devices.Device("cpu")
    far = np.float32([15, 2e19, 1e20, 3e38] * 2)
    h = device.array(np.concatenate([-far, far, np.linspace(-20, 20, 160_000, dtype=np.float32)]))
    y, slope = device.empty_like(h), device.empty_like(h)
    over(y, slope, h)
    near, size = h[None, 16:].astype(np.float64), h.size - 16
    wanted, slopes = np.empty((1, size)), np.empty((1, size))
    reference.forward(wanted, near, np.zeros(size), tanh)
    reference.backward(slopes, np.zeros(size), np.ones((1, size)), near, np.zeros(size), tanh, np.empty(0, np.uint8))
    assert (np.abs(y[16:] - wanted[0]) / np.maximum(1, np.abs(near[0]))).max() < 2e-7
    assert np.abs(slope[16:] - slopes[0]).max() < 5e-7
    np.testing.assert_array_equal(y[:16], np.maximum(h[:16], 0))
    np.testing.assert_array_equal(slope[:16], h[:16] > 0)
