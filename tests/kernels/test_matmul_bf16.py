"""The linear layer on the matrix unit: exact on small integers, as accurate as bf16 allows, inside its arrays."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import ml_dtypes
import numba
import numpy as np
import pytest
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

import gpus
from bits import FEW_ULPS, assert_same_bits, in_rows, in_strips, needs_amx, on_a_line, unwritten
from checks import assert_as_accurate
from minibert.kernels.common import packing, products, tiles
from minibert.kernels.devices import cpu as device
from minibert.kernels.matmul import cpu_bf16, reference
from test_matmul import STARTS

SHAPES = [
    (0, 24, 7), (1, 1, 1), (3, 7, 24), (17, 1, 96), (257, 96, 7), (20, 384, 96), (300, 2, 768), (129, 768, 384),
    (64, 200, 1700), (70, 40, 2400),  # all rows of the last panel; a K of two portions
]  # fmt: skip
SIDES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 256, 257, 300, 520)  # about tiles, panels, tasks
LONG = (2305, 2400, 4700)  # a K of two portions, as short as that may be and longer; of three
GUARD = 32  # elements on either side of an array, at least


def rounded(a: np.ndarray) -> np.ndarray:
    """The nearest bf16 numbers, as float32."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def to_bits(a: np.ndarray) -> np.ndarray:
    """The bits of the nearest bf16 numbers: how activations travel."""
    return a.astype(ml_dtypes.bfloat16).view(np.uint16)


def numbers(a: np.ndarray) -> np.ndarray:
    """An array of either type as float32."""
    return a.view(ml_dtypes.bfloat16).astype(np.float32) if a.dtype == np.uint16 else a


def inputs(t: int, f: int, c: int, shift: float = 0):
    rng = np.random.default_rng(t + f + c)
    x, w, bias, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((t, c), (f, c), (f,), (t, f)))
    return to_bits(x + np.float32(shift)), w, bias, to_bits(dy)


def on_unit(w: np.ndarray) -> np.ndarray:
    room = on_a_line((cpu_bf16.prepared_bytes(*w.shape),), np.uint8)
    cpu_bf16.prepare(room, w)
    return room


def prepared(backend, w: np.ndarray) -> np.ndarray:
    """The weight as a backend's products take it: in tiles, or simply rounded."""
    if backend is cpu_bf16:
        return on_unit(w)
    room = np.full(w.shape, 65535, np.uint16)
    backend.prepare(room, w)
    return room


def forward(x, w, bias, backend=cpu_bf16):
    """y of x's type; every output starts as NaN."""
    y = np.full((len(x), len(w)), 65535, np.uint16) if x.dtype == np.uint16 else unwritten((len(x), len(w)))
    scratch = np.full(backend.workspace(*y.shape, x.shape[1]), 255, np.uint8)
    backend.forward(y, x, prepared(backend, w), bias, scratch)
    return y


def backward(dy, x, w, start: float | None = None, backend=cpu_bf16):
    """dx of x's type, dw, dbias; the last two start from `start`, because kernels must add; None: dw is overwritten."""
    scratch = np.full(backend.workspace(*dy.shape, x.shape[1]), 255, np.uint8)
    dx = np.full(x.shape, 65535, np.uint16) if x.dtype == np.uint16 else unwritten(x.shape)
    dw, dbias = unwritten(w.shape), np.full(len(w), start or 0, np.float32)
    if start is not None:
        dw.fill(start)
    backend.backward(dx, dw, dbias, dy, x, prepared(backend, w), start is not None, scratch)
    return dx, dw, dbias


