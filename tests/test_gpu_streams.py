"""devices/gpu.py where streams go at paces of their own: copies ahead, inputs that wait in the host's memory."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
from functools import cache

import numpy as np
import pytest

import emulator
import gpus
from cupy_played import Array, Late, PinnedMemory, RuntimeFailure, cupy, late, ndarray
from minibert.kernels.devices import gpu
from minibert.kernels.devices.away import Away
from models import CONFIG, trainer, weights

__all__ = ["cupy", "late"]  # fixtures


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
    cublas, aside, join = None, gpu.CupyDriver.aside, gpu.CupyDriver.join

    def __init__(self):
        super().__init__()
        self._aside = gpu.Aside(self)

    def _do(self, call):
        Late.current.do(call)
        if Late.rng.random() < 0.1:
            Late.go_on(3)

    def set_streams(self, base):
        now = super().set_streams
        self._do(lambda: now(base))

    def multiply(self, out, a, b, transposed, add):
        places = [raw(x).reshape(x.shape) for x in (out, a, b)]
        self._do(lambda: self._multiply(*places, transposed, add))


def be_late(cupy, monkeypatch, seed):
    """From here on whatever is computed is computed by and by."""
    monkeypatch.setattr(Late, "all", [])
    monkeypatch.setattr(Late, "rng", np.random.default_rng(seed))
    for name in ("stream", "side_stream"):
        monkeypatch.setattr(gpu, name, cache(getattr(gpu, name).__wrapped__))
    monkeypatch.setattr(gpu, "CupyDriver", lambda *_: LateEmulator())
    cupy.cuda.Stream, cupy.ndarray = Late, lambda *arguments: ndarray(*arguments).view(LateArray)


@pytest.mark.parametrize("seed", range(5))
def test_what_was_asked_for_aside_ends_before_memory_is_given_back(cupy, monkeypatch, seed):
    """Also where the operation broke before it had waited for that."""
    be_late(cupy, monkeypatch, seed)
    device, seen = gpu.open(), []
    with device._driver.aside():
        for number in range(20):
            device._driver._do(lambda number=number: seen.append(number))
    device.release()
    device._driver._do(lambda: seen.append("later"))
    device.wait()
    assert seen == [*range(20), "later"]


@gpus.needs_compiler
@pytest.mark.parametrize("seed", range(3))
def test_training_has_the_same_bits_whatever_the_paces(cupy, monkeypatch, seed):
    """Kernels, copies and the host go as they like, and inputs of layers wait in the host's memory."""

    def trained(recompute):
        t = trainer(gpu.open("bf16"), config=deep, recompute=recompute, batch_size=4, micro_batch=2)
        return [t.step(step).loss for step in range(2)], [a.tobytes() for a in weights(t).values()]

    deep = dataclasses.replace(CONFIG, num_hidden_layers=4)
    once = trained("none")
    be_late(cupy, monkeypatch, seed)
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
