"""Attention's kernels for the GPU: as accurate as the CPU's, masks bit for bit, the same bits in any order of threads."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, unwritten
from checks import assert_as_accurate
from minibert.kernels.attention import reference
from minibert.kernels.common.philox import attention_mask
from packed import exact, pack
from test_attention import KEY, compute, make
from test_attention_bf16 import bits, make_rounded, naive, numbers, parts

PLAIN = (7, 5)  # a card without tensor cores for bf16
BACKENDS = gpus.backends("attention")
LENGTHS = (1, 2, 3, 17, 31, 61)
# lengths, heads, head size, rate
CASES = [((), 2, 8, 0.1), ((1,), 3, 8, 0.5), ((7, 0, 19), 3, 5, 0.5), (LENGTHS, 2, 64, 0.1), ((130,), 1, 32, 0.0)]
DATA = pytest.mark.parametrize("data", [{}, {"shift": 100.0}, {"size": 16.0}], ids=["plain", "shifted", "huge"])


@DATA
@pytest.mark.parametrize(("lengths", "heads", "d", "rate"), [*CASES, ((1, 80), 1, 70, 0.1), ((40,), 1, 1, 0.1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32(backend, lengths, heads, d, rate, data):
    batch, inputs = pack(lengths), make(sum(lengths), heads * d, **data)
    results = [compute(which, batch, heads, rate, *arrays)
               for which, arrays in [(backend, inputs), (reference, inputs), (reference, exact(*inputs))]]  # fmt: skip
    for what, got, plain, wanted in zip(("y", "lse", "dqkv"), *results, strict=True):
        assert_as_accurate(got, plain, wanted, k=3, floor=5e-7, what=what)


def in_bf16(backend, batch, heads, rate, qkv, dy):
    """(y, lse, dqkv) as float32 of activations in bf16, from float32."""
    y, lse, dqkv = compute(backend, batch, heads, rate, bits(qkv), bits(dy))
    return numbers(y), lse, numbers(dqkv)


@pytest.mark.parametrize("data", [{}, {"shift": 100.0}, {"size": 4.0}], ids=["plain", "shifted", "large"])
@pytest.mark.parametrize(("lengths", "heads", "d", "rate"), CASES)
@pytest.mark.parametrize("backend", [pytest.param(gpus.Emulated("attention", capability=PLAIN), id="plain"), *BACKENDS])
def test_bf16(backend, lengths, heads, d, rate, data):
    """By the CPU's bars: test_attention_bf16.py."""
    batch = pack(lengths)
    qkv, dy = make_rounded(sum(lengths), heads * d, **data)
    got = parts(*in_bf16(backend, batch, heads, rate, qkv, dy))
    plain = parts(*naive(batch, heads, rate, qkv, dy))
    wanted = parts(*compute(reference, batch, heads, rate, *exact(qkv, dy)))
    for what in wanted:
        assert_as_accurate(got[what], plain[what], wanted[what], floor=FEW_ULPS if what == "lse" else 2e-3, what=what)
        if what != "lse" and wanted[what].size > 5000:
            errors = [np.abs(x[what] - wanted[what]).mean() for x in (got, plain)]
            assert errors[0] <= 1.15 * errors[1], what
