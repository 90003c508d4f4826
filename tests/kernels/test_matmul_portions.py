"""The linear layer in portions of K, in vector registers and through three bf16 parts a number: as accurate as float32,
and where the range of the latter ends.
"""

from __future__ import annotations

import numpy as np
import pytest

from bits import FEW_ULPS, assert_same_bits
from checks import assert_as_accurate
from minibert.kernels import devices
from minibert.kernels.common import lanes, packing, split
from minibert.kernels.matmul import cpu_fma, cpu_split, reference
from test_matmul import SHAPES, STARTS, backward, forward, inputs
from test_matmul_bf16 import SIDES, guarded, on_threads, unpacked

LONG = [(40, 33, 3072), (40, 3072, 33), (3072, 40, 33)]  # K of y, dx and dw in four portions
TALL = [(640, 33, 1080), (640, 1080, 33), (1080, 640, 33)]  # in two, short ones: tasks have more panels of `a`
EACH = pytest.mark.parametrize("by", [cpu_fma, cpu_split], ids=["registers", "parts"])
LARGEST, SMALLEST = np.finfo(np.float32).max, np.finfo(np.float32).tiny


def all_three(by, x, w, bias, dy, what, start=0.5):
    """y, dx, dw and dbias against float64, beside NumPy in float32."""
    arrays64 = tuple(a.astype(np.float64) for a in (x, w, bias, dy))
    got, naive, exact = (
        (forward(backend, x, w, bias), *backward(backend, dy, x, w, start))
        for backend, (x, w, bias, dy) in (
            (by, (x, w, bias, dy)), (reference, (x, w, bias, dy)), (reference, arrays64),
        )
    )  # fmt: skip
    for name, *three in zip(("y", "dx", "dw", "dbias"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=f"{name} {what}")


@EACH
@pytest.mark.parametrize("shift", [0, 100])
@STARTS
@pytest.mark.parametrize("shape", SHAPES + LONG + TALL, ids=str)
def test_as_accurate_as_numpy(shape, start, shift, by):
    if by is cpu_fma and shape[1] == 2 and lanes.compiles("avx512f"):
        pytest.skip("AVX-512's BLAS, which this does not replace, sums two columns by another order and twice as well")
    all_three(by, *inputs(*shape, shift), shape, start)


@EACH
def test_a_long_sum_is_made_of_short_ones(by):
    """In one piece K = 3,072 would give twice the error of NumPy, which sums in portions too."""
    x, w, _, _ = inputs(300, 300, 3072)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    assert_as_accurate(forward(by, x, w, None), x @ w.T, exact, k=1.2, floor=0)


@EACH
def test_as_accurate_as_numpy_over_a_wide_range_of_exponents(by):
    """Elements from 2^-40 to 2^40: one number of a sum drowns the others, and its own error is what remains."""
    rng = np.random.default_rng(0)
    wide = (a * np.exp2(rng.uniform(-40, 40, a.shape)).astype(np.float32) for a in inputs(70, 65, 300))
    all_three(by, *wide, "wide")


@pytest.mark.parametrize("exponent", [-102, 60])
def test_as_accurate_as_numpy_at_the_ends_of_the_range(exponent):
    """x from 2^-102 on has all of its bits; products of like size, and sums, need as much distance from 2^-126."""
    x, w, bias, dy = inputs(40, 33, 65)
    scale = np.float32(2.0**exponent)
    x = (np.sign(x) * (1 + np.abs(x))).astype(np.float32)
    y, exact = forward(cpu_split, x * scale, w, None), (x * scale).astype(np.float64) @ w.T.astype(np.float64)
    assert_as_accurate(y, (x * scale) @ w.T, exact, floor=FEW_ULPS, what="y")


def test_the_largest_numbers_stay_finite_and_the_smallest_do_no_harm():
    """What rounds to infinity in bf16 is no infinity here; numbers below 2^-126 count as zero."""
    x = np.array([[LARGEST], [-LARGEST], [np.float32(3.3961776e38)], [SMALLEST / 2], [0]], np.float32)
    y = forward(cpu_split, x, np.ones((1, 1), np.float32), None)
    np.testing.assert_array_equal(y, np.where(np.abs(x) < SMALLEST, np.float32(0), x))


@EACH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_stays_visible_where_it_belongs(bad, by):
    x, w, bias, dy = inputs(40, 50, 70)
    x[37, 66] = bad
    y = forward(by, x, w, bias)
    assert np.isfinite(np.delete(y, 37, 0)).all() and not np.isfinite(y[37]).any()
    dx, dw, _ = backward(by, dy, x, w)
    assert np.isfinite(dx).all()
    assert np.isfinite(np.delete(dw, 66, 1)).all() and not np.isfinite(dw[:, 66]).any()


def test_three_parts_are_the_number_to_the_last_bit():
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((33, 70)) * np.exp2(rng.uniform(-100, 120, (33, 70)))).astype(np.float32)
    b = packing.Room(devices.Device("cpu").scratch(packing.packed_bytes(70, 33, 3) + 64)).packed(70, 33, 3)
    split.pack_pairs(0, 0, 2, b, w, 0)
    parts = [unpacked(part).astype(np.uint32) << 16 for part in np.split(b, 3, axis=2)]
    total = sum(part.view(np.float32).astype(np.float64) for part in parts)
    np.testing.assert_array_equal(total[:33, :70], w)
    assert not total[33:].any() and not total[:, 70:].any()


