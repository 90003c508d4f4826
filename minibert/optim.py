"""Google's Adam, learning-rate schedules and clipping by the global norm.

Source: google-research/bert, optimization.py. Differences from the usual AdamW are deliberate: no bias correction
unless asked for, eps outside the root, decay times the learning rate, and no decay of biases and LayerNorms.
"""

from __future__ import annotations

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


class Optimizer:
    """Google's clipping, and the update of groups of parameters with their accumulated gradients.

    All of it happens on the device: `measure` and `clip` find the gradients' `norm` (1,) and what they are to be
    multiplied by, `scale` (1,), from there `update` takes it, and the host may read the norm when it likes. Where a
    norm or a loss is not finite, nothing is updated any more until `scale` is written (kernels/clip).

    A subclass keeps its own arrays of kind "moments", tells them by `state` and updates one group in `update_group`.
    `bias_correction` is for Adam and its kin.
    """

    def __init__(self, groups: list[Group], bias_correction: bool = False):
        self.groups, self.bias_correction = groups, bias_correction
        device = groups[0].device
        largest = max(group.weights.size for group in groups)
        self._partial = device.scratch(device.sum_squares.workspace(largest))
        self._totals = device.zeros((len(groups),), "float64", "workspace")
        self.norm = device.zeros((1,), "float64", "workspace")
        self.scale = device.empty((1,), device.float_type, "workspace")
        self.scale.fill(1)

    def state(self) -> Iterator[tuple[str, Any]]:
        """Every array that a saved state needs beside the weights, by name."""
        raise NotImplementedError

    def forget(self) -> None:
        """The state that training begins with: zeros."""
        for _, array in self.state():
            array.fill(0)

    def measure(self) -> None:
        """Sums the squares of every group's gradients."""
        for i in range(len(self.groups)):
            self.measure_group(i)

    def measure_group(self, i: int) -> None:
        """The same of group number i alone."""
        group = self.groups[i]
        group.device.sum_squares.forward(self._totals[i : i + 1], group.gradients, self._partial)

    def clip(self, losses: Any) -> None:
        """The gradients' norm as one vector, all groups having been measured, and what clips it to 1; `losses` are
        those that they are the gradients of."""
        self.groups[0].device.clip.forward(self.scale, self.norm, self._totals, losses, MAX_NORM)

    def update(self, step: int, rate: float) -> None:
        """Update number `step` (from 0) with the gradients times `scale`, which begin from nothing afterwards."""
        for i, group in enumerate(self.groups):
            self.update_group(i, step, rate)
            group.renew_gradients()

    def update_group(self, i: int, step: int, rate: float) -> None:
        """Group number i alone, whose gradients stay as they are."""
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

    def update_group(self, i: int, step: int, rate: float) -> None:
        group, m, v = self.groups[i], self.m[i], self.v[i]
        copy, corrections = group.rounded, self.corrections(step)
        for part, decay in ((slice(0, group.decayed), WEIGHT_DECAY), (slice(group.decayed, None), 0.0)):
            group.device.adam.update(
                group.weights[part], m[part], v[part], group.gradients[part],
                self.scale, rate, BETA1, BETA2, EPS, decay, *corrections, None if copy is None else copy[part],
            )  # fmt: skip
        group.changed(rounded=copy is not None)
