"""How kernels are compiled: by Numba, without the interpreter's lock, and kept from run to run.

Kernels are plain `@jit` functions over a range of chunks, `kernel(worker, begin, end, *arguments)`: those three names
say that it is one, which a launch shares out among threads (binding.py, workers.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numba.core.config
from numba.core.caching import IndexDataCacheFile

from minibert import temporary
from minibert.kernels.common import unit

from .binding import Bindable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KERNELS = Path(__file__).parent.parent


def cpu_features() -> tuple[str, ...]:
    """What LLVM says the cores can do, such as `avx512f` and `amx-bf16`."""
    return tuple(sorted(name for name, has in llvmlite.binding.get_host_cpu_features().items() if has))


def cache_directory() -> Path:
    """Where compiled kernels are kept: a folder for these sources, this Numba, these cores and what multiplies tiles.

    Numba does not notice an edited helper in another file: the folder's name does, being a hash of them all.
    Where it cannot be written they are in a temporary folder, for this process (`not_kept`). A new folder replaces
    those unused for 30 days.
    """
    digest = hashlib.sha256(f"{numba.__version__} {cpu_features()} {unit.mode()}".encode())
    for source in sorted(KERNELS.rglob("*.py")):
        digest.update(source.read_bytes())
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = base / "minibert" / "kernels" / digest.hexdigest()[:16]
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            os.utime(folder)  # its time is that of its last use
        with contextlib.suppress(OSError):  # another process may be clearing up too
            for old in folder.parent.iterdir() if new else ():
                if old.stat().st_mtime < time.time() - 30 * 86400:
                    shutil.rmtree(old, ignore_errors=True)
        return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: a user whom the system does not know
        global not_kept
        not_kept = (
            f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}: cannot be written "
            f"({getattr(error, 'strerror', None) or error}), so that compiled kernels are kept for one run only; set "
            "XDG_CACHE_HOME to a folder that can be"
        )
        return temporary.folder("minibert-kernels-")


not_kept = ""  # why this process's kernels are gone with it, and what to do

# Before any decorator runs: Numba asks where to cache when it decorates.
numba.core.config.CACHE_DIR = str(cache_directory())  # type: ignore[attr-defined]


# Reductions become vector code; NaN and infinity keep their meaning, so that a bad loss stays visible.
REASSOCIATE = {"reassoc", "contract", "arcp", "nsz"}


class Kept(IndexDataCacheFile):
    """A function's compiled forms on the disk. What is damaged there, by a power cut say, is compiled anew; what cannot
    be written is not kept. Processes write one after the other: Numba numbers files by what it has read.
    """

    def load(self, key: Any) -> Any:
        try:
            return super().load(key)
        except Exception:  # what a pickle that breaks off raises
            return None

    def save(self, key: Any, data: Any) -> None:
        try:
            with open(f"{self._index_path}.lock", "wb") as lock:
                if fcntl is not None:
                    with contextlib.suppress(OSError):  # a file system without locks
                        fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    self._load_index()
                except Exception:  # with it goes what it named, which the next index would number again
                    for old in Path(self._index_path).parent.glob(f"{Path(self._index_path).stem}.*.nbc"):
                        old.unlink()
                    self.flush()
                super().save(key, data)
        except OSError as error:
            global not_kept
            if not not_kept:
                not_kept = f"compiled kernels are not kept: {error.strerror or error}"
                warnings.warn(not_kept, stacklevel=2)


def _compiled(function: Callable, **options: Any) -> Callable:
    found = numba.njit(cache=True, nogil=True, error_model="numpy", **options)(function)
    if hasattr(found, "_cache"):  # NUMBA_DISABLE_JIT leaves functions as they are
        found._cache._cache_file.__class__ = Kept
    return found


def jit(function: Callable) -> Callable:
    """Compiles a kernel: cached, without the interpreter's lock, with sums that LLVM may reorder."""
    kernel = [*inspect.signature(function).parameters][:3] == ["worker", "begin", "end"]
    return _compiled(function, fastmath=REASSOCIATE, **({"pipeline_class": Bindable} if kernel else {}))


def inlined(function: Callable) -> Callable:
    """Like `jit`, for helpers inside loops: LLVM vectorises no loop around a call."""
    return _compiled(function, fastmath=REASSOCIATE, forceinline=True)


def exact(function: Callable) -> Callable:
    """Like `inlined`, for helpers whose roundings are meant: evaluated as written, fused multiply-adds apart."""
    return _compiled(function, fastmath={"contract"}, forceinline=True)
