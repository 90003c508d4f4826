"""cuBLAS's product of matrices, called in the library that CuPy has loaded.

CuPy has a binding of it, which refuses while a stream is captured (cupy/cupy#6290): recordings would have no products.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from minibert.errors import BackendError

WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends from Hopper on; 4 MiB would do for older cards
SUMS_IN_FLOAT = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums of a bf16 result are not bf16
OUT_OF_MEMORY = 3  # CUBLAS_STATUS_ALLOC_FAILED


class CublasError(RuntimeError):
    """A status that is not success."""


class Cublas:
    """A handle for one stream. It has a workspace of its own, so that a product is computed alike, to the same bits,
    whether it is launched or captured: what cuBLAS takes for itself differs, and would stay with each recording.
    """

    def __init__(self, cupy: Any, stream: Any):
        library = loaded(cupy)
        number: Any = ctypes.c_int
        pointer: Any = ctypes.c_void_p
        self._multiply = library.cublasGemmEx
        self._multiply.argtypes = [
            pointer, *5 * [number], pointer, *2 * [pointer, number, number], pointer, pointer, *4 * [number],
        ]  # fmt: skip
        self.handle = pointer()
        self.workspace = cupy.empty(WORKSPACE, "uint8")
        _check(library.cublasCreate_v2(ctypes.byref(self.handle)))
        _check(library.cublasSetStream_v2(self.handle, pointer(stream.ptr)))  # which takes any workspace away
        workspace = pointer(self.workspace.data.ptr), ctypes.c_size_t(WORKSPACE)
        _check(library.cublasSetWorkspace_v2(self.handle, *workspace))
        _check(library.cublasSetMathMode(self.handle, number(SUMS_IN_FLOAT)))

    def multiply(self, *arguments: int) -> None:
        """cublasGemmEx's arguments from transa on, pointers as integers."""
        _check(self._multiply(self.handle, *arguments))


def loaded(cupy: Any) -> ctypes.CDLL:
    """The cuBLAS that CuPy has found; BackendError where it has found none."""
    try:
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:
        raise BackendError(f'cuBLAS does not load ({error}); pip install ".[gpu]" in the checkout') from None

    if os.name == "nt":
        return ctypes.CDLL(f"cublas64_{cupy.cuda.runtime.runtimeGetVersion() // 1000}.dll")
    return ctypes.CDLL(cublas.__file__)  # names are looked for in what a library is linked with, too


def _check(status: int) -> None:
    if status == OUT_OF_MEMORY:
        raise MemoryError("cuBLAS found no memory")
    if status:
        raise CublasError(f"cuBLAS failed with status {status}")
