"""Google's Adam, learning-rate schedules and clipping by the global norm.

Source: google-research/bert, optimization.py. Differences from the usual AdamW are deliberate: no bias correction
unless asked for, eps outside the root, decay times the learning rate, and no decay of biases and LayerNorms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from minibert.parameters import Group

BETA1, BETA2, EPS, WEIGHT_DECAY, MAX_NORM = 0.9, 0.999, 1e-6, 0.01, 1.0


def step_counts(examples: int, batch_size: int, epochs: float, warmup: float) -> tuple[int, int]:
    """Optimizer steps in all and of warm-up, rounded down as Google's run_classifier.py rounds."""
    total = int(examples / batch_size * epochs)
    return total, int(total * warmup)


def learning_rate(schedule: str, step: int, peak: float, total: int, warmup: int) -> float:
    """The rate of update number `step` (from 0) of `total`; all three start at 0 when there is a warm-up.

    google: up to the peak, then on the line that falls from the peak at step 0: a small jump down where they meet.
    hf: up to the peak, then down from it. electra: the product of both lines.
    """
    rising = step / warmup if step < warmup else 1.0
    if schedule == "electra":
        return peak * (1 - step / total) * rising
    if step < warmup:
        return peak * rising
    if schedule == "hf":
        return peak * max(0, total - step) / max(1, total - warmup)
    return peak * (1 - step / total)


def clipping(norm: float) -> float:
    """What gradients of that norm are multiplied by: clipped to a norm of 1."""
    return MAX_NORM / max(norm, MAX_NORM)


class Optimizer:
    """Google's clipping, and the update of groups of parameters with their accumulated gradients.

    A subclass keeps its own arrays of kind "moments", tells them by `state` and updates one group in `update_group`.
    `bias_correction` is for Adam and its kin.
    """

    def __init__(self, groups: list[Group], bias_correction: bool = False):
        self.groups, self.bias_correction = groups, bias_correction
        device = groups[0].device
        largest = max(group.weights.size for group in groups)
        self._partial = device.scratch(device.sum_squares.workspace(largest))
        self._totals = device.zeros((len(groups),), "float64", "workspace")

    def state(self) -> Iterator[tuple[str, Any]]:
        """Every array that a saved state needs beside the weights, by name."""
        raise NotImplementedError

    def forget(self) -> None:
        """The state that training begins with: zeros."""
        for _, array in self.state():
            array.fill(0)

    def squares(self, i: int) -> float:
        """The sum of squares of group number i's gradients."""
        self._sum_squares(i)
        return float(self.groups[i].device.numpy(self._totals)[i])

    def gradient_norm(self) -> float:
        """The norm of all gradients as one vector; the host waits for the device once."""
        for i in range(len(self.groups)):
            self._sum_squares(i)
        return math.sqrt(sum(self.groups[0].device.numpy(self._totals).tolist()))

    def _sum_squares(self, i: int) -> None:
        group = self.groups[i]
        group.device.sum_squares.forward(self._totals[i : i + 1], group.gradients, self._partial)

    def update(self, step: int, rate: float, norm: float) -> None:
        """Update number `step` (from 0) with the gradients clipped from `norm` to 1; they are zero afterwards."""
        for i in range(len(self.groups)):
            self.update_group(i, step, rate, clipping(norm))

    def update_group(self, i: int, step: int, rate: float, scale: float) -> None:
        """The same of group number i alone, with its gradients times `scale`."""
        raise NotImplementedError

    def corrections(self, step: int) -> tuple[float, float]:
        """What Adam's two moments, averages that start from zero, are divided by."""
        return (1 - BETA1 ** (step + 1), 1 - BETA2 ** (step + 1)) if self.bias_correction else (1.0, 1.0)


class Adam(Optimizer):
    """Google's: two moments in float32 for each parameter."""

    def __init__(self, groups: list[Group], bias_correction: bool = False):
        super().__init__(groups, bias_correction)
        self.m = [self._zeros(group) for group in groups]
        self.v = [self._zeros(group) for group in groups]

    @staticmethod
    def _zeros(group: Group) -> Any:
        return group.device.zeros(group.weights.shape, group.weights.dtype, "moments")

    def state(self) -> Iterator[tuple[str, Any]]:
        for kind, buffers in (("m", self.m), ("v", self.v)):
            for group, buffer in zip(self.groups, buffers, strict=True):
                yield f"{kind}/{group.name}", buffer

    def update_group(self, i: int, step: int, rate: float, scale: float) -> None:
        group, m, v = self.groups[i], self.m[i], self.v[i]
        copy = group.rounded
        for part, decay in ((slice(0, group.decayed), WEIGHT_DECAY), (slice(group.decayed, None), 0.0)):
            group.device.adam.update(
                group.weights[part], m[part], v[part], group.gradients[part],
                scale, rate, BETA1, BETA2, EPS, decay, *self.corrections(step), None if copy is None else copy[part],
            )  # fmt: skip
        group.changed(rounded=copy is not None)
