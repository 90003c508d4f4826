"""A team of threads that shares out the tasks of a launch.

**Compiled kernels** are launched without the interpreter. The caller binds them to their arguments (binding.py), opens
the launch in memory that the threads share, and takes task after task, as the others do, who look there for about half
a millisecond after the last launch before they sleep. So a launch costs 2 microseconds, where waking a sleeping thread
through the interpreter's lock costs 30 to 80, and a step of a small model, 130 milliseconds, has 200 launches. Whoever
comes late finds fewer tasks, or none: nobody waits for a thread that the system does not run, but for one in the midst
of a task.

**Python functions** (BLAS) are errands for the same threads, each of which must do its own.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread, local

import numpy as np

from minibert.kernels.common import atomics

from .binding import ROOM, call
from .compiling import jit

PATIENCE = 400  # looks for the next launch, some microseconds each, before a thread sleeps
MOST_KERNELS = 2  # of a launch

# The words of a team's memory by their place in bytes, each on lines of its own.
_OPEN, _NEXT, _INSIDE, _OPENED, _BUSY, _STATUS, _TASKS, _COUNT, _FIRST, _SECOND, _CALLED = (128 * n for n in range(11))


@jit
def _take(team, worker):
    """Computes tasks of the open launch until there are no more."""
    tasks, count = atomics.load(team + _TASKS), atomics.load(team + _COUNT)
    first, second = atomics.load(team + _FIRST), atomics.load(team + _SECOND)
    while True:
        task = atomics.add(team + _NEXT, 1)
        if task >= count:
            break
        status = _compute(tasks + 16 * task, worker, first, second)
        if status != 0:
            atomics.store(team + _STATUS, status)


@jit
def _compute(task, worker, first, second):
    """The kernels of a launch for one task; the status of the first that failed."""
    begin, end = atomics.load(task), atomics.load(task + 8)
    status = call(first, worker, begin, end)
    if status == 0 and second != 0:
        status = call(second, worker, begin, end)
    return status


@jit
def _launch(team, tasks, count, first, second):
    """All tasks of a launch, with the help of whoever looks; alone where the team has another launch open."""
    if atomics.exchange(team + _BUSY, 1) != 0:
        status = np.int32(0)
        for task in range(count):
            failed = _compute(tasks + 16 * task, 0, first, second)
            if failed != 0:
                status = failed
        return status
    atomics.store(team + _TASKS, tasks)
    atomics.store(team + _COUNT, count)
    atomics.store(team + _FIRST, first)
    atomics.store(team + _SECOND, second)
    atomics.store(team + _STATUS, 0)
    atomics.store(team + _NEXT, 0)
    atomics.store(team + _OPEN, 1)
    atomics.add(team + _OPENED, 1)
    _take(team, 0)
    atomics.store(team + _OPEN, 0)
    while atomics.load(team + _INSIDE) != 0:
        atomics.relax()
    status = np.int32(atomics.load(team + _STATUS))
    atomics.store(team + _BUSY, 0)
    return status


@jit
def _look(team, worker, patience):
    """Helps with launches until none has been opened for a while, or this worker is called.

    Who is inside has seen the launch open after saying so, and whoever opened it waits: what it reads there is whole.
    """
    seen, looks = np.int64(-1), 0
    while looks < patience and atomics.load(team + _CALLED + 8 * worker) == 0:
        opened = atomics.load(team + _OPENED)
        if opened != seen:
            seen, looks = opened, 0
            atomics.add(team + _INSIDE, 1)
            if atomics.load(team + _OPEN) != 0:
                _take(team, worker)
            atomics.add(team + _INSIDE, -1)
        atomics.relax()
        looks += 1


class Errand:
    """A thread's part in what Python computes: to take tasks until none is left."""

    def __init__(self, take: Callable[[int], None], worker: int):
        self._take: Callable[[int], None] | None = take
        self._worker = worker
        self._error: BaseException | None = None
        self._open = allocate_lock()
        self._open.acquire()

    def run(self) -> None:
        assert self._take is not None
        try:
            self._take(self._worker)
        except BaseException as error:
            self._error = error
        self._take = None  # which has the launch's arrays, and whoever waits may count on them to die
        self._open.release()

    def wait(self) -> None:
        """Until it has run; any number of times."""
        with self._open:
            pass

    def outcome(self) -> BaseException | None:
        """Its error, if it ended with one, which is forgotten here: its frames know this errand."""
        error, self._error = self._error, None
        return error


