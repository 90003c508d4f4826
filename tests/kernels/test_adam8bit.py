"""Adam with moments of 8 bits: the codes, steps by hand, kernels against the definition, small updates."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, one
from checks import assert_as_accurate
from minibert.kernels.adam import reference as adam
from minibert.kernels.adam8bit import cpu, reference
from minibert.kernels.adam8bit.codes import BLOCK, SIGNED, UNSIGNED

BERT = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "correction1": 1.0, "correction2": 1.0}
BACKENDS = pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("adam8bit")])
KERNELS = pytest.mark.parametrize("backend", [cpu, *gpus.backends("adam8bit")])
SIZES = pytest.mark.parametrize("n", [0, 1, 16, 17, 255, 256, 257, 400, 40_001])


def zeros(n: int, dtype=np.float32):
    """(m, root, m_largest, root_largest) as training begins."""
    blocks = -(-n // BLOCK)
    codes = (np.zeros((blocks, BLOCK), np.uint8) for _ in range(2))
    return (*codes, np.zeros(blocks, dtype), np.zeros(blocks, dtype))


def moments(m, root, m_largest, root_largest, n: int):
    """The numbers that the codes stand for: M and sqrt(V)."""
    return [(SIGNED[m].T * m_largest).T.reshape(-1)[:n], (UNSIGNED[root].T * root_largest).T.reshape(-1)[:n]]


# --- the codes


def test_numbers_ascend_from_0_to_1_and_have_both_ends_of_each_range():
    assert len(UNSIGNED) == len(SIGNED) == 256
    assert (np.diff(UNSIGNED) > 0).all() and UNSIGNED[0] == 0 and UNSIGNED[255] == 1
    assert {8.0**-r for r in range(8)} <= set(UNSIGNED) and UNSIGNED[1] == 8.0**-7
    assert {8.0**-r for r in range(7)} <= set(SIGNED) and SIGNED[1] == 8.0**-6
    np.testing.assert_array_equal(SIGNED[128:], -SIGNED[:128])


def test_a_range_has_twice_the_steps_of_the_next():
    places = np.searchsorted(UNSIGNED, 8.0 ** -np.arange(8)).tolist()
    assert places == [255, 127, 63, 31, 15, 7, 3, 1]
    for r in range(7):
        np.testing.assert_allclose(np.diff(UNSIGNED[places[r + 1] : places[r] + 1]), 7 / 8 * 8.0**-r * 2.0 ** (r - 7))


# --- steps by hand


@BACKENDS
def test_first_step_by_hand(backend):
    """g' = 0.5 * 4 = 2: M = 0.2, V = 0.004, the largest of their block and so code 127 and 255; as Adam's first."""
    p, g, state = np.array([3], np.float32), np.array([4], np.float32), zeros(1)
    backend.update(p, *state, g, scale=one(0.5), lr=0.1, decay=0.01, **BERT)
    m, root, m_largest, root_largest = state
    assert (m[0, 0], root[0, 0], g[0]) == (127, 255, 4)
    assert (m_largest[0], root_largest[0]) == (pytest.approx(0.2), pytest.approx(0.004**0.5))
    assert p[0] == pytest.approx(3 - 0.1 * (0.2 / (0.004**0.5 + 1e-6) + 0.03), rel=1e-6)


@BACKENDS
def test_codes_by_hand_and_what_the_next_step_makes_of_them(backend):
    """Gradients 80, -10, 24 and 0: shares 1, 1/8, 0.3 and 0 of the largest M, 8, and of the root of the largest V.

    0.3 lies (0.3 - 1/8) / (7/512) = 12.8 steps of 1/64 of a range above 1/8, whose code is 63: 76 is
    1/8 + 13 * 7/512. Of the root's it lies 25.6 steps above 127: 153 is 1/8 + 26 * 7/1024.
    """
    p, state = np.zeros(4, np.float32), zeros(4)
    backend.update(p, *state, np.array([80, -10, 24, 0], np.float32), scale=one(1.0), lr=0.0, decay=0.0, **BERT)
    assert state[0][0, :5].tolist() == [127, 128 + 63, 76, 0, 0] and state[1][0, :5].tolist() == [255, 127, 153, 0, 0]
    assert state[2][0] == pytest.approx(8) and state[3][0] == pytest.approx(6400**0.5 * 0.001**0.5)
    backend.update(p, *state, np.zeros(4, np.float32), scale=one(1.0), lr=1.0, decay=0.0, **BERT)
    m = 0.9 * 8 * np.array([1, -1 / 8, 1 / 8 + 13 * 7 / 512, 0])
    r = 0.999**0.5 * 80 * 0.001**0.5 * np.array([1, 1 / 8, 1 / 8 + 26 * 7 / 1024, 0])
    np.testing.assert_allclose(p, -m / (r + 1e-6), rtol=1e-6)


@BACKENDS
def test_a_root_stays_though_its_unit_squared_is_no_float32(backend):
    p, state = np.zeros(1, np.float32), zeros(1)
    for g in (1e-14, 0):
        backend.update(p, *state, np.array([g], np.float32), scale=one(1.0), lr=0.0, decay=0.0, **BERT)
    assert state[1][0, 0] == 255 and state[3][0] == pytest.approx(1e-14 * 0.001**0.5 * 0.999**0.5)


@BACKENDS
def test_the_root_is_0_only_where_it_is_and_the_moment_where_it_is_small(backend):
    """Shares 1e-7 and 1e-9, far below the smallest numbers of both."""
    p, state = np.zeros(3, np.float32), zeros(3)
    backend.update(p, *state, np.array([1, 1e-7, 1e-9], np.float32), scale=one(1.0), lr=0.0, decay=0.0, **BERT)
    assert state[0][0, :3].tolist() == [127, 0, 0] and state[1][0, :4].tolist() == [255, 1, 1, 0]


# --- kernels against the definition


def random_state(n: int, dtype):
    """Any codes, blocks and gradients of any size, one block still at zero."""
    rng = np.random.default_rng(n)
    m, root, m_largest, root_largest = zeros(n, dtype)
    for codes in (m, root):
        codes.reshape(-1)[:n] = rng.integers(0, 256, n)
    m_largest[1:] = 10.0 ** rng.uniform(-6, 0, max(0, len(m) - 1)).astype(np.float32)
    root_largest[1:] = m_largest[1:] * 0.3
    p, g = (rng.standard_normal(n + BLOCK) for _ in range(2))
    g *= 10.0 ** rng.uniform(-9, 0, n + BLOCK)
    p, g = (array.astype(np.float32).astype(dtype)[:n] for array in (p, g))
    return p, m, root, m_largest, root_largest, g


def one_step(update, n: int, dtype=np.float32):
    """One step from a random state; g, what lies behind p in memory and behind the codes in use stay as they are."""
    p, *state, g = random_state(n, dtype)
    behind, gradients = p.base[n:].copy(), g.base.copy()
    update(p, *state, g, scale=one(0.37, dtype), lr=0.01, decay=0.1, **BERT)
    assert np.array_equal(p.base[n:], behind) and np.array_equal(g.base, gradients)
    assert not any(codes.reshape(-1)[n:].any() for codes in state[:2])
    return p, *state


def check_step(update, n: int):
    """One step from a random state: new weights and largest as accurate as NumPy's, and of all codes the nearest."""
    p, m, root, *largest = one_step(update, n)
    naive, exact = one_step(reference.update, n), one_step(reference.update, n, np.float64)
    for name, i, got in (("p", 0, p), ("m_largest", 3, largest[0]), ("root_largest", 4, largest[1])):
        assert_as_accurate(got, naive[i], exact[i], floor=FEW_ULPS, what=name)
    for name, got, wanted in (("m", m, exact[1]), ("root", root, exact[2])):
        apart = np.abs(got.astype(int) - wanted)
        # A share half-way between two numbers may be rounded to both.
        assert apart.max(initial=0) <= 1, f"{name}: codes differ by {apart.max()}"
        assert np.count_nonzero(apart) <= 1 + 1e-3 * n, f"{name}: {np.count_nonzero(apart)} codes differ"


