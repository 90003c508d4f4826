"""Threads that share out a launch's tasks and are woken with as little as Python allows.

The standard library's pool makes a future of every call: 36 microseconds a launch where these take 15, and a step of a
small model, 140 milliseconds, has 200 launches.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread


class Errand:
    """A thread's part in a launch: to take tasks until none is left."""

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


class Workers:
    """`count` threads that compute, the caller's among them, as number 0; the others begin with the first launch."""

    def __init__(self, count: int):
        self.count = count
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._begun = 0

    def share(self, tasks: Sequence[tuple], work: Callable[..., None]) -> None:
        """Calls work(worker, *task) for every task; tasks begin in their order."""
        rest = iter(tasks)  # next() is atomic under the interpreter's lock

        def take(worker: int) -> None:
            for task in rest:
                work(worker, *task)

        errands = [Errand(take, worker) for worker in range(1, min(self.count, len(tasks)))]
        while self._begun < len(errands):
            Thread(target=_serve, args=(self._errands,), name="minibert", daemon=True).start()
            self._begun += 1
        for errand in errands:
            self._errands.put(errand)
        try:
            take(0)
        finally:
            wait_for(errands)
        errors = [error for error in map(Errand.outcome, errands) if error is not None]
        if errors:
            raise errors.pop(0)  # nothing here keeps it, and with it the arrays of all frames that it has passed

    def end(self) -> None:
        """Lets the threads go."""
        for _ in range(self._begun):
            self._errands.put(None)


def _serve(errands: SimpleQueue[Errand | None]) -> None:
    while (errand := errands.get()) is not None:
        errand.run()


def wait_for(errands: Sequence[Errand]) -> None:
    """Until all have run. No interrupt comes before, however many: kernels write on, into arrays that would be gone."""
    try:
        for errand in errands:
            errand.wait()
    except BaseException:
        wait_for(errands)
        raise
