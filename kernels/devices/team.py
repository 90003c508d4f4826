"""What a team's threads do in compiled code: share out a launch's tasks, and look for the next launch.

A team is words of memory that its threads share. The caller **opens** a launch there and takes task after task, as
everybody does who looks; it closes the launch when there are none left, and waits for those that are **inside**.
Whoever is inside said so before finding the launch open, so that what it reads there is whole. Who comes late finds
fewer tasks, or none: nobody waits for a thread that the system does not run, but for one that is inside.

Helpers look for some time after a launch and then sleep: waking them costs 20 to 80 microseconds, looking 1. Where a
look takes long, others want the core, and helpers sleep at once: threads that look would take from those that compute.
A helper that falls asleep in the microseconds between a caller's look at it and the launch misses that launch.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import atomics

from .binding import call
from .compiling import jit

PATIENCE = 500_000  # nanoseconds of looking
WANTED = 20_000  # nanoseconds that a look takes where others want the core

# The words, by their place in bytes, on lines of their own.
LINE = 128  # bytes: two of a cache's, which cores fetch together
OPEN, NEXT, INSIDE, OPENED, BUSY, STATUS, TASKS, COUNT = (LINE * n for n in range(8))
FIRST, SECOND, OWN = (LINE * n for n in range(8, 11))
SENT, ASLEEP = 0, 8  # in each worker's own line, from OWN on: how much it was sent, and whether it sleeps


def memory(count: int) -> np.ndarray:
    """That of a team of so many, the caller as number 0 among them."""
    return np.zeros((OWN + LINE * count) // 8, np.int64)


@jit
def launch(team, tasks, count, first, second):
    """`count` tasks, pairs of words at address `tasks`, by one or two bound kernels (binding.py); the status of one
    that failed, or 0. Alone, where the team has another launch open.
    """
    if atomics.exchange(team + BUSY, 1) != 0:
        status = np.int32(0)
        for n in range(count):
            failed = _task(tasks + 16 * n, 0, first, second)
            if failed != 0:
                status = failed
    else:
        status = _together(team, tasks, count, first, second)
        atomics.store(team + BUSY, 0)
    return status


@jit
def _together(team, tasks, count, first, second):
    atomics.store(team + TASKS, tasks)
    atomics.store(team + COUNT, count)
    atomics.store(team + FIRST, first)
    atomics.store(team + SECOND, second)
    atomics.store(team + STATUS, 0)
    atomics.store(team + NEXT, 0)
    atomics.store(team + OPEN, 1)
    atomics.add(team + OPENED, 1)
    _take_tasks(team, 0)
    atomics.store(team + OPEN, 0)
    while atomics.load(team + INSIDE) != 0:
        atomics.relax()
    return np.int32(atomics.load(team + STATUS))


@jit
def _take_tasks(team, worker):
    """Computes tasks of the open launch until there are none left."""
    tasks, count = atomics.load(team + TASKS), atomics.load(team + COUNT)
    first, second = atomics.load(team + FIRST), atomics.load(team + SECOND)
    while True:
        n = atomics.add(team + NEXT, 1)
        if n >= count:
            break
        failed = _task(tasks + 16 * n, worker, first, second)
        if failed != 0:
            atomics.store(team + STATUS, failed)


@jit
def _task(task, worker, first, second):
    """The status of the first kernel that failed, or 0."""
    begin, end = atomics.load(task), atomics.load(task + 8)
    status = call(first, worker, begin, end)
    if status == 0 and second != 0:
        status = call(second, worker, begin, end)
    return status


@jit
def look(team, worker, taken, patience):
    """Helps with launches until the worker is sent more than it has `taken`, or for `patience` nanoseconds none is
    opened. Then its last act is to say that it sleeps.
    """
    own, seen, since = team + OWN + LINE * worker, np.int64(-1), atomics.nanoseconds()
    while atomics.load(own + SENT) == taken:
        opened = atomics.load(team + OPENED)
        if opened != seen:
            atomics.store(own + ASLEEP, 0)
            seen = opened
            atomics.add(team + INSIDE, 1)
            if atomics.load(team + OPEN) != 0:
                _take_tasks(team, worker)
            atomics.add(team + INSIDE, -1)
            since = atomics.nanoseconds()
        elif atomics.load(own + ASLEEP) != 0:
            break  # nothing was opened while it was saying so
        before = atomics.nanoseconds()
        atomics.relax()
        now = atomics.nanoseconds()
        if now - since > patience or now - before > WANTED:
            atomics.store(own + ASLEEP, 1)
