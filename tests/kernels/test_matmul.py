"""The linear layer: definition against slopes, BLAS in slices against the definition, and what it must not do."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.devices import cpu as device
from minibert.kernels.matmul import cpu, reference

STARTS = pytest.mark.parametrize("start", [0.5, None], ids=["adding", "overwriting"])
SHAPES = [
    (0, 24, 7), (1, 1, 1), (3, 7, 24), (17, 1, 96), (257, 96, 7), (20, 384, 96), (300, 2, 768), (129, 768, 384),
]  # fmt: skip


def inputs(t: int, f: int, c: int, shift: float = 0, dtype=np.float32):
    rng = np.random.default_rng(t + f + c)
    x, w, bias, dy = (rng.standard_normal(shape) for shape in ((t, c), (f, c), (f,), (t, f)))
    return tuple(a.astype(dtype) for a in (x + shift, w, bias, dy))


def forward(backend, x, w, bias):
    y = unwritten((len(x), len(w)), x.dtype)
    backend.forward(y, x, w, bias, np.full(backend.workspace(*y.shape, x.shape[1]), 255, np.uint8))
    return y


def backward(backend, dy, x, w, start: float | None = None):
    """dx, dw, dbias; the last two start from `start`, because kernels must add; None: dw is to be overwritten."""
    scratch = np.full(backend.workspace(*dy.shape, x.shape[1]), 255, np.uint8)
    add, dx, dbias = start is not None, unwritten(x.shape, x.dtype), np.full(len(w), start or 0, x.dtype)
    dw = np.full_like(w, start) if add else unwritten(w.shape, w.dtype)
    backend.backward(dx, dw, dbias, dy, x, w, add, scratch)
    return dx, dw, dbias


def test_reference_gradients():
    x, w, bias, _ = inputs(5, 4, 3, dtype=np.float64)
    assert_gradients(
        lambda x, w, bias: forward(reference, x, w, bias), lambda dy: backward(reference, dy, x, w), (x, w, bias)
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shift", [0, 100])
@STARTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cpu_is_as_accurate_as_numpy(shape, start, shift, threads):
    x, w, bias, dy = inputs(*shape, shift)

    x64, w64, bias64, dy64 = (a.astype(np.float64) for a in (x, w, bias, dy))
    before = device.threads()
    device.set_threads(threads)
    try:
        got = forward(cpu, x, w, bias), *backward(cpu, dy, x, w, start)
    finally:
        device.set_threads(before)
    naive = forward(reference, x, w, bias), *backward(reference, dy, x, w, start)
    exact = forward(reference, x64, w64, bias64), *backward(reference, dy64, x64, w64, start)
    for name, *three in zip(("y", "dx", "dw", "dbias"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@pytest.mark.parametrize("backend", gpus.backends("matmul"))
@STARTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gpu_is_as_accurate_as_numpy(shape, start, backend):
    arrays = inputs(*shape)
    three = []
    for which, (x, w, bias, dy) in (
        (backend, arrays), (reference, arrays), (reference, [a.astype(np.float64) for a in arrays])
    ):  # fmt: skip
        three.append((forward(which, x, w, bias), *backward(which, dy, x, w, start)))
    for name, *results in zip(("y", "dx", "dw", "dbias"), *three, strict=True):
        assert_as_accurate(*results, floor=FEW_ULPS, what=name)


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("matmul")])
def test_no_bias_and_unwanted_dx(backend):
    x, w, bias, dy = inputs(17, 24, 7)
    np.testing.assert_allclose(forward(backend, x, w, None), forward(backend, x, w, bias) - bias, atol=1e-5)
    dw = np.zeros_like(w)
    backend.backward(None, dw, None, dy, x, w, True, np.empty(backend.workspace(17, 24, 7), np.uint8))
    np.testing.assert_array_equal(dw, backward(backend, dy, x, w)[1])


def test_same_count_of_threads_gives_the_same_bits():
    x, w, bias, dy = inputs(300, 96, 384)
    assert_same_bits(lambda: (forward(cpu, x, w, bias), *backward(cpu, dy, x, w)), counts=(2, 2, 2))


def test_dbias_has_the_same_bits_for_any_count_of_threads():
    x, w, _, dy = inputs(300, 96, 7)
    assert_same_bits(lambda: backward(cpu, dy, x, w)[2:])


def test_blas_gets_views_and_no_copies():
    """NumPy copies a factor or the result where BLAS cannot take its strides: that would show in its memory."""
    x, w, bias, dy = inputs(512, 256, 384)
    y, dx, dw, dbias = (np.zeros_like(a) for a in (dy, x, w, bias))
    scratch = np.empty(cpu.workspace(512, 256, 384), np.uint8)
    cpu.forward(y, x, w, bias, scratch)
    cpu.backward(dx, dw, dbias, dy, x, w, True, scratch)  # compiled now
    tracemalloc.start()
    try:
        cpu.forward(y, x, w, bias, scratch)
        for add in (True, False):
            cpu.backward(dx, dw, dbias, dy, x, w, add, scratch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000  # one block of any of them is over 100,000 bytes


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
@pytest.mark.parametrize("side", [1, 31, 33, 768, 1700, 3072, 12288])
def test_slices_cover_each_side_once(side, threads):
    before = device.threads()
    device.set_threads(threads)
    try:
        for rows, columns in ((side, 5), (5, side)):
            seen = np.zeros((rows, columns), int)

            def block(worker, top, left, seen=seen):
                seen[top, left] += 1

            cpu._share_out(block, rows, columns)
            assert (seen == 1).all()
    finally:
        device.set_threads(before)
