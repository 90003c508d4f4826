"""The linear layer on the matrix unit: exact on small integers, as accurate as bf16 allows, inside its arrays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tracemalloc

import ml_dtypes
import numba
import numpy as np
import pytest
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from bits import FEW_ULPS, assert_same_bits, unwritten
from checks import assert_as_accurate
from minibert.kernels.common import amx
from minibert.kernels.devices import cpu as device
from minibert.kernels.matmul import cpu_bf16, reference

needs_amx = pytest.mark.skipif(not amx.available(), reason="no AMX here, or the system does not permit its use")

SHAPES = [
    (0, 24, 7), (1, 1, 1), (3, 7, 24), (17, 1, 96), (257, 96, 7), (20, 384, 96), (300, 2, 768), (129, 768, 384),
]  # fmt: skip
SIDES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 255, 256, 257, 300, 520)  # about tiles, panels, chunks, blocks
GUARD = 32  # float32 on either side of an array


def rounded(a: np.ndarray) -> np.ndarray:
    """The nearest bf16 numbers, as float32."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def inputs(t: int, f: int, c: int, shift: float = 0):
    rng = np.random.default_rng(t + f + c)
    x, w, bias, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((t, c), (f, c), (f,), (t, f)))
    return x + np.float32(shift), w, bias, dy


def backward(backend, dy, x, w, start: float = 0.0):
    """dx, dw, dbias; the last two start from `start`, because kernels must add."""
    scratch = np.full(backend.workspace(*dy.shape, x.shape[1]), 255, np.uint8)
    dx, dw, dbias = unwritten(x.shape, x.dtype), np.full_like(w, start), np.full(len(w), start, x.dtype)
    backend.backward(dx, dw, dbias, dy, x, w, scratch)
    return dx, dw, dbias


def forward(backend, x, w, bias):
    y = unwritten((len(x), len(w)), x.dtype)
    backend.forward(y, x, w, bias)
    return y


def guarded(values: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """A copy of `values`, `offset` float32 past a line, and the memory around it, which holds NaN."""
    memory = np.full(values.size + 2 * GUARD + 16, np.nan, np.float32)
    start = -memory.ctypes.data % 64 // 4 + GUARD // 2 + offset
    array = memory[start : start + values.size].reshape(values.shape)
    array[...] = values
    return array, memory


@needs_amx
@pytest.mark.parametrize("seed", range(40))
def test_small_integers_come_out_exactly_and_nothing_else_is_touched(seed):
    """Sums of products of small integers have no rounding: any wrong index shows, and so does any stray byte."""
    rng = np.random.default_rng(seed)
    t, f, c = (int(rng.choice(SIDES)) for _ in range(3))
    shapes = {"y": (t, f), "dx": (t, c), "dw": (f, c), "dbias": (f,), "x": (t, c), "w": (f, c), "dy": (t, f), "b": (f,)}
    values = {name: rng.integers(-4, 5, shape).astype(np.float32) for name, shape in shapes.items()}
    pairs = {name: guarded(value, int(rng.integers(0, 2)) * seed % 16) for name, value in values.items()}
    a = {name: pair[0] for name, pair in pairs.items()}
    scratch = np.zeros(cpu_bf16.workspace(t, f, c) + 128, np.uint8)
    inner = scratch[64 : 64 + cpu_bf16.workspace(t, f, c)]

    cpu_bf16.forward(a["y"], a["x"], a["w"], a["b"])
    cpu_bf16.backward(a["dx"], a["dw"], a["dbias"], a["dy"], a["x"], a["w"], inner)

    v = values
    wanted = {name: v[name] for name in ("x", "w", "dy", "b")}
    wanted |= {"y": v["x"] @ v["w"].T + v["b"], "dx": v["dy"] @ v["w"]}
    wanted |= {"dw": v["dw"] + v["dy"].T @ v["x"], "dbias": v["dbias"] + v["dy"].sum(0)}
    for name, (array, memory) in pairs.items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=f"{name} of {t, f, c}")
        assert np.isnan(memory).sum() == memory.size - array.size, f"{name} of {t, f, c}: written beside it"
    assert not scratch[:64].any() and not scratch[-64:].any(), "written beside the scratch"


