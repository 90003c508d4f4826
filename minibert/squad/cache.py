"""Arrays kept in the user's cache, one file a key, and mapped into memory: blocks, then JSON of what they are.

The end of a file is the JSON, its length in 8 bytes, and the SHA-256 of all before. A file that does not agree with it
is made anew; nothing in it is executed or unpickled. A file's time is that of its last use: whoever writes a new one
removes those unused for 30 days.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from minibert import files
from minibert.errors import MinibertError

Blocks = dict[str, Iterable[NDArray[Any]]]  # by name, the parts of an array along its first axis; at least one block
ALIGN = 64
DIGEST = 32  # bytes of SHA-256
UNUSED = 30 * 86400  # seconds after which a file goes, as compiled kernels do


def arrays(key: str, make: Callable[[], Blocks]) -> dict[str, NDArray[Any]]:
    """The arrays of that key, from the cache or made; in memory where the cache cannot be written."""
    path = files.user_cache() / "squad" / f"{key}.arrays"
    found = _read(path)
    if found is None:
        try:
            files.write_whole(path, lambda file: _write(file, make()))
        except MinibertError:
            return in_memory(make())
        _prune(path.parent)
        found = _read(path)
    if found is None:
        return in_memory(make())
    with contextlib.suppress(OSError):  # somebody else's file, which can be read all the same
        os.utime(path)
    return found


def _prune(folder: Path) -> None:
    """Removes the files that nobody has used for long, those included that a killed process left half written."""
    for old in folder.glob("*.arrays*"):
        with contextlib.suppress(OSError):  # another process may be clearing up too
            if old.stat().st_mtime < time.time() - UNUSED:
                old.unlink()


def in_memory(blocks: Blocks) -> dict[str, NDArray[Any]]:
    """The blocks of each array put together."""
    return {name: np.concatenate(list(parts)) for name, parts in blocks.items()}


def _write(file: BinaryIO, blocks: Blocks) -> None:
    digest = hashlib.sha256()
    size = 0

    def write(data: bytes | memoryview) -> None:
        nonlocal size
        digest.update(data)
        file.write(data)
        size += len(data)

    index = []
    for name, parts in blocks.items():
        write(bytes(-size % ALIGN))
        begin, rows, shape, kind = size, 0, [0], ""
        for part in parts:
            write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            rows += len(part)
            shape, kind = [rows, *part.shape[1:]], part.dtype.str
        index.append([name, kind, shape, begin])
    described = json.dumps(index).encode()
    write(described)
    write(len(described).to_bytes(8, "little"))
    file.write(digest.digest())


def _read(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file, mapped; None where there is none or it is damaged."""
    try:
        with files.open_read(path) as file:
            whole = np.memmap(file, np.uint8, mode="r")
    except (MinibertError, ValueError):  # not there; empty
        return None
    end = len(whole) - DIGEST
    if end < 8 or hashlib.sha256(whole[:end].data).digest() != whole[end:].tobytes():
        return None
    described = int.from_bytes(whole[end - 8 : end].tobytes(), "little")
    index = json.loads(whole[end - 8 - described : end - 8].tobytes())
    return {name: _view(whole, np.dtype(kind), shape, begin) for name, kind, shape, begin in index}


def _view(whole: NDArray[np.uint8], kind: np.dtype[Any], shape: list[int], begin: int) -> NDArray[Any]:
    part = whole[begin : begin + math.prod(shape) * kind.itemsize]
    return np.asarray(part).view(kind).reshape(shape)
