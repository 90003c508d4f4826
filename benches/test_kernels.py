"""Times every kernel at real sizes: `pytest benches`. Each case is checked against the reference first."""

from __future__ import annotations

import dataclasses
import itertools

import ml_dtypes
import numpy as np
import pytest

from minibert import benchmarks
from minibert.kernels import devices
from minibert.kernels.common import amx

DEVICE = devices.open("cpu")
CASES = [(size, case) for size in benchmarks.SIZES for case in benchmarks.cases(size)]
if not amx.available():
    CASES = [(size, case) for size, case in CASES if not case.name.endswith("bf16")]


@pytest.mark.parametrize("size,case", CASES, ids=[f"{size} {case.name}" for size, case in CASES])
def test_kernel(benchmark, size, case):
    call = case.prepare(DEVICE)
    with DEVICE.session():
        benchmark.pedantic(call, rounds=15, warmup_rounds=2)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(case.nbytes / seconds / 1e9, 1)
    if case.flops:
        benchmark.extra_info["GFLOP/s"] = round(case.flops / seconds / 1e9)


# The same products on the matrix unit: the first eight cases, with numbers that bf16 holds, so the same check serves.
BF16 = devices.open("cpu")
BF16.backend = "cpu_bf16"


def rounded(argument):
    return argument.astype(ml_dtypes.bfloat16).astype(np.float32) if isinstance(argument, np.ndarray) else argument


PRODUCTS = [
    (size, dataclasses.replace(case, arguments=tuple(map(rounded, case.arguments))))
    for size in benchmarks.SIZES
    for case in itertools.islice(benchmarks.cases(size, "cpu_bf16"), 8)
]


@pytest.mark.skipif(not amx.available(), reason="no AMX here, or the system does not permit its use")
@pytest.mark.parametrize("size,case", PRODUCTS, ids=[f"{size} {case.name}" for size, case in PRODUCTS])
def test_bf16_product(benchmark, size, case):
    benchmark.pedantic(case.prepare(BF16), rounds=15, warmup_rounds=2)
    benchmark.extra_info["GFLOP/s"] = round(case.flops / benchmark.stats.stats.median / 1e9)
