"""What the system would give this process: memory, and cores."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
HOLES = 0.06  # of what a limit on mappings leaves, whose holes it counts too: up to so much was lost to them in a step


def available(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes: the least of what is free, what control groups leave (a container's limit) and what `ulimit` leaves; what
    the machine has in all where the system does not say what is free, and None where it says nothing.
    """
    sizes = [*_free(proc), *_in_control_groups(proc, cgroups), *_in_limits(proc)]
    if not sizes:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(sizes)) if sizes else None


def resident(proc: Path = PROC) -> int | None:
    """Bytes of this process's own memory, without files that others can have; None where the system does not say."""
    return next(_kilobytes(proc / "self" / "status", "RssAnon"), None)


def _kilobytes(path: Path, name: str) -> Iterator[int]:
    """What a line such as `MemAvailable:  123 kB` says, in bytes."""
    return (1024 * number for number in _numbers(path, f"{name}:"))


def _numbers(path: Path, name: str) -> Iterator[int]:
    """The numbers of the lines that begin with the word `name`."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.split()[:1] == [name]:
                yield int(line.split()[1])


def _free(proc: Path) -> Iterator[int]:
    yield from _kilobytes(proc / "meminfo", "MemAvailable")


def _in_control_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of each group that holds this process its limit less what is used. The files that a group has read count as used,
    though the kernel drops them for whoever needs their memory.
    """
    for place, version in _groups("memory", proc, cgroups):
        limit, used, cached = {
            2: ("memory.max", "memory.current", "inactive_file"),
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        }[version]
        with contextlib.suppress(OSError, ValueError):  # no limit: the file is not there, or says `max`
            free = int((place / limit).read_text()) - int((place / used).read_text())
            yield free + next(_numbers(place / "memory.stat", cached), 0)


def _groups(controller: str, proc: Path, cgroups: Path) -> Iterator[tuple[Path, int]]:
    """The control groups that hold this process, up to the root, and their version."""
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            controllers, _, name = line.partition(":")[2].partition(":")
            if controllers == "":
                yield from ((place, 2) for place in _up(cgroups, name))
            elif controller in controllers.split(","):
                yield from ((place, 1) for place in _up(cgroups / controller, name))


def _up(root: Path, name: str) -> Iterator[Path]:
    folder = root / name.lstrip("/")
    for place in (folder, *folder.parents):
        yield place
        if place == root:
            return


def cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """How many cores this process may use: those that it may run on, or fewer where control groups limit its time, as
    `docker run --cpus` does; a part of a core counts as one. More threads would wait for each other's time.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([count, *(math.ceil(share) for share in _shares_of_cores(proc, cgroups))]))


def _shares_of_cores(proc: Path, cgroups: Path) -> Iterator[float]:
    for place, version in _groups("cpu", proc, cgroups):
        with contextlib.suppress(OSError, ValueError):  # no limit: the file is not there, says `max` or a quota of -1
            if version == 2:
                quota, period = map(int, (place / "cpu.max").read_text().split())
            else:
                quota, period = (int((place / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0 < period:
                yield quota / period


def _in_limits(proc: Path) -> Iterator[int]:
    if resource is None:
        return
    for kind, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield from (int((1 - HOLES) * (limit - now)) for now in _kilobytes(proc / "self/status", used))
