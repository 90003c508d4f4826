"""Adafactor: steps by hand, what its factors must be exact for, kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, one, unwritten
from checks import assert_as_accurate
from minibert.kernels.adafactor import cpu, reference

PAPER = {"eps": 1e-30, "clip": 1.0}
BACKENDS = pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("adafactor")])


def update(backend, p, rows, columns, g, **scalars):
    backend.update(p, rows, columns, g, **PAPER, **scalars, scratch=np.full(backend.workspace(*p.shape), 255, np.uint8))


def arrays(*lists):
    return [np.array(numbers, np.float32) for numbers in lists]


@BACKENDS
def test_first_step_by_hand(backend):
    """g' = [[1, 2], [2, 4]] has squares of rank 1: rows 2.5 and 10, columns 2.5 and 10, and u = 1 everywhere."""
    p, rows, columns, g = arrays([[3, 3], [3, 3]], [7, 7], [7, 7], [[2, 4], [4, 8]])
    update(backend, p, rows, columns, g, scale=one(0.5), lr=0.1, beta2=0.0, decay=0.01)
    np.testing.assert_allclose(rows, [2.5, 10], rtol=1e-6)
    np.testing.assert_allclose(columns, [2.5, 10], rtol=1e-6)
    np.testing.assert_allclose(p, 3 - 0.1 * (1 + 0.03), rtol=1e-6)
    np.testing.assert_array_equal(g, [[2, 4], [4, 8]])


@BACKENDS
def test_second_step_by_hand_with_clipping(backend):
    """beta2 = 3/4: rows and columns 3/4 [1, 1] + 1/4 [32, 0]; the mean of u^2 is 64 * 4.75 / 8.75^2 / 4 = 0.9927.
    With 8 in both corners all are 8.75, and the mean, 2 * 64 / 8.75 / 4, is clipped to 1: u is sqrt(2) there.
    """
    p, rows, columns, g = arrays([[0, 0], [0, 0]], [1, 1], [1, 1], [[8, 0], [0, 0]])
    update(backend, p, rows, columns, g, scale=one(1.0), lr=1.0, beta2=0.75, decay=0.0)
    np.testing.assert_allclose(rows, [8.75, 0.75], rtol=1e-6)
    np.testing.assert_allclose(columns, [8.75, 0.75], rtol=1e-6)
    np.testing.assert_allclose(p, [[-8 / 8.75 * 4.75**0.5, 0], [0, 0]], rtol=1e-6)
    p, rows, columns, g = arrays([[0, 0], [0, 0]], [1, 1], [1, 1], [[8, 0], [0, 8]])
    update(backend, p, rows, columns, g, scale=one(1.0), lr=1.0, beta2=0.75, decay=0.0)
    np.testing.assert_allclose(p, [[-(2**0.5), 0], [0, -(2**0.5)]], rtol=1e-6)


@BACKENDS
def test_a_vector_has_a_second_moment_for_each_element(backend):
    """One row: columns are the squares' averages, u = g / sqrt(columns), and the row's number changes nothing."""
    p, rows, columns, g = arrays([[0, 0, 0]], [9], [4, 16, 1], [[2, 0, -1]])
    update(backend, p, rows, columns, g, scale=one(1.0), lr=0.5, beta2=0.5, decay=0.0)
    np.testing.assert_allclose(columns, [4, 8, 1], rtol=1e-6)
    np.testing.assert_allclose(p, [[-0.5, 0, 0.5]], rtol=1e-6)


@BACKENDS
@pytest.mark.parametrize("f", [1, 3])
def test_a_long_update_is_clipped_to_a_mean_of_one(backend, f):
    """Averages of 1 before, gradients of 8 everywhere: u = 8 / sqrt(0.75 + 16) is too long by itself."""
    p, g = np.zeros((f, 300), np.float32), np.full((f, 300), 8, np.float32)
    update(backend, p, *arrays([1] * f, [1] * 300), g, scale=one(1.0), lr=0.5, beta2=0.75, decay=0.0)
    np.testing.assert_allclose(p, -0.5, rtol=1e-6)


@BACKENDS
def test_without_gradients_only_decay_moves_anything(backend):
    """Rows and columns of nothing but 1e-30 divide no zero by zero, and nothing becomes infinite."""
    p, rows, columns = np.full((5, 3), 2, np.float32), np.zeros(5, np.float32), np.zeros(3, np.float32)
    g = np.zeros((5, 3), np.float32)
    for step in (1, 2, 3):
        update(backend, p, rows, columns, g, scale=one(1.0), lr=0.1, beta2=1 - step**-0.8, decay=0.5)
    np.testing.assert_allclose(p, 2 * 0.95**3, rtol=1e-6)
    g[4, 1] = 1e-3
    update(backend, p, rows, columns, g, scale=one(1.0), lr=0.1, beta2=0.5, decay=0.0)
    assert np.isfinite(p).all() and p[4, 1] < 2 * 0.95**3 - 0.1 and np.unique(p).size == 2


def steps(update_, shape, dtype=np.float32):
    """Six steps; rows and columns lie powers of ten apart, as words do that come often or never."""
    f, c = shape
    rng = np.random.default_rng(f * 1000 + c)
    p = rng.standard_normal(shape).astype(np.float32).astype(dtype)
    rows, columns = unwritten((f,), dtype), unwritten((c,), dtype)
    rows[...], columns[...] = 0, 0
    size = 10.0 ** rng.integers(-6, 1, (f, 1)) * 10.0 ** rng.integers(-3, 1, (1, c))
    for step in range(1, 7):
        g = (rng.standard_normal(shape) * size).astype(np.float32).astype(dtype)
        update_(p, rows, columns, g, scale=one(0.37, dtype), lr=0.01, beta2=1 - step**-0.8, decay=0.1)
    return p, rows, columns


def on(backend):
    return lambda *arguments, **scalars: update(backend, *arguments, **scalars)


def check(update_, shape):
    """As accurate as NumPy in float32."""
    got, naive = steps(update_, shape), steps(on(reference), shape)
    for name, *three in zip(("p", "rows", "columns"), got, naive, steps(on(reference), shape, np.float64), strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


SHAPES = [(0, 5), (5, 0), (1, 1), (1, 768), (2, 24), (63, 7), (64, 17), (65, 33), (521, 67), (67, 1031), (1100, 7)]


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("adafactor")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_as_accurate_as_numpy(shape, backend):
    check(on(backend), shape)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["p", "rows", "columns"])
def test_a_kernel_that_leaves_the_last_chunk_out_is_caught(which):
    def wrong(*arguments, **scalars):
        kept = arguments[which][-1].copy()
        update(cpu, *arguments, **scalars)
        arguments[which][-1] = kept

    with pytest.raises(AssertionError, match="max error|not finite"):
        check(wrong, (65, 33))


def test_same_bits_for_any_count_of_threads():
    assert_same_bits(lambda: steps(on(cpu), (1_003, 129)))