class Helper:
    """A thread that helps: does an errand, looks for launches for a while, and sleeps until the next errand."""

    def __init__(self, team: np.ndarray, number: int):
        self.asleep = True
        self._team, self._number = team, number
        self._errands: SimpleQueue[Errand | bool] = SimpleQueue()
        self._thread = Thread(target=self._serve, name="minibert", daemon=True)
        self._thread.start()

    def send(self, errand: Errand | bool) -> None:
        """An errand; or True, nothing but to wake up; or False, to end."""
        self._team[_CALLED // 8 + self._number] = 1  # first, since it takes an errand for the end of its calls
        self._errands.put(errand)

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        team = self._team.ctypes.data
        while errand := self._errands.get():
            self.asleep, self._team[_CALLED // 8 + self._number] = False, 0
            if isinstance(errand, Errand):
                errand.run()
            _look(team, self._number, PATIENCE)
            self.asleep = True


class Tasks:
    """Pairs of numbers (begin, end), where compiled code finds them."""

    def __init__(self, pairs: Sequence[tuple[int, int]]):
        self.count = len(pairs)
        self._pairs = np.array(pairs, np.int64).reshape(-1)
        self.address = self._pairs.ctypes.data


class Workers:
    """`count` threads that compute, the caller's among them, as number 0; the others begin with their first work."""

    def __init__(self, count: int):
        self.count = count
        self._team = np.zeros(_CALLED // 8 + count, np.int64)
        self._address = self._team.ctypes.data  # to ask for it takes as long as a launch
        self._helpers: list[Helper] = []
        self._helping = allocate_lock()  # held while helpers are added
        self._own = local()

    def launch(self, tasks: Tasks, *kernels: tuple[Callable, tuple]) -> None:
        """kernel(worker, begin, end, *arguments) for each task, by one or two compiled kernels, one after the other for
        each task; tasks begin in their order.
        """
        rooms = self._rooms()
        for room, (kernel, arguments) in zip(rooms, kernels, strict=False):
            kernel(-1, room, 0, *arguments)
        for helper in self._for(tasks.count):
            if helper.asleep:
                helper.send(True)
        bound = (*rooms[: len(kernels)], 0)
        if _launch(self._address, tasks.address, tasks.count, bound[0], bound[1]):
            raise RuntimeError(f"{' or '.join(kernel.__name__ for kernel, _ in kernels)} raised an error")

    def share(self, tasks: Sequence[tuple], work: Callable[..., None]) -> None:
        """Calls work(worker, *task), a Python function, for every task; tasks begin in their order."""
        rest = iter(tasks)  # next() is atomic under the interpreter's lock

        def take(worker: int) -> None:
            for task in rest:
                work(worker, *task)

        errands = []
        for number, helper in enumerate(self._for(len(tasks)), start=1):
            errands.append(Errand(take, number))
            helper.send(errands[-1])
        try:
            take(0)
        finally:
            wait_for(errands)
        errors = [error for error in map(Errand.outcome, errands) if error is not None]
        if errors:
            raise errors.pop(0)  # nothing here keeps it, and with it the arrays of all frames that it has passed

    def end(self) -> None:
        """Lets the threads go."""
        helpers, self._helpers = self._helpers, []
        for helper in helpers:
            helper.send(False)
        for helper in helpers:
            helper.join()

    def _for(self, tasks: int) -> list[Helper]:
        """Those that can help with so many tasks."""
        count = max(0, min(self.count, tasks) - 1)
        if len(self._helpers) < count:
            with self._helping:
                while len(self._helpers) < count:
                    self._helpers.append(Helper(self._team, len(self._helpers) + 1))
        return self._helpers[:count]

    def _rooms(self) -> tuple[int, ...]:
        """Where this thread binds a launch's kernels."""
        try:
            return self._own.places
        except AttributeError:
            self._own.rooms = np.empty((MOST_KERNELS, ROOM // 8), np.int64)
            self._own.places = tuple(room.ctypes.data for room in self._own.rooms)
            return self._own.places


def wait_for(errands: Sequence[Errand]) -> None:
    """Until all have run. No interrupt comes before, however many: kernels write on, into arrays that would be gone."""
    try:
        for errand in errands:
            errand.wait()
    except BaseException:
        wait_for(errands)
        raise
