"""Pages of the host's memory: spans that never overlap, holes that are found again, what the system gets back."""

from __future__ import annotations

import mmap
import subprocess
import sys

import numpy as np
import pytest

from minibert.kernels import devices
from minibert.kernels.devices import cpu, host, pages
from minibert.kernels.devices.pages import PAGE, Pages, Span


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings of 16 pages."""
    monkeypatch.setattr(pages, "LEAST", 16 * PAGE)


@pytest.mark.parametrize("seed", range(5))
def test_spans_hold_what_is_written_into_them_whatever_comes_and_goes(short: None, seed: int) -> None:
    rng, found = np.random.default_rng(seed), Pages()
    live: list[tuple[Span, int]] = []
    for i in range(600):
        action = rng.random()
        if action < 0.5 or not live:
            span = found.take(int(rng.integers(1, 20 * PAGE)))
            assert span.memory.ctypes.data % PAGE == 0 and span.size % PAGE == 0 == span.touched % PAGE
            span.memory[:] = i % 251
            live.append((span, i % 251))
        elif action < 0.95:
            found.give(live.pop(int(rng.integers(len(live))))[0])
        else:
            wanted, before = int(rng.integers(0, found.idle + 1)), found.idle
            assert found.shrink(wanted) == before - found.idle
            assert wanted - PAGE < found.idle <= wanted or found.idle == before <= wanted
        if i % 20 == 0:
            assert all((span.memory == value).all() for span, value in live)
            ends = sorted((span.start, span.start + span.size // PAGE) for span, _ in live)
            assert all(before[1] <= after[0] for before, after in zip(ends, ends[1:], strict=False))
    while live:
        found.give(live.pop()[0])
    assert len(found._holes) == len(found._mappings), "all of a mapping is one hole again"
    found.shrink(0)
    found.unmap()
    assert found.idle == 0 and not (found._holes or found._starts or found._mappings)


def test_an_array_takes_the_smallest_hole_and_no_new_pages_where_it_fits(short: None) -> None:
    found = Pages()
    a, b, c, d = (found.take(n * PAGE) for n in (5, 1, 3, 1))
    assert a.touched == 0
    found.give(a)
    found.give(c)
    again = found.take(2 * PAGE + 1)
    assert again.start == c.start and again.touched == again.size == 3 * PAGE
    other = found.take(4 * PAGE)
    assert other.start == a.start and other.touched == other.size
    assert found.take(2 * PAGE).touched == 0, "only one page of that hole is left"
    assert found.idle == PAGE and {b.start, d.start}.isdisjoint({again.start, other.start})


def test_pages_that_went_back_are_empty_and_counted_as_new(short: None) -> None:
    found = Pages()
    span = found.take(8 * PAGE)
    span.memory[:] = 7
    found.give(span)
    assert found.shrink(3 * PAGE) == 5 * PAGE and found.idle == 3 * PAGE
    again = found.take(8 * PAGE)
    assert again.start == span.start and again.touched == 3 * PAGE
    assert (again.memory[: 3 * PAGE] == 7).all()
    if hasattr(mmap, "MADV_DONTNEED"):
        assert not again.memory[3 * PAGE :].any()


def test_mappings_are_no_longer_than_asked_for_where_memory_is_short(
    short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "available", lambda: 200 * PAGE)
    found = Pages()
    assert len(found.take(PAGE).memory.base) == 16 * PAGE
    monkeypatch.setattr(host, "available", lambda: 100 * PAGE)
    assert len(found.take(16 * PAGE).memory.base) == 16 * PAGE
    assert len(found.take(PAGE).memory.base) == 16 * PAGE, "the first one's"
    assert len(found.take(15 * PAGE).memory.base) == 15 * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="limits of that kind are Linux's")
def test_a_limit_on_the_process_s_data_is_a_memory_error_and_counts_pages() -> None:
    """In a process of its own, which has 1 GB to allocate."""
    program = """
import resource
import numpy as np
from minibert.kernels import devices
device = devices.open("cpu")
now = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (now + 10**9, now + 10**9))
kept = [device.empty((10**8,), np.uint8, "activations") for _ in range(9)]
for _ in range(20):
    try:
        device.empty((3 * 10**8,), np.uint8, "activations")
    except MemoryError:
        pass
    else:
        raise SystemExit("there was no limit")
kept.clear()
print(device.empty((9 * 10**8,), np.uint8, "activations").nbytes)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "900000000\n", done.stderr


def test_steps_of_any_size_touch_hardly_a_new_page_once_the_largest_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    device, new = devices.open("cpu"), []
    real = Pages.take

    def take(self: Pages, nbytes: int) -> Span:
        span = real(self, nbytes)
        new.append(span.size - span.touched)
        return span

    def step(rows: int) -> int:
        """How many bytes of its arrays were new."""
        new.clear()
        arrays = []
        for columns in (300, 900, 300, 1200) * 4:
            arrays.append(device.empty((rows, columns), np.float32, "activations"))
            device.scratch(8 * 1200 * rows)
        while arrays:
            arrays.pop()
            device.empty((rows, 300), np.float32, "activations")
        return sum(new)

    monkeypatch.setattr(Pages, "take", take)
    step(1900)
    step(1900)
    most = device.peak.total()
    later = [step(rows) for rows in (1899, 1700, 1555, 1803, 1000, 1900, 1642)]
    assert sum(later) < 0.1 * most and later.count(0) >= 3
    assert device.resident_peak <= most + 40 * PAGE, "what is kept never adds to the peak"
    device.release()
    assert device._pages.idle == 0 and device.resident < 1 << 20


def test_an_array_that_dies_while_pages_are_taken_is_collected_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.open("cpu")
    dying = [device.empty((cpu.PAGED,), np.uint8, "activations")]
    real = Pages.take

    def take(self: Pages, nbytes: int) -> Span:
        dying.clear()  # as a collection of garbage does, at any time
        return real(self, nbytes)

    monkeypatch.setattr(Pages, "take", take)
    first = device.empty((cpu.PAGED,), np.uint8, "activations")
    assert device.in_use["activations"] == cpu.PAGED and len(device._returned) == 1
    second = device.empty((cpu.PAGED,), np.uint8, "activations")
    assert not device._returned and not np.shares_memory(first, second)


def test_memory_that_runs_out_is_looked_for_among_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.open("cpu")
    asked: list[int] = []
    real = Pages.take

    def take(self: Pages, nbytes: int) -> Span:
        asked.append(nbytes)
        if len(asked) == 2:
            raise MemoryError
        return real(self, nbytes)

    device.empty((1000,), np.uint8, "activations")
    monkeypatch.setattr(Pages, "take", take)
    device.empty((cpu.PAGED,), np.uint8, "activations")
    array = device.empty((2 * cpu.PAGED,), np.uint8, "activations")
    assert asked == [cpu.PAGED, 2 * cpu.PAGED, 2 * cpu.PAGED] and array.nbytes == 2 * cpu.PAGED
    assert device._kept_bytes == device._pages.idle == 0
