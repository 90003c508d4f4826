"""Threads that compute together: a team for compiled kernels (team.py), and for functions of Python.

**Compiled kernels** are launched without the interpreter, once they are bound to their arguments (binding.py): 4 to 7
microseconds, where to wake a thread through the interpreter's lock takes 20 to 80; and a step of a small model, 130
milliseconds, has 200 launches.

**Functions of Python** (BLAS) are errands for the same threads.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread, get_ident

import numpy as np

from . import team
from .binding import ROOM, is_bindable

Bound = tuple[Callable, tuple]  # a compiled kernel, and its arguments after (worker, begin, end)


class Tasks:
    """Pairs of numbers (begin, end), where compiled code finds them."""

    def __init__(self, pairs: Sequence[tuple[int, int]]):
        self.count = len(pairs)
        self._words = np.array(pairs, np.int64).reshape(-1)
        self.address = self._words.ctypes.data


class Errand:
    """A thread's part in what Python computes: to take tasks until none is left."""

    def __init__(self, take: Callable[[int], None] | None, worker: int):
        self._take, self._worker = take, worker
        self._error: BaseException | None = None
        self._whose: dict[str, str] = {}  # whoever is first to say so (`setdefault` is atomic)
        self._done = allocate_lock()
        self._done.acquire()

    def run(self) -> None:
        if self._whose.setdefault("it", "its helper's") != "its helper's":
            return
        try:
            if self._take:
                self._take(self._worker)
        except BaseException as error:
            self._error = error
        self._take = None  # which has the launch's arrays, and whoever waits may count on them to die
        self._done.release()

    def wait(self) -> None:
        """Until it has run, if it has begun; if not, it never will. Any number of times."""
        if self._whose.setdefault("it", "the caller's") == "the caller's":
            self._take = None
        else:
            with self._done:
                pass

    def outcome(self) -> BaseException | None:
        """Its error, if it ended with one, which is forgotten here: its frames know this errand."""
        error, self._error = self._error, None
        return error


class Helper:
    """A thread that does errands in their order, looks for launches after each, and sleeps until the next."""

    def __init__(self, memory: np.ndarray, number: int):
        self.number = number
        self._team = memory.ctypes.data
        self._words = memory.data
        self._sent, self._asleep = ((team.OWN + team.LINE * number + n) // 8 for n in (team.SENT, team.ASLEEP))
        self._words[self._asleep] = 1
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._sending, self._ended = allocate_lock(), False
        self._thread = Thread(target=self._serve, name="minibert", daemon=True)
        self._thread.start()

    def send(self, errand: Errand | None) -> None:
        """An errand, or None: to end, after which none is taken any more."""
        with self._sending:
            if not self._ended:
                self._ended = errand is None
                self._words[self._sent] += 1  # first: who sees it and finds nothing waits for what is coming
                self._errands.put(errand)

    @property
    def asleep(self) -> bool:
        return bool(self._words[self._asleep])

    def wake(self) -> None:
        """Makes it look for launches, if it sleeps and nobody has woken it yet."""
        if self.asleep and self._errands.empty():
            self.send(Errand(None, self.number))

    def join(self) -> None:
        self._thread.join()

    def _serve(self) -> None:
        taken = 0
        while errand := self._errands.get():
            taken += 1
            self._words[self._asleep] = 0
            errand.run()
            team.look(self._team, self.number, taken, team.PATIENCE)


class Workers:
    """`count` threads that compute, the caller's among them, as number 0; the others begin with their first work."""

    def __init__(self, count: int):
        self.count = count
        self._memory = team.memory(count)
        self._team = self._memory.ctypes.data  # to ask for it takes as long as a launch
        self._helpers: list[Helper] = []
        self._helping, self._ended = allocate_lock(), False  # held while helpers come and go
        self._rooms = Rooms()

    def launch(self, tasks: Tasks, first: Bound, second: Bound | None = None) -> None:
        """kernel(worker, begin, end, *arguments) for each task, by one or two kernels, one after the other for each
        task; tasks begin in their order. RuntimeError where a kernel has raised an error, which is lost.
        """
        room, other = self._rooms[get_ident()]
        _bind(room, *first)
        if second:
            _bind(other, *second)
        for helper in self._for(tasks.count):
            helper.wake()
        status = team.launch(self._team, tasks.address, tasks.count, room, other if second else 0)
        if status:
            names = [bound[0].__name__ for bound in (first, second) if bound]
            raise RuntimeError(f"{' or '.join(names)} raised an error")

    def share(self, tasks: Sequence[tuple], work: Callable[..., None]) -> None:
        """Calls work(worker, *task), a function of Python, for every task; tasks begin in their order."""
        rest = iter(tasks)  # next() is atomic under the interpreter's lock

        def take(worker: int) -> None:
            for task in rest:
                work(worker, *task)

        helpers = self._for(len(tasks))
        errands = [Errand(take, helper.number) for helper in helpers]
        try:
            try:
                for helper, errand in zip(helpers, errands, strict=True):
                    helper.send(errand)
                take(0)
            finally:
                for errand in errands:  # here, since an interrupt can come where a function begins
                    errand.wait()
        except BaseException:
            wait_for(errands)
            raise
        errors = [error for error in map(Errand.outcome, errands) if error is not None]
        if errors:
            raise errors.pop(0)  # nothing here keeps it, and with it the arrays of all frames that it has passed

    def end(self) -> None:
        """Lets the threads go, and starts none any more: the caller computes alone."""
        with self._helping:
            helpers, self._helpers, self._ended = self._helpers, [], True
        for helper in helpers:
            helper.send(None)
        for helper in helpers:
            helper.join()

    def _for(self, tasks: int) -> list[Helper]:
        """Those that can help with so many tasks."""
        count = max(0, min(self.count, tasks) - 1)
        if len(self._helpers) < count and not self._ended:
            with self._helping:
                team.look(self._team, 0, -1, 0)  # compiles, which must not fail in a helper
                with suppress(RuntimeError):  # a limit on threads, or an end that is near: there are fewer then
                    while len(self._helpers) < count and not self._ended:
                        self._helpers.append(Helper(self._memory, len(self._helpers) + 1))
        return self._helpers[:count]


class Rooms(dict[int, tuple[int, int]]):
    """Where a thread binds a launch's kernels, by its number. (What threading.local has is gone before a daemon is.)"""

    def __init__(self) -> None:
        self._memory: list[np.ndarray] = []

    def __missing__(self, thread: int) -> tuple[int, int]:
        rooms = np.empty((2, ROOM // 8), np.int64)
        self._memory.append(rooms)
        self[thread] = places = rooms[0].ctypes.data, rooms[1].ctypes.data
        return places


def _bind(room: int, kernel: Callable, arguments: tuple) -> None:
    if not is_bindable(kernel):
        raise TypeError(f"{kernel} cannot be launched: decorate it with jit, and begin with (worker, begin, end)")
    kernel(-1, room, 0, *arguments)


def wait_for(errands: Sequence[Errand]) -> None:
    """Until all have run that have begun, whatever interrupts: kernels write on, into arrays that would be gone."""
    try:
        for errand in errands:
            errand.wait()
    except BaseException:
        wait_for(errands)
        raise
