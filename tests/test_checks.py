"""The judges are judged: each must fail on what it is there to find."""

from __future__ import annotations

import numpy as np
import pytest

from checks import assert_as_accurate, assert_gradients


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


X = np.random.default_rng(0).standard_normal((5, 7))
W = np.random.default_rng(1).standard_normal((7, 3))


def softmax_vjp(dy):
    p = softmax(X)
    return (p * (dy - (p * dy).sum(1, keepdims=True)),)


def test_right_gradients_pass():
    assert_gradients(softmax, softmax_vjp, (X,))
    assert_gradients(lambda x, w: x @ w, lambda dy: (dy @ W.T, X.T @ dy), (X, W))


@pytest.mark.parametrize("factor", [0.0, 0.999, 1.001, -1.0])
def test_wrong_gradient_fails(factor):
    """Zeros too, which pass where only the slope of sum(softmax) is looked at."""
    with pytest.raises(AssertionError, match="slope"):
        assert_gradients(softmax, lambda dy: (factor * softmax_vjp(dy)[0],), (X,))


def test_one_wrong_gradient_of_two_fails():
    with pytest.raises(AssertionError, match="input 1"):
        assert_gradients(lambda x, w: x @ w, lambda dy: (dy @ W.T, 1.001 * X.T @ dy), (X, W))


def test_missing_gradient_fails():
    with pytest.raises(AssertionError):
        assert_gradients(lambda x, w: x @ w, lambda dy: (dy @ W.T,), (X, W))


EXACT = np.random.default_rng(2).standard_normal((17, 24))
NAIVE = EXACT.astype(np.float32)


def test_rounded_kernel_passes():
    assert_as_accurate(NAIVE, NAIVE, EXACT)
    assert_as_accurate(NAIVE[:0], NAIVE[:0], EXACT[:0])


@pytest.mark.parametrize("factor", [0.0, 1 + 1e-6, np.nan])
def test_wrong_kernel_fails(factor):
    with pytest.raises(AssertionError, match="kernel under test"):
        assert_as_accurate(NAIVE * factor, NAIVE, EXACT, what="kernel under test")


def test_one_wrong_element_fails():
    got = NAIVE.copy()
    got[16, 23] += 1e-5
    with pytest.raises(AssertionError, match="max error"):
        assert_as_accurate(got, NAIVE, EXACT)


def test_wrong_shape_fails():
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate(NAIVE[:1], NAIVE, EXACT)
