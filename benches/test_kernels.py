"""Times every kernel at real sizes: `pytest benches`. Each case is checked against the reference first."""

from __future__ import annotations

import pytest

from minibert import benchmarks
from minibert.kernels import devices
from minibert.kernels.common import unit

PRECISIONS = ("fp32", "bf16") if unit.available() else ("fp32",)
CASES = [
    (size, precision, case) for size in benchmarks.SIZES for case in benchmarks.cases(size) for precision in PRECISIONS
]


@pytest.mark.parametrize("size,precision,case", CASES, ids=[f"{size} {p} {case.name}" for size, p, case in CASES])
def test_kernel(benchmark, size, precision, case):
    device = devices.open("cpu", precision=precision)
    with device.session():
        call = case.prepare(device)
        benchmark.pedantic(call.run, rounds=15, warmup_rounds=2)
    seconds = benchmark.stats.stats.median
    if case.flops:
        benchmark.extra_info["GFLOP/s"] = round(case.flops / seconds / 1e9)
    else:
        benchmark.extra_info["GB/s"] = round(call.nbytes / seconds / 1e9, 1)
