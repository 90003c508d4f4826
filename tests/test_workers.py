"""Threads that share out tasks: pieces of a range, and who does them."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numba
import numpy as np
import pytest

from minibert.kernels.devices import cpu
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.workers import PATIENCE, Errand, Tasks, Workers, wait_for


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


@jit
def add_to(worker, begin, end, counts, workers, arrays, number):
    """Adds to each chunk's count what all arguments come to, by a view that Numba counts references of."""
    for i in range(begin, end):
        part = counts[i : i + 1]
        for j in range(part.size):
            part[j] += number + arrays[0][0] + arrays[1].shape[1]
        workers[i] = worker


@jit
def double(worker, begin, end, counts):
    for i in range(begin, end):
        counts[i] *= 2


@jit
def raise_at(worker, begin, end, place):
    if begin <= place < end:
        raise ValueError("there")


def arguments(count: int) -> tuple:
    """Of `add_to`, which adds 5 with them."""
    return np.zeros(count), np.full(count, -1), (np.ones(1), np.zeros((1, 3))), 1.0


def pieces(count: int) -> Tasks:
    return Tasks([(i, i + 1) for i in range(count)])


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_a_launch_covers_its_tasks_once_and_its_kernels_come_one_after_the_other(threads, count):
    given = arguments(count)
    references = [sys.getrefcount(array) for array in (*given[:2], *given[2])]
    for turn in range(1, 20):
        cpu.launch(pieces(count), (add_to, given), (double, given[:1]))
        np.testing.assert_array_equal(given[0], 10 * (2**turn - 1))
        assert set(given[1]) <= set(range(threads))
    assert references == [sys.getrefcount(array) for array in (*given[:2], *given[2])]


def test_nothing_is_computed_where_there_are_no_tasks(threads):
    given = arguments(1)
    cpu.launch(pieces(0), (add_to, given))
    cpu.run(add_to, 0, *given)
    assert given[0] == 0 and given[1] == -1


def test_a_thread_that_sleeps_is_woken_and_helps():
    workers, given = Workers(2), arguments(100_000)
    workers.launch(pieces(100_000), (add_to, given))
    (helper,) = workers._helpers
    for _ in range(3):
        until = time.monotonic() + 10
        while not helper.asleep:
            assert time.monotonic() < until, "it looks on and on"
            time.sleep(0.01)
        given[1][:] = -1
        while 1 not in given[1]:
            assert time.monotonic() < until, "it never helps"
            workers.launch(pieces(100_000), (add_to, given))
    workers.end()
    assert PATIENCE < 10_000, "a thread that looks is a core that others do not have"


def test_threads_of_python_launch_at_the_same_time():
    workers, wrong = Workers(3), []

    def launch() -> None:
        given = arguments(1000)
        for turn in range(1, 200):
            workers.launch(pieces(1000), (add_to, given))
            if not (given[0] == 5 * turn).all():
                wrong.append(turn)

    threads = [threading.Thread(target=launch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    workers.end()


def test_launches_and_python_functions_take_turns(threads):
    given, done = arguments(20), []
    for turn in range(1, 50):
        cpu.launch(pieces(20), (add_to, given))
        cpu.share([(turn,)] * 3, lambda worker, turn: done.append(turn))
        assert (given[0] == 5 * turn).all() and done[-3:] == [turn] * 3


@pytest.mark.parametrize("place", [0, 7, 99])
def test_a_kernel_s_error_is_not_passed_over(threads, place):
    with pytest.raises(RuntimeError, match="raise_at raised an error"):
        cpu.launch(pieces(100), (raise_at, (place,)))
    cpu.launch(pieces(100), (raise_at, (100,)))


def test_a_kernel_is_not_given_what_references_would_be_lost_of():
    def kernel(worker, begin, end, text):
        pass

    with pytest.raises((TypeError, numba.core.errors.NumbaError), match="numbers, arrays and tuples"):
        numba.njit(pipeline_class=jit(kernel)._compiler.pipeline_class)(kernel)(-1, 0, 0, "text")


def test_threads_that_look_for_launches_let_a_process_end_in_silence():
    code = "import numpy as np; from minibert.kernels.add import cpu; x = np.ones(1 << 20, 'f'); cpu.forward(x, x, x)"
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
