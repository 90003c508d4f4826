"""Storage: 16 elements at a time, the end of an array included, and bf16 rounded as the nearest number is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bits import as_bf16, from_bf16
from minibert.kernels.common import storage
from minibert.kernels.devices.compiling import jit

TYPES = pytest.mark.parametrize("dtype", [np.float32, np.uint16])


@jit
def copy(y, x, n):
    for i in range(0, n, 16):
        inside = storage.inside(i, n)
        storage.store(y, i, storage.load(x, i, inside), inside)


@TYPES
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 32, 33, 64, 100])
def test_whatever_the_length_nothing_beyond_it_is_written(dtype, n):
    x = np.arange(1, 201).astype(np.float32)
    x = x if dtype == np.float32 else as_bf16(x)
    y = np.full(200, 7, dtype)
    copy(y, x, n)
    np.testing.assert_array_equal(y[:n], x[:n])
    assert (y[n:] == 7).all()


def test_bf16_is_float32_s_upper_half():
    stored = np.arange(1 << 16, dtype=np.uint16)
    x = np.zeros(1 << 16, np.float32)
    copy(x, stored, 1 << 16)
    np.testing.assert_array_equal(x.view(np.uint32) >> 16, stored)


def test_rounding_is_that_of_ml_dtypes():
    """To the nearest, ties to even, overflow to infinity; NaN stays NaN; subnormal numbers become zeros."""
    patterns = np.arange(0, 1 << 32, 65521, np.uint64).astype(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) + np.uint32(0x8000)
    nans = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000], np.uint32)
    x = np.concatenate([patterns, ties, nans]).view(np.float32)
    stored = np.zeros(x.size, np.uint16)
    copy(stored, x, x.size)
    nan, normal = np.isnan(x), np.abs(x) >= np.finfo(np.float32).tiny
    assert np.isnan(from_bf16(stored)[nan]).all()
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(stored[normal], wanted[normal])
    small = ~nan & ~normal
    np.testing.assert_array_equal(stored[small], np.signbit(x[small]) * np.uint16(0x8000))


@jit
def copy_bytes(y, x):
    for i in range(0, x.size, 16):
        storage.store_bytes(y, i, storage.load_bytes(x, i) * np.uint32(257))


def test_bytes_are_words_and_the_lowest_bytes_of_words():
    x = np.arange(256, dtype=np.uint8)[::-1].copy()
    y = np.zeros(258, np.uint8)
    copy_bytes(y[1:257], x)
    np.testing.assert_array_equal(y[1:257], x)
    assert y[0] == y[257] == 0


def test_other_arrays_are_refused():
    with pytest.raises(Exception, match="not a C-contiguous array of float32 or uint16"):
        copy(np.zeros(16), np.zeros(16), 16)