def guarded(values: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `values`, `offset` elements past a line, and the memory around it: NaN, all bits set."""
    memory = np.full((values.size + 2 * GUARD) * values.itemsize + 64, 255, np.uint8).view(values.dtype)
    start = -memory.ctypes.data % 64 // values.itemsize + GUARD // 2 + offset
    array = memory[start : start + values.size].reshape(values.shape)
    array[...] = values
    return array, memory


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(36))
def test_small_integers_come_out_exactly_and_nothing_else_is_touched(seed, threads):
    """Sums of products of small integers have no rounding: any wrong index shows, and so does any stray byte."""
    rng = np.random.default_rng(seed)
    sides = [int(rng.choice(SIDES)) for _ in range(3)]
    if seed >= 30:
        sides[seed % 3] = int(rng.choice(LONG))
    t, f, c = sides
    activation = to_bits if seed % 3 else np.float32
    shapes = {"y": (t, f), "dx": (t, c), "dw": (f, c), "dbias": (f,), "x": (t, c), "w": (f, c), "dy": (t, f), "b": (f,)}
    values = {name: rng.integers(-4, 5, shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {name: activation(values[name]) for name in ("x", "dy", "y", "dx")}
    pairs = {name: guarded(value, int(rng.integers(0, 2)) * seed % 16) for name, value in values.items()}
    a, add = {name: pair[0] for name, pair in pairs.items()}, seed % 4 < 2
    if not add:
        a["dw"][...] = np.nan
    room, needed = on_a_line((cpu_bf16.prepared_bytes(f, c) + 64,), np.uint8), cpu_bf16.workspace(t, f, c)
    scratch = np.full(needed + 128, 255, np.uint8)

    with on_threads(threads):
        needed = cpu_bf16.workspace(t, f, c)
        scratch = np.full(needed + 128, 255, np.uint8)
        cpu_bf16.prepare(room[:-64], a["w"])
        cpu_bf16.forward(a["y"], a["x"], room[:-64], a["b"], scratch[64:-64])
        cpu_bf16.backward(a["dx"], a["dw"], a["dbias"], a["dy"], a["x"], room[:-64], add, scratch[64:-64])

    v = {name: numbers(value) for name, value in values.items()}
    wanted = {name: values[name] for name in ("x", "w", "dy", "b")}
    wanted |= {"y": activation(v["x"] @ v["w"].T + v["b"]), "dx": activation(v["dy"] @ v["w"])}
    wanted |= {"dw": add * v["dw"] + v["dy"].T @ v["x"], "dbias": v["dbias"] + v["dy"].sum(0)}
    for name, (array, memory) in pairs.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=f"{name} of {t, f, c}")
        array.view(np.uint8)[...] = 255
        assert (memory.view(np.uint8) == 255).all(), f"{name} of {t, f, c}: written beside it"
    assert (room[-64:] == 255).all() and (scratch[:64] == 255).all() and (scratch[-64:] == 255).all()


@contextlib.contextmanager
def on_threads(count: int):
    before = device.threads()
    device.set_threads(count)
    try:
        yield
    finally:
        device.set_threads(before)


@pytest.mark.parametrize("backend", [cpu_bf16, *gpus.backends("matmul")])
@pytest.mark.parametrize("activation", [to_bits, np.asarray], ids=["bf16", "float32"])
@pytest.mark.parametrize("shift", [0, 100])
@STARTS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_bf16_allows(shape, start, shift, activation, backend):
    """Against float64 on the rounded operands, beside NumPy in float32 on them; y and dx rounded in bf16."""
    x, w, bias, dy = inputs(*shape, shift)
    x, dy = activation(numbers(x)), activation(numbers(dy))
    got = numbers(forward(x, w, bias, backend)), *backward(dy, x, w, start, backend)
    got = got[0], numbers(got[1]), *got[2:]

    nothing = np.empty(0, np.uint8)

    def both(dtype):
        rx, rw, rdy = (a.astype(dtype) for a in (numbers(x), rounded(w), numbers(dy)))
        y, dx = np.empty_like(rdy), np.empty_like(rx)
        dw, dbias = (np.full(shape, start or 0, dtype) for shape in (rw.shape, len(rw)))
        reference.forward(y, rx, rw, bias.astype(dtype), nothing)
        reference.backward(dx, dw, dbias, rdy, rx, rw, True, nothing)
        return y, dx, dw, dbias

    naive = [numbers(activation(a)) for a in both(np.float32)[:2]] + list(both(np.float32)[2:])
    for name, *three in zip(("y", "dx", "dw", "dbias"), got, naive, both(np.float64), strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@gpus.needs_compiler
@STARTS
def test_rows_of_the_head_are_rounded_a_few_at_a_time(start, monkeypatch):
    """Scratch of the same size however many there are, and the same results."""
    backend, (x, w, bias, dy) = gpus.Emulated("matmul"), inputs(50, 16, 24)
    x, dy = numbers(x), numbers(dy)
    whole = forward(x, w, bias, backend), *backward(dy, x, w, start, backend)
    for stored in (x, to_bits(x)):  # a reader's head has only dy in float32
        monkeypatch.setattr(backend.module, "MOST", 7)
        parts = backward(dy, stored, w, start, backend)
        monkeypatch.undo()
        for got, wanted in zip(parts, whole[1:], strict=True):
            np.testing.assert_allclose(numbers(got), wanted, rtol=1e-2 if got.dtype == np.uint16 else 1e-5, atol=1e-2)
    monkeypatch.setattr(backend.module, "MOST", 7)
    np.testing.assert_allclose(forward(x, w, bias, backend), whole[0], rtol=1e-5)
    assert backend.workspace(50, 16, 24) < 2 * 50 * 24 + backend.module.partials_bytes(50, 16)


def test_no_bias_and_unwanted_gradients():
    x, w, bias, dy = inputs(70, 24, 300)
    np.testing.assert_array_equal(forward(x, w, None), forward(x, w, np.zeros_like(bias)))
    dw = np.zeros_like(w)
    cpu_bf16.backward(None, dw, None, dy, x, on_unit(w), True, np.empty(cpu_bf16.workspace(70, 24, 300), np.uint8))
    np.testing.assert_array_equal(dw, backward(dy, x, w)[1])


@pytest.mark.parametrize("shape", [(700, 96, 384), (40, 200, 700)])
def test_same_bits_for_any_count_of_threads(shape):
    x, w, bias, dy = inputs(*shape)
    assert_same_bits(lambda: (on_unit(w), forward(x, w, bias), *backward(dy, x, w)))


@pytest.mark.parametrize("shape", [(0, 32, 40), (1, 32, 40), (33, 64, 7), (300, 192, 96), (700, 32, 100)])
def test_strips_give_the_bits_of_rows(shape):
    """As y and as dy, and nothing is written beside them."""
    (t, f, _), (x, w, bias, dy) = shape, inputs(*shape)
    beside, scratch = on_a_line((f * t + 128,), np.uint16), np.full(cpu_bf16.workspace(*shape), 255, np.uint8)
    y = beside[64 : 64 + f * t].reshape(f // 32, t, 32)
    cpu_bf16.forward(y, x, on_unit(w), bias, scratch)
    np.testing.assert_array_equal(in_rows(y) if t else y.reshape(0, f), forward(x, w, bias))
    y.fill(0xFFFF)
    assert (beside == 0xFFFF).all()

    dx, dw, dbias = np.full(x.shape, 65535, np.uint16), np.full(w.shape, 3, np.float32), np.full(f, 3, np.float32)
    cpu_bf16.backward(dx, dw, dbias, in_strips(dy), x, on_unit(w), True, scratch)
    for found, wanted in zip((dx, dw, dbias), backward(dy, x, w, 3), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow  # test_install.py has all kernels of a run
def test_same_bits_compiled_and_from_the_cache(tmp_path):
    """The functions that kernels are given to finish with are part of what they are cached by."""
    code = (
        "import hashlib, numpy as np\n"
        "from minibert.kernels.common import packing, products\n"
        "from minibert.kernels.matmul import cpu_bf16 as k\n"
        "from minibert.kernels.devices import Device\n"
        "rng = np.random.default_rng(0)\n"
        "x, dy = (rng.standard_normal(s, np.float32).view(np.uint16)[:, 1::2].copy() for s in ((90, 300), (90, 70)))\n"
        "w, b = (rng.standard_normal(s, np.float32) for s in ((70, 300), (70,)))\n"
        "y, dx, dw, db = (np.zeros_like(a) for a in (dy, x, w, b))\n"
        "device = Device('cpu')\n"
        "p, scratch = device.scratch(k.prepared_bytes(70, 300)), device.scratch(k.workspace(90, 70, 300))\n"
        "k.prepare(p, w)\n"
        "k.forward(y, x, p, b, scratch)\n"
        "for add in (False, True): k.backward(dx, dw, db, dy, x, p, add, scratch)\n"
        "packers = packing.pack_rows, packing.pack_columns, packing.pack_pairs\n"
        "finished = products._rounded_product, products._float_product, products._streamed_product\n"
        "kernels = (k._prepare, *packers, *finished)\n"
        "hits = [sum(f.stats.cache_hits.values()) for f in kernels]\n"
        "print(min(hits), max(hits), hashlib.sha256(b''.join(a.tobytes() for a in (y, dx, dw, db))).hexdigest())"
    )

    def once() -> tuple[list[int], str]:
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        *hits, digest = done.stdout.split()
        return list(map(int, hits)), digest

    (compiled, first), (cached, second) = once(), once()
    assert compiled == [0, 0] and cached == [1, 1]
    assert first == second


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_stays_visible_where_it_belongs(bad):
    x, w, bias, dy = inputs(40, 50, 70)
    x[37, 66] = to_bits(np.array(bad))
    y = numbers(forward(x, w, bias))
    assert np.isfinite(np.delete(y, 37, 0)).all() and not np.isfinite(y[37]).any()
    dx, dw, _ = backward(dy, x, w)
    assert np.isfinite(numbers(dx)).all()
    assert np.isfinite(np.delete(dw, 66, 1)).all() and not np.isfinite(dw[:, 66]).any()


PATTERNS = np.concatenate([
    np.arange(0, 1 << 32, 65521, np.uint64).astype(np.uint32),
    (np.arange(1 << 16, dtype=np.uint32) << 16) + np.uint32(0x8000),  # ties
    np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000], np.uint32),
])  # fmt: skip


def test_rounding_is_that_of_ml_dtypes():
    """To the nearest, ties to even, overflow to infinity; NaN stays NaN; below the normal range zero may do."""
    x = np.concatenate([PATTERNS, np.zeros(-PATTERNS.size % 100, np.uint32)]).view(np.float32).reshape(-1, 100)
    got = np.zeros(x.shape, np.uint16)
    packing._round(0, 0, len(x), got, x)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = to_bits(np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x))
    nan = np.isnan(x)
    assert np.isnan(numbers(got)[nan]).all()
    np.testing.assert_array_equal(got[~nan], wanted[~nan])


def unpacked(b: np.ndarray) -> np.ndarray:
    """The matrix (K, N), padded, of a packed b (panels, steps, 1024)."""
    wide, steps, _ = b.shape
    return b.reshape(wide, steps, 2, 16, 16, 2).transpose(1, 3, 5, 0, 2, 4).reshape(32 * steps, 32 * wide)


@pytest.mark.parametrize("f,c", [(1, 1), (32, 64), (33, 70), (95, 31)])
def test_prepared_weights_lie_as_the_module_says(f, c):
    w = (np.arange(1, f * c + 1, dtype=np.float32).reshape(f, c) % 251) + np.float32(2**-12)
    for_y, for_dx = cpu_bf16.forms(on_unit(w), f, c)
    padded = np.pad(to_bits(w), ((0, -f % 32), (0, -c % 32)))
    np.testing.assert_array_equal(unpacked(for_y), padded.T)
    np.testing.assert_array_equal(unpacked(for_dx), padded)


TILE_STATE = 3 << 17  # TILECFG and TILEDATA


@intrinsic
def state_in_use(typing):
    """XINUSE: a bit for each part of the core's state that a switch of threads must save."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(32)])
        xgetbv = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.xgetbv")
        return builder.call(xgetbv, [ir.Constant(ir.IntType(32), 1)])

    return numba.types.int64(), generate


@numba.njit
def state_now():
    return state_in_use()


@numba.njit
def state_while_on_and_after(config):
    unit = tiles.configure(config.ctypes.data)
    tiles.zero(unit, 0)
    on = state_in_use()
    tiles.release(unit)
    return on, state_in_use()


@needs_amx
def test_the_unit_is_off_after_a_call():
    on, off = state_while_on_and_after(tiles.configuration())
    assert on & TILE_STATE == TILE_STATE and off & TILE_STATE == 0
    x, w, bias, _ = inputs(1, 1, 1)
    with on_threads(1):
        forward(x, w, bias)
    assert state_now() & TILE_STATE == 0


@needs_amx
def test_permission_reaches_threads_older_and_younger_than_itself():
    code = (
        "import threading, numpy as np\n"
        "asked, done = threading.Event(), []\n"
        "def work():\n"
        "    asked.wait()\n"
        "    a, b = (Device('cpu').zeros((1, 1, 1024), np.uint16, 'workspace') for _ in range(2))\n"
        "    out, addend = np.full((32, 32), 7, np.float32), np.ones(32, np.float32)\n"
        "    own, tasks = Device('cpu').empty((1, 8192), np.uint8, 'workspace'), np.array([[0, 1, 0, 1]])\n"
        "    places, address = (out, addend, 0), a.ctypes.data\n"
        "    products._float_product(0, 0, 1, tasks, places, address, b, own, 4096, config)\n"
        "    done.append((out == 1).all())\n"
        "older = threading.Thread(target=work)\n"
        "older.start()\n"
        "from minibert.kernels.common import products, tiles\n"  # asks
        "from minibert.kernels.devices import Device\n"
        "config = tiles.configuration()\n"
        "asked.set()\n"
        "younger = threading.Thread(target=work)\n"
        "younger.start()\n"
        "older.join(), younger.join()\n"
        "assert done == [True, True]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "environment",
    [{"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}, {"NUMBA_DISABLE_JIT": "1"}],
    ids=["LLVM compiles for other cores", "nothing is compiled"],
)
def test_where_the_unit_is_out_of_reach_a_caller_gets_an_error_and_no_crash(environment):
    code = (
        "import numpy as np\n"
        "from minibert.errors import BackendError\n"
        "from minibert.kernels.common import unit\n"
        "from minibert.kernels.matmul import cpu_bf16\n"
        "assert not unit.available()\n"
        "x = np.ones((4, 4), np.float32)\n"
        "try:\n"
        "    cpu_bf16.forward(x, x, x, None, x)\n"
        "except BackendError as error:\n"
        "    print(error)"
    )
    env = {**os.environ, "MINIBERT_TILES": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AMX" in done.stdout and done.stdout.count("\n") == 1


@pytest.mark.parametrize("workers", [1, 2, 5, 32])
def test_tasks_cover_a_product_once(workers):
    for tall in (0, 1, 15, 16, 24, 53, 300):
        for wide in (1, 2, 24):
            for most in (1, 5, 21):
                done = np.zeros((tall, wide), int)
                tasks, table = products._tasks(tall, wide, most, workers)
                assert tasks.count == len(table)
                for top, bottom, left, right in table:
                    part = done[top:bottom, left:right]
                    assert 0 < bottom - top <= most and part.size
                    part += 1
                assert (done == 1).all()
