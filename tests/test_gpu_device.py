"""devices/gpu.py against as much of CuPy as it uses, played on the host: arrays, accounting, copies, graphs."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from collections import deque
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import emulator
import gpus
from minibert.errors import BackendError
from minibert.kernels.common import cuda
from minibert.kernels.devices import cublas, gpu
from minibert.kernels.devices.away import Away
from minibert.kernels.devices.recording import Refused
from models import CONFIG, trainer, weights

USED = {  # what must be there in the real CuPy, where it is installed
    "": "ndarray empty zeros RawModule", "ndarray": "get set fill",
    "cuda": "Device Stream MemoryPool UnownedMemory MemoryPointer Event alloc_pinned_memory Memory PinnedMemory "
            "get_elapsed_time runtime",
    "cuda.MemoryPointer": "copy_from_host_async copy_to_host_async copy_from_device_async",
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


class Copies:
    """What a pointer to a device's memory can do."""

    def copy_from_host_async(self, source, size, stream):
        stream.do(lambda: ctypes.memmove(self.ptr, source, size))

    def copy_from_device_async(self, source, size, stream):
        stream.do(lambda: ctypes.memmove(self.ptr, source.ptr, size))

    def copy_to_host_async(self, to, size, stream):
        stream.do(lambda: ctypes.memmove(to, self.ptr, size))


class Pointer(Copies):
    def __init__(self, memory, offset=0):
        self.memory, self.ptr = memory, memory.ptr + offset


