"""The GPU's kernels in tests: on the emulator wherever there is a C++ compiler, on a device under `-m gpu`.

Both take arrays of NumPy, so a test has them beside `reference` and `cpu`:

    @pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("add")])
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest

import emulator
from minibert.kernels import load
from minibert.kernels.common import cuda
from minibert.kernels.devices import gpu

needs_compiler = pytest.mark.skipif(emulator.COMPILER is None, reason="needs a C++ compiler, g++ or clang++")


class Emulated:
    """An operation's launcher, its kernels played by the emulator."""

    def __init__(self, operation: str, backend: str = "gpu", capability: tuple[int, int] = (8, 0), order: int = 0):
        self.module, self.capability, self.order = load(operation, backend), capability, order

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with emulator.emulated(self.capability, self.order):
                return getattr(self.module, name)(*arguments, **named)

        return call


class OnDevice:
    """An operation's launcher on the real device: arrays are copied there, and back afterwards."""

    def __init__(self, operation: str, backend: str = "gpu"):
        self.module = load(operation, backend)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            opened()  # or skips
            import cupy

            given = *arguments, *named.values()
            copies = {id(a): cupy.asarray(a) for a in given if isinstance(a, np.ndarray)}
            try:
                result = getattr(self.module, name)(
                    *(copies.get(id(a), a) for a in arguments),
                    **{key: copies.get(id(a), a) for key, a in named.items()},
                )
                for argument in given:
                    if isinstance(argument, np.ndarray) and argument.flags.writeable:
                        argument[...] = copies[id(argument)].get()
            except gpu.failures() as error:  # after which nothing works in this process: later tests would fail, too
                give_up(f"{self.module.__name__}.{name}: {error}")
            return result

        return call


def give_up(text: str) -> NoReturn:
    """Ends this process: of several that share the tests, one of which another takes the place."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        print(text, file=sys.__stderr__, flush=True)
        os._exit(3)
    pytest.exit(text)


def opened() -> None:
    """Opens the device that runs the tests marked `gpu`; skips where there is none."""
    from minibert.errors import BackendError
    from minibert.kernels import devices

    if not isinstance(cuda.driver, emulator.Emulator) and cuda.driver is not None:
        return
    try:
        devices.open("gpu")
    except BackendError as error:
        pytest.skip(str(error))
    if os.environ.get("MINIBERT_UNPOOLED"):  # for compute-sanitizer, which sees a pool as one piece of memory
        import cupy

        cupy.cuda.set_allocator(None)


def backends(operation: str, backend: str = "gpu") -> list[Any]:
    """What to parametrize a kernel's tests with."""
    importlib.import_module(f"minibert.kernels.{operation}.{backend}")
    return [
        pytest.param(Emulated(operation, backend), id=f"{backend}-emulated", marks=needs_compiler),
        pytest.param(OnDevice(operation, backend), id=backend, marks=pytest.mark.gpu),
    ]
