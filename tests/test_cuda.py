"""CUDA C without a GPU: machine code for every kernel, launches checked against signatures, the emulator's rules."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import emulator
import gpus
import nvrtc
from bits import as_bf16, from_bf16
from minibert.errors import BackendError
from minibert.kernels import devices
from minibert.kernels.common import cuda
from minibert.kernels.devices import gpu

KERNELS = Path(cuda.__file__).parent.parent
SOURCES = sorted(KERNELS.glob("*/*.cu"))
# Every card since Turing by CUDA 13; the chapter's Titan X and GTX 1080 by CUDA 12.
TARGETS = {arch: ("unsigned short", 13) for arch in ("sm_80", "sm_90a", "sm_100")}
TARGETS |= {"sm_75": ("float", 13), "sm_61": ("float", 12)}


def test_there_are_sources():
    assert len(SOURCES) > 10


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_kernels_become_machine_code_without_spills(path, arch):
    storage, version = TARGETS[arch]
    if not nvrtc.has(version):
        pytest.skip(
            f"needs NVIDIA's compiler of CUDA {version}: pip install nvidia-cuda-nvrtc{'-cu12' * (version == 12)}"
        )
    found = nvrtc.compiled(cuda.with_includes(path), storage, arch, version)
    assert found.keys() == cuda.signatures(cuda.with_includes(path)).keys() and found
    assert {name: kernel.spills for name, kernel in found.items() if kernel.spills} == {}


SOURCE = """
#include "storage.cuh"
extern "C" __global__ void __launch_bounds__(256) scale(storage* y, const float* __restrict__ x, int n, bool twice) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) put(y + i, twice ? 2.0f * x[i] : x[i]);
}
"""


@pytest.fixture
def kernels(tmp_path):
    (tmp_path / "gpu.cu").write_text(SOURCE)
    return cuda.Kernels(str(tmp_path / "gpu.py"))


def test_signatures_are_read(kernels):
    assert [tuple(p) for p in kernels.signatures["scale"]] == [
        ("y", "storage", True), ("x", "float", True), ("n", "int", False), ("twice", "bool", False),
    ]  # fmt: skip


@pytest.mark.parametrize("y", [np.zeros(5, np.float32), np.zeros(5, np.uint16)], ids=["fp32", "bf16"])
@gpus.needs_compiler
def test_a_launch_turns_arguments_into_what_the_kernel_takes(kernels, y):
    with emulator.emulated():
        kernels.launch("scale", 1, 32, y, np.arange(5, dtype=np.float32), 5, True)
    np.testing.assert_array_equal(from_bf16(y) if y.dtype == np.uint16 else y, [0, 2, 4, 6, 8])


X = np.zeros(5, np.float32)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((X, X, 5), "takes 4 arguments, got 3"),
        ((X, X.astype(np.float64), 5, True), "float. x.*got float64"),
        ((X, np.zeros(10, np.float32)[::2], 5, True), "float. x.*strides"),
        ((np.zeros(5, np.int32), X, 5, True), "storage. y.*got int32"),
    ],
)
def test_what_does_not_fit_is_an_error(kernels, arguments, error):
    with pytest.raises(TypeError, match=error):
        kernels.launch("scale", 1, 32, *arguments)


def test_a_parameter_that_no_launch_can_fill_is_an_error():
    with pytest.raises(TypeError, match="short x"):
        cuda.signatures('extern "C" __global__ void f(short x) {}')


def test_kernels_need_a_device(kernels, monkeypatch):
    monkeypatch.setattr(cuda, "driver", None)
    with pytest.raises(BackendError, match="--device gpu"):
        kernels.launch("scale", 1, 32, X, X, 5, True)
    kernels.launch("scale", (3, 0), 32, X, X, 5, True)  # no work, no device


BLOCK = """
#include "shared.cuh"
extern "C" __global__ void turned(float* y, const float* x, int barrier) {
    __shared__ float room[64];
    room[threadIdx.x] = x[threadIdx.x];
    if (barrier) __syncthreads();
    y[threadIdx.x] = room[(threadIdx.x + 40) % 64];
}
extern "C" __global__ void lanes(float* y, const float* x) {
    float sum = x[threadIdx.x];
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    y[threadIdx.x] = sum;
}
extern "C" __global__ void apart(float* y) {
    if (threadIdx.x == 0) __syncthreads(); else __syncwarp();
    y[threadIdx.x] = 1.0f;
}
extern "C" __global__ void put_at(float* y, int i) { y[i] = 1.0f; }
extern "C" __global__ void get_at(float* y, const float* x, int i) { y[0] = x[i]; }
extern "C" __global__ void put_in_dynamic(float* y, int i) {
    DYNAMIC_SHARED(float, room);
    room[i] = y[0];
}
"""


@gpus.needs_compiler
class TestEmulator:
    @pytest.fixture(autouse=True)
    def kernels(self, tmp_path):
        (tmp_path / "gpu.cu").write_text(BLOCK)
        self.kernels = cuda.Kernels(str(tmp_path / "gpu.py"))
        self.x, self.y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)

    def turned(self, barrier, order):
        with emulator.emulated(order=order):
            self.kernels.launch("turned", 1, 64, self.y, self.x, barrier)
        return self.y.tolist()

    def test_barriers_hold(self):
        wanted = np.roll(self.x, -40).tolist()
        assert all(self.turned(1, order) == wanted for order in (0, 1, 17))

    def test_a_missing_barrier_shows_in_another_order(self):
        assert len({str(self.turned(0, order)) for order in (0, 1, 17)}) > 1

    def test_lanes_exchange(self):
        with emulator.emulated():
            self.kernels.launch("lanes", 1, 64, self.y, self.x)
        assert self.y.tolist() == [self.x[:32].sum()] * 32 + [self.x[32:].sum()] * 32

    def test_threads_that_wait_at_different_barriers_are_found(self):
        with emulator.emulated(), pytest.raises(AssertionError, match="wait in vain"):
            self.kernels.launch("apart", 1, 32, self.y)

    @pytest.mark.parametrize("i", [5, 7, -1, -9])
    def test_writing_beside_an_array_is_found(self, i):
        room = np.zeros(64, np.float32)
        with emulator.emulated(), pytest.raises(AssertionError, match="outside of its arrays"):
            self.kernels.launch("put_at", 1, 1, room[32:37], i)
        assert not room.any()

    @pytest.mark.parametrize(
        "call",
        [
            '"put_at", 1, 1, x, 8',
            '"get_at", 1, 1, x, x[:5], 8',
            '"get_at", 1, 1, x, x, 99',
            '"get_at", 1, 1, x[4:], x[:4], 4',
        ],
    )
    def test_going_further_ends_the_process(self, call):
        code = "import emulator; from test_cuda import cuda, np; x = np.zeros(8, np.float32)\n"
        code += f"with emulator.emulated(): cuda.Kernels({str(self.kernels.path)!r}).launch({call})"
        done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
        assert done.returncode == -signal.SIGSEGV

    def test_arrays_that_overlap_have_copies_that_do(self):
        x = np.arange(8, dtype=np.float32)
        with emulator.emulated():
            self.kernels.launch("get_at", 1, 1, x[4:], x, 5)
            self.kernels.launch("get_at", 1, 1, x, x[2:], 2)
        assert x.tolist() == [5, 1, 2, 3, 5, 5, 6, 7]

    @pytest.mark.parametrize("i", [8, 4000])
    def test_writing_past_dynamic_shared_memory_is_found(self, i):
        with emulator.emulated():
            self.kernels.launch("put_in_dynamic", 1, 1, self.y, 7, shared=32)
            with pytest.raises(AssertionError, match="put_in_dynamic: wrote past its dynamic"):
                self.kernels.launch("put_in_dynamic", 1, 1, self.y, i, shared=32)


class ByColumns:
    """cublasGemmEx on the host's memory, as its documentation has it: matrices stand column by column."""

    def multiply(self, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, compute, algo):
        alpha, beta = (self._at(p, 0, 1, 1)[0, 0] for p in (alpha, beta))
        a = self._at(a, a_type, *((k, m) if ta else (m, k)), lda)
        b = self._at(b, b_type, *((n, k) if tb else (k, n)), ldb)
        c = self._at(c, c_type, m, n, ldc)
        before = beta * from_bf16(np.asfortranarray(c)) if c_type else beta * c
        product = alpha * self._floats(a, a_type, ta) @ self._floats(b, b_type, tb) + before
        c[...] = as_bf16(np.ascontiguousarray(product)) if c_type else product

    @staticmethod
    def _at(pointer, kind, rows, columns, ld=None):
        dtype, ld = np.dtype(np.uint16 if kind else np.float32), ld or rows
        memory = (np.ctypeslib.ctypes.c_char * (ld * columns * dtype.itemsize)).from_address(pointer)
        return np.frombuffer(memory, dtype).reshape(columns, ld).T[:rows]

    @staticmethod
    def _floats(x, kind, transposed):
        x = from_bf16(np.ascontiguousarray(x)) if kind else x
        return x.T if transposed else x


