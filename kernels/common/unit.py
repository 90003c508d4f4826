"""Which unit multiplies tiles of bf16 here: AMX, AVX512-BF16's dot product, or plain vector code where it is asked for.

`amx`: the matrix unit of Intel's cores, which the system must grant. `dot`: cores with AVX512-BF16 and without AMX, or
without the permission (Zen 4, Cooper Lake), multiply pairs of bf16 in vector registers. `software`: any cores do, by
float32 multiply-adds; half of the memory, but no more speed than in fp32, so nothing takes it unless the environment
has MINIBERT_TILES=software, which comes before the cores' own units, so that these can be compared with it.

**Permission.** Linux grants AMX's state to a process on request, `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`,
and to all of its threads, older and later ones (Documentation/arch/x86/xstate.rst). A kernel can only get its
configuration (tiles.py) once `mode` has asked. The addresses are arguments, never constants of a cached kernel.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

import numba.core.config

from minibert.errors import BackendError

from . import lanes

NEEDS = "needs a CPU with AMX that the system lets us use, or with AVX512-BF16"  # what bf16 says where it cannot be
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def mode() -> str | None:
    """`amx`, `dot`, `software`, or None where kernels cannot multiply tiles: it decides what they are compiled to."""
    asked = os.environ.get("MINIBERT_TILES")
    if asked not in (None, "", "software"):
        raise BackendError(f"MINIBERT_TILES={asked} means nothing: set it to software, or unset it")
    if numba.core.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return None
    return asked or hardware()


def hardware() -> str | None:
    """What this machine has for it: `amx`, `dot` or None."""
    if not lanes.compiles("avx512bf16"):
        return None
    return "amx" if lanes.compiles("amx-tile") and lanes.compiles("amx-bf16") and _granted() else "dot"


def _granted() -> bool:
    """Whether the system lets this process use AMX."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0


def available() -> bool:
    """Whether kernels can multiply tiles."""
    return mode() is not None
