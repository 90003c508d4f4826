"""Pages of the host's memory: blocks that never overlap, holes that are found again, what the system gets back."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import mmap
import subprocess
import sys

import numpy as np
import pytest

from minibert import hub
from minibert.kernels import devices
from minibert.kernels.devices import Block, cpu, host, pages
from minibert.kernels.devices.pages import PAGE, Pages
from minibert.memory import Planner
from minibert.settings import TrainConfig


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings of 16 pages."""
    monkeypatch.setattr(pages, "LEAST", 16)


def held(block: Block) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * block.size).from_address(block.memory))


@pytest.mark.parametrize("seed", range(5))
def test_spans_hold_what_is_written_into_them_whatever_comes_and_goes(short: None, seed: int) -> None:
    rng, found = np.random.default_rng(seed), Pages()
    live: list[tuple[Block, int]] = []
    for i in range(600):
        action = rng.random()
        if action < 0.5 or not live:
            block = found.take(int(rng.integers(1, 20 * PAGE)))
            assert block.memory % PAGE == block.size % PAGE == block.touched % PAGE == 0
            held(block)[:] = i % 251
            live.append((block, i % 251))
        elif action < 0.95:
            found.give(live.pop(int(rng.integers(len(live))))[0])
        else:
            wanted, before = int(rng.integers(0, found.idle + 1)), found.idle
            assert found.shrink(wanted) == before - found.idle
            assert wanted - PAGE < found.idle <= wanted or found.idle == before <= wanted
        if i % 20 == 0:
            assert all((held(block) == value).all() for block, value in live)
            ends = sorted((block.memory, block.memory + block.size) for block, _ in live)
            assert all(before[1] <= after[0] for before, after in zip(ends, ends[1:], strict=False))
    while live:
        found.give(live.pop()[0])
    assert len(found._holes) <= len(found._mappings), "all of a mapping is one hole again"
    whole = found.idle
    assert found.shrink(whole // 2) + found.unmap() == whole
    assert found.idle == 0 and not (found._holes or found._starts or found._mappings)


def test_an_array_takes_the_smallest_hole_and_no_new_pages_where_it_fits(short: None) -> None:
    found = Pages()
    a, b, c, d = (found.take(n * PAGE) for n in (5, 1, 3, 1))
    assert a.touched == 0
    found.give(a)
    found.give(c)
    again = found.take(2 * PAGE + 1)
    assert again.memory == c.memory and again.touched == again.size == 3 * PAGE
    other = found.take(4 * PAGE)
    assert other.memory == a.memory + PAGE and other.touched == other.size
    assert found.take(2 * PAGE).touched == 0, "only one page of that hole is left"
    assert found.idle == PAGE and {b.memory, d.memory}.isdisjoint({again.memory, other.memory})


def test_pages_that_went_back_are_empty_and_counted_as_new(short: None) -> None:
    found = Pages()
    block = found.take(8 * PAGE)
    held(block)[:] = 7
    found.give(block)
    assert found.shrink(3 * PAGE) == 5 * PAGE and found.idle == 3 * PAGE
    again = found.take(8 * PAGE)
    assert again.memory == block.memory and again.touched == 3 * PAGE
    assert (held(again)[: 3 * PAGE] == 7).all()
    if sys.platform == "linux":
        assert not held(again)[3 * PAGE :].any()


def test_mappings_are_no_longer_than_needed_where_memory_is_short(short: None, monkeypatch) -> None:
    monkeypatch.setattr(host, "available", lambda: 200 * PAGE)
    found = Pages()
    found.take(PAGE)
    monkeypatch.setattr(host, "available", lambda: 100 * PAGE)
    found.take(17 * PAGE)
    assert sorted(mapping.end - mapping.first for mapping in found._mappings) == [16, 17]


def test_where_a_long_mapping_is_refused_a_short_one_is_asked_for(short: None, monkeypatch) -> None:
    def scarce(fd: int, nbytes: int, **flags: int) -> mmap.mmap:
        if nbytes > 8 * PAGE:
            raise OSError("too much")
        return real(fd, nbytes, **flags)

    real = mmap.mmap
    monkeypatch.setattr(pages.mmap, "mmap", scarce)
    assert Pages().take(8 * PAGE).size == 8 * PAGE
    with pytest.raises(MemoryError, match="bytes more"):
        Pages().take(9 * PAGE)


@pytest.mark.skipif(sys.platform != "linux", reason="where mappings are placed")
def test_holes_reach_across_mappings_that_lie_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "available", lambda: 0)  # each as long as asked for
    found = Pages()
    blocks = [found.take(300 * PAGE) for _ in range(8)]
    for block in blocks:
        found.give(block)
    assert len(found._mappings) == 8 and len(found._holes) < 8
    longest = max(end - start for start, end in found._holes.items())
    whole = found.take(longest * PAGE)
    held(whole)[:] = 1
    assert whole.touched == whole.size > 300 * PAGE and len(found._mappings) == 8
    other = found.take(10 * PAGE)
    found.unmap()
    assert (held(whole) == 1).all() and not np.shares_memory(held(whole), held(other))


