"""NVIDIA's GPUs, through CuPy: arrays, copies, the compiler of kernels and cuBLAS.

CuPy is imported when a device is opened. What is computed is computed on one stream, in the order it was asked for, but
for gradients of weights, which an operation may ask for aside (`CupyDriver.aside`). The host runs ahead and waits only
where it reads a number (`numpy`), in training that of the step before. What it writes goes by a stream of its own.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minibert.errors import BackendError
from minibert.kernels.common import cuda

from . import Lease, on_card
from .cublas import Cublas, CublasError
from .recording import Recorder, Recording, Refused

# The context, the kernels' code and cuBLAS twice, each with its workspace, in bytes: an allowance, beside arrays.
PROCESS = 832 << 20
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
LITTLE, STAGED = 8 << 20, 32 << 20  # bytes: batches, not weights; of the rooms that they go through
TIMED = 20  # calls that are timed together
FP32, TF32 = 68, 77  # CUBLAS_COMPUTE_32F and CUBLAS_COMPUTE_32F_FAST_TF32
TYPES = {np.dtype(np.float32): 0, np.dtype(np.uint16): 14}  # CUDA_R_32F, CUDA_R_16BF
BEST_ALGORITHM = -1  # CUBLAS_GEMM_DEFAULT
BF16 = (8, 0)  # the compute capability from which on tensor cores multiply bf16
LIBRARIES = (
    'CuPy is not installed: pip install ".[gpu]" in the checkout (".[gpu12]" for CUDA 12 and cards before Turing), '
    "or use --device cpu"
)


class Gpu(Recorder):
    """One card; until it is connected, only a description of one, which planning needs and no more."""

    process, ahead, host_apart, gives_blocks = PROCESS, 1, True, True
    piece = 8192  # whose products (T, C) of BERT-Base are 384 blocks of 128 x 128 for an H200's 132 multiprocessors

    def __init__(self, precision: str = "fp32") -> None:
        super().__init__("gpu")
        self.precision = precision
        self.cupy: Any = None
        if precision == "bf16":
            self.activation_type = self.operand_type = np.dtype(np.uint16)  # the bits

    def connect(self) -> Gpu:
        """Takes the card: its stream and memory. BackendError where there is none, or none that can do this."""
        self.cupy = cupy = library()
        capability = found()
        if self.precision == "bf16" and capability < BF16:
            raise BackendError(f"precision bf16 needs compute capability 8.0, this card has {_dotted(capability)}; "
                               "use --precision fp32")  # fmt: skip
        self.number = cupy.cuda.Device().id
        self.stream = stream()
        self.stream.use()
        self.pool = cupy.cuda.MemoryPool()
        self._most = self.pool.get_limit()  # bytes, 0: as many as there are
        self._singly, self._own = False, 0  # whether blocks have memory of their own by now, and bytes of those
        self.copies = cupy.cuda.Stream(non_blocking=True)
        self._staged: deque[Staging] = deque()  # in the order of their last use
        self._read: deque[tuple[Any, Any]] = deque()  # what is on its way to the host: until when, and to where
        self._rooms: list[Any] = []  # pinned memory of the host in which no array waits
        self._driver = cuda.driver = CupyDriver(cupy, capability, TF32 if self.precision == "tf32" else FP32)
        return self

    def session(self) -> AbstractContextManager[None]:
        """Makes this device the one whose kernels run, in the thread that asks: another may have been opened since."""
        self.stream.use()
        cuda.driver = self._driver
        return nullcontext()

    def _capture(self, call: Callable[[], Any]) -> Recording:
        """As a CUDA graph."""
        if self._singly:
            raise Refused("memory is short, and none may come or go in a recording")
        refusals: tuple[type[Exception], ...] = CublasError, *failures()
        try:
            with memory_errors():
                graph, result = self._graph(call)
        except refusals as error:
            raise Refused(str(error)) from error

        def launch() -> None:
            with memory_errors():  # the first launch brings the graph to the card
                graph.launch(self.stream)

        return Recording(launch, result)

    def _graph(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        self.stream.begin_capture()
        try:
            result = call()
        except BaseException:
            with suppress(*failures()):  # which would only say that a capture has failed
                self.stream.end_capture()
            raise
        return self.stream.end_capture(), result

    @property
    def description(self) -> str:
        return "the GPU"

    def release(self) -> None:
        self._empty_rooms()  # and with a pass that broke, arrays may have been given back on their way
        self._driver.join()  # and something may be under way
        super().release()
        while self._staged and self._staged[0].done.done:
            self._staged.popleft()
        self.pool.free_all_blocks()

    def free_memory(self) -> int | None:
        if self.cupy is None:
            return None
        free = self.cupy.cuda.runtime.memGetInfo()[0] + self.pool.free_bytes()
        return max(0, min(free, self._most - self.pool.used_bytes() - self._own)) if self._most else free

    def taken(self) -> int:
        return self.process

    def limit(self, nbytes: int) -> None:
        self._most = max(1, nbytes - self.process)
        self.pool.set_limit(size=self._most)

    def seconds(self, call: Callable[[], None]) -> float:
        """As the card's own clock has it, the mean of calls one after the other: recorded, where the device takes that,
        because asking for a kernel takes longer than most of them run.
        """

        def calls() -> None:
            for _ in range(TIMED):
                call()

        call()  # compiles
        try:
            launch = self.record(calls).launch
        except Refused:
            launch = calls
        launch()  # the first brings what was recorded to the card
        begin, end = (self.cupy.cuda.Event() for _ in range(2))
        begin.record(self.stream)
        launch()
        end.record(self.stream)
        end.synchronize()
        return self.cupy.cuda.get_elapsed_time(begin, end) / 1000 / TIMED

    def wait(self) -> None:
        self.stream.synchronize()

    def numpy(self, array: Any) -> np.ndarray:
        return array.get(stream=self.stream)

    def read_later(self, array: Any) -> Callable[[], np.ndarray]:
        while self._read and self._read[0][0].done:
            self._read.popleft()
        with memory_errors():
            pinned = self.cupy.cuda.alloc_pinned_memory(max(1, array.nbytes))
        array.data.copy_to_host_async(pinned.ptr, array.nbytes, self.stream)
        done, host = self.stream.record(), np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
        self._read.append((done, pinned))  # also where nobody waits

        def wait() -> np.ndarray:
            done.synchronize()
            return host

        return wait

    def write(self, array: Any, host: np.ndarray) -> None:
        """Copies a little ahead on a stream of its own, while what was asked for before is computed, to where no kernel
        looks; then it only has to be put in its place. What is large goes there directly, and the host waits.
        """
        if not array.nbytes:
            return
        if array.nbytes > LITTLE:
            array.set(np.ascontiguousarray(host, array.dtype), stream=self.stream)
            self.stream.synchronize()
            return
        staging = self._staging(array.nbytes)
        np.frombuffer(staging.pinned, array.dtype, array.size).reshape(array.shape)[...] = host
        staging.memory.copy_from_host_async(staging.pinned.ptr, array.nbytes, self.copies)
        self.stream.wait_event(self.copies.record())
        array.data.copy_from_device_async(staging.memory, array.nbytes, self.stream)
        self._staged.append(staging._replace(done=self.stream.record()))

    def _staging(self, nbytes: int) -> Staging:
        """A room for so many bytes that is not in use any more, or a new one; rather than have many it waits."""
        for i, staging in enumerate(self._staged):
            if not staging.done.done:
                break
            if staging.size >= nbytes:
                del self._staged[i]
                return staging
        while self._staged and sum(staging.size for staging in self._staged) + nbytes > STAGED:
            self._staged.popleft().done.synchronize()
        with memory_errors():
            pinned = self.cupy.cuda.alloc_pinned_memory(nbytes)
            # Not from our pool, all of which may be planned for, nor from any: nobody has used it a moment ago.
            memory = self.cupy.cuda.MemoryPointer(self.cupy.cuda.Memory(nbytes), 0)
        return Staging(nbytes, pinned, memory, None)

    def clear(self, array: Any) -> None:
        array.data.memset_async(0, array.nbytes, self.stream)

    def send(self, array: Any) -> Room:
        room = self._room(array.nbytes)
        self.copies.wait_event(self.stream.record())
        array.data.copy_to_host_async(room.pinned.ptr, array.nbytes, self.copies)
        return room

    def fetch(self, array: Any, sent: Room) -> None:
        self.copies.wait_event(self.stream.record())  # whose kernels may still use what the pool has handed out again
        array.data.copy_from_host_async(sent.pinned.ptr, array.nbytes, self.copies)

    def await_copies(self) -> None:
        self.stream.wait_event(self.copies.record())

    def _room(self, nbytes: int) -> Room:
        """A room that is large enough; where none is, those that are free have had their time."""
        for i, pinned in enumerate(self._rooms):
            if pinned.size >= nbytes:
                return Room(self._rooms.pop(i), self._rooms)
        self._empty_rooms()
        with memory_errors():
            return Room(self.cupy.cuda.PinnedMemory(nbytes), self._rooms)

    def _empty_rooms(self) -> None:
        """Gives them back to the system, which must not happen while something is copied."""
        if self._rooms:
            self.copies.synchronize()
            self._rooms.clear()

    def _array(self, lease: Lease, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        cupy, block = self.cupy, lease.block
        memory = cupy.cuda.UnownedMemory(block.memory.ptr, block.size, lease, self.number)
        return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))

    def _memory(self, size: int) -> Any:
        """From CuPy's pool, where a new block costs next to nothing; but it keeps what comes back, in pieces of what it
        once was, and counts that towards the limit. So from the first time on that it has nothing left each block has
        memory of its own, which comes and goes as planned, and takes the driver's time.
        """
        if not self._singly:
            try:
                return self.pool.malloc(size)
            except MemoryError:
                self._singly = not self._recording  # for the want of room for recordings these are given up
                raise
        self.pool.free_all_blocks()
        if self._most and self.pool.total_bytes() + self._own + on_card(size) > self._most:
            raise MemoryError(f"{size} bytes more than the limit of {self._most} leaves")
        with memory_errors():
            return Own(self, self.cupy.cuda.Memory(size))


class Own:
    """A block's own memory, which the device counts."""

    __slots__ = ("device", "memory")

    def __init__(self, device: Gpu, memory: Any):
        self.device, self.memory = device, memory
        device._own += on_card(memory.size)

    def __del__(self) -> None:
        self.device._own -= on_card(self.memory.size)

    @property
    def ptr(self) -> int:
        return self.memory.ptr


