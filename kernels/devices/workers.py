"""Threads that share out tasks. Who waits for another stays awake for a moment: a core that sleeps is slow to wake.

Between two kernels lie some 200 microseconds of Python. A core of a virtual machine that has gone to sleep meanwhile
comes 50 to 150 late, and one that looks 10 to 30: with 350 launches that is 2 % of a step of BERT-Base.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minibert.kernels.common import lanes

LOOKS = 30_000  # before sleep: half a millisecond to one and a half, as long as a processor's pause is


@intrinsic
def _look(typing, address):
    """The number at this address, which another thread may change; after a rest of 20 to 50 ns, on x86."""

    def emit(context, builder, sig, args):
        if lanes.compiles("sse2"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


def reached(count, number, looks):
    """Whether count[0] is `number`, or comes to it within so many looks. To be compiled."""
    at = np.intp(count.ctypes.data)
    for _ in range(looks):  # noqa: SIM110 - Numba has no any()
        if _look(at) == number:
            return True
    return False


class Bell:
    """What one thread rings and another waits for: for the first ring, the second, and so on."""

    def __init__(self, reached: Callable[[np.ndarray, int, int], bool]):
        self.rung, self._reached = np.zeros(1, np.int64), reached
        self._asleep, self._wake = False, SimpleQueue[None]()

    def ring(self) -> None:
        self.rung[0] += 1
        if self._asleep:
            self._wake.put(None)

    def wait(self, number: int) -> None:
        """Until it has been rung so many times in all."""
        if not self._reached(self.rung, number, LOOKS):
            self._asleep = True
            while self.rung[0] != number:  # it may be woken for a ring that it saw itself
                self._wake.get()
            self._asleep = False


class Helper(threading.Thread):
    """A worker beside the caller."""

    def __init__(self, worker: int, reached: Callable):
        super().__init__(name=f"minibert-{worker}", daemon=True)
        self.worker, self.begin, self.end = worker, Bell(reached), Bell(reached)
        self.work: Callable[[int], None] | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        number = 0
        while True:
            number += 1
            self.begin.wait(number)
            if self.work is None:
                return
            try:
                self.work(self.worker)
            except BaseException as error:
                self.error = error
            self.work = None  # and the arrays that it knows
            self.end.ring()

    def ask(self, work: Callable[[int], None] | None) -> None:
        self.work, self.error = work, None
        self.begin.ring()

    def wait(self) -> None:
        """Until it has done what it was asked, for which an earlier caller may not have waited."""
        self.end.wait(int(self.begin.rung[0]))


class Workers:
    """`count` threads; the caller's is worker 0, the others begin when they are first needed."""

    def __init__(self, count: int, reached: Callable[[np.ndarray, int, int], bool]):
        self.count, self._reached = count, reached
        self._helpers: list[Helper] = []
        self._taken = threading.Lock()
        atexit.register(self.stop)

    def share(self, tasks: Sequence[tuple], work: Callable[..., None]) -> None:
        """Calls work(worker, *task) for every task, on all threads; tasks begin in their order.

        While they work for another caller, this one does its tasks alone.
        """
        rest = iter(tasks)  # next() is atomic under the interpreter's lock

        def take(worker: int) -> None:
            for task in rest:
                work(worker, *task)

        if min(self.count, len(tasks)) < 2 or not self._taken.acquire(blocking=False):
            return take(0)
        try:
            helpers = self._begun()[: len(tasks) - 1]
            for helper in helpers:
                helper.wait()
                helper.ask(take)
            try:
                take(0)
            finally:
                for helper in helpers:
                    helper.wait()
        finally:
            self._taken.release()
        errors = [helper.error for helper in helpers if helper.error]
        for helper in helpers:
            helper.error = None
        if errors:
            raise errors.pop()

    def _begun(self) -> list[Helper]:
        if not self._helpers:
            self._helpers = [Helper(worker, self._reached) for worker in range(1, self.count)]
        return self._helpers

    def stop(self) -> None:
        """Ends the threads."""
        atexit.unregister(self.stop)
        for helper in self._helpers:
            helper.wait()
            helper.ask(None)
            helper.join()
        self._helpers = []
