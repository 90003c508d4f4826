"""What several test files need: the folder of real data, and kernels' caches kept out of the user's home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and checkpoints that MINIBERT_SHARED names."""
    folder = os.environ.get("MINIBERT_SHARED")
    if not folder:
        pytest.skip("MINIBERT_SHARED is not set: this test reads real data that the repository does not hold")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"MINIBERT_SHARED={folder} is not a folder")
    return path
