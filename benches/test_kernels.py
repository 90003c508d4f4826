"""Times every kernel at real sizes: `pytest benches`. Each case is checked against the reference first."""

from __future__ import annotations

import pytest

from minibert import benchmarks
from minibert.kernels import devices

DEVICE = devices.open("cpu")
CASES = [(size, case) for size in benchmarks.SIZES for case in benchmarks.cases(size)]


@pytest.mark.parametrize("size,case", CASES, ids=[f"{size} {case.name}" for size, case in CASES])
def test_kernel(benchmark, size, case):
    call = case.prepare(DEVICE)
    with DEVICE.session():
        benchmark.pedantic(call, rounds=15, warmup_rounds=2)
    seconds = benchmark.stats.stats.median
    benchmark.extra_info["GB/s"] = round(case.nbytes / seconds / 1e9, 1)
    if case.flops:
        benchmark.extra_info["GFLOP/s"] = round(case.flops / seconds / 1e9)
