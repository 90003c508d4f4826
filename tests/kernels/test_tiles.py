"""Tiles: what the instructions do, where they stand if there is no unit for them, and which unit is taken when."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from bits import as_bf16
from checks import assert_as_accurate
from minibert.errors import BackendError
from minibert.kernels import devices
from minibert.kernels.common import lanes, tiles, unit, vector_tiles
from minibert.kernels.devices import compiling
from minibert.kernels.devices.compiling import inlined

LINE, TILE = 64, 1024
in_memory = pytest.mark.skipif(unit.mode() == "amx", reason="about tiles in memory: here they are registers")


@inlined
def at(x):
    return np.intp(x.ctypes.data)


def multiply(c, a, b, config, stride):
    """c += a b, then a = a b, then b = what c became, by all eight tiles: none may be another."""
    unit = tiles.configure(at(config))
    tiles.load(unit, 0, at(c), stride)
    tiles.load(unit, 1, at(c), stride)
    tiles.load(unit, 2, at(a), stride)
    tiles.zero(unit, 3)
    tiles.load_once(unit, 4, at(a), stride)
    tiles.load_once(unit, 5, at(b), stride)
    tiles.load(unit, 6, at(a), stride)
    tiles.load(unit, 7, at(b), stride)
    tiles.dot(unit, 1, 4, 7)
    tiles.store(unit, 1, at(c), stride)
    tiles.dot(unit, 3, 6, 5)
    tiles.store(unit, 3, at(a), stride)
    tiles.dot(unit, 0, 2, 7)
    tiles.store(unit, 0, at(b), stride)
    tiles.release(unit)


def in_rows(stride: int, *matrices: np.ndarray) -> list[np.ndarray]:
    """Matrices of 16 rows of 64 bytes in memory, `stride` bytes from row to row, bits set between them."""
    memory = [np.full((16, stride), 255, np.uint8) for _ in matrices]
    for rows, matrix in zip(memory, matrices, strict=True):
        rows[:, :LINE] = np.ascontiguousarray(matrix).view(np.uint8).reshape(16, LINE)
    return memory


def operands(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a (16, 32) and b (32, 16) as tiles: the rows of b two by two."""
    return as_bf16(a), as_bf16(b).reshape(16, 2, 16).swapaxes(1, 2)


@pytest.mark.parametrize("stride", [64, 68, 1000])
def test_a_product_is_added_and_every_tile_is_its_own(stride):
    rng = np.random.default_rng(stride)
    c, a, b = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((16, 16), (16, 32), (32, 16)))
    sums, left, right = in_rows(stride, c, *operands(a, b))
    numba.njit(multiply)(sums, left, right, tiles.configuration(), stride)
    for rows, wanted in ((sums, c + a @ b), (left, a @ b), (right, c + a @ b)):
        np.testing.assert_array_equal(np.ascontiguousarray(rows[:, :LINE]).view(np.float32), wanted)
        assert (rows[:, LINE:] == 255).all()


def test_32_products_make_a_sum_before_it_is_added():
    """Beside a large c the small products would vanish one by one."""
    c = np.full((16, 16), 2**24, np.float32)
    sums, left, right = in_rows(LINE, c, *operands(np.ones((16, 32)), np.ones((32, 16))))
    numba.njit(multiply)(sums, left, right, tiles.configuration(), LINE)
    np.testing.assert_array_equal(sums.view(np.float32), c + 32)


@in_memory
@pytest.mark.parametrize("together", [2, 8, 16])
def test_how_many_rows_are_summed_together_changes_no_bit(together, monkeypatch):
    """So what is done on cores with more or wider registers is held here, too."""
    rng = np.random.default_rng(together)
    c, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 16), (16, 32), (32, 16)))
    found = []
    for rows in (4, together):
        monkeypatch.setattr(vector_tiles, "together", lambda rows=rows: rows)
        memory = in_rows(LINE, c, *operands(a, b))
        numba.njit(multiply)(*memory, tiles.configuration(), LINE)
        found.append([place.tobytes() for place in memory])
    assert found[0] == found[1]


def clear(y, config):
    unit = tiles.configure(at(config))
    tiles.zero(unit, 0)
    tiles.store(unit, 0, at(y), LINE)


@in_memory
@pytest.mark.parametrize("decorate", [inlined, numba.njit], ids=["inlined", "called"])
def test_tiles_stand_in_the_kernel_s_stack_once(decorate):
    """However often a kernel configures, or another does that is compiled into it: 800 MB would be no stack."""
    clear_too = decorate(clear)

    @numba.njit
    def kernel(x, y, config, times):
        unit = tiles.configure(at(config))
        tiles.load(unit, 0, at(x), LINE)
        for _ in range(times):
            other = tiles.configure(at(config))
            tiles.zero(other, 0)
            clear_too(y, config)
        tiles.store(unit, 0, at(y), LINE)

    x, y = (np.arange(n, n + TILE).astype(np.uint8) for n in (1, 2))
    kernel(x, y, tiles.configuration(), 100_000)
    np.testing.assert_array_equal(y, x)


COMPILED = (
    "import numba\n"
    "from minibert.kernels.common import unit\n"
    "unit._granted = lambda: True\n"
    "from minibert.kernels.common import packing, peak\n"
    "i, bits, floats = numba.int64, numba.uint16, numba.float32\n"
    "peak.multiply.compile((i, i, i, floats[::1], numba.uint8[::1], i))\n"
    "packing._round.compile((i, i, i, bits[:, ::1], floats[:, ::1]))\n"
    "print(unit.mode(), *peak.multiply.inspect_asm().values(), *packing._round.inspect_asm().values())\n"
)
DOT = "+sse,+sse2,+avx,+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512bf16"
INSTRUCTIONS = {"tdpbf16ps", "vdpbf16ps", "vfmadd", "vcvtne2ps2bf16"}