@KERNELS
@SIZES
def test_is_as_accurate_as_numpy(n, backend):
    check_step(backend.update, n)


@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["m", "root", "m_largest", "root_largest"])
def test_a_kernel_that_is_wrong_in_one_array_is_caught(which):
    def wrong(p, *arguments, **scalars):
        cpu.update(p, *arguments, **scalars)
        arguments[which][-2] += np.ones((), arguments[which].dtype)

    with pytest.raises(AssertionError, match="differ|error"):
        check_step(wrong, 40_001)


def steps(update, n: int, count: int = 10, dtype=np.float32):
    """Steps from zero with gradients whose sizes lie four powers of ten apart, element by element."""
    rng = np.random.default_rng(n)
    size = 10.0 ** rng.uniform(-6, -2, n)
    p, *state, _ = random_state(n, dtype)
    for array in state:
        array.fill(0)
    for step in range(1, count + 1):
        g = (rng.standard_normal(n) * size).astype(np.float32).astype(dtype)
        corrections = {"correction1": 1 - 0.9**step, "correction2": 1 - 0.999**step}
        update(p, *state, g, scale=one(0.37, dtype), lr=0.01, decay=0.1, **{**BERT, **corrections})
    return p, *state


@KERNELS
@SIZES
def test_ten_steps_go_where_the_definition_goes(n, backend):
    """A code that was rounded the other way is a small part of the way."""
    (got, *_), (wanted, *_) = steps(backend.update, n), steps(reference.update, n, dtype=np.float64)
    assert np.linalg.norm(got - wanted) <= 1e-3 * np.linalg.norm(wanted - random_state(n, np.float64)[0])