@needs_amx
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shift", [0, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_accurate_as_bf16_allows(shape, shift, threads):
    """Against float64 on the rounded operands, beside NumPy on them; dbias is no product, and not rounded."""
    x, w, bias, dy = inputs(*shape, shift)
    before = device.threads()
    device.set_threads(threads)
    try:
        got = forward(cpu_bf16, x, w, bias), *backward(cpu_bf16, dy, x, w, 0.5)
    finally:
        device.set_threads(before)

    def both(dtype):
        rx, rw, rdy = (rounded(a).astype(dtype) for a in (x, w, dy))
        y = forward(reference, rx, rw, bias.astype(dtype))
        return y, *backward(reference, rdy, rx, rw, 0.5)[:2], backward(reference, dy.astype(dtype), rx, rw, 0.5)[2]

    for name, *three in zip(("y", "dx", "dw", "dbias"), got, both(np.float32), both(np.float64), strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@needs_amx
def test_no_bias_and_unwanted_gradients():
    x, w, bias, dy = inputs(70, 24, 300)
    np.testing.assert_allclose(forward(cpu_bf16, x, w, None), forward(cpu_bf16, x, w, bias) - bias, atol=1e-5)
    dw = np.zeros_like(w)
    cpu_bf16.backward(None, dw, None, dy, x, w, np.empty(cpu_bf16.workspace(70, 24, 300), np.uint8))
    np.testing.assert_array_equal(dw, backward(cpu_bf16, dy, x, w)[1])


@needs_amx
def test_same_bits_for_any_count_of_threads():
    x, w, bias, dy = inputs(700, 96, 384)
    assert_same_bits(lambda: (forward(cpu_bf16, x, w, bias), *backward(cpu_bf16, dy, x, w)))


@needs_amx
def test_same_bits_compiled_and_from_the_cache(tmp_path):
    code = (
        "import hashlib, numpy as np\n"
        "from minibert.kernels.matmul import cpu_bf16 as k\n"
        "rng = np.random.default_rng(0)\n"
        "x, w, dy, b = (rng.standard_normal(s, np.float32) for s in ((90, 300), (70, 300), (90, 70), (70,)))\n"
        "y, dx, dw, db = (np.zeros_like(a) for a in (dy, x, w, b))\n"
        "k.forward(y, x, w, b)\n"
        "k.backward(dx, dw, db, dy, x, w, np.zeros(k.workspace(90, 70, 300), np.uint8))\n"
        "hits = sum(sum(f.stats.cache_hits.values()) for f in (k.pack_rows, k.pack_columns, k._product))\n"
        "print(hits, hashlib.sha256(b''.join(a.tobytes() for a in (y, dx, dw, db))).hexdigest())"
    )

    def once() -> tuple[int, str]:
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        hits, digest = done.stdout.split()
        return int(hits), digest

    (compiled, first), (cached, second) = once(), once()
    assert compiled == 0 and cached >= 3
    assert first == second


@needs_amx
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_number_stays_visible_where_it_belongs(bad):
    x, w, bias, dy = inputs(40, 50, 70)
    x[37, 66] = bad
    y = forward(cpu_bf16, x, w, bias)
    assert np.isfinite(np.delete(y, 37, 0)).all() and not np.isfinite(y[37]).any()
    dx, dw, _ = backward(cpu_bf16, dy, x, w)
    assert np.isfinite(dx).all() and np.isfinite(np.delete(dw, 66, 1)).all() and not np.isfinite(dw[:, 66]).any()


def packed_by_rows(source):
    packed = np.zeros(cpu_bf16.packed_shape(*source.shape), np.uint16)
    cpu_bf16.pack_rows(0, 0, len(packed), packed, source, False)
    return packed.reshape(-1, 32)


def packed_by_columns(source):
    memory = np.zeros(np.prod(cpu_bf16.packed_shape(32, len(source))) + 32, np.uint16)
    packed = memory[-memory.ctypes.data % 64 // 2 :][: memory.size - 32].reshape(1, -1, 1024)
    cpu_bf16.pack_columns(0, 0, packed.shape[1], packed, source, False)
    return packed.reshape(-1, 2, 16, 16, 2).transpose(0, 2, 4, 1, 3).reshape(-1, 32)  # steps, tiles, pairs, columns, 2


@needs_amx
@pytest.mark.parametrize("pack", [packed_by_rows, packed_by_columns])
def test_packing_rounds_as_ml_dtypes_does(pack):
    """To the nearest, ties to even, overflow to infinity; NaN stays NaN, also one with nothing in its upper half."""
    patterns = np.arange(0, 1 << 32, 65521, np.uint64).astype(np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) + np.uint32(0x8000)
    nans = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0x7FFFFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000], np.uint32)
    source = np.concatenate([patterns, ties, nans])
    source = np.concatenate([source, np.zeros(-source.size % 1024, np.uint32)]).view(np.float32).reshape(-1, 32)
    got = np.ascontiguousarray(pack(source))
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = source.astype(ml_dtypes.bfloat16)
    nan = np.isnan(source)
    assert np.isnan(got.view(ml_dtypes.bfloat16)[nan]).all()
    np.testing.assert_array_equal(got[~nan], wanted.view(np.uint16)[~nan])


