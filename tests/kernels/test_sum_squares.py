"""The sum of squares: as exact as float64, the same on any number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpus
from bits import assert_same_bits, unwritten
from minibert.kernels.sum_squares import cpu, reference


def total(backend, x):
    result = unwritten((1,), np.float64)
    backend.forward(result, x, np.full(backend.workspace(x.size), 255, np.uint8))
    return result


@pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("sum_squares")])
@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("shape", [(0,), (1,), (17, 7), (65536,), (65537,), (300_001,)], ids=str)
def test_sum(backend, shape, shift):
    x = (np.random.default_rng(0).standard_normal(shape) + shift).astype(np.float32)
    assert total(backend, x)[0] == pytest.approx(math.fsum(float(v) ** 2 for v in x.flat), rel=1e-13)


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("sum_squares")])
def test_squares_beyond_float32(backend):
    x = np.array([1e30, 1e-30, -1e30], np.float32)
    assert total(backend, x)[0] == pytest.approx(2e60, rel=1e-6)


@pytest.mark.parametrize("start", [1, 2, 3])
@gpus.needs_compiler
def test_gpu_parts_of_a_buffer_may_begin_anywhere(start):
    x = np.arange(40, dtype=np.float32)[start:]
    assert total(gpus.Emulated("sum_squares"), x)[0] == (x**2).sum()


def test_same_bits_for_any_count_of_threads():
    x = np.random.default_rng(0).standard_normal(1_000_001, dtype=np.float32)
    assert_same_bits(lambda: (total(cpu, x),))