def test_same_bits_for_any_count_of_threads():
    assert_same_bits(lambda: steps(cpu.update, 100_001))


# --- that it is still Adam


def drives(steps: int, n: int = 2 * BLOCK):
    """Gradients of sizes from 1e-7 to 1 side by side in a block; some begin late, some fall silent."""
    rng = np.random.default_rng(5)
    size = 10.0 ** rng.uniform(-7, 0, n)
    starts, ends = rng.integers(0, steps, n), rng.integers(steps // 4, 2 * steps, n)
    for step in range(steps):
        yield (rng.standard_normal(n) * size * (starts <= step) * (step < ends)).astype(np.float32)


def largest_update(update, count: int = 120) -> float:
    """The most that one step at rate 1 moves any weight."""
    n, largest = 2 * BLOCK, 0.0
    state = zeros(n)
    for g in drives(count):
        p = np.zeros(n, np.float32)
        update(p, *state, g, scale=one(1.0), lr=1.0, decay=0.0, **BERT)
        largest = max(largest, float(np.abs(p).max()))
    return largest


@BACKENDS
def test_no_update_explodes_whatever_shares_a_block(backend):
    """Adam's own bound is 7.3 (kernels/adam8bit)."""
    assert largest_update(backend.update) < 8


def test_an_update_explodes_where_a_root_is_lost():
    """The test above can fail: the same with the smallest roots rounded to 0."""

    def losing(p, m, root, *arguments, **scalars):
        reference.update(p, m, root, *arguments, **scalars)
        root[root < 32] = 0

    assert largest_update(losing) > 50


@BACKENDS
def test_it_goes_nearly_where_adam_goes(backend):
    """Sixty steps of gradients with a mean, sizes a hundredfold apart: a twentieth of the way apart, at most."""
    rng, n = np.random.default_rng(3), 3 * BLOCK
    size, drift = 10.0 ** rng.uniform(-4, -2, n), rng.standard_normal(n)
    p, q, m, v, state = *(np.zeros(n, np.float32) for _ in range(4)), zeros(n)
    for _ in range(60):
        g = ((rng.standard_normal(n) + drift) * size).astype(np.float32)
        adam.update(p, m, v, g.copy(), scale=one(1.0), lr=1e-3, decay=0.0, **BERT)
        backend.update(q, *state, g, scale=one(1.0), lr=1e-3, decay=0.0, **BERT)
    assert np.linalg.norm(p - q) < 0.05 * np.linalg.norm(p)
    for got, wanted in zip(moments(*state, n), (m, np.sqrt(v)), strict=True):
        assert np.linalg.norm(got - wanted) < 0.05 * np.linalg.norm(wanted)