@needs_amx
@pytest.mark.parametrize("n,k", [(1, 1), (32, 64), (33, 70), (95, 31)])
def test_packed_operands_lie_as_the_module_says(n, k):
    """Whoever writes an operand in place of pack_rows and pack_columns relies on these two formulas."""
    values = np.arange(1, n * k + 1, dtype=np.float32).reshape(n, k) % 251
    line = np.zeros((2, 2 * np.prod(cpu_bf16.packed_shape(n, k)) + 64), np.uint8)
    steps = cpu_bf16.panels(k)
    for columns in (False, True):
        packed = []
        for memory, transposed in zip(line, (False, True), strict=True):
            memory = memory[-memory.ctypes.data % 64 :][: 2 * np.prod(cpu_bf16.packed_shape(n, k))]
            memory[...] = 255
            packed.append(memory.view(np.uint16).reshape(cpu_bf16.packed_shape(n, k)))
            if columns:
                source = np.ascontiguousarray(values.T)
                cpu_bf16.pack_columns(0, 0, steps, packed[-1], source, transposed)
            else:
                cpu_bf16.pack_rows(0, 0, cpu_bf16.panels(n), packed[-1], values, transposed)
        a, b = packed[::-1] if columns else packed
        m, kk = np.mgrid[: 32 * cpu_bf16.panels(n), : 32 * steps]
        padded = np.pad(values, ((0, -n % 32), (0, -k % 32))).astype(ml_dtypes.bfloat16).view(np.uint16)
        np.testing.assert_array_equal(a[m // 32, kk // 32, m % 32 * 32 + kk % 32], padded)
        place = m % 32 // 16 * 512 + kk % 32 // 2 * 32 + m % 16 * 2 + kk % 2
        np.testing.assert_array_equal(b[m // 32, kk // 32, place], padded)


@needs_amx
def test_forward_keeps_its_scratch():
    x, w, bias, _ = inputs(512, 256, 384)
    y = forward(cpu_bf16, x, w, bias)
    tracemalloc.start()
    try:
        cpu_bf16.forward(y, x, w, bias)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50_000  # x packed is 400,000 bytes


@needs_amx
def test_two_callers_at_a_time():
    """Each calling thread has a scratch of its own."""
    cases = [inputs(300, 64, 96), inputs(200, 128, 64)]
    wanted = [forward(cpu_bf16, x, w, bias) for x, w, bias, _ in cases]
    wrong = []

    def call(case, y):
        x, w, bias, _ = case
        wrong.extend(1 for _ in range(30) if not np.array_equal(forward(cpu_bf16, x, w, bias), y))

    callers = [threading.Thread(target=call, args=pair) for pair in zip(cases, wanted, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


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
    amx.configure(config.ctypes.data)
    amx.zero(0)
    on = state_in_use()
    amx.release()
    return on, state_in_use()


@needs_amx
def test_the_unit_is_off_after_a_call():
    on, off = state_while_on_and_after(amx.configuration())
    assert on & TILE_STATE == TILE_STATE and off & TILE_STATE == 0
    a, b = (np.zeros(cpu_bf16.packed_shape(32, 32), np.uint16) for _ in range(2))
    sums = cpu_bf16._Room(np.zeros(4 * cpu_bf16.SUMS + 64, np.uint8)).floats(1, cpu_bf16.SUMS)
    out, addend = np.zeros((32, 32), np.float32), np.zeros(32, np.float32)
    cpu_bf16._product(0, 0, 1, out, a, b, addend, 0, sums, amx.configuration())
    assert state_now() & TILE_STATE == 0


@needs_amx
def test_permission_reaches_threads_older_and_younger_than_itself():
    code = (
        "import threading, numpy as np\n"
        "from minibert.kernels.common import amx\n"
        "from minibert.kernels.matmul import cpu_bf16 as k\n"
        "asked, done = threading.Event(), []\n"
        "def work():\n"
        "    asked.wait()\n"
        "    a, b = (np.zeros(k.packed_shape(32, 32), np.uint16) for _ in range(2))\n"
        "    out, addend = np.full((32, 32), 7, np.float32), np.ones(32, np.float32)\n"
        "    sums = k._Room(np.zeros(4 * k.SUMS + 64, np.uint8)).floats(1, k.SUMS)\n"
        "    k._product(0, 0, 1, out, a, b, addend, 0, sums, config)\n"
        "    done.append((out == 1).all())\n"
        "older = threading.Thread(target=work)\n"
        "older.start()\n"
        "config = amx.configuration()\n"
        "asked.set()\n"
        "younger = threading.Thread(target=work)\n"
        "younger.start()\n"
        "older.join(), younger.join()\n"
        "assert done == [True, True]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


REFUSED = "amx.ctypes.CDLL = lambda name: type('Library', (), {'syscall': lambda *numbers: -1})()\n"


@pytest.mark.parametrize(
    "environment,before",
    [({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}, ""), ({"NUMBA_DISABLE_JIT": "1"}, ""), ({}, REFUSED)],
    ids=["LLVM compiles for other cores", "nothing is compiled", "Linux refuses"],
)
def test_where_the_unit_is_out_of_reach_a_caller_gets_an_error_and_no_crash(environment, before):
    code = (
        "import numpy as np\n"
        "from minibert.errors import BackendError\n"
        "from minibert.kernels.common import amx\n"
        "from minibert.kernels.matmul import cpu_bf16\n"
        f"{before}"
        "assert not amx.available()\n"
        "x = np.ones((4, 4), np.float32)\n"
        "try:\n"
        "    cpu_bf16.forward(x, x, x, None)\n"
        "except BackendError as error:\n"
        "    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "AMX" in done.stdout and done.stdout.count("\n") == 1
