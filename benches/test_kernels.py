"""Times every kernel at real sizes: `pytest benches`. Each case is checked against the reference first."""

from __future__ import annotations

import pytest

from minibert import benchmarks
from minibert.errors import BackendError
from minibert.kernels import devices
from minibert.kernels.common import unit

PRECISIONS = {"cpu": ("fp32", "bf16") if unit.available() else ("fp32",), "gpu": ("fp32", "bf16")}
CASES = [
    pytest.param(name, precision, case, id=f"{name} {size} {precision} {case.name}",
                 marks=[pytest.mark.gpu] if name == "gpu" else [])
    for size in benchmarks.SIZES for case in benchmarks.cases(size) for name in PRECISIONS
    for precision in PRECISIONS[name]
]  # fmt: skip


@pytest.mark.parametrize("name,precision,case", CASES)
def test_kernel(benchmark, name, precision, case):
    try:
        device = devices.open(name, precision=precision)
    except BackendError as error:
        pytest.skip(str(error))
    with device.session():
        row = benchmarks.measure(case, device, precision)
        call = case.prepare(device)

        def run():
            call.run()
            device.wait()

        benchmark.pedantic(run, rounds=15, warmup_rounds=2)
    benchmark.extra_info[f"G{row.unit}"] = round(row.rate / 1e9, 1)
    benchmark.extra_info["of its limit"] = round(row.rate / row.limit, 3)
