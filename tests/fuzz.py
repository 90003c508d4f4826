"""Fuzzes the readers of checkpoints: opens valid files with a few changes, checksums and lengths repaired.

    python tests/fuzz.py [READER ...] [--cases 100000] [--seed 1] [--only NUMBER] [--coverage]

Every case must end as a loaded checkpoint or as a CheckpointError of one printable line, within a second and 128 MiB
of memory, and without opening anything outside its folder. Anything else is a finding: it is printed with its number,
which --only repeats, and makes the exit code 1. Per reader it says how many cases were loaded, and the most frequent
refusals; --coverage also says which share of the reader's lines 5,000 cases reach, alone and with its unit tests.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import functools
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import mutations
from minibert.checkpoint import archive, sources
from minibert.checkpoint.tensors import DTYPES, Entry
from minibert.errors import CheckpointError
from mutations import Case

SECONDS, LONGEST = 1.0, 10  # that a case may take; when it is stopped, for the machine may have other work to do
MEMORY = 128 << 20  # bytes that a case may take; files have some kilobytes, zips may unpack to ten megabytes


class Reader(NamedTuple):
    mutate: Callable[[random.Random], Case]
    modules: tuple[str, ...]  # of minibert.checkpoint, whose coverage counts
    tests: tuple[str, ...]


TENSORFLOW = ("test_tensorflow", "test_tensorflow_table", "test_tensorflow_bundles")
PYTORCH = ("test_pytorch", "test_pytorch_pickles", "test_pytorch_archives")
READERS = {
    "safetensors": Reader(mutations.safetensors, ("huggingface", "tensors"), ("test_checkpoint",)),
    "tensorflow": Reader(mutations.tensorflow_bundle, ("tensorflow", "table", "protobuf"), TENSORFLOW),
    "torch": Reader(mutations.torch, ("pytorch", "pickles"), PYTORCH),
    "torch-legacy": Reader(mutations.torch_legacy, ("pytorch", "pickles"), PYTORCH),
    "zip": Reader(mutations.google_zip, ("archive",), ("test_archive",)),
    "shards": Reader(mutations.shards, ("sources",), ("test_conversion", "test_checkpoint")),
}


class Finding(Exception):
    """A reader did what none may do."""


class _Stopped(BaseException):
    """Raised inside a reader, past every `except Exception`."""


# --- one case


_watched: list[str] = []  # the folder of the case that is being opened
_OPENING = ("open", "os.rename", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")
_RUNNING = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "pickle", "socket", "ctypes")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    inside = isinstance(arguments[0], int) if arguments else False
    inside = inside or (event in _OPENING and str(arguments[0]).startswith(_watched[0]))
    if event.startswith((*_OPENING, *_RUNNING)) and not inside:
        raise _Stopped(f"{event} of {arguments[:1]}")


@functools.cache
def _install() -> None:
    for encoding in ("cp437", "raw_unicode_escape"):  # zipfile's and pickletools', loaded at their first use
        codecs.lookup(encoding)
    sys.addaudithook(_audit)  # which stays for good, and looks only while a case is open


@contextmanager
def _bounded(folder: Path) -> Iterator[None]:
    """Stops what is inside when it leaves the folder or never ends, and complains of what took too much."""

    def late(*_: object) -> None:
        raise _Stopped(f"still running after {LONGEST} s")

    _install()
    before, start = signal.signal(signal.SIGALRM, late), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    _watched[:] = [str(folder)]
    try:
        yield
    except _Stopped as stopped:
        raise Finding(str(stopped)) from None
    finally:
        _watched.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if (taken := time.perf_counter() - start) > SECONDS:
        raise TimeoutError(f"took {taken:.1f} s")


def opened(path: Path, folder: Path) -> CheckpointError | None:
    """Opens a checkpoint and reads all of it; returns the first refusal to give what the file holds."""
    refused = None
    try:
        if path.is_file() and archive.is_archive(path):
            archive.unpack_to(path, folder / "unpacked")
            path = folder / "unpacked"
        found = sources.find(path)
    except CheckpointError as error:
        return _checked(error)
    for entry in (*found.tensors.values(), *found.slots.values()):
        try:
            _check(entry, entry.stored(), DTYPES.get(entry.dtype))
        except CheckpointError as error:
            if entry.dtype in DTYPES:  # others may be there, and nobody reads them
                refused = refused or _checked(error)
        try:
            _check(entry, entry.read(), np.dtype(np.float32))
        except CheckpointError as error:  # such as NaN, which a file may hold
            _checked(error)
    return refused


def _check(entry: Entry, array: np.ndarray, dtype: np.dtype | None) -> None:
    if type(array) is not np.ndarray or (array.shape, array.dtype) != (entry.shape, dtype):
        raise Finding(f"{entry.where}: {entry.shape} {entry.dtype} came as {array.shape} {array.dtype} {type(array)}")


def _checked(error: CheckpointError) -> CheckpointError:
    if not str(error).isprintable() or len(str(error)) > 2000:
        raise Finding(f"said {str(error)[:500]!r}")
    return error


# --- many cases


class Result(NamedTuple):
    cases: int
    loaded: int
    refused: collections.Counter[str]  # by kinds
    findings: list[str]
    seconds: float
    slowest: tuple[float, int]  # seconds, number

    def __str__(self) -> str:
        lines = [
            f"{self.cases} cases, {self.loaded} loaded ({self.loaded / max(self.cases, 1):.0%}), {len(self.refused)} "
            f"kinds of refusals, {len(self.findings)} findings, {self.seconds:.0f} s, slowest "
            f"{self.slowest[0] * 1e3:.0f} ms (number {self.slowest[1]})"
        ]
        return "\n".join(lines + [f"  {count:7d}  {said}" for said, count in self.refused.most_common(10)])


def kind(error: CheckpointError) -> str:
    """What it says, without the path, names and numbers."""
    said = re.sub(r"'.*'|\".*\"", "NAME", str(error))
    said = re.sub(r"\S*/\S*", "PATH", said)
    return re.sub(r"-?\d[\d., ()\[\]-]*", "N", said)[:110]


def run(name: str, numbers: Iterable[int], seed: int = 1) -> Result:
    """The cases of these numbers; prints findings as they come."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None)).resolve()
    refused: collections.Counter[str] = collections.Counter()
    findings, loaded, slowest, start, cases = [], 0, (0.0, 0), time.monotonic(), 0
    try:
        for cases, number in enumerate(numbers, 1):  # noqa: B007
            begun = time.perf_counter()
            try:
                error = _case(name, random.Random(f"{name} {seed} {number}"), folder)
                loaded += error is None
                refused.update([kind(error)] if error else [])
            except Exception as error:
                frames = reversed(traceback.extract_tb(error.__traceback__))
                findings.append(
                    f"{type(error).__name__}: {str(error)[:500]}" + "".join(f" < {f.name}:{f.lineno}" for f in frames)
                )
                print(
                    f"FINDING: python tests/fuzz.py {name} --seed {seed} --only {number}\n  {findings[-1]}", flush=True
                )
            slowest = max(slowest, (time.perf_counter() - begun, number))
    finally:
        shutil.rmtree(folder)
    return Result(cases, loaded, refused, findings, time.monotonic() - start, slowest)