class memory_errors:  # noqa: N801 - read as a function
    """A MemoryError where CUDA's own memory does not suffice, which CuPy tells of as of any failure.

    No generator with @contextmanager: in Python 3.12 and 3.13 such an error is held, with the arrays of all frames that
    it came through, by a cycle until garbage is collected.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and isinstance(error, failures()):
            raise_memory_error(error)


def failures() -> tuple[type[Exception], ...]:
    """CuPy's errors, with `status`, which CUDA's two interfaces number alike as far as memory goes."""
    cuda = library().cuda
    return cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError


def raise_memory_error(error: Any) -> None:
    if error.status == OUT_OF_MEMORY:
        raise MemoryError(str(error)) from None


class Staging(NamedTuple):
    """Room through which bytes go to the device: pinned memory of the host, memory of the device, and the event after
    their last use.
    """

    size: int
    pinned: Any
    memory: Any
    done: Any


class Room:
    """Pinned memory in which an array waits. The next one may move in at once: all copies there and back run on one
    stream, in order.
    """

    __slots__ = ("pinned", "rooms")

    def __init__(self, pinned: Any, rooms: list[Any]):
        self.pinned, self.rooms = pinned, rooms

    def __del__(self) -> None:
        self.rooms.append(self.pinned)


class Aside:
    """A second stream with a cuBLAS of its own: inside they are the driver's."""

    def __init__(self, driver: CupyDriver):
        self.driver, self.main, self.stream, self.cublas = driver, stream(), side_stream(), side_products()
        self.event = library().cuda.Event(disable_timing=True)

    def __enter__(self) -> None:
        self.stream.wait_event(self.main.record(self.event))
        self.stream.use()
        self.driver.cublas = self.cublas

    def __exit__(self, *error: object) -> None:
        self.main.use()
        self.driver.cublas = products()


