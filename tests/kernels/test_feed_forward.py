"""The feed-forward half: the definition against slopes, the CPU's kernels against the definition."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import gpus
from bits import assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert import ops
from minibert.autograd import Tape, Tensor
from minibert.kernels import devices
from minibert.kernels.bias_gelu import reference as bias_gelu
from minibert.kernels.devices import cpu as cpu_devices
from minibert.kernels.feed_forward import cpu, cpu_bf16, cpu_fma, cpu_split, reference
from minibert.kernels.matmul import cpu_bf16 as matmul
from minibert.parameters import Group

FORMS = pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
ADDS = pytest.mark.parametrize("add", [True, False], ids=["adding", "overwriting"])
NAMES = ("y", "dx", "dw1", "db1", "dw2", "db2")


def inputs(t: int, c: int, f: int):
    """x, w1, b1, w2, b2, dy"""
    rng = np.random.default_rng(t + c + f)
    shapes = (t, c), (f, c), (f,), (c, f), (c,), (t, c)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def starts(parameters, add):
    """Gradients that are 0.5 to begin with, because kernels must add; or, to be overwritten, those of weights NaN."""
    return [np.full_like(p, 0.5 if add or p.ndim == 1 else np.nan) for p in parameters]


def both(backend, x, w1, b1, w2, b2, dy, tanh, add=True):
    """All results."""
    t, f, c = len(x), len(w1), x.shape[1]
    scratch = np.full(backend.workspace(t, f, c), 255, np.uint8)
    y, h, dx = unwritten((t, c), x.dtype), unwritten((t, f), x.dtype), unwritten((t, c), x.dtype)
    backend.forward(y, h, x, w1, b1, w2, b2, tanh, scratch)
    grads = starts((w1, b1, w2, b2), add)
    scratch[:] = 255
    backend.backward(dx, *grads, dy, x, h, w1, b1, w2, tanh, add, scratch)
    return y, dx, *grads


@FORMS
def test_reference_gradients(tanh):
    x, w1, b1, w2, b2, dy = (a.astype(np.float64) for a in inputs(5, 4, 7))

    def forward(*arrays):
        return both(reference, *arrays, dy, tanh)[0]

    def vjp(dy):
        dx, *grads = both(reference, x, w1, b1, w2, b2, dy, tanh)[1:]
        return dx, *(g - 0.5 for g in grads)

    assert_gradients(forward, vjp, (x, w1, b1, w2, b2))


@FORMS
@pytest.mark.parametrize("backend", [cpu, cpu_fma, cpu_split, *gpus.backends("feed_forward")])
@pytest.mark.parametrize(
    "shape", [(0, 8, 24), (1, 7, 3), (3, 1, 5), (16, 8, 30), (130, 24, 96), (40, 1100, 70), (40, 70, 800)], ids=str
)
@ADDS
def test_float32_is_as_accurate_as_numpy(add, shape, backend, tanh):
    arrays = inputs(*shape)
    got, naive = (both(which, *arrays, tanh, add) for which in (backend, reference))
    exact = both(reference, *(a.astype(np.float64) for a in arrays), tanh, add)
    for name, *three in zip(NAMES, got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=1e-6, what=name)


def rounded(a):
    """The nearest bf16 numbers, in a's own type."""
    return np.asarray(a, np.float32).astype(ml_dtypes.bfloat16).astype(a.dtype)


def in_bf16(x, w1, b1, w2, b2, dy, tanh, storage, backend=cpu_bf16, add=True):
    """A backend on activations stored as `storage`, all results as float32."""
    (t, c), f, device = x.shape, len(w1), devices.Device("cpu")

    def stored(a):
        return device.array(a.astype(ml_dtypes.bfloat16).view(np.uint16) if storage == np.uint16 else a)

    def prepared(w):
        if backend is not cpu_bf16:
            return w.astype(ml_dtypes.bfloat16).view(np.uint16)
        array = device.empty((matmul.prepared_bytes(*w.shape),), np.uint8, "weights")
        matmul.prepare(array, w)
        return array

    (x, dy), (p1, p2) = map(stored, (x, dy)), map(prepared, (w1, w2))
    y, dx, h = device.empty_like(x), device.empty_like(x), device.empty((t, f), np.uint16, "activations")
    scratch = device.scratch(backend.workspace(t, f, c))
    scratch[:] = 255
    backend.forward(y, h, x, p1, b1, p2, b2, tanh, scratch)
    scratch[:] = 255
    grads = starts((w1, b1, w2, b2), add)
    backend.backward(dx, *grads, dy, x, h, p1, b1, p2, tanh, add, scratch)
    y, dx = (a if a.dtype == np.float32 else a.view(ml_dtypes.bfloat16).astype(np.float32) for a in (y, dx))
    return y, dx, *grads


