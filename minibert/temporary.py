"""Folders that are gone when the process ends."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder(prefix: str, keep: Callable[[Path], bool] = lambda folder: False, within: Path | None = None) -> Path:
    """A new one, of the system's or `within` a folder, which goes when this process ends unless it is to be kept."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=within))
    atexit.register(removal(made, keep))
    return made


def removal(made: Path, keep: Callable[[Path], bool] = lambda folder: False) -> Callable[[], None]:
    """Removes a folder when it is called in this process; in one that was forked from it, which calls what it was left
    at its own end, it does nothing.
    """
    maker = os.getpid()

    def remove() -> None:
        if os.getpid() == maker and not keep(made):
            shutil.rmtree(made, ignore_errors=True)

    return remove