class CupyDriver:
    """Kernels compiled by NVRTC for this card and kept in CuPy's cache; products by cuBLAS."""

    def __init__(self, cupy: Any, capability: tuple[int, int], compute: int):
        self.cupy, self.capability, self.compute, self.cublas = cupy, capability, compute, products()
        self._aside = Aside(self)
        self.factors = np.array([0, 1], np.float32)  # cuBLAS reads them where they lie
        self.base, self.word = 0, cupy.zeros(1, np.uint32)  # what is added to dropout's streams
        self.bases: list[Any] = []  # and where each source's kernels find it

    def compile(self, source: str, storage: str) -> Callable[[str], cuda.Launch]:
        options = ("-std=c++17", f"-DSTORAGE={storage}")
        module = self.cupy.RawModule(code=source, options=options)
        if "stream_base;" in source:
            with memory_errors():
                self.bases.append(module.get_global("stream_base"))
            self.bases[-1].copy_from_device_async(self.word.data, 4)

        def find(name: str) -> cuda.Launch:
            with memory_errors():  # the first function brings its module to the card
                kernel = module.get_function(name)
            room, failed = 48 << 10, failures()  # bytes of dynamic shared memory without being asked for it

            def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int) -> None:
                nonlocal room
                if shared > room:
                    kernel.max_dynamic_shared_size_bytes = room = shared
                try:  # no context manager, which would take a third of a launch's time
                    kernel(grid, block, tuple(arguments), shared_mem=shared)
                except failed as error:  # the first launch may bring the kernel to the card
                    raise_memory_error(error)
                    raise

            return launch

        return find

    def aside(self) -> Aside:
        return self._aside

    def join(self) -> None:
        self._aside.main.wait_event(self._aside.stream.record(self._aside.event))

    def set_streams(self, base: int) -> None:
        if base == self.base:
            return
        self.base = base
        self.word.fill(base)
        for place in self.bases:
            place.copy_from_device_async(self.word.data, 4)

    def multiply(self, out: Any, a: Any, b: Any, transposed: str, add: bool) -> None:
        rows, columns = out.shape
        inner = a.shape[0] if transposed == "a" else a.shape[1]
        if inner == 0:
            if not add:
                out.fill(0)
            return
        zero = self.factors.ctypes.data
        one = zero + self.factors.itemsize
        # cuBLAS counts by columns: what it sees is out transposed, which is b's transpose times a's.
        self.cublas.multiply(
            int(transposed == "b"), int(transposed == "a"), columns, rows, inner,  # 1 is CUBLAS_OP_T
            one, b.data.ptr, TYPES[b.dtype], b.shape[1],
            a.data.ptr, TYPES[a.dtype], a.shape[1],
            one if add else zero, out.data.ptr, TYPES[out.dtype], columns,
            self.compute, BEST_ALGORITHM,
        )  # fmt: skip