def naive_in_bf16(x, w1, b1, w2, b2, dy, tanh, add=True):
    """The definition in float32, whatever it stores rounded."""
    nothing, h = np.empty(0, np.uint8), rounded(x @ w1.T)
    g, dh, db1 = np.empty_like(h), np.empty_like(h), np.full_like(b1, 0.5)
    bias_gelu.forward(g, h, b1, tanh)
    bias_gelu.backward(dh, db1, rounded(dy @ w2), h, b1, tanh, nothing)
    g, dh = rounded(g), rounded(dh)
    y, dx = rounded(g @ w2.T + b2), rounded(dh @ w1)
    start = 0.5 * add
    return y, dx, dh.T @ x + start, dh.sum(0) + 0.5, dy.T @ g + start, dy.sum(0) + 0.5


@FORMS
@pytest.mark.parametrize("backend", [cpu_bf16, *gpus.backends("feed_forward")])
@pytest.mark.parametrize("storage", [np.uint16, np.float32])
@pytest.mark.parametrize(
    "shape", [(0, 8, 24), (1, 7, 3), (70, 33, 65), (130, 64, 160), (64, 800, 200), (70, 2400, 40)], ids=str
)
@ADDS
def test_as_accurate_as_bf16_allows(add, shape, storage, tanh, backend):
    x, w1, b1, w2, b2, dy = inputs(*shape)
    arrays = rounded(x), rounded(w1 / 4), b1, rounded(w2 / 4), b2, rounded(dy)
    got, naive = in_bf16(*arrays, tanh, storage, backend, add), naive_in_bf16(*arrays, tanh, add)
    exact = both(reference, *(a.astype(np.float64) for a in arrays), tanh, add)
    for name, *three in zip(NAMES, got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=1e-6, what=name)


@pytest.mark.parametrize("backend", [cpu_fma, cpu_split])
def test_same_bits_in_float32_for_any_count_of_threads(backend):
    arrays = inputs(300, 96, 200)
    assert_same_bits(lambda: both(backend, *arrays, False))


def test_same_bits_in_bf16_for_any_count_of_threads():
    arrays = inputs(300, 96, 200)
    assert_same_bits(lambda: in_bf16(*arrays, False, np.uint16))


@FORMS
def test_nan_stays_visible_in_bf16(tanh):
    arrays = inputs(40, 33, 65)
    arrays[0][3, 5] = np.nan
    y, dx, *_ = in_bf16(*arrays, tanh, np.uint16)
    assert np.isnan(y[3]).all() and np.isnan(dx[3]).all() and np.isnan(y).sum() == np.isnan(dx).sum() == 33


@FORMS
@pytest.mark.parametrize("backend", [cpu_fma, cpu_split])
def test_nan_stays_visible_in_float32(tanh, backend):
    arrays = inputs(40, 33, 65)
    arrays[0][3, 5] = np.nan
    y, dx, *_ = both(backend, *arrays, tanh)
    assert np.isnan(y[3]).all() and np.isnan(dx[3]).all() and np.isnan(y).sum() == np.isnan(dx).sum() == 33


@pytest.mark.parametrize("t", [4096, 4864, 4928, 8832])  # 4928: a piece of 2496, one of 2432
def test_scratch_suffices_for_every_piece(t, monkeypatch):
    """A worker's own room is larger for some smaller numbers of tokens, where there are many workers."""
    device = devices.open("cpu", precision="bf16")
    monkeypatch.setattr(cpu_devices, "threads", lambda: 17)
    assert cpu_bf16.workspace(2432, 3072, 768) > cpu_bf16.workspace(4096, 3072, 768)
    seen = []

    def checked(*arguments):
        h = arguments[1] if arguments[1].shape[1] == 3072 else arguments[7]
        seen.append(len(h))
        assert len(arguments[-1]) >= cpu_bf16.workspace(len(h), 3072, 768)

    monkeypatch.setattr(cpu_bf16, "forward", checked)
    monkeypatch.setattr(cpu_bf16, "backward", checked)
    group = Group(device, "layer", {"w1": (3072, 768), "b1": (3072,), "w2": (768, 3072), "b2": (768,)})
    with Tape() as tape:
        x = Tensor(device.zeros((t, 768), np.uint16, "activations"), device)
        y = ops.feed_forward(x, *(group[name] for name in ("w1", "b1", "w2", "b2")), "erf")
    tape.backward(y, [y.data])
    assert sum(seen) == 2 * t
