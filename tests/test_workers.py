"""Threads that share out tasks: pieces of a range, and who does them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from minibert.kernels.devices import cpu
from minibert.kernels.devices.workers import LOOKS, Workers

ASLEEP = 0.05  # seconds after which who waits has gone to sleep: 30,000 looks take a thirtieth


@pytest.fixture(params=[2, 3])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(request.param, cpu._reached)
    yield made
    made.stop()


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


def all_done(workers: Workers) -> list[tuple[int, int, int]]:
    done: list[tuple[int, int, int]] = []
    workers.share([(i, 2 * i) for i in range(100)], lambda *task: done.append(task))
    return done


def together(workers: Workers) -> None:
    """Passes only where all workers are at it at the same time."""
    barrier = threading.Barrier(workers.count, timeout=10)
    workers.share([()] * workers.count, lambda worker: barrier.wait())


@pytest.mark.parametrize("pause", [0, ASLEEP])
def test_every_task_is_done_once_and_all_workers_take_part(workers, pause):
    for _ in range(3):
        done = all_done(workers)
        assert sorted((i, twice) for _, i, twice in done) == [(i, 2 * i) for i in range(100)]
        assert {worker for worker, *_ in done} <= set(range(workers.count))
        together(workers)
        time.sleep(pause)


def test_a_caller_that_waits_long_is_woken(workers):
    ended = []

    def work(worker: int, seconds: float) -> None:
        time.sleep(seconds if worker else 0)
        ended.append(worker)

    workers.share([(ASLEEP,)] * workers.count, work)
    assert len(ended) == workers.count


@pytest.mark.parametrize("who", ["the caller", "a helper"])
def test_an_error_comes_to_the_caller_after_all_have_ended(workers, who):
    barrier, ended = threading.Barrier(workers.count, timeout=10), []

    def work(worker: int) -> None:
        barrier.wait()
        if (worker == 0) == (who == "the caller"):
            raise ValueError(who)
        time.sleep(ASLEEP)
        ended.append(worker)

    with pytest.raises(ValueError, match=who):
        workers.share([()] * workers.count, work)
    assert len(ended) == (workers.count - 1 if who == "the caller" else 1)
    together(workers)


def test_nothing_is_kept_of_work_that_is_done(workers):
    class Large:
        pass

    def share(fails: bool) -> weakref.ref:
        barrier, large = threading.Barrier(workers.count, timeout=10), Large()

        def work(worker: int) -> None:
            barrier.wait()
            if large and fails:
                raise ValueError

        with pytest.raises(ValueError) if fails else nullcontext():
            workers.share([()] * workers.count, work)
        return weakref.ref(large)

    gone = [share(fails) for fails in (False, True, False)]
    assert [ref() for ref in gone] == [None] * 3


def test_who_calls_meanwhile_works_alone():
    workers = Workers(2, cpu._reached)
    begun, over, seen = threading.Barrier(3, timeout=10), threading.Event(), []

    def work(worker: int) -> None:
        begun.wait()
        over.wait(10)

    first = threading.Thread(target=workers.share, args=([()] * 2, work), daemon=True)
    first.start()
    begun.wait()
    workers.share([(i,) for i in range(5)], lambda *task: seen.append(task))
    assert seen == [(0, i) for i in range(5)] and first.is_alive()
    over.set()
    first.join(10)
    together(workers)
    workers.stop()


def test_work_that_a_caller_did_not_wait_for_ends_before_other_work_begins(workers):
    """As after Ctrl-C in the midst of waiting."""
    doing, events = threading.Barrier(2, timeout=10), []

    def slow(worker: int) -> None:
        if worker == 1:
            doing.wait()
            time.sleep(ASLEEP)
            events.append("slow")

    together(workers)
    helper = workers._helpers[0]
    helper.ask(lambda worker: slow(1))  # and nobody waits
    doing.wait()
    workers.share([()] * workers.count, lambda worker: events.append("next"))
    assert events[0] == "slow" and "next" in events


def test_a_process_ends_at_once_and_without_a_word():
    program = "\n".join(
        [
            "import sys, time",
            "from minibert.kernels.devices import cpu",
            "cpu.set_threads(2)",
            "cpu.share([(i,) for i in range(9)], lambda worker, i: time.sleep(0.001))",
            "time.sleep(float(sys.argv[1]))",
        ]
    )
    for pause in ("0", str(ASLEEP)):
        ended = subprocess.run([sys.executable, "-c", program, pause], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_set_threads_ends_the_threads_before():
    before = cpu.threads()
    try:
        cpu.set_threads(3)
        together(cpu._workers)
        helpers = cpu._workers._helpers
        cpu.set_threads(2)
        assert cpu.threads() == 2 and not any(helper.is_alive() for helper in helpers)
    finally:
        cpu.set_threads(before)


def test_looks_end():
    assert not cpu._reached(np.zeros(1, np.int64), 1, LOOKS)
    assert cpu._reached(np.ones(1, np.int64), 1, 1)
