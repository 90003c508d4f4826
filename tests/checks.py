"""How kernels are judged: reference gradients along random directions, backends by how much worse than naive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def assert_as_accurate(got, naive32, exact64, k: float = 2.0, floor: float = 1e-7, what: str = "") -> None:
    """The kernel's error against float64 is at most `k` times that of the plain NumPy run in float32."""
    got, naive32, exact64 = (np.asarray(a, np.float64) for a in (got, naive32, exact64))
    assert got.shape == exact64.shape, f"{what}: shape {got.shape}, wanted {exact64.shape}"
    assert np.isfinite(got).all() or not np.isfinite(exact64).all(), f"{what}: not finite"
    if not exact64.size:
        return
    error = np.abs(got - exact64).max()
    bar = k * np.abs(naive32 - exact64).max() + floor * np.abs(exact64).max()
    assert error <= bar, f"{what}: max error {error:.3g}, allowed {bar:.3g}"


def assert_gradients(
    function: Callable[..., np.ndarray],
    vjp: Callable[[np.ndarray], Sequence[np.ndarray]],
    inputs: Sequence[np.ndarray],
    seed: int = 0,
    step: float = 1e-5,
    tolerance: float = 1e-6,
) -> None:
    """Checks vjp(dy), one gradient per float64 input, against slopes of `function` along random directions.

    A random cotangent dy, because sum(softmax) and sum(LayerNorm) have gradient zero and a backward of zeros
    would pass; one direction per input, so that an error in one gradient cannot hide behind another.
    """
    rng = np.random.default_rng(seed)
    dy = rng.standard_normal(function(*inputs).shape)
    gradients = vjp(dy)
    assert len(gradients) == len(inputs)
    for i, gradient in enumerate(gradients):
        direction = rng.standard_normal(inputs[i].shape)

        def along(h: float, i: int = i, direction: np.ndarray = direction) -> np.ndarray:
            moved = [x + h * direction if j == i else x for j, x in enumerate(inputs)]
            return function(*moved)

        # Five points: the error falls with the fourth power of the step.
        slope = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step)
        wanted, got = float((slope * dy).sum()), float((gradient * direction).sum())
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction) / np.sqrt(max(direction.size, 1)) + 1e-30
        assert abs(wanted - got) <= tolerance * max(scale, abs(wanted)), (
            f"input {i}: slope {wanted}, gradient says {got}"
        )
