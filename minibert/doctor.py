"""What this machine has for minibert: cores, cards, libraries, and which operation runs where."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from minibert import kernels
from minibert.errors import BackendError

PACKAGES = ("numpy", "numba", "tokenizers", "cupy-cuda13x", "cupy-cuda12x", "jax", "gcsfs")
QUERY = ("name", "driver_version", "memory.total", "compute_cap")
CUDA_13 = (7, 5)  # the compute capability of the oldest cards that it compiles for: Turing
DRIVER_13 = 580  # the first driver that runs programs of CUDA 13


def examine() -> dict[str, Any]:
    """Everything that `minibert doctor` shows: plain values, ready for JSON."""
    found = cards()
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": _cpu(),
        "cards": found,
        "gpu": _gpu(found),
        "operations": operations(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    from minibert.kernels.common import unit
    from minibert.kernels.devices import cpu, host

    return {"threads": cpu.threads(), "bf16": unit.mode(), "free_memory": host.available()}


def cards() -> list[dict[str, str]]:
    """What nvidia-smi tells of each card, with the extra that fits it; [] where there is none, or no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    found = [dict(zip(QUERY, row, strict=True)) for row in rows if len(row) == len(QUERY)]
    return [card | {"extra": extra(card)} for card in found] if done.returncode == 0 else []


def extra(card: dict[str, str]) -> str:
    """The extra whose CUDA runs on a card with its driver."""
    try:
        capability = tuple(map(int, card["compute_cap"].split(".")))
        driver = int(card["driver_version"].split(".")[0])
    except ValueError:
        return "gpu"
    return "gpu" if capability >= CUDA_13 and driver >= DRIVER_13 else "gpu12"


def _gpu(found: list[dict[str, str]]) -> dict[str, Any]:
    """The GPU as CuPy sees it, or why there is none and what to do."""
    from minibert.kernels.devices import gpu

    try:
        device = gpu.open(gpu.precision())
        if device.numpy(_sum(device)).tolist() != [3.0]:
            raise BackendError("kernels compile and give wrong results: the driver may not fit")
        runtime = device.cupy.cuda.runtime
        return {
            "usable": True, "capability": ".".join(map(str, gpu.found())), "precision": device.precision,
            "driver_cuda": runtime.driverGetVersion(), "runtime_cuda": runtime.runtimeGetVersion(),
            "free_memory": device.free_memory(),
        }  # fmt: skip
    except (BackendError, RuntimeError, OSError) as error:  # of what CuPy and CUDA cannot load, too
        if found and gpu.missing():
            return {"usable": False, "advice": f'CuPy is not installed: pip install ".[{found[0]["extra"]}]"'}
        return {
            "usable": False,
            "advice": " ".join(str(error).split()) if found else "no NVIDIA card or driver was found",
        }


def _sum(device: Any) -> Any:
    """One and two, added by a kernel."""
    a, b = (device.array(np.array([number], np.float32)) for number in (1, 2))
    total = device.empty_like(a)
    device.add.forward(total, a, b)
    return total


def operations() -> dict[str, list[str]]:
    """The backends of each operation."""
    folder = Path(kernels.__file__).parent
    names = sorted(path.parent.name for path in folder.glob("*/reference.py"))
    return {name: [b for b in kernels.BACKENDS if (folder / name / f"{b}.py").is_file()] for name in names}
