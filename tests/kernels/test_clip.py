"""Clipping by the global norm: what gradients are multiplied by, and when nothing may be updated."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import one, unwritten
from minibert.kernels import load
from minibert.kernels.clip import cpu, reference

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("clip")])


def clipped(backend, totals, losses=(0.5,), scale=1.0):
    """(scale, norm) for a norm of 1 at most."""
    scale, norm = one(scale), unwritten((1,), np.float64)
    backend.forward(scale, norm, np.array(totals, np.float64), np.array(losses, np.float32), 1.0)
    return float(scale[0]), float(norm[0])


@BACKENDS
def test_a_long_gradient_is_clipped_and_a_short_one_is_not(backend):
    assert clipped(backend, [9.0, 16.0]) == (np.float32(0.2), 5.0)
    assert clipped(backend, [0.04, 0.05], losses=[7.0] * 300) == (1.0, 0.3)
    assert clipped(backend, [0.0], losses=[]) == (1.0, 0.0)
    assert clipped(backend, [1e60]) == (pytest.approx(1e-30), 1e30)
    assert clipped(backend, [4.0], scale=0.125) == (0.5, 2.0)


@BACKENDS
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_not_finite_stops_updates_until_scale_is_written(backend, number):
    assert np.isnan(clipped(backend, [1.0, number])[0])
    for place in (0, 299):
        losses = np.ones(300)
        losses[place] = number
        scale, norm = clipped(backend, [4.0], losses)
        assert np.isnan(scale) and norm == 2.0
    assert np.isnan(clipped(backend, [1.0], scale=np.nan)[0])


def state(name: str, dtype=np.float32) -> tuple[list[np.ndarray], list[float]]:
    """p, moments and g of an optimizer, and its scalars after scale."""
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal((2, 3, 70)).astype(dtype)
    adam = [0.1, 0.9, 0.999, 1e-6, 0.01, 1.0, 1.0]
    if name == "adafactor":
        return [p, np.ones(3, dtype), np.ones(70, dtype), g], [0.1, 0.5, 1e-30, 1.0, 0.01]
    if name == "adam8bit":
        codes = rng.integers(1, 100, (2, 1, 256), np.uint8)
        return [p.reshape(-1), *codes, np.ones(1, dtype), np.ones(1, dtype), g.reshape(-1)], adam
    return [p, np.ones_like(p), np.ones_like(p), g], adam


@pytest.mark.parametrize("name", ["adam", "adam8bit", "adafactor"])
@pytest.mark.parametrize("backend", ["reference", "cpu", *[p for p in gpus.backends("adam") if p.id == "gpu-emulated"]])
@pytest.mark.parametrize("rows", [3, 1])
def test_optimizers_do_nothing_then(name, backend, rows):
    module = load(name, backend) if isinstance(backend, str) else gpus.Emulated(name)
    arrays, scalars = state(name)
    if name == "adafactor" and rows == 1:
        arrays = [arrays[0][:1], arrays[1][:1], arrays[2], arrays[3][:1]]
    before = [array.copy() for array in arrays]
    room = [np.zeros(module.workspace(*arrays[0].shape), np.uint8)] if name == "adafactor" else []
    module.update(*arrays, one(np.nan), *scalars, *room)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    module.update(*arrays, one(1.0), *scalars, *room)
    kept = [np.array_equal(a, b) for a, b in zip(arrays, before, strict=True)]
    assert kept == [False] * (len(arrays) - 1) + [True]  # gradients are read only
