"""What several test files need: the folder of real data, and a clean module path."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import minibert
from minibert.kernels.common import unit

# `python -m pytest` puts the checkout on the module path, and transformers would take our top-level folder `kernels`
# for the package of that name. minibert itself is loaded by now and finds its modules without.
ROOT = Path(minibert.__file__).parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]

# Where the cores have nothing for bf16, its kernels are tested in software. Nothing has asked for the unit by now.
if unit.hardware() is None:
    os.environ.setdefault("MINIBERT_TILES", "software")

# A shell's background job does not hear Ctrl-C, nor what it starts, and under nohup no terminal's end; some tests
# press it, and close one.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# JAX: on the CPU, whatever else there is, and in haste; programs that run a few steps take longest to compile.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture(scope="session", autouse=True)
def emulator_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    import emulator  # which asks for the unit

    base = tmp_path_factory.getbasetemp()
    emulator.folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "emulator"
    emulator.folder.mkdir(exist_ok=True)


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