@pytest.mark.skipif(not lanes.compiles("sse2"), reason="LLVM compiles for these cores from x86")
@pytest.mark.parametrize(
    ("name", "features", "asked", "wanted", "instructions"),
    [
        ("sapphirerapids", f"{DOT},+amx-tile,+amx-bf16", "", "amx", {"tdpbf16ps", "vcvtne2ps2bf16"}),
        ("znver4", DOT, "", "dot", {"vdpbf16ps", "vcvtne2ps2bf16"}),
        ("znver4", DOT, "software", "software", {"vfmadd", "vcvtne2ps2bf16"}),
        ("skylake-avx512", DOT.removesuffix(",+avx512bf16"), "software", "software", {"vfmadd"}),
    ],
)
def test_every_unit_is_compiled_to_its_instructions(tmp_path, name, features, asked, wanted, instructions):
    """For other cores than these: compiled and looked at, not run."""
    env = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "MINIBERT_TILES": asked}
    env = {**os.environ, **env, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, _, code = done.stdout.partition(" ")
    assert taken == wanted and {one for one in INSTRUCTIONS if one in code} == instructions


@pytest.mark.parametrize(
    ("asked", "features", "granted", "wanted"),
    [
        (None, {"amx-tile", "amx-bf16", "avx512bf16"}, True, "amx"),
        (None, {"amx-tile", "amx-bf16", "avx512bf16"}, False, "dot"),
        (None, {"avx512bf16"}, True, "dot"),
        (None, {"avx512f"}, True, None),
        ("", {"avx512f"}, True, None),
        ("software", {"avx512f"}, True, "software"),
        ("software", {"avx512bf16"}, True, "software"),
        ("software", {"amx-tile", "amx-bf16", "avx512bf16"}, True, "software"),
    ],
)
def test_which_unit_is_taken(asked, features, granted, wanted, monkeypatch):
    if asked is None:
        monkeypatch.delenv("MINIBERT_TILES", raising=False)
    else:
        monkeypatch.setenv("MINIBERT_TILES", asked)
    monkeypatch.setattr(lanes, "compiles", lambda feature: feature in features)
    monkeypatch.setattr(unit, "_granted", lambda: granted)
    assert unit.mode.__wrapped__() == wanted


def test_nothing_else_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("MINIBERT_TILES", "hardware")
    with pytest.raises(BackendError, match="MINIBERT_TILES=hardware .* software"):
        unit.mode.__wrapped__()


def test_a_refusal_is_no_permission(monkeypatch):
    library = type("Library", (), {"syscall": lambda *numbers: -1})
    monkeypatch.setattr(unit.ctypes, "CDLL", lambda name: library())
    assert not unit._granted()


@pytest.mark.parametrize(
    ("features", "otherwise"),
    [(("avx2", "fma"), "cpu_fma"), (("avx2", "fma", "avx512f"), "cpu"), (("neon",), "cpu")],
    ids=["AVX2", "AVX-512", "ARM"],
)
def test_what_multiplies_in_fp32(features, otherwise, monkeypatch):
    """Only AMX in parts; registers where BLAS makes less of them."""
    monkeypatch.setattr(lanes, "compiles", lambda feature: feature in features)
    for mode in ("amx", "dot", "software", None):
        monkeypatch.setattr(unit, "mode", lambda mode=mode: mode)
        wanted = "cpu_split" if mode == "amx" else otherwise
        for operation in ("matmul", "feed_forward"):
            assert getattr(devices.open("cpu"), operation).__name__.rpartition(".")[2] == wanted
        assert devices.open("cpu", precision="bf16").matmul.__name__.endswith("cpu_bf16")


def test_kernels_of_different_units_are_kept_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for mode in ("amx", "dot", "software", None):
        monkeypatch.setattr(unit, "mode", lambda mode=mode: mode)
        folders.add(compiling.cache_directory())
    assert len(folders) == 4


PRODUCT = (
    "import sys, numpy as np\n"
    "from minibert.kernels.common import unit\n"
    "from minibert.kernels.devices import Device\n"
    "from minibert.kernels.matmul import cpu_bf16 as k\n"
    "rng = np.random.default_rng(0)\n"
    "x, w = (rng.standard_normal(shape, np.float32) for shape in ((70, 800), (90, 800)))\n"
    "y, device = np.zeros((70, 90), np.float32), Device('cpu')\n"
    "p, scratch = device.scratch(k.prepared_bytes(90, 800)), device.scratch(k.workspace(70, 90, 800))\n"
    "k.prepare(p, w)\n"
    "k.forward(y, x, p, None, scratch)\n"
    "np.savez(sys.argv[1], y=y, x=x, w=w, mode=unit.mode())\n"
)


@pytest.mark.skipif(unit.hardware() is None, reason="this CPU has neither AMX nor AVX512-BF16 to compare with")
def test_software_multiplies_as_the_hardware_does(tmp_path):
    found = {}
    for asked in ("", "software"):
        env = {**os.environ, "MINIBERT_TILES": asked}
        path = tmp_path / f"{asked}.npz"
        subprocess.run([sys.executable, "-c", PRODUCT, path], env=env, check=True)
        found[asked] = np.load(path)
    assert found[""]["mode"] == unit.hardware() and found["software"]["mode"] == "software"
    x, w = (found[""][name].astype(np.float64) for name in "xw")
    assert_as_accurate(found["software"]["y"], found[""]["y"], x @ w.T, what="y")
