"""As much of CuPy as devices/gpu.py uses, played on the host: arrays, pools, copies, streams, graphs.

`cupy` is a module that stands for it; with `late` its streams do what they are asked for at paces of their own.
"""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import emulator
from minibert.kernels.common import cuda
from minibert.kernels.devices import gpu


class Copies:
    """What a pointer to a device's memory can do."""

    def copy_from_host_async(self, source, size, stream):
        stream.do(lambda: ctypes.memmove(self.ptr, source, size))

    def copy_from_device_async(self, source, size, stream):
        stream.do(lambda: ctypes.memmove(self.ptr, source.ptr, size))

    def copy_to_host_async(self, to, size, stream):
        stream.do(lambda: ctypes.memmove(to, self.ptr, size))

    def memset_async(self, value, size, stream):
        stream.do(lambda: ctypes.memset(self.ptr, value, size))


class Pointer(Copies):
    def __init__(self, memory, offset=0):
        self.memory, self.ptr = memory, memory.ptr + offset


class Memory(Copies):
    """malloc's, aligned as the card's is, in multiples of 512 bytes; or what its pool has kept."""

    def __init__(self, pool, size):
        self.size = -(-size // 512) * 512
        kept = pool.kept.setdefault(self.size, [])
        if not kept:
            pool.take(self.size)
        self.pool, self.bytes = pool, kept.pop() if kept else np.full(self.size + 512, 0xFF, np.uint8)
        self.ptr = self.bytes.ctypes.data + -self.bytes.ctypes.data % 512
        pool.used += self.size

    def __del__(self):
        if hasattr(self, "ptr"):  # it was had
            self.pool.used -= self.size
            self.pool.kept.setdefault(self.size, []).append(self.bytes)
            self.pool.comes_back()


class Pool:
    """CuPy's: what comes back stays in it, and counts towards its limit, 0 being none."""

    limit, used, total, failures = 0, 0, 0, 0

    def __init__(self):
        self.kept, self.gone = {}, []

    def malloc(self, size):
        return Memory(self, size)

    def take(self, size):
        if self.failures:
            self.failures -= 1
            raise MemoryError("somebody else has it")
        if self.limit and self.total + size > self.limit:
            raise MemoryError(f"{size} bytes")
        self.total += size

    def comes_back(self): ...

    def free_all_blocks(self):
        self.total = self.used
        self.gone.append(self.kept)  # which work that is still asked for may touch: a card frees nothing before
        self.kept = {}

    def free_bytes(self):
        return self.total - self.used

    def used_bytes(self):
        return self.used

    def total_bytes(self):
        return self.total

    def set_limit(self, size):
        self.limit = size

    def get_limit(self):
        return self.limit


class Singly(Pool):
    """Memory without a pool, of the card that a pool takes its own from: as little as that has."""

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def take(self, size):
        self.pool.take(size)
        self.pool.total -= size
        if self.pool.limit and self.pool.total + self.used + size > self.pool.limit:
            raise MemoryError(f"{size} bytes")

    def comes_back(self):
        self.free_all_blocks()


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
    singly = Singly(pool)
    fake = SimpleNamespace(ndarray=ndarray, cuda=SimpleNamespace(
        Stream=Stream, Event=Event, Device=lambda: SimpleNamespace(id=0),
        MemoryPool=lambda: pool, MemoryPointer=Pointer,
        UnownedMemory=lambda ptr, size, owner, number: SimpleNamespace(ptr=ptr, owner=owner),
        alloc_pinned_memory=PinnedMemory.alloc, PinnedMemory=PinnedMemory.alloc,
        Memory=lambda size: Memory(singly, size),
        runtime=SimpleNamespace(memGetInfo=lambda: (1 << 33, 1 << 34), CUDARuntimeError=RuntimeFailure),
        driver=SimpleNamespace(CUDADriverError=DriverFailure),
    ), pool=pool)  # fmt: skip
    monkeypatch.setattr(PinnedMemory, "all", [])
    monkeypatch.setattr(gpu, "library", lambda: fake)
    monkeypatch.setattr(gpu, "found", lambda: (8, 0))
    monkeypatch.setattr(gpu, "stream", cache(gpu.stream.__wrapped__))
    monkeypatch.setattr(gpu, "side_stream", cache(gpu.side_stream.__wrapped__))
    monkeypatch.setattr(gpu, "products", lambda: None)
    monkeypatch.setattr(gpu, "side_products", lambda: None)
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


class Late(Stream):
    """Does what it is asked for by and by, each stream at a pace of its own; `rng` draws it."""

    rng, all, current = np.random.default_rng(0), [], None

    def __init__(self, non_blocking):
        self.asked = deque()
        self.all.append(self)

    def use(self):
        Late.current = self

    def do(self, call):
        self.asked.append(call)

    def record(self, event=None):
        event = event or Event()
        event.mark = mark = SimpleNamespace(passed=False)
        self.do(lambda: setattr(mark, "passed", True))
        return event

    def wait_event(self, event):
        mark = event.mark  # what was last recorded, whatever is later
        self.do(lambda: mark.passed)

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
    mark = None

    def __init__(self, disable_timing=False): ...

    @property
    def done(self):
        Late.go_on(1)  # time passes
        return self.mark.passed

    def synchronize(self):
        while not self.mark.passed:
            Late.go_on(1)


@pytest.fixture
def late(cupy, monkeypatch, seed):
    """A device whose streams are late."""
    monkeypatch.setattr(Late, "all", [])
    monkeypatch.setattr(Late, "rng", np.random.default_rng(seed))
    cupy.cuda.Stream = Late
    return gpu.open()