@cache
def library() -> Any:
    """CuPy; BackendError where it is not installed."""
    try:
        import cupy
    except ImportError as error:
        raise BackendError(LIBRARIES if error.name == "cupy" else f"CuPy does not load ({_line(error)})") from None
    return cupy


@cache
def stream() -> Any:
    """The stream of every device that is opened here: they take turns, and each finds done what it has asked for."""
    return library().cuda.Stream(non_blocking=True)


@cache
def products() -> Cublas:
    """cuBLAS on that stream."""
    return Cublas(library(), stream())


@cache
def side_stream() -> Any:
    """The stream of what is asked for aside."""
    return library().cuda.Stream(non_blocking=True)


@cache
def side_products() -> Cublas:
    """cuBLAS on that one."""
    return Cublas(library(), side_stream())


@cache
def found() -> tuple[int, int]:
    """The compute capability of the card, such as (9, 0); BackendError where there is none."""
    cupy = library()
    try:
        text = cupy.cuda.Device().compute_capability
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(f"there is no GPU to use ({error}); use --device cpu; minibert doctor tells more") from None
    return int(text[:-1]), int(text[-1])


def missing() -> bool:
    """Whether CuPy is not installed."""
    return importlib.util.find_spec("cupy") is None


def usable() -> bool:
    """Whether there is a GPU, and CuPy to use it."""
    if missing():
        return False
    try:
        found()
    except BackendError:
        return False
    return True


def precision() -> str:
    """The best that the card has: bf16 by tensor cores, or fp32."""
    return "bf16" if found() >= BF16 else "fp32"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def open(precision: str = "fp32", threads: int | None = None) -> Gpu:  # noqa: A001 - devices.open reads best
    if threads:
        raise BackendError("threads are the CPU's: leave --threads out with --device gpu")
    return Gpu(precision).connect()
