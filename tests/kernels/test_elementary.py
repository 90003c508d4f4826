"""exp, tanh and powers over every kind of float32, against float64; the bounds are those of the docstrings."""

from __future__ import annotations

import functools

import numba
import numpy as np
import pytest

from minibert.kernels.common import elementary, lanes
from minibert.kernels.common.elementary_lanes import LOG2E, power

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 3e38, -3e38], np.float32)
EXACT = {
    "exp": np.exp,
    "exp_bounded": lambda x: np.select([x < elementary.EXP_NORMAL, x > 88.37625], [0.0 * x, np.inf], np.exp(x)),
    "tanh": np.tanh,
}
# Units in the last place, and absolutely where the result is below 2.
BOUNDS = {"exp": (1.0, 1e-7), "exp_bounded": (1.0, 1e-7), "tanh": (1.5, 8e-8)}


@functools.cache
def over(name: str):
    """The function in a loop, as kernels use it; not cached on disk, so that its code can be looked at."""
    function = getattr(elementary, name)

    @numba.njit
    def loop(y, x):
        for i in range(x.size):
            y[i] = function(x[i])

    return loop


def points() -> np.ndarray:
    """400,000 bit patterns over all floats, as many between -20 and 20, those near where the formulas change."""
    patterns = np.arange(0, 2**32, 10_007, dtype=np.uint64).astype(np.uint32).view(np.float32)
    knots = np.array([0.625, 9.1, 44.2, 87.3365, 88.376, 88.7228, 89, 103.972], np.float32)
    near = (knots.view(np.int32)[:, None] + np.arange(-200, 201, dtype=np.int32)).view(np.float32).ravel()
    return np.concatenate([SPECIAL, patterns, np.linspace(-20, 20, 400_000, dtype=np.float32), near, -near])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on infinities: what they give is what is tested
def test_accuracy(name):
    x = points()
    x = x[~(np.abs(x - 88.3763) < 1e-4)]  # where exp_bounded turns infinite, to a rounding
    y = np.full_like(x, 7)
    over(name)(y, x)
    exact = EXACT[name](x.astype(np.float64))
    rounded = exact.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(x))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(rounded))
    finite = np.isfinite(rounded)
    error = np.abs(y[finite].astype(np.float64) - exact[finite])
    ulps, absolute = BOUNDS[name]
    assert (error / np.spacing(np.abs(rounded[finite]))).max() <= ulps
    assert error[np.abs(exact[finite]) < 2].max() <= absolute


@pytest.mark.parametrize("name", EXACT)
def test_loops_are_vectorised(name):
    """One call or branch in the loop and LLVM leaves it scalar, eight times slower or more."""
    loop = over(name)
    loop(np.zeros(8, np.float32), np.zeros(8, np.float32))
    (code,) = loop.inspect_llvm().values()
    assert any(f"fmul contract <{lanes} x float>" in code for lanes in (4, 8, 16))


def test_powers_on_lanes():
    """2^(x steepness) as its docstring says, and NaN of any kind stays NaN."""

    @numba.njit
    def powers(y, x, steepness):
        for i in range(0, x.size, 16):
            lanes.store(np.intp(y.ctypes.data) + 4 * i, power(lanes.load(np.intp(x.ctypes.data) + 4 * i), steepness))

    def over(x: np.ndarray, steepness: np.float32) -> np.ndarray:
        memory = np.zeros(x.size + 16, np.float32)
        y = memory[-memory.ctypes.data % 64 // 4 :][: x.size]
        powers(y, x, steepness)
        return y

    x = np.linspace(-120, 87, 160_000, dtype=np.float32)
    exact = np.exp2(x.astype(np.float64) * np.float64(LOG2E))
    y, near = over(x, LOG2E), x > -1
    assert (np.abs(y - exact) / exact)[near].max() <= 1e-5 and (np.abs(y - exact) / exact)[np.abs(x) < 1].max() <= 2e-7
    assert (y[x < -80.1] == 0).all() and np.abs(y - exact)[x < 0].max() <= 2e-7
    payloads = np.random.default_rng(0).integers(1, 1 << 22, 1600, np.uint32)
    for sign in (np.uint32(0x7FC00000), np.uint32(0xFFC00000)):
        assert np.isnan(over((payloads | sign).view(np.float32), LOG2E)).all()
    assert (over(np.full(16, -np.inf, np.float32), LOG2E) == 0).all()
