"""The one place that hands out arrays: alignment, bytes by kind, reuse, and kernels by name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

from bits import on_a_line
from minibert.errors import BackendError
from minibert.kernels import devices
from minibert.kernels.devices import cpu, host, size_class

ROOT = Path(__file__).parent.parent


def test_arrays_stand_on_cache_lines_whatever_their_size():
    device = devices.open("reference")
    for shape in [(1,), (3, 5), (0, 7), (17, 13), (1000,)]:
        array = device.empty(shape, np.float32, "activations")
        assert array.shape == shape and array.ctypes.data % 64 == 0
        array[...] = 1


def test_bytes_are_counted_by_kind_until_the_last_view_dies():
    device = devices.open("reference")
    a = device.empty((100, 100), np.float32, "weights")
    b = device.empty((50,), np.float64, "workspace")
    assert device.in_use["weights"] == 40_000 and device.in_use["workspace"] == 400
    view = a.reshape(-1)[10:20]
    del a
    assert device.in_use["weights"] == 40_000
    del view, b
    assert device.in_use.total() == 0
    assert device.peak.total() == 40_400


def test_size_classes_waste_an_eighth_at_most():
    for n in [1, 63, 64, 65, 1000, 4097, 123_456_789]:
        assert n <= size_class(n) <= max(64, n * 9 / 8 + 64)


def test_blocks_are_reused_and_never_add_to_the_peak():
    device = devices.open("reference")
    first = device.empty((1 << 20,), np.uint8, "activations").ctypes.data
    assert device.empty((1 << 20,), np.uint8, "activations").ctypes.data == first
    for size in (1 << 18, 1 << 19, 3 << 18, 1 << 20):
        device.empty((size,), np.uint8, "activations")
        assert device._kept_bytes <= device.peak.total()


@pytest.mark.parametrize("start", [0, 16, 17])
@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 4097])
def test_zeros_are_written_where_they_are_wanted(start: int, size: int):
    """On a line and beside one, small arrays and large ones, which all threads clear."""
    memory = on_a_line((size + 64,), np.float32)
    devices.open("cpu").clear(memory[start : start + size])
    assert not memory[start : start + size].any()
    assert np.isnan(memory[:start]).all() and np.isnan(memory[start + size :]).all()


def test_queries_keys_and_values_come_in_strips_where_heads_are_whole_ones():
    bf16 = devices.open("cpu", precision="bf16")
    assert bf16.projected_shape(7, 768, 12) == (72, 7, 32)
    assert bf16.projected_shape(7, 96, 6) == (7, 288)
    assert devices.open("cpu").projected_shape(7, 768, 12) == (7, 2304)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ValueError, match="workspace"):
        devices.open("reference").empty((1,), np.float32, "scrap")


def test_missing_kernels_and_devices_are_named():
    with pytest.raises(BackendError, match="no operation named 'softmix'"):
        _ = devices.open("reference").softmix
    from minibert.kernels import load

    with pytest.raises(BackendError, match=r"matmul has no 'metal' kernel \(have: reference, cpu"):
        load("matmul", "metal")
    with pytest.raises(BackendError, match="'tpu9' device"):
        devices.open("tpu9")


def test_run_covers_every_chunk_once_for_any_number_of_threads():
    before = cpu.threads()
    try:
        for threads in (1, 2, 5):
            cpu.set_threads(threads)
            for count in (0, 1, 2, 7, 100):
                seen = np.zeros(count, int)

                def kernel(worker: int, begin: int, end: int, seen: np.ndarray) -> None:
                    assert 0 <= worker < cpu.threads()
                    seen[begin:end] += 1

                cpu.run(kernel, count, seen)
                assert (seen == 1).all()
    finally:
        cpu.set_threads(before)


def test_an_error_in_a_worker_reaches_the_caller():
    def kernel(worker: int, begin: int, end: int) -> None:
        if end == 100:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cpu.run(kernel, 100)


def test_the_top_level_folder_refuses_to_be_imported_as_kernels():
    done = subprocess.run([sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "import minibert.kernels" in done.stderr


def test_no_more_threads_than_control_groups_give_time_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    (groups / "cpu" / "old").mkdir(parents=True)
    assert host.cores(proc, groups) == 8
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    for inner, outer, cores in (
        ("max 100000", "max 100000", 8), ("200000 100000", "max 100000", 2), ("max 100000", "150000 100000", 2),
        ("400000 100000", "300000 100000", 3), ("1000 100000", "max 100000", 1), ("9900000 100000", "", 8),
    ):  # fmt: skip
        (groups / "a" / "b" / "cpu.max").write_text(f"{inner}\n")
        (groups / "a" / "cpu.max").write_text(f"{outer}\n")
        assert host.cores(proc, groups) == cores
    (proc / "self" / "cgroup").write_text("4:cpu,cpuacct:/old\n")
    for quota, cores in (("-1", 8), ("250000", 3)):
        (groups / "cpu" / "old" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (groups / "cpu" / "old" / "cpu.cfs_period_us").write_text("100000\n")
        assert host.cores(proc, groups) == cores


def test_threads_of_python_may_ask_for_arrays_at_the_same_time():
    device, wrong = devices.open("cpu"), []

    def work(number: int) -> None:
        rng, live = np.random.default_rng(number), []
        for _ in range(1500):
            array = device.empty((int(rng.choice([100, 5000, cpu.PAGED, 3 * cpu.PAGED])),), np.uint8, "activations")
            array[:64] = array[-64:] = number
            live.append(array)
            if len(live) > 4:
                array = live.pop(int(rng.integers(5)))
                if (array[:64] != number).any() or (array[-64:] != number).any():
                    wrong.append(number)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=[number]) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    del threads
    assert not wrong and not any(device.in_use.values())


def test_blas_has_its_threads_again_when_the_last_session_ends():
    def threads() -> list[int]:
        return [each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]

    device = devices.open("cpu")
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = device.session(), device.session()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert set(threads()) == {2}
