"""Folders that are gone when the process ends."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder(prefix: str, keep: Callable[[Path], bool] = lambda folder: False) -> Path:
    """A new one, which goes when this process ends unless it is to be kept then; a forked process leaves it alone."""
    made, maker = Path(tempfile.mkdtemp(prefix=prefix)), os.getpid()

    def remove() -> None:
        if os.getpid() == maker and not keep(made):
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    return made
