"""One folder per operation: `reference.py` is the definition, `cpu.py` Numba, `gpu.py` and `gpu.cu` CUDA.

Kernels are found by name, `minibert.kernels.<operation>.<backend>`; docs/kernels.md has the contract they share.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

if __name__ != "minibert.kernels":  # the folder stands at the top of the checkout: `kernels` is somebody's package
    raise ImportError("import minibert.kernels, not kernels")

from minibert.errors import BackendError

BACKENDS = ("reference", "cpu", "gpu")


def load(operation: str, backend: str) -> ModuleType:
    """The module with `forward` and `backward` of an operation; BackendError where there is none."""
    folder = Path(__file__).parent / operation
    if not (folder / "reference.py").is_file():
        raise BackendError(f"there is no operation named {operation!r} in {Path(__file__).parent}")
    if not (folder / f"{backend}.py").is_file():
        have = ", ".join(name for name in BACKENDS if (folder / f"{name}.py").is_file())
        raise BackendError(
            f"{operation} has no {backend!r} kernel (have: {have}); add kernels/{operation}/{backend}.py"
        )
    return importlib.import_module(f"minibert.kernels.{operation}.{backend}")
