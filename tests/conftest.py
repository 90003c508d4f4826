"""What several test files need: the folder of real data, and the same conditions for every test on any machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import minibert
from minibert import files
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


SECONDS = 300  # that a test may take, but for the slow ones


def pytest_configure(config: pytest.Config) -> None:
    """A cache of these tests' own, for all their processes, with the user's compiled kernels: what else a user's cache
    holds, an earlier version may have made. And no GPU, unless tests for one are asked for.
    """
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    kernels = files.user_cache() / "kernels"
    with contextlib.suppress(OSError):
        kernels.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PIP_CACHE_DIR", str(kernels.parent.parent / "pip"))
    cache = tempfile.mkdtemp(prefix="minibert-tests-")
    config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    (Path(cache) / "minibert").mkdir()
    (Path(cache) / "minibert" / "kernels").symlink_to(kernels)
    os.environ["XDG_CACHE_HOME"] = cache


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that hangs ends."""
    for item in items if config.pluginmanager.hasplugin("timeout") else ():
        if not (item.get_closest_marker("slow") or item.get_closest_marker("timeout")):
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(autouse=True)
def as_many_threads() -> Iterator[None]:
    """What a test says of threads is said of the process: for the next ones it is what it was."""

    def cpu() -> object:
        return sys.modules.get("minibert.kernels.devices.cpu")

    before = cpu() and cpu().threads()
    yield
    if cpu():
        from minibert.kernels.devices import host

        if cpu().threads() != (wanted := before or host.cores()):
            cpu().set_threads(wanted)


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