class OnHost(np.ndarray):
    """An array with the pointer where CuPy has it."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


@pytest.mark.parametrize("out_type", ["float32", "uint16"])
@pytest.mark.parametrize("types", ["float32", "uint16"])
@pytest.mark.parametrize("transposed", ["", "a", "b"])
@pytest.mark.parametrize("add", [False, True])
def test_products_ask_cublas_for_the_right_thing(transposed, add, types, out_type):
    if types == "float32" and out_type == "uint16":
        pytest.skip("no product of float32 is stored as bf16")
    driver = gpu.CupyDriver.__new__(gpu.CupyDriver)
    driver.cublas, driver.compute = ByColumns(), gpu.FP32
    driver.factors = np.array([0, 1], np.float32)
    rng = np.random.default_rng(0)

    def make(*shape, dtype):
        x = rng.standard_normal(shape).astype(np.float32)
        return (as_bf16(x) if dtype == "uint16" else x).view(OnHost)

    a = make(*((5, 3) if transposed == "a" else (3, 5)), dtype=types)
    b = make(*((4, 5) if transposed == "b" else (5, 4)), dtype=types)
    out = make(3, 4, dtype=out_type)
    wanted = np.array(out)
    emulator.Emulator().multiply(wanted, np.array(a), np.array(b), transposed, add)
    driver.multiply(out, a, b, transposed, add)
    tolerance = {"rtol": 1e-2 if out_type == "uint16" else 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(
        *(from_bf16(np.array(x)) if out_type == "uint16" else x for x in (out, wanted)), **tolerance
    )


def test_without_a_gpu_the_device_says_what_to_do():
    if gpu.usable():
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match="--device cpu|pip install"):
        devices.open("gpu")