@EACH
@pytest.mark.parametrize("seed", range(12))
def test_integers_come_out_exactly_and_nothing_else_is_touched(seed, by):
    """Integers of up to 11 bits need two parts, and their sums of products have no rounding: any wrong index shows,
    and so does any stray byte.
    """
    rng = np.random.default_rng(seed)
    t, f, c = (int(rng.choice(SIDES[:-3])) for _ in range(3))
    shapes = {"y": (t, f), "dx": (t, c), "dw": (f, c), "dbias": (f,), "x": (t, c), "w": (f, c), "dy": (t, f), "b": (f,)}
    v = {name: rng.integers(-4, 5, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("x", "w", "dy"):
        v[name][:, :: 1 + seed % 3] += np.float32(1024 if name == "x" else 0)
    pairs = {name: guarded(value, int(rng.integers(0, 2)) * seed % 16) for name, value in v.items()}
    a, add = {name: pair[0] for name, pair in pairs.items()}, seed % 4 < 2
    if not add:
        a["dw"][...] = np.nan
    with on_threads(1 + seed % 2):
        scratch = np.full(by.workspace(t, f, c) + 128, 255, np.uint8)
        by.forward(a["y"], a["x"], a["w"], a["b"], scratch[64:-64])
        by.backward(a["dx"], a["dw"], a["dbias"], a["dy"], a["x"], a["w"], add, scratch[64:-64])
    wanted = {name: v[name] for name in ("x", "w", "dy", "b")}
    wanted |= {"y": v["x"] @ v["w"].T + v["b"], "dx": v["dy"] @ v["w"]}
    wanted |= {"dw": add * v["dw"] + v["dy"].T @ v["x"], "dbias": v["dbias"] + v["dy"].sum(0)}
    for name, (array, memory) in pairs.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=f"{name} of {t, f, c}")
        array.view(np.uint8)[...] = 255
        assert (memory.view(np.uint8) == 255).all(), f"{name} of {t, f, c}: written beside it"
    assert (scratch[:64] == 255).all() and (scratch[-64:] == 255).all()


@EACH
def test_no_bias_and_unwanted_gradients(by):
    x, w, bias, dy = inputs(70, 24, 300)
    np.testing.assert_array_equal(forward(by, x, w, None), forward(by, x, w, np.zeros_like(bias)))
    dw = np.zeros_like(w)
    scratch = np.empty(by.workspace(70, 24, 300), np.uint8)
    by.backward(None, dw, None, dy, x, w, True, scratch)
    np.testing.assert_array_equal(dw, backward(by, dy, x, w)[1])


@EACH
@pytest.mark.parametrize("shape", [(700, 96, 384), (40, 200, 1100), (1100, 40, 33)], ids=str)
def test_same_bits_for_any_count_of_threads(shape, by):
    x, w, bias, dy = inputs(*shape)
    assert_same_bits(lambda: (forward(by, x, w, bias), *backward(by, dy, x, w)))
