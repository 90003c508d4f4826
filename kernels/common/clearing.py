"""Zeros past the caches: memory that is overwritten whole is not read first."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.compiling import jit

from . import lanes, tiles

PIECE = 1 << 14  # bytes


@jit
def clear(worker, begin, end, nbytes):
    """Pieces begin to end of bytes that begin on a line."""
    first = np.intp(nbytes.ctypes.data)
    for at in range(first + begin * PIECE, first + end * PIECE, lanes.LINE):
        lanes.stream(at, lanes.splat(np.uint32(0)))
    tiles.fence()
