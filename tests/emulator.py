"""A driver for the GPU's kernels without a GPU: CUDA C compiled as C++ (emulator.h), on arrays of NumPy."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bits import as_bf16, from_bf16
from guards import Place, guarded
from minibert.kernels.common import cuda
from minibert.kernels.devices import Device
from minibert.kernels.devices.recording import Recorder, Recording

HEADER = Path(__file__).with_name("emulator.h").read_text()
COMPILER = shutil.which("g++") or shutil.which("clang++")
DYNAMIC = 228 << 10  # bytes of shared memory that a block can have, as in emulator.h
FAILURES = {1: "threads wait in vain", 2: "wrote past its dynamic shared memory"}  # what `play` returns
folder = Path(tempfile.gettempdir())  # of compiled kernels; conftest.py has one for all processes of a test run


class Emulator:
    """`recorded`: while it is a list, it gets every launch. `order`: in which order a block's threads run between
    barriers: 0 in turn, 1 from the last on, more shuffled by it. Results must not depend on it.
    """

    def __init__(self, capability: tuple[int, int] = (8, 0), order: int = 0):
        self.capability, self.order = capability, order
        self.recorded: list[Callable[[], None]] | None = None
        self.base, self.bases = 0, []

    def compile(self, source: str, storage: str) -> Callable[[str], cuda.Launch]:
        library = _library(source, storage)
        if "stream_base;" in source:
            self.bases.append(ctypes.c_uint.in_dll(library, "stream_base"))
            self.bases[-1].value = self.base

        def find(name: str) -> cuda.Launch:
            function = getattr(library, f"launch_{name}")

            def launch(grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], shared: int) -> None:
                assert 0 < np.prod(block) <= 1024 and 0 <= shared <= DYNAMIC, (grid, block, shared)
                assert max(grid[1:]) <= 65535, grid  # as on cards; in x there may be two thousand million
                sizes = [(ctypes.c_uint * 3)(*three) for three in (grid, block)]
                given = [Place.of(x) if isinstance(x, np.ndarray) else x for x in arguments]

                def play() -> None:
                    with guarded([x for x in given if isinstance(x, Place)]) as copies:
                        rest = iter(copies)
                        values = [np.uint64(next(rest)) if isinstance(x, Place) else x for x in given]
                        rooms = [(ctypes.c_char * x.nbytes).from_buffer_copy(x) for x in values]
                        pointers = (ctypes.c_void_p * len(rooms))(*map(ctypes.addressof, rooms))
                        failed = function(*sizes, ctypes.c_uint(shared), ctypes.c_uint(self.order), pointers)
                        assert not failed, f"{name}: {FAILURES[failed]}"

                self._do(play)

            return launch

        return find

    def _do(self, call: Callable[[], None]) -> None:
        call() if self.recorded is None else self.recorded.append(call)

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def join(self) -> None: ...

    def set_streams(self, base: int) -> None:
        self.base = base
        for place in self.bases:
            place.value = base

    def multiply(self, out: Any, a: Any, b: Any, transposed: str, add: bool) -> None:
        self._do(lambda: self._multiply(out, a, b, transposed, add))

    @staticmethod
    def _multiply(out: Any, a: Any, b: Any, transposed: str, add: bool) -> None:
        numbers = [x if x.dtype != np.uint16 else from_bf16(x) for x in (a, b, out)]
        a, b, before = numbers[0].T if transposed == "a" else numbers[0], numbers[1], numbers[2]
        product = a @ (b.T if transposed == "b" else b)
        result = product + before if add else product
        out[...] = as_bf16(result) if out.dtype == np.uint16 else result


@cache
def _library(source: str, storage: str) -> ctypes.CDLL:
    players = []
    for name, parameters in cuda.signatures(source).items():
        types = [f"{p.type}*" if p.pointer else p.type for p in parameters]
        call = ", ".join(f"*({kind}*)a[{i}]" for i, kind in enumerate(types))
        players.append(
            f'extern "C" int launch_{name}(const unsigned* grid, const unsigned* block, unsigned shared, '
            f"unsigned order, void** a) {{\n"
            f"    return play(grid, block, shared, order, [](void** a) {{ {name}({call}); }}, a);\n}}\n"
        )
    text = f"#define STORAGE {storage}\n{HEADER}\n{source}\n{''.join(players)}"
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            written, built = Path(place, "kernels.cpp"), Path(place, "kernels.so")
            written.write_text(text)
            command = [COMPILER, "-O1", "-march=native", "-std=c++17", "-nostdinc++", "-fPIC", "-shared", "-w",
                       "-fno-threadsafe-statics",
                       "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error",  # a misaligned access is SIGILL
                       "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-nodefaultlibs", "-o", str(built), str(written),
                       "-lm", "-lc"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[:4000]
            built.replace(path)  # whole, whoever looks
    return ctypes.CDLL(str(path))


@contextmanager
def emulated(capability: tuple[int, int] = (8, 0), order: int = 0) -> Iterator[Emulator]:
    """Kernels for the GPU run on the emulator inside."""
    before, cuda.driver = cuda.driver, Emulator(capability, order)
    try:
        yield cuda.driver
    finally:
        cuda.driver = before


class Emulated(Recorder):
    """The GPU's kernels with the host's memory."""

    ahead, host_apart, gives_blocks = 1, True, True

    def _capture(self, call: Callable[[], Any]) -> Recording:
        emulator = cuda.driver
        emulator.recorded = launches = []
        try:
            result = call()
        finally:
            emulator.recorded = None
        return Recording(lambda: [launch() for launch in launches], result)


def device(precision: str = "fp32") -> Device:
    """To be used while `emulated`."""
    found = Emulated("gpu")
    if precision == "bf16":
        found.activation_type = found.operand_type = np.dtype(np.uint16)
    return found
