"""CUDA C kernels: a source with what it includes, the signatures that stand in it, and launches checked against them.

`Kernels(__file__)` is the `.cu` beside a launcher. Who compiles and runs it is the open device's `Driver`: CuPy's in
devices/gpu.py; in the tests a C++ compiler with blocks and threads played by fibres, on arrays of NumPy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from minibert.errors import BackendError

HEADERS = Path(__file__).parent
# `storage` is what activations are stored in: float, or bf16 as unsigned short. A source is compiled for each.
STORAGES = {"float32": "float", "uint16": "unsigned short"}
SCALARS = {
    "int": np.int32, "unsigned int": np.uint32, "long long": np.int64, "unsigned long long": np.uint64,
    "float": np.float32, "double": np.float64, "bool": np.bool_,
}  # fmt: skip
POINTERS = {
    "storage": ("float32", "uint16"), "float": ("float32",), "unsigned short": ("uint16",), "int": ("int32",),
    "unsigned char": ("uint8",), "unsigned int": ("uint32",), "double": ("float64",),
}  # fmt: skip
# What NumPy would spell out anew for each argument, which took a third of the time of asking for a kernel.
NAMES = {np.dtype(name): name for names in POINTERS.values() for name in names}
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^)]*)\)')
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"\n', re.MULTILINE)


class Parameter(NamedTuple):
    """One of a kernel: its name and C type, without const; a pointer's is that of what it points to."""

    name: str
    type: str
    pointer: bool


Launch = Callable[[tuple[int, ...], tuple[int, ...], Sequence[Any], int], None]


class Driver(Protocol):
    """Who compiles kernels, launches them and multiplies matrices, on one device."""

    capability: tuple[int, int]  # such as (9, 0)

    def compile(self, source: str, storage: str) -> Callable[[str], Launch]:
        """The kernels of a source by name, for activations of that C type."""

    def multiply(self, out: Any, a: Any, b: Any, transposed: str, add: bool) -> None:
        """out = a b, or out += a b; `transposed` is "", "a" or "b", the factor that is meant the other way round.

        Float32, or bf16 as uint16, row by row; a and b have the same type. Sums are float32.
        """

    def aside(self) -> AbstractContextManager[None]:
        """What is asked for inside comes after what was asked for before, and runs beside what is asked for later,
        until `join`: neither may write where the other reads or writes.
        """

    def join(self) -> None:
        """What is asked for from here on comes after what was asked for aside."""

    def set_streams(self, base: int) -> None:
        """Adds `base` to every dropout's stream from here on, whatever its launch says: stream_base in philox.cuh."""


driver: Driver | None = None  # of the device that is open; kernels run on one kind of device in a process


def opened() -> Driver:
    if driver is None:
        raise BackendError("kernels for the GPU need a device: open it with --device gpu")
    return driver


def multiply(out: Any, a: Any, b: Any, transposed: str = "", add: bool = False) -> None:
    """out = a b or out += a b, as in Driver; nothing where there is nothing to do."""
    if out.size:
        opened().multiply(out, a, b, transposed, add)


def with_includes(path: Path) -> str:
    """A source with the headers of kernels/common that it includes, each once, in their places.

    In one text, because a compiler's cache knows a program by its text alone and would miss an edited header.
    """
    seen: set[str] = set()

    def put(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return _INCLUDE.sub(put, (HEADERS / match[1]).read_text())

    return _INCLUDE.sub(put, path.read_text())


def signatures(source: str) -> dict[str, list[Parameter]]:
    """The kernels of a source and what each takes."""
    return {name: [_parameter(text) for text in parameters.split(",")] for name, parameters in _KERNEL.findall(source)}


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", "").replace("const ", "").split()
    kind = " ".join(word for word in words[:-1] if word != "*")
    if kind not in (POINTERS if "*" in words else SCALARS):
        raise TypeError(f"{text.strip()!r}: a kernel's parameter is {', '.join(SCALARS)} or a pointer")
    return Parameter(words[-1], kind, "*" in words)


class Kernels:
    """The kernels of the `.cu` that bears a launcher's name, compiled when they are first launched."""

    def __init__(self, launcher: str):
        self.path = Path(launcher).with_suffix(".cu")
        self._compiled: dict[tuple[Driver, str], Callable[[str], Launch]] = {}
        self._found: dict[tuple[Driver, str, str], Launch] = {}

    @cached_property
    def source(self) -> str:
        return with_includes(self.path)

    @cached_property
    def signatures(self) -> dict[str, list[Parameter]]:
        return signatures(self.source)

    def launch(self, name: str, grid: int | Sequence[int], block: int | Sequence[int], *arguments: Any,
               shared: int = 0) -> None:  # fmt: skip
        """Runs a kernel on `grid` blocks of `block` threads, with `shared` bytes of dynamic shared memory.

        Arguments are arrays (None is a null pointer) and plain numbers, turned into what the kernel's signature says.
        TypeError if they do not fit it. A grid with a zero in it is no work.
        """
        grid, block = _three(grid), _three(block)
        if 0 in grid:
            return
        storage, converted = self.arguments(name, arguments)
        at = opened(), storage, name
        if at not in self._found:
            if at[:2] not in self._compiled:
                self._compiled[at[:2]] = at[0].compile(self.source, storage)
            self._found[at] = self._compiled[at[:2]](name)
        self._found[at](grid, block, converted, shared)

    def arguments(self, name: str, arguments: Sequence[Any]) -> tuple[str, list[Any]]:
        """The C type of activations among the arguments, and the arguments as the kernel takes them."""
        parameters = self.signatures[name]
        if len(parameters) != len(arguments):
            raise TypeError(f"{self.path.name}: {name} takes {len(parameters)} arguments, got {len(arguments)}")
        storages = set()
        converted = []
        for parameter, value in zip(parameters, arguments, strict=True):
            if not parameter.pointer:
                converted.append(SCALARS[parameter.type](value))
                continue
            if value is None:
                converted.append(np.uint64(0))
                continue
            found = NAMES.get(value.dtype)
            if found not in POINTERS[parameter.type] or not value.flags.c_contiguous:
                raise TypeError(f"{self.path.name}: {name} takes {parameter.type}* {parameter.name}, in order; "
                                f"got {value.dtype} {value.shape}, strides {value.strides}")  # fmt: skip
            if parameter.type == "storage":
                storages.add(STORAGES[found])
            converted.append(value)
        if len(storages) > 1:
            raise TypeError(f"{self.path.name}: {name} takes activations of one type, got both")
        return (storages or {"float"}).pop(), converted


def _three(size: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return sizes + (1,) * (3 - len(sizes))


def blocks(count: int, each: int, most: int = 1 << 30) -> int:
    """How many blocks cover `count` things, `each` a block; at most `most`, which then go round again."""
    return min(math.ceil(count / each), most)