def _case(name: str, rng: random.Random, folder: Path) -> CheckpointError | None:
    path, files = READERS[name].mutate(rng)
    for title, content in files.items():
        (folder / title).write_bytes(content)
    try:
        for attempt in range(3):  # too long three times is not the machine's other work
            try:
                with _bounded(folder):
                    return opened(folder / path, folder)
            except TimeoutError as error:
                if attempt == 2:
                    raise Finding(str(error)) from None
        raise AssertionError("the last attempt returns or raises")
    finally:
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
        for there in folder.iterdir():
            there.unlink()  # rather than written over: somebody may have it mapped


def print_coverage(name: str, cases: int = 5000) -> None:
    """Which lines of the reader its fuzzing reaches, and its unit tests with it."""
    here = Path(__file__).parent
    modules, tests = READERS[name].modules, READERS[name].tests
    with tempfile.TemporaryDirectory() as folder:
        data = f"--data-file={folder}/coverage"
        include = "--include=" + ",".join(f"*/minibert/checkpoint/{module}.py" for module in modules)
        fuzzing = [__file__, name, "--cases", str(cases)]
        testing = ["-m", "pytest", "-q", *(str(here / f"{test}.py") for test in tests)]
        for title, command in ((f"{cases} cases", fuzzing), (f"{cases} cases and unit tests", testing)):
            coverage = [sys.executable, "-m", "coverage"]
            subprocess.run(
                [*coverage, "run", "-a", data, include, *command], stdout=subprocess.DEVNULL, cwd=here.parent
            )
            report = subprocess.run([*coverage, "report", "-m", data], capture_output=True, text=True).stdout
            for module in modules:
                found = re.search(rf"/{module}\.py +\d+ +\d+ +(\S+)(.*)", report)
                print(
                    f"  coverage of {module}.py, {title}: {' lines missing: '.join(found.groups()) if found else '?'}"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case, by its number")
    parser.add_argument("--coverage", action="store_true", help="also measure coverage; needs the package coverage")
    options = parser.parse_args()
    if strange := set(options.readers) - set(READERS):
        parser.error(f"no reader {', '.join(strange)}: choose from {', '.join(READERS)}")
    warnings.simplefilter("error")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))  # or a MemoryError, a finding
    findings = 0
    for name in options.readers or READERS:
        result = run(name, range(options.cases) if options.only is None else [options.only], options.seed)
        print(f"{name}: {result}", flush=True)
        if options.coverage:
            print_coverage(name)
        findings += len(result.findings)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
