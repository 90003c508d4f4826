"""NVIDIA's run-time compiler, from its wheel: kernels become machine code for a card that is not there."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

WHEELS = {13: "nvidia.cu13.lib", 12: "nvidia.cuda_nvrtc.lib"}  # packages nvidia-cuda-nvrtc and nvidia-cuda-nvrtc-cu12


class Resources(NamedTuple):
    """What a kernel takes: registers a thread, bytes of spills a thread."""

    registers: int
    spills: int


@cache
def _library(cuda: int) -> ctypes.CDLL | None:
    package, _, folder = WHEELS[cuda].rpartition(".")
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    places = [Path(place) / folder for place in found.submodule_search_locations or ()] if found else []
    for path in (path for place in places for path in place.glob(f"libnvrtc.so.{cuda}*")):
        return ctypes.CDLL(str(path))
    return None


def has(cuda: int) -> bool:
    """Whether the compiler of that CUDA is installed."""
    return _library(cuda) is not None


def compiled(source: str, storage: str, arch: str, cuda: int = 13) -> dict[str, Resources]:
    """What each kernel of a source takes as machine code for `arch`, such as sm_90a; AssertionError if it fails."""
    library = _library(cuda)
    assert library is not None
    program = ctypes.c_void_p()
    options = [f"--gpu-architecture={arch}", "-std=c++17", f"-DSTORAGE={storage}", "--ptxas-options=-v", "-ftz=true"]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None) == 0
    try:
        code = library.nvrtcCompileProgram(program, len(options), encoded)
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        text = log.value.decode()
        assert code == 0, f"{arch}: {text[:4000]}"
        assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0 and size.value > 0
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
    return _resources(text)


def report(archs: Sequence[str]) -> None:
    """Prints every kernel's registers and spills in bf16."""
    from minibert.kernels.common.cuda import HEADERS, with_includes

    print(f"| kernel | {' | '.join(archs)} |\n|---|{'---|' * len(archs)}")
    for path in sorted(HEADERS.parent.glob("*/*.cu")):
        found = [compiled(with_includes(path), "unsigned short", arch) for arch in archs]
        for name in found[0]:
            cells = [
                f"{each[name].registers}" + f", {each[name].spills} B spilt" * bool(each[name].spills) for each in found
            ]
            print(f"| {path.parent.name}/{path.stem} {name} | {' | '.join(cells)} |")


def _resources(log: str) -> dict[str, Resources]:
    found, name, spills = {}, "", 0
    for line in log.splitlines():
        if match := re.search(r"entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            found[name] = Resources(int(match[1]), spills)
    return found


if __name__ == "__main__":  # python tests/nvrtc.py
    report(("sm_80", "sm_90a", "sm_100"))
