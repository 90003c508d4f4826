"""The largest logits of each window: the definition against Python's sort, kernels against it, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import assert_same_bits, unwritten
from minibert.kernels.top_logits import cpu, reference
from packed import BATCHES, floats, pack

BACKENDS = pytest.mark.parametrize("backend", [reference, cpu, *gpus.backends("top_logits")])


def top(backend, logits, offsets, n):
    shape = (len(offsets) - 1, 2, n)
    values, places = unwritten(shape, logits.dtype), np.full(shape, 99, np.int32)
    backend.forward(values, places, logits, offsets)
    return values, places


@BACKENDS
@pytest.mark.parametrize("n", [1, 2, 20])
def test_is_google_s_sort(backend, n):
    """Whole numbers of few values: nearly all are ties."""
    logits, offsets = np.random.default_rng(n).integers(-3, 3, (100, 2)).astype(np.float32), pack((1, 40, 59)).offsets
    values, places = top(backend, logits, offsets, n)
    for s in range(3):
        for c in range(2):
            column = logits[offsets[s] : offsets[s + 1], c]
            wanted = sorted(enumerate(column), key=lambda pair: pair[1], reverse=True)[:n]
            assert places[s, c, : len(wanted)].tolist() == [row for row, _ in wanted]
            assert values[s, c, : len(wanted)].tolist() == [value for _, value in wanted]


@pytest.mark.parametrize("backend", [cpu, *gpus.backends("top_logits")])
@pytest.mark.parametrize("n", [0, 1, 3, 20, 600])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("kind", ["normal", "ties", "bad"])
def test_equals_the_definition(batch, n, kind, backend):
    lengths = BATCHES[batch]
    rng = np.random.default_rng(n)
    logits = floats(rng, sum(lengths), 2)
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "bad":
        logits = rng.choice(np.float32([np.nan, np.inf, -np.inf, 0, -0.0, 1]), logits.shape)
    got, wanted = (top(which, logits, pack(lengths).offsets, n) for which in (backend, reference))
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@BACKENDS
def test_a_short_window_ends_in_place_minus_one(backend):
    logits = np.float32([[5, 1], [7, 1], [3, 2]])
    values, places = top(backend, logits, pack((2, 1, 0)).offsets, 3)
    assert places.tolist() == [[[1, 0, -1], [0, 1, -1]], [[0, -1, -1], [0, -1, -1]], [[-1, -1, -1], [-1, -1, -1]]]
    assert values[0].tolist() == [[7, 5, -np.inf], [1, 1, -np.inf]]
    assert np.isneginf(values[2]).all()


@BACKENDS
def test_nan_stands_first(backend):
    logits = np.float32([[1, 0], [-np.nan, 0], [np.inf, 0], [np.nan, 0], [-np.inf, 0]])  # of either sign
    values, places = top(backend, logits, pack((5,)).offsets, 4)
    assert places[0].tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]
    assert np.isnan(values[0, 0]).tolist() == [True, True, False, False]


def test_same_bits_for_any_count_of_threads():
    lengths = [1 + i * 37 % 384 for i in range(300)]
    logits = floats(np.random.default_rng(0), sum(lengths), 2)
    assert_same_bits(lambda: top(cpu, logits, pack(lengths).offsets, 20))
