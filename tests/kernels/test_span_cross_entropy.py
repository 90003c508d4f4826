"""The loss of answer spans: the definition against slopes and plain cross entropies, kernels against the definition."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS, assert_same_bits, unwritten
from checks import assert_as_accurate, assert_gradients
from minibert.kernels.softmax_cross_entropy import reference as softmax_cross_entropy
from minibert.kernels.span_cross_entropy import cpu, reference
from packed import BATCHES, floats, pack

KERNELS = pytest.mark.parametrize("backend", [cpu, *gpus.backends("span_cross_entropy")])


def inputs(lengths, shift: float = 0, spread: float = 1):
    """logits, offsets, starts, ends and dloss of windows of these lengths."""
    rng = np.random.default_rng(sum(lengths))
    starts, ends = (rng.integers(0, np.maximum(lengths, 1), len(lengths)).astype(np.int32) for _ in range(2))
    logits = floats(rng, sum(lengths), 2) * np.float32(spread) + np.float32(shift)
    return logits, pack(lengths).offsets, starts, ends, floats(rng, len(lengths))


def both(backend, logits, offsets, starts, ends, dloss):
    loss, dlogits = unwritten((len(starts),), logits.dtype), unwritten(logits.shape, logits.dtype)
    backend.forward(loss, logits, offsets, starts, ends)
    backend.backward(dlogits, dloss, logits, offsets, starts, ends)
    return loss, dlogits


def test_reference_gradients():
    logits, offsets, starts, ends, _ = inputs((4, 1, 7))

    def forward(logits):
        loss = np.empty(3)
        reference.forward(loss, logits, offsets, starts, ends)
        return loss

    def vjp(dloss):
        dlogits = unwritten(logits.shape, np.float64)
        reference.backward(dlogits, dloss, logits.astype(np.float64), offsets, starts, ends)
        return (dlogits,)

    assert_gradients(forward, vjp, (logits.astype(np.float64),))


@pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("span_cross_entropy")])
def test_is_the_mean_of_two_cross_entropies(backend):
    logits, offsets, starts, ends, dloss = inputs((5, 5, 5))
    loss, _ = both(backend, logits, offsets, starts, ends, dloss)
    halves = unwritten((2, 3))
    for half, column, labels in zip(halves, (0, 1), (starts, ends), strict=True):
        softmax_cross_entropy.forward(half, logits[:, column].reshape(3, 5), labels)
    np.testing.assert_allclose(loss, halves.mean(0), rtol=1e-6)


@KERNELS
def test_a_known_loss(backend):
    """Probabilities 1/4 at the start and 1/2 at the end: (2 log 2 + log 2) / 2."""
    logits = np.log(np.array([[1, 1], [2, 2], [1, 1]], np.float32))
    loss, dlogits = both(backend, logits, pack((3,)).offsets, np.int32([0]), np.int32([1]), np.float32([2]))
    np.testing.assert_allclose(loss, 1.5 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(dlogits, [[-0.75, 0.25], [0.5, -0.5], [0.25, 0.25]], rtol=1e-6)


@KERNELS
@pytest.mark.parametrize(("shift", "spread"), [(0, 1), (100, 1), (0, 1e4), (7, 0)])
@pytest.mark.parametrize("batch", BATCHES)
def test_is_as_accurate_as_numpy(batch, shift, spread, backend):
    logits, offsets, starts, ends, dloss = inputs(BATCHES[batch], shift, spread)
    got, naive = (both(which, logits, offsets, starts, ends, dloss) for which in (backend, reference))
    exact = both(reference, logits.astype(np.float64), offsets, starts, ends, dloss.astype(np.float64))
    for name, *three in zip(("loss", "dlogits"), got, naive, exact, strict=True):
        assert_as_accurate(*three, floor=FEW_ULPS, what=name)


@pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("span_cross_entropy")])
def test_an_empty_window_costs_nothing_and_its_labels_are_not_read(backend):
    logits, offsets, starts, ends, dloss = inputs((3, 0))
    starts[1] = ends[1] = 1 << 30
    assert both(backend, logits, offsets, starts, ends, dloss)[0][1] == 0


@KERNELS
def test_windows_do_not_mix(backend):
    """A huge logit changes its own window's loss and gradients only."""
    logits, offsets, starts, ends, dloss = inputs((4, 4, 4))
    before = both(backend, logits, offsets, starts, ends, dloss)
    logits[4:8] += np.float32([[1e4], [0], [0], [0]])
    after = both(backend, logits, offsets, starts, ends, dloss)
    assert (before[0] == after[0]).tolist() == [True, False, True]
    assert (before[1] == after[1]).all(1).tolist() == [True] * 4 + [False] * 4 + [True] * 4


@KERNELS
def test_nan_stays_visible(backend):
    logits, offsets, starts, ends, dloss = inputs((5, 5, 5))
    logits[6, 1] = np.nan
    loss, dlogits = both(backend, logits, offsets, starts, ends, dloss)
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(dlogits).any(1).tolist() == [False] * 5 + [True] * 5 + [False] * 5


def test_same_bits_for_any_count_of_threads():
    assert_same_bits(lambda: both(cpu, *inputs([1 + i * 37 % 384 for i in range(300)])))
