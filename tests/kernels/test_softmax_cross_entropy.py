"""Softmax and cross entropy: the definition against slopes, kernels against the definition, huge logits included."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.softmax_cross_entropy import cpu, reference

BACKENDS = pytest.mark.parametrize("backend", [cpu, *gpus.backends("softmax_cross_entropy")])


def inputs(s: int, k: int, shift: float = 0, spread: float = 1):
    rng = np.random.default_rng(s + k)
    logits = (rng.standard_normal((s, k)) * spread + shift).astype(np.float32)
    return logits, rng.integers(0, k, s).astype(np.int32), rng.standard_normal(s).astype(np.float32)


def both(backend, logits, labels, dloss):
    loss, dlogits = unwritten((len(labels),), logits.dtype), unwritten(logits.shape, logits.dtype)
    backend.forward(loss, logits, labels)
    backend.backward(dlogits, dloss, logits, labels)
    return loss, dlogits


def test_reference_gradients():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 3)), np.array([0, 2, 1, 1, 0], np.int32)

    def forward(logits):
        loss = np.empty(len(labels))
        reference.forward(loss, logits, labels)
        return loss

    def vjp(dloss):
        dlogits = np.empty_like(logits)
        reference.backward(dlogits, dloss, logits, labels)
        return (dlogits,)

    assert_gradients(forward, vjp, (logits,))


@BACKENDS
@pytest.mark.parametrize(("shift", "spread"), [(0, 1), (100, 1), (0, 1e4), (7, 0)])
@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (3, 2), (17, 3), (257, 24), (3, 384)], ids=str)
def test_is_as_accurate_as_numpy(shape, shift, spread, backend):
    logits, labels, dloss = inputs(*shape, shift, spread)
    got, naive = (both(which, logits, labels, dloss) for which in (backend, reference))
    exact = both(reference, logits.astype(np.float64), labels, dloss.astype(np.float64))
    for name, *three in zip(("loss", "dlogits"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@BACKENDS
def test_equal_logits_cost_log_k(backend):
    logits, labels, _ = inputs(17, 3, shift=1e4, spread=0)
    loss = unwritten((17,))
    backend.forward(loss, logits, labels)
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)


@BACKENDS
def test_nan_stays_visible(backend):
    logits, labels, dloss = inputs(3, 24)
    logits[1, 5] = np.nan
    loss, dlogits = both(backend, logits, labels, dloss)
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(dlogits).all(1).tolist() == [False, True, False]


def test_same_bits_for_any_count_of_threads():
    assert_same_bits(lambda: both(cpu, *inputs(2000, 3)))
