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
from pathlib import Path

import numba
import numpy as np
import pytest

from minibert.kernels.common import atomics
from minibert.kernels.devices import compiling, cpu, team
from minibert.kernels.devices.binding import Bindable
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.workers import Errand, Tasks, Workers, wait_for


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
    """Adds to each chunk's count what all arguments come to."""
    for i in range(begin, end):
        counts[i] += number + arrays[0][0] + arrays[1].shape[1]
        workers[i] = worker


@jit
def double(worker, begin, end, counts):
    for i in range(begin, end):
        counts[i] *= 2


@jit
def slow(worker, begin, end, done, rounds):
    """Four times as long on another thread than the caller's."""
    x = 1.0
    for _ in range(rounds if worker else rounds // 4):
        x = x * 0.999 + 1
    for i in range(begin, end):
        done[i] = min(x, 1.0) + worker


@jit
def raise_at(worker, begin, end, place):
    if begin <= place < end:
        raise ValueError("there")


def arguments(count: int) -> tuple:
    """Of `add_to`, which adds 5 with them."""
    return np.zeros(count), np.full(count, -1), (np.ones(1), np.zeros((1, 3))), 1.0


def pieces(count: int) -> Tasks:
    return Tasks([(i, i + 1) for i in range(count)])


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(2)
    yield workers
    workers.end()


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_a_launch_covers_its_tasks_once_and_its_kernels_come_one_after_the_other(threads, count):
    given = arguments(count)
    for turn in range(1, 20):
        cpu.launch(pieces(count), (add_to, given), (double, given[:1]))
        np.testing.assert_array_equal(given[0], 10 * (2**turn - 1))
        assert set(given[1]) <= set(range(threads))


def test_nothing_is_computed_where_there_are_no_tasks(threads):
    given = arguments(1)
    cpu.launch(pieces(0), (add_to, given))
    cpu.run(add_to, 0, *given)
    assert given[0] == 0 and given[1] == -1


def test_what_is_bound_has_no_references_that_a_kernel_could_count():
    """The call that binds gives them back; what a kernel counts later would be in memory that is gone."""
    room, (counts, workers, arrays, number) = np.full(64, -1), arguments(9)
    add_to(-1, room.ctypes.data, 0, counts, workers, arrays, number)
    code, counted, parent, size, itemsize, at, shape, stride = room[:8]
    assert code > 0 and (counted, parent) == (0, 0)
    assert (size, itemsize, at, shape, stride) == (9, 8, counts.ctypes.data, 9, 8)
    inner = room[15:31]  # the tuple's: one dimension, then two
    assert not inner[[0, 1, 7, 8]].any() and inner[[4, 11]].tolist() == [array.ctypes.data for array in arrays]
    assert not counts.any()


def test_a_launch_ends_with_its_slowest_thread(workers):
    until, done = time.monotonic() + 60, np.zeros(2)  # where others want both cores it can take long
    while done.tolist() != [1, 2]:
        assert time.monotonic() < until, "the other thread never helps"
        done[:] = 0
        workers.launch(pieces(2), (slow, (done, 3_000_000)))
        assert done.all()


def test_a_thread_that_sleeps_is_woken_and_helps(workers):
    given = arguments(100_000)
    workers.launch(pieces(100_000), (add_to, given))
    (helper,) = workers._helpers
    for _ in range(3):
        until = time.monotonic() + 60
        while not helper.asleep:
            assert time.monotonic() < until, "it looks on and on"
            time.sleep(0.01)
        given[1][:] = -1
        while 1 not in given[1]:
            assert time.monotonic() < until, "it never helps"
            workers.launch(pieces(100_000), (add_to, given))
    assert team.PATIENCE <= 1_000_000, "a thread that looks is a core that others do not have"


def test_many_launches_do_not_keep_errands_waiting(workers):
    """Each launch wakes a thread that sleeps, which must not look for half a millisecond for each of them."""
    given, took = arguments(2), []
    workers.launch(pieces(2), (add_to, given))
    for _ in range(5):
        while not workers._helpers[0].asleep:
            time.sleep(0.01)
        for _ in range(400):
            workers.launch(pieces(2), (add_to, given))
        began, barrier = time.monotonic(), threading.Barrier(2, timeout=10)
        workers.share([(), ()], lambda worker, barrier=barrier: barrier.wait())
        took.append(time.monotonic() - began)
    assert min(took) < 0.05


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


@pytest.mark.parametrize("busy", [False, True], ids=["together", "alone, since others have a launch open"])
def test_a_kernel_s_error_is_not_passed_over(workers, busy):
    workers._memory[team.BUSY // 8] = busy
    for place in (0, 7, 99):
        with pytest.raises(RuntimeError, match="raise_at raised an error"):
            workers.launch(pieces(100), (raise_at, (place,)))
        workers.launch(pieces(100), (raise_at, (100,)))
    counts = np.ones(1)
    with pytest.raises(RuntimeError, match="raise_at or double raised an error"):
        workers.launch(pieces(1), (raise_at, (0,)), (double, (counts,)))
    assert counts == 1, "the second goes on where the first has failed"


def test_what_cannot_be_bound_is_not_launched():
    def kernel(worker, begin, end, text):
        pass

    with pytest.raises((TypeError, numba.core.errors.NumbaError), match="numbers, arrays and tuples"):
        numba.njit(pipeline_class=Bindable)(kernel)(-1, 0, 0, "text")
    seen = np.zeros(10)
    for function in (numba.njit(add_to.py_func), lambda *arguments: add_to.py_func(*arguments)):
        with pytest.raises(TypeError, match="cannot be launched: decorate it with jit"):
            cpu.launch(pieces(1), (function, arguments(1)))
        cpu.run(function, 10, seen, np.zeros(10), (np.zeros(1), np.zeros((1, 1))), 0.0)
    assert (seen == 2).all(), "but computed"


def test_a_team_that_has_ended_starts_no_thread_and_its_caller_computes_alone(workers):
    given, others = arguments(5), threading.active_count()
    workers.launch(pieces(5), (add_to, given))
    assert threading.active_count() == others + 1
    workers.end()
    assert threading.active_count() == others, "right after"
    workers.launch(pieces(5), (add_to, given))
    workers.share([(), ()], lambda worker: given[1].fill(worker))
    assert (given[0] == 10).all() and not given[1].any() and threading.active_count() == others


@jit
def meet(worker, begin, end, inside, met):
    """Counts the tasks in which another thread has this worker's number, by which it finds its scratch."""
    place = np.intp(inside.ctypes.data) + 8 * worker
    for i in range(begin, end):
        others, x = atomics.add(place, 1), 1.0
        for _ in range(3000):
            x = x * 0.999 + 1
        met[i] += others + min(x, 0.0)  # some microseconds
        atomics.add(place, -1)


def test_a_team_is_replaced_while_others_launch():
    before, stop, inside, met = cpu.threads(), threading.Event(), np.zeros(8, np.int64), np.zeros(400)

    def change() -> None:
        while not stop.is_set():
            cpu.set_threads(2)

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(200):
            cpu.run(meet, 400, inside, met)
    finally:
        stop.set()
        changing.join()
        cpu.set_threads(before)
    assert not met.any() and not inside.any()
    assert not [thread for thread in threading.enumerate() if thread.name == "minibert"]


COMPUTES = """
import threading, time
import numpy as np
from minibert.kernels.add import cpu
x, turns = np.ones(99, "f"), 0
def compute():
    global turns
    x = np.ones(1 << 18, "f")
    while True:
        cpu.forward(x, x, x)
        turns += 1
threading.Thread(target=compute, daemon=True).start()
while turns < 200:
    time.sleep(0.05)
"""


LOOKS = "import numpy as np; from minibert.kernels.add import cpu; x = np.ones(1 << 18, 'f'); cpu.forward(x, x, x)"


@pytest.mark.parametrize("code", [LOOKS, COMPUTES], ids=["a thread that looks", "a daemon that computes"])
def test_a_process_ends_in_silence_whatever_threads_do(code):
    last = "import atexit; atexit.register(lambda: cpu.forward(x[:99], x[:99], x[:99]))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{last}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_nobody_has_begun_is_not_waited_for():
    errand = Errand(lambda worker: pytest.fail("it was called off"), 1)
    wait_for([errand, errand])
    errand.run()
    assert errand.outcome() is None


def test_fewer_threads_compute_where_the_system_starts_no_more(workers, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    given, done = arguments(5), []
    workers.launch(pieces(5), (add_to, given))
    workers.share([(), ()], done.append)
    assert (given[0] == 5).all() and not given[1].any() and done == [0, 0]


def test_what_is_damaged_among_compiled_kernels_is_compiled_anew():
    def twice(x: float) -> float:
        return 2 * x

    first = compiling.jit(twice)
    assert first(2.0) == 4.0
    kept = first._cache._cache_file
    (data,) = kept._load_index().values()
    for path in (kept._index_path, kept._data_path(data)):
        for content in (b"", b"damaged", Path(path).read_bytes()[:-7]):
            Path(path).write_bytes(content)
            again = compiling.jit(twice)
            assert again(2.0) == 4.0 and not again.stats.cache_hits
            fresh = compiling.jit(twice)
            assert fresh(2.0) == 4.0 and fresh.stats.cache_hits, "and is there from then on"


def test_kernels_that_cannot_be_kept_are_compiled_all_the_same(monkeypatch):
    def thrice(x: float) -> float:
        return 3 * x

    def full(self, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling, "not_kept", "")  # which is told once
    monkeypatch.setattr(compiling.Kept, "_save_data", full)
    with pytest.warns(UserWarning, match="compiled kernels are not kept: No space left on device"):
        assert compiling.jit(thrice)(2.0) == 6.0
