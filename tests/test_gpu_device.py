"""devices/gpu.py against as much of CuPy as it uses, played on the host: arrays, accounting, copies, graphs."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import numpy as np
import pytest

import emulator
import gpus
from cupy_played import DRIVER, DriverFailure, RuntimeFailure, Stream, cupy
from minibert.errors import BackendError
from minibert.kernels.common import cuda
from minibert.kernels.devices import cublas, gpu
from minibert.kernels.devices.away import Away
from minibert.kernels.devices.recording import Refused
from models import trainer, weights

__all__ = ["cupy"]  # a fixture
USED = {  # what must be there in the real CuPy, where it is installed
    "": "ndarray empty zeros RawModule", "ndarray": "get set fill",
    "cuda": "Device Stream MemoryPool UnownedMemory MemoryPointer Event alloc_pinned_memory Memory PinnedMemory "
            "get_elapsed_time runtime",
    "cuda.MemoryPointer": "copy_from_host_async copy_to_host_async copy_from_device_async memset_async",
    "cuda.MemoryPool": "malloc free_bytes used_bytes get_limit set_limit free_all_blocks",
    "cuda.Stream": "begin_capture end_capture record use synchronize wait_event",
    "cuda.Event": "done record synchronize",
    "cuda.Graph": "launch", "cuda.runtime": "memGetInfo CUDARuntimeError",
    "cuda.driver": "CUDADriverError",
    "RawModule": "get_function get_global",
    "RawKernel": "max_dynamic_shared_size_bytes",
}  # fmt: skip
CUBLAS_USED = {
    "cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSetMathMode", "cublasGemmEx",
}  # fmt: skip


def test_the_real_cupy_has_what_is_used():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    for owner, names in USED.items():
        found = cupy
        for part in filter(None, owner.split(".")):
            found = getattr(found, part)
        assert [name for name in names.split() if not hasattr(found, name)] == [], owner
    library = cublas.loaded(cupy)
    assert [name for name in CUBLAS_USED if not hasattr(library, name)] == []


def test_products_have_a_handle_with_a_workspace_on_the_stream(monkeypatch):
    calls = []

    class Function:
        def __init__(self, name):
            self.name = name

        def __call__(self, handle, *arguments):
            calls.append((self.name, *(getattr(a, "value", a) for a in arguments)))
            return self.status

        status = 0

    library = SimpleNamespace(**{name: Function(name) for name in CUBLAS_USED})
    monkeypatch.setattr(cublas, "loaded", lambda _: library)
    fake = SimpleNamespace(empty=lambda size, dtype: SimpleNamespace(data=SimpleNamespace(ptr=4096)))
    products = cublas.Cublas(fake, SimpleNamespace(ptr=7))
    assert calls == [
        ("cublasCreate_v2",), ("cublasSetStream_v2", 7), ("cublasSetWorkspace_v2", 4096, cublas.WORKSPACE),
        ("cublasSetMathMode", 16),
    ]  # fmt: skip
    products.multiply(*range(18))
    assert calls[-1] == ("cublasGemmEx", *range(18)) and len(library.cublasGemmEx.argtypes) == 19
    library.cublasGemmEx.status = 3
    with pytest.raises(MemoryError):
        products.multiply(*range(18))


def test_arrays_come_and_go_as_they_are_counted(cupy):
    device = gpu.open("bf16")
    x = device.array(np.arange(12, dtype=np.float32).reshape(3, 4))
    assert x.ctypes.data % 512 == 0 and device.in_use["activations"] == 48
    row = x[1]
    del x
    gc.collect()
    assert device.in_use["activations"] == 48
    np.testing.assert_array_equal(device.numpy(row), [4, 5, 6, 7])
    del row
    gc.collect()
    assert device.in_use.total() == 0 and cupy.pool.used > 0  # kept for the next
    device.release()
    gc.collect()
    assert cupy.pool.used == 0


def test_a_limit_holds_and_is_what_is_free(cupy):
    device = gpu.open()
    assert device.free_memory() == 1 << 33
    device.limit(gpu.PROCESS + 1000)
    assert device.free_memory() == 1000
    x = device.empty((100,), np.uint8, "activations")
    assert device.free_memory() == 1000 - cupy.pool.used
    with pytest.raises(MemoryError):
        device.empty((1000,), np.uint8, "activations")
    del x


def test_what_the_pool_keeps_is_not_in_the_way_of_a_limit(cupy):
    device = gpu.open()
    device.limit(gpu.PROCESS + (1 << 20))
    for kilobytes in (600, 700, 600, 900):  # none of which serves the next: together they are too many
        x = device.empty((kilobytes << 10,), np.uint8, "activations")
        assert device.free_memory() == (1 << 20) - device.resident < 1 << 19
        del x
        gc.collect()
    assert device.resident_peak <= 1 << 20
    device.release()
    assert device.free_memory() == 1 << 20 and device.resident == 0


def test_copies_both_ways(cupy, monkeypatch):
    device, host = gpu.open(), np.arange(6, dtype=np.float64).reshape(2, 3)
    for little in (gpu.LITTLE, 0):
        monkeypatch.setattr(gpu, "LITTLE", little)
        x = device.empty((3, 2), np.float32, "activations")
        device.write(x, host.T)  # of another type and order
        read = device.read_later(x)
        x.fill(7)  # what comes later is not read
        np.testing.assert_array_equal(read(), host.T)


def test_pinned_memory_that_is_not_there_is_a_memory_error(cupy):
    device = gpu.open()

    def fail(size):
        raise RuntimeFailure(2)

    cupy.cuda.PinnedMemory = fail
    with pytest.raises(MemoryError):
        Away(device).leave(device.empty((3,), "float32", "activations"))
    assert device.in_use.total() == 0


def test_what_outlives_its_recording_stays_with_recordings(cupy):
    device, kept = gpu.open(), []
    with device._apart():
        kept.append(device.empty((1000,), np.uint8, "activations"))
        place = kept[0].ctypes.data
    assert device.recorded_bytes == 0
    kept.clear()
    gc.collect()
    assert device.recorded_bytes >= 1000
    assert device.empty((1000,), np.uint8, "activations").ctypes.data != place
    before = device.generation
    device.forget_recordings()
    assert device.recorded_bytes == 0 and device.generation == before + 1


def test_memory_that_is_not_there_is_a_memory_error(cupy):
    device = gpu.open()
    cupy.pool.limit = 1 << 20
    with pytest.raises(MemoryError):
        device.empty((1 << 22,), np.uint8, "activations")
    assert device.in_use.total() == 0


@gpus.needs_compiler
def test_a_run_on_the_device_is_that_of_the_emulator(cupy):
    def trained(device):
        t = trainer(device, micro_batch=4)
        found = [t.step(step).loss for step in range(4)], [a.tobytes() for a in weights(t).values()]
        assert any(size.recording for size in t.replay.sizes.values())
        return found

    ours = trained(gpu.open("bf16"))
    with emulator.emulated():
        assert trained(emulator.device("bf16")) == ours


@gpus.needs_compiler
def test_a_run_goes_on_when_memory_has_run_out(cupy):
    t = trainer(gpu.open(), micro_batch=4)
    for step in range(3):
        t.step(step)
    assert any(size.recording for size in t.replay.sizes.values())
    t.bert.device.release()
    cupy.pool.failures = 2  # also when what was kept for later has been given back
    t.step(3)  # in vain, and again without recordings, whose memory is free now
    assert all(size.recording is None for size in t.replay.sizes.values())


def test_what_runs_out_while_it_is_recorded_does_not_cost_others_the_pool(cupy):
    device = gpu.open()
    cupy.pool.limit = 1 << 20
    with pytest.raises(MemoryError):
        device.record(lambda: device.empty((1 << 22,), np.uint8, "activations"))
    assert not device._singly
    with pytest.raises(MemoryError):
        device.empty((1 << 22,), np.uint8, "activations")
    assert device._singly
    with pytest.raises(Refused):
        device.record(lambda: None)


@gpus.needs_compiler
def test_recordings_are_made_again_after_an_evaluation(cupy):
    t = trainer(gpu.open(), batch_size=3, micro_batch=1)  # all of one size
    for step in (0, 1):
        t.step(step)
    t.rest()
    t.step(2)
    assert any(size.recording for size in t.replay.sizes.values())


@pytest.mark.parametrize("records", [True, False])
def test_kernels_are_timed_as_one_recording(cupy, monkeypatch, records):
    """Asking for each takes longer than it runs; where nothing is recorded it cannot be helped."""
    device, asked, launched = gpu.open(), [], []
    recording = SimpleNamespace(launch=lambda: launched.append(len(asked)))

    def record(call):
        if not records:
            raise Refused("not here")
        call()
        return recording

    monkeypatch.setattr(device, "record", record)
    times = iter((1, 41))
    cupy.cuda.Event = lambda: SimpleNamespace(
        record=lambda stream: launched.append(next(times)), synchronize=lambda: None
    )
    cupy.cuda.get_elapsed_time = lambda begin, end: 1000 * gpu.TIMED
    assert device.seconds(lambda: asked.append(0)) == 1
    assert len(asked) == 1 + gpu.TIMED * (1 if records else 2)
    assert launched == ([21, 1, 21, 41] if records else [1, 41])


@gpus.needs_compiler
def test_memory_that_suffices_without_recordings_suffices(cupy):
    t = trainer(gpu.open(), batch_size=3, micro_batch=1)  # all of one size
    t.replay._room = lambda: False
    for step in (0, 1):  # from the second on all gradients are there when it begins
        t.step(step)
    cupy.pool.limit = cupy.pool.used + 20_000  # a recording would need five times as much
    del t.replay._room
    for step in (2, 3):
        t.step(step)
    assert t.micro_tokens is None and not any(size.recording for size in t.replay.sizes.values())


@gpus.needs_compiler
@pytest.mark.parametrize(("status", "kind"), [(2, MemoryError), (700, Refused)])
def test_a_recording_that_fails(cupy, monkeypatch, status, kind):
    device = gpu.open()

    def fail(stream):
        raise RuntimeFailure(status)

    monkeypatch.setattr(Stream, "end_capture", fail)
    with pytest.raises(kind):
        device.record(lambda: device.empty((3,), "float32", "activations"))
    assert device.in_use.total() == 0
    with pytest.raises(ZeroDivisionError):  # not hidden by what the capture says that it broke off
        device.record(lambda: 1 / 0)


@gpus.needs_compiler
def test_a_run_whose_recordings_fail_does_without(cupy, monkeypatch):
    def trained():
        t = trainer(gpu.open(), micro_batch=4)
        found = [t.step(step).loss for step in range(4)], [a.tobytes() for a in weights(t).values()]
        return found, any(size.recording for size in t.replay.sizes.values())

    recorded, there = trained()

    def fail(stream):
        cuda.driver.recorded = None
        raise RuntimeFailure(900)

    monkeypatch.setattr(Stream, "end_capture", fail)
    with pytest.warns(UserWarning, match="no recordings, small batches will be slower"):
        assert there and trained() == (recorded, False)


@pytest.mark.parametrize(("status", "kind"), [(2, MemoryError), (700, DriverFailure)])
def test_kernels_that_find_no_room(cupy, status, kind):
    """When they are loaded, or when they are launched for the first time."""

    def fail(*_, **__):
        raise DriverFailure(status)

    driver = DRIVER(SimpleNamespace(
        RawModule=lambda code, options: SimpleNamespace(get_function=fail if code == "loaded" else lambda name: fail),
        zeros=np.zeros,
    ), (8, 0), 68)  # fmt: skip
    with pytest.raises(kind):
        driver.compile("loaded", "float")("kernel")
    with pytest.raises(kind):
        driver.compile("launched", "float")("kernel")((1, 1, 1), (32, 1, 1), [], 0)


def test_aside_has_a_stream_and_a_cublas_of_its_own_and_gives_them_back(cupy, monkeypatch):
    used = []
    for name in ("products", "side_products"):
        monkeypatch.setattr(gpu, name, lambda name=name: name)
    monkeypatch.setattr(Stream, "use", lambda self: used.append(self))
    monkeypatch.setattr(Stream, "record", lambda self, event: event)
    driver = DRIVER(SimpleNamespace(zeros=np.zeros), (8, 0), 68)
    with pytest.raises(MemoryError), driver.aside():
        assert driver.cublas == "side_products" and used == [gpu.side_stream()]
        raise MemoryError
    assert driver.cublas == "products" and used[1:] == [gpu.stream()] != used[:1]


def test_devices_of_a_process_share_a_stream_and_take_turns(cupy):
    first, second = gpu.open(), gpu.open("bf16")
    assert first.stream is second.stream and cuda.driver is second._driver
    with first.session():
        assert cuda.driver is first._driver is not second._driver


def test_bf16_is_refused_where_the_card_has_none(cupy, monkeypatch):
    monkeypatch.setattr(gpu, "found", lambda: (6, 1))
    assert gpu.precision() == "fp32"
    with pytest.raises(BackendError, match=r"has 6\.1; use --precision fp32"):
        gpu.open("bf16")


def test_threads_are_not_the_gpu_s(cupy):
    with pytest.raises(BackendError, match="--threads"):
        gpu.open(threads=2)