def test_a_system_that_takes_no_pages_back_is_counted_rightly(short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Pages()
    monkeypatch.setattr(found, "_returns", False)
    found.give(found.take(12 * PAGE))
    assert found.shrink(0) == 0 and found.idle == 12 * PAGE
    assert found.unmap() == 12 * PAGE and found.idle == 0 and not found._mappings


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


@pytest.mark.parametrize(("trains", "spare"), [(False, cpu.SPARE), (True, cpu.SPARE_IN_TRAINING)])
def test_steps_of_any_size_touch_no_new_page_once_the_largest_was_there(
    monkeypatch: pytest.MonkeyPatch, trains: bool, spare: int
) -> None:
    """The arrays of steps, taken and given back in their order, beside moments and without."""
    shape = dataclasses.replace(hub.config("base"), num_hidden_layers=6, hidden_size=384, intermediate_size=1536)
    device = devices.open("cpu", precision="bf16")
    planner = Planner(shape, TrainConfig(task="t", learning_rate=1e-3, precision="bf16"), device)
    new, real, rng = [], Pages.take, np.random.default_rng(0)
    moments = device.zeros((int(trains),), np.float32, "moments")

    def take(self: Pages, nbytes: int) -> Block:
        block = real(self, nbytes)
        new.append(block.size - block.touched)
        return block

    def step(tokens: int) -> int:
        """How many bytes of its arrays were new."""
        planner.device.log = log = []
        gc.collect()  # what dies late would do so at another moment in another process
        planner.use([tokens // 32] * 31 + [tokens - tokens // 32 * 31], "none")
        planner.device.log = None
        live: dict[int, list[np.ndarray]] = {}
        new.clear()
        for kind, nbytes in log:
            if kind in ("activations", "workspace") and nbytes > 0:
                live.setdefault(nbytes, []).append(device.empty((nbytes,), np.uint8, kind))
            elif kind in ("activations", "workspace"):
                live[-nbytes].pop()
        return sum(new)

    monkeypatch.setattr(Pages, "take", take)
    sizes = rng.permutation(np.arange(1400, 1900, 40)).tolist()
    step(1900)
    step(1900)
    most = device.peak.total()
    later = [step(tokens) for tokens in sizes]
    assert later[3:] == [0] * (len(sizes) - 3), later
    assert device.resident_peak <= most + spare, "what is kept adds no more than that to the peak"
    del moments
    device.release()
    assert device._pages.idle == 0 and device.resident < 1 << 20


def test_an_array_that_dies_while_pages_are_taken_is_collected_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    device = devices.open("cpu")
    dying = [device.empty((cpu.PAGED,), np.uint8, "activations")]
    real = Pages.take

    def take(self: Pages, nbytes: int) -> Block:
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

    def take(self: Pages, nbytes: int) -> Block:
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
