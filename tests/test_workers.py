"""Threads that share out tasks: pieces of a range, and who does them."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from minibert.kernels.devices import cpu
from minibert.kernels.devices.workers import Errand, Workers, wait_for


@pytest.mark.parametrize("count", [0, 1, 2, 7, 53, 1000])
@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize(("least", "most"), [(1, 10**9), (4, 21), (5, 5), (64, 100)])
def test_helpings_cover_a_range_the_larger_ones_first(count, workers, least, most):
    pieces = cpu.helpings(count, workers, least, most)
    assert [i for begin, end in pieces for i in range(begin, end)] == list(range(count))
    sizes = [end - begin for begin, end in pieces]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size <= most for size in sizes) and all(size >= least for size in sizes[:-1])


def test_one_worker_takes_all_at_once_and_several_end_with_small_pieces():
    assert cpu.helpings(53, 1) == ((0, 53),)
    sizes = [end - begin for begin, end in cpu.helpings(53, 2, 4, 21)]
    assert sizes == [18, 12, 8, 5, 4, 4, 2]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = cpu.threads()
    cpu.set_threads(request.param)
    yield request.param
    cpu.set_threads(before)


def together(threads: int) -> None:
    """Passes only where all threads are at it at the same time."""
    barrier = threading.Barrier(threads, timeout=10)
    cpu.share([()] * threads, lambda worker: barrier.wait())


def test_every_task_is_done_once_by_all_threads(threads):
    done: list[tuple[int, int, int]] = []
    cpu.share([(i, 2 * i) for i in range(100)], lambda *task: done.append(task))
    assert sorted((i, twice) for _, i, twice in done) == [(i, 2 * i) for i in range(100)]
    assert {worker for worker, *_ in done} <= set(range(threads))
    together(threads)
    cpu.share([], lambda worker: done.clear())
    assert done


@pytest.mark.parametrize("who", ["the caller", "a helper"])
def test_an_error_comes_to_the_caller_after_all_have_ended(threads, who):
    if threads == 1 and who == "a helper":
        pytest.skip("one thread has no helper")
    barrier, others, ended = threading.Barrier(threads, timeout=10), threading.Event(), []

    def work(worker: int) -> None:
        barrier.wait()
        if (worker == 0) == (who == "the caller"):
            threading.Timer(0.05, others.set).start()
            raise ValueError(who)
        others.wait(10)
        ended.append(worker)

    with pytest.raises(ValueError, match=who):
        cpu.share([()] * threads, work)
    assert len(ended) == (threads - 1 if who == "the caller" else 1)
    together(threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_has_threads_of_its_own():
    code = """
import os
from minibert.kernels.devices import cpu
cpu.set_threads(2)
done = []
for take in range(2):
    cpu.share([(i,) for i in range(8)], lambda worker, i: done.append(i))
    if not take:
        child = os.fork()
if not child:
    os._exit(sorted(done) != sorted(2 * [*range(8)]))
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert not subprocess.run([sys.executable, "-c", code], timeout=60).returncode


class Array:
    """Something that a launch holds."""


def test_what_a_launch_held_is_gone_when_it_is_over():
    """Or what is in use would depend on when a thread gets round to letting go."""
    workers = Workers(2)

    def launch() -> weakref.ref[Array]:
        array, barrier = Array(), threading.Barrier(2, timeout=10)
        workers.share([(), ()], lambda worker: (array, barrier.wait()))
        return weakref.ref(array)

    assert not any(launch()() for _ in range(500))
    workers.end()


def test_an_error_holds_a_launch_no_longer_than_its_caller_does():
    workers = Workers(2)

    def launch() -> weakref.ref[Array]:
        array, barrier = Array(), threading.Barrier(2, timeout=10)

        def work(worker: int) -> None:
            barrier.wait()
            if worker == 1:
                raise ValueError(array)

        with contextlib.suppress(ValueError):
            workers.share([(), ()], work)
        return weakref.ref(array)

    gc.disable()
    try:
        arrays = [launch() for _ in range(50)]
        assert not any(array() for array in arrays)
    finally:
        gc.enable()
    workers.end()


@pytest.mark.parametrize("interrupts", [{2}, {2, 4, 5}], ids=str)
def test_not_even_interrupts_come_before_kernels_are_done(interrupts):
    waits = []

    class Waits(Errand):
        def wait(self) -> None:
            waits.append(self)
            if len(waits) in interrupts:
                raise KeyboardInterrupt

    errands = [Waits(lambda worker: None, worker) for worker in (1, 2, 3)]
    with pytest.raises(KeyboardInterrupt):
        wait_for(errands)
    assert waits[max(interrupts) :] == errands


def test_threads_begin_with_the_first_launch_and_end():
    others, workers = set(threading.enumerate()), Workers(3)
    assert set(threading.enumerate()) == others
    workers.share([()] * 3, lambda worker: None)
    threads = set(threading.enumerate()) - others
    assert len(threads) == 2
    workers.end()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