class Memory(Copies):
    """malloc's, aligned as the card's is; or what was handed out before and has come back, in sizes of 512 bytes."""

    def __init__(self, pool, size):
        self.kept = pool.kept.setdefault(-(-size // 512), [])
        self.pool, self.bytes = pool, self.kept.pop() if self.kept else np.full(size + 1024, 0xFF, np.uint8)
        self.ptr = self.bytes.ctypes.data + -self.bytes.ctypes.data % 512
        pool.used += size
        self.size = size

    def __del__(self):
        self.pool.used -= self.size
        self.kept.append(self.bytes)


class Pool:
    limit, used, failures = 1 << 40, 0, 0

    def __init__(self):
        self.kept = {}

    def malloc(self, size):
        if self.failures:
            self.failures -= 1
            raise MemoryError("somebody else has it")
        if self.used + size > self.limit:
            raise MemoryError(f"{size} bytes")
        return Memory(self, size)

    def free_all_blocks(self):
        """As if nothing were kept."""

    def free_bytes(self):
        return 0

    def used_bytes(self):
        return self.used

    def set_limit(self, size):
        self.limit = size

    def get_limit(self):
        return self.limit if self.limit < 1 << 40 else 0


class Array(np.ndarray):
    """CuPy's, as far as it differs from NumPy's."""

    @property
    def data(self):
        return Pointer(SimpleNamespace(ptr=self.ctypes.data))

    def get(self, stream):
        return np.array(self)

    def set(self, host, stream):
        assert host.flags.c_contiguous and host.dtype == self.dtype and host.shape == self.shape
        self[...] = host


def ndarray(shape, dtype, pointer):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_char * max(size, 1)).from_address(pointer.ptr)
    raw.owner = pointer  # keeps the lease, as CuPy's arrays do
    return np.frombuffer(raw, dtype, int(np.prod(shape))).reshape(shape).view(Array)


class Stream:
    def __init__(self, non_blocking):
        assert non_blocking

    def use(self): ...

    def do(self, call):
        call()

    def record(self):
        return SimpleNamespace(done=True, synchronize=lambda: None)

    def wait_event(self, event): ...

    def synchronize(self): ...

    def begin_capture(self):
        cuda.driver.recorded = []

    def end_capture(self):
        launches, cuda.driver.recorded = cuda.driver.recorded, None
        return SimpleNamespace(launch=lambda stream: [launch() for launch in launches])


class RuntimeFailure(RuntimeError):
    """CuPy's, with cudaError's number."""

    def __init__(self, status):
        self.status = status


class DriverFailure(RuntimeError):
    """The same of the driver's own interface, by which kernels are loaded."""

    def __init__(self, status):
        self.status = status


@pytest.fixture
def cupy(monkeypatch):
    """A module that stands for CuPy; the driver that would use it is the emulator."""
    pool = Pool()
    fake = SimpleNamespace(ndarray=ndarray, cuda=SimpleNamespace(
        Stream=Stream, MemoryPool=lambda: pool, MemoryPointer=Pointer, Device=lambda: SimpleNamespace(id=0),
        UnownedMemory=lambda ptr, size, owner, number: SimpleNamespace(ptr=ptr, owner=owner),
        alloc_pinned_memory=PinnedMemory.alloc, PinnedMemory=PinnedMemory.alloc,
        Memory=lambda size: Memory(Pool(), size),
        runtime=SimpleNamespace(memGetInfo=lambda: (1 << 33, 1 << 34), CUDARuntimeError=RuntimeFailure),
        driver=SimpleNamespace(CUDADriverError=DriverFailure),
    ), pool=pool)  # fmt: skip
    monkeypatch.setattr(PinnedMemory, "all", [])
    monkeypatch.setattr(gpu, "library", lambda: fake)
    monkeypatch.setattr(gpu, "found", lambda: (8, 0))
    monkeypatch.setattr(gpu, "stream", cache(gpu.stream.__wrapped__))
    monkeypatch.setattr(gpu, "products", lambda: None)
    monkeypatch.setattr(gpu, "CupyDriver", lambda *_: emulator.Emulator())
    monkeypatch.setattr(cuda, "driver", None)
    return fake


DRIVER = gpu.CupyDriver


class PinnedMemory(np.ndarray):
    """Of which somebody else makes use as soon as it is given up."""

    all = []

    @classmethod
    def alloc(cls, size):
        cls.all.append(bytearray(size))
        return np.ndarray.__new__(cls, size, np.uint8, cls.all[-1])

    @property
    def ptr(self):
        return self.ctypes.data

    def __del__(self):
        self[...] = 0xEE


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


def test_copies_both_ways(cupy, monkeypatch):
    device, host = gpu.open(), np.arange(6, dtype=np.float64).reshape(2, 3)
    for little in (gpu.LITTLE, 0):
        monkeypatch.setattr(gpu, "LITTLE", little)
        x = device.empty((3, 2), np.float32, "activations")
        device.write(x, host.T)  # of another type and order
        read = device.read_later(x)
        x.fill(7)  # what comes later is not read
        np.testing.assert_array_equal(read(), host.T)


class Late(Stream):
    """Does what it is asked for by and by, each stream at a pace of its own; `rng` draws it."""

    rng, all = np.random.default_rng(0), []

    def __init__(self, non_blocking):
        self.asked = deque()
        self.all.append(self)

    def do(self, call):
        self.asked.append(call)

    def record(self):
        event = Event()
        self.do(lambda: setattr(event, "passed", True))
        return event

    def wait_event(self, event):
        self.do(lambda: event.passed)

    def synchronize(self):
        while self.asked:
            self.go_on(1)

    @classmethod
    def go_on(cls, most):
        for _ in range(most):
            stream = cls.all[cls.rng.integers(len(cls.all))]
            while stream.asked and cls.rng.random() < 0.8:
                if stream.asked[0]() is False:  # it waits for another
                    break
                stream.asked.popleft()


class Event:
    passed = False

    @property
    def done(self):
        Late.go_on(1)  # time passes
        return self.passed

    def synchronize(self):
        while not self.passed:
            Late.go_on(1)


@pytest.fixture
def late(cupy, monkeypatch, seed):
    """A device whose streams are late."""
    monkeypatch.setattr(Late, "all", [])
    monkeypatch.setattr(Late, "rng", np.random.default_rng(seed))
    cupy.cuda.Stream = Late
    return gpu.open()


@pytest.mark.parametrize("seed", range(5))
def test_copies_that_run_ahead_are_seen_in_time_and_disturb_nobody(late):
    """Each kernel sees what was written last before it, also where memory had another use a moment ago."""
    device = late
    places = [device.empty((n,), np.int32, "activations") for n in (5, 40, 300)]
    seen, wanted, others = [], [], []
    for i in range(400):
        which = int(Late.rng.integers(3))
        device.write(places[which], np.full(places[which].shape, i, np.int32))
        device.stream.do(lambda which=which: seen.append(places[which].tolist()))
        wanted.append([i] * len(places[which]))
        passing = device.empty((places[which].nbytes,), np.uint8, "activations")
        at, size = passing.ctypes.data, passing.nbytes
        device.stream.do(lambda at=at, size=size: ctypes.memset(at, 255, size) and None)
        device.stream.do(lambda at=at, size=size: others.append(set(ctypes.string_at(at, size))))
        del passing
        if i % 3 == 0:
            device.release()
        Late.go_on(int(Late.rng.integers(4)))
    while any(stream.asked for stream in Late.all):
        Late.go_on(10)
    assert seen == wanted
    assert all(other == {255} for other in others)
    rooms = len(device._staged)
    for place in places * 5:
        device.write(place, np.zeros(place.shape, np.int32))
        Late.go_on(1000)
    assert len(device._staged) == rooms


class Kernels:
    """What is computed on a late device: arrays are filled with a number, and read, when their time has come."""

    def __init__(self, device):
        self.device, self.wrong = device, []

    def fill(self, array, number):
        place = raw(array)  # and not the array, which may be given back before its time
        self.device.stream.do(lambda: place.fill(number))

    def read(self, array, number):
        place = raw(array)
        self.device.stream.do(lambda: self.wrong.extend({*place.tolist()} - {number}))

    def pass_by(self, size):
        """Something that is computed in memory that is given back at once."""
        self.fill(self.device.empty((size,), np.int32, "activations"), -1)
        Late.go_on(int(Late.rng.integers(4)))


def raw(array):
    return np.frombuffer((ctypes.c_char * array.nbytes).from_address(array.ctypes.data), array.dtype)


def half_a_pass(device, kernels, size, numbers):
    """Forward: an array for each number leaves while the next one is computed. The numbers, and what brings back."""
    away, backs = Away(device), []
    x = device.empty((size,), np.int32, "activations")
    for number in numbers:
        kernels.fill(x, number)
        backs.append((number, away.leave(x)))
        kernels.pass_by(size)
        y = device.empty((size,), np.int32, "activations")
        kernels.read(x, number)
        away.left()
        x = y
        kernels.pass_by(size)
    return backs


@pytest.mark.parametrize("seed", range(40))
def test_arrays_that_wait_in_the_host_s_memory_come_back_whatever_the_paces(late):
    kernels = Kernels(late)
    place = late.empty((9,), np.int32, "activations")
    for step in range(12):
        size = int(Late.rng.integers(1, 200))
        backs = half_a_pass(late, kernels, size, range(100 * step, 100 * step + 4))
        late.write(place, np.full(9, step, np.int32))
        while backs:
            number, back = backs.pop()
            x = back()
            kernels.pass_by(size)
            kernels.read(x, number)
            kernels.fill(x, -2)
            kernels.pass_by(size)
            del x, back
        kernels.read(place, step)
    late.wait()
    assert kernels.wrong == []
    assert late.in_use["activations"] == place.nbytes and len(late._rooms) == 4


@pytest.mark.parametrize("seed", range(40))
def test_a_pass_that_breaks_leaves_nothing_behind(late):
    kernels = Kernels(late)
    for step in range(12):
        backs = half_a_pass(late, kernels, 50, range(4))
        for _ in range(int(Late.rng.integers(4))):
            backs.pop()[1]()
        backs.clear()
        assert late.in_use.total() == 0
        late.release()
        assert late._rooms == []
        arrays = [late.empty((50,), np.int32, "activations") for _ in range(4)]
        for array in arrays:
            kernels.fill(array, step)
        Late.go_on(20)
        for array in arrays:
            kernels.read(array, step)
        del array, arrays
    late.wait()
    assert kernels.wrong == []


@pytest.mark.parametrize("seed", [0])
def test_copies_there_and_back_run_beside_the_kernels(late):
    away, kernels, backs, busy = Away(late), Kernels(late), [], []

    def go_on(stream):
        while stream.asked and stream.asked[0]() is not False:
            stream.asked.popleft()

    for number in (1, 2):
        x = late.empty((50,), np.int32, "activations")
        kernels.fill(x, number)
        backs.append(away.leave(x))
        busy.append("with something that takes long")
        late.stream.do(lambda: not busy)
        away.left()
        go_on(late.stream)
        there = np.frombuffer(PinnedMemory.all[-1], np.int32)
        assert there[0] != number, "it went by the kernels' stream"
        go_on(late.copies)
        assert there[0] == number
        busy.clear()
        go_on(late.stream)
    computed = []
    _ = backs.pop()()
    late.stream.do(lambda: computed.append("what needed the second"))
    while not computed:
        late.copies.asked.popleft()()
        go_on(late.stream)
    assert late.copies.asked, "the first was not on its way, or was waited for"
    go_on(late.copies)
    _ = backs.pop()()
    assert len(late.copies.asked) == 1, "it was fetched only now"


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


class LateArray(Array):
    """One whose operations are the stream's, on memory as it then is."""

    def fill(self, value):
        place = raw(self)
        gpu.stream().do(lambda: place.fill(value))

    def __setitem__(self, key, value):
        to, source = raw(self[key]), raw(value)
        gpu.stream().do(lambda: to.__setitem__(..., source))

    def get(self, stream):
        stream.synchronize()
        return np.array(self)


class LateEmulator(emulator.Emulator):
    def _do(self, call):
        gpu.stream().do(call)
        if Late.rng.random() < 0.1:
            Late.go_on(3)

    def set_streams(self, base):
        now = super().set_streams
        self._do(lambda: now(base))

    def multiply(self, out, a, b, transposed, add):
        places = [raw(x).reshape(x.shape) for x in (out, a, b)]
        self._do(lambda: self._multiply(*places, transposed, add))


@gpus.needs_compiler
@pytest.mark.parametrize("seed", range(3))
def test_training_has_the_same_bits_whatever_the_paces(cupy, monkeypatch, seed):
    """Kernels, copies and the host go as they like, and inputs of layers wait in the host's memory."""

    def trained(recompute):
        t = trainer(gpu.open("bf16"), config=deep, recompute=recompute, batch_size=4, micro_batch=2)
        return [t.step(step).loss for step in range(2)], [a.tobytes() for a in weights(t).values()]

    deep = dataclasses.replace(CONFIG, num_hidden_layers=4)
    once = trained("none")
    monkeypatch.setattr(Late, "all", [])
    monkeypatch.setattr(Late, "rng", np.random.default_rng(seed))
    monkeypatch.setattr(gpu, "stream", cache(gpu.stream.__wrapped__))
    monkeypatch.setattr(gpu, "CupyDriver", lambda *_: LateEmulator())
    cupy.cuda.Stream, cupy.ndarray = Late, lambda *arguments: ndarray(*arguments).view(LateArray)
    assert trained(("[k][k][k]k", "[k](k)[k]k", "[k](k[k])k")[seed]) == once


@gpus.needs_compiler
@pytest.mark.parametrize("memory", ["device", "host"])
def test_a_pass_that_finds_no_memory_for_what_is_away_is_taken_again(cupy, memory):
    """Wherever it breaks, nothing of it is left: not even until garbage is collected."""
    deep = dataclasses.replace(CONFIG, num_hidden_layers=4)

    def trained(failing):
        t = trainer(gpu.open(), config=deep, recompute="[k](k)[k]k", count=12, batch_size=3)
        device, asked, wanted = t.bert.device, 0, [*failing]

        def failing_now(call):
            def allocate(size):
                nonlocal asked
                asked += 1
                if asked in wanted:
                    wanted.remove(asked)
                    raise RuntimeFailure(2) if memory == "host" else MemoryError
                return call(size)

            return allocate

        cupy.cuda.PinnedMemory = failing_now(PinnedMemory.alloc)
        device._memory = failing_now(device._memory) if memory == "device" else device._memory
        t.step(0)
        assert wanted == [] and t.micro_tokens is None and len(device._rooms) == 2
        return asked, device.in_use, [a.tobytes() for a in weights(t).values()]

    gc.disable()
    try:
        count, *undisturbed = trained([])
        for n in range(1, count, 1 if memory == "host" else count // 8):
            assert trained([n] if memory == "host" else [n, n + 1])[1:] == (*undisturbed,), n
    finally:
        gc.enable()


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
