"""The optimizers that a run chooses from: Google's Adam, and two that keep less than its two numbers a parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from minibert.kernels.adam8bit.codes import BLOCK
from minibert.optim import BETA1, BETA2, EPS, WEIGHT_DECAY, Adam, Optimizer
from minibert.parameters import Group, Param, is_decayed

BETA2_FALLS, EPS1, CLIP = -0.8, 1e-30, 1.0  # Adafactor's: beta2 = 1 - t^-0.8, what is added to squares, d


class Moments(NamedTuple):
    """What Adam8bit keeps of one group: codes (blocks, BLOCK) and largest (blocks,) of its decayed parameters, as
    kernels/adam8bit has them, and Adam's two moments of the rest.
    """

    m: Any
    root: Any
    m_largest: Any
    root_largest: Any
    m_rest: Any
    v_rest: Any


class Adam8bit(Optimizer):
    """Adam with moments of 8 bits; those of biases and LayerNorms, a thousandth of all, stay as they are in Adam."""

    def __init__(self, groups: list[Group], bias_correction: bool = False):
        super().__init__(groups, bias_correction)
        self.moments = [self._moments(group) for group in groups]

    @staticmethod
    def _moments(group: Group) -> Moments:
        blocks = -(-group.decayed // BLOCK)
        codes = [((blocks, BLOCK), "uint8")] * 2
        numbers = [((n,), group.weights.dtype) for n in (blocks, group.weights.size - group.decayed) for _ in range(2)]
        return Moments(*(group.device.zeros(shape, dtype, "moments") for shape, dtype in codes + numbers))

    def state(self) -> Iterator[tuple[str, Any]]:
        for group, moments in zip(self.groups, self.moments, strict=True):
            for kind, array in moments._asdict().items():
                yield f"{kind}/{group.name}", array

    def update_group(self, i: int, step: int, rate: float) -> None:
        group, moments, adam = self.groups[i], self.moments[i], (BETA1, BETA2, EPS)
        decayed, rest = slice(0, group.decayed), slice(group.decayed, None)
        group.device.adam8bit.update(
            group.weights[decayed], *moments[:4], group.gradients[decayed],
            self.scale, rate, *adam, WEIGHT_DECAY, *self.corrections(step),
        )  # fmt: skip
        group.device.adam.update(
            group.weights[rest], *moments[4:], group.gradients[rest],
            self.scale, rate, *adam, 0.0, *self.corrections(step),
        )  # fmt: skip
        group.changed()


class Factors(NamedTuple):
    """What Adafactor keeps of one parameter (F, C), a vector being a matrix of one row: rows (F,) and columns (C,)."""

    param: Param
    rows: Any
    columns: Any


class Adafactor(Optimizer):
    """Shazeer and Stern's, without momentum: a number for each row and one for each column of a matrix."""

    def __init__(self, groups: list[Group], bias_correction: bool = False):
        super().__init__(groups, bias_correction)
        self.factors = [[self._factors(param) for param in group] for group in groups]
        device, shapes = groups[0].device, (_matrix(param) for group in groups for param in group)
        self._scratch = device.scratch(max(device.adafactor.workspace(*shape) for shape in shapes))

    @staticmethod
    def _factors(param: Param) -> Factors:
        return Factors(param, *(param.group.device.zeros((n,), param.data.dtype, "moments") for n in _matrix(param)))

    def state(self) -> Iterator[tuple[str, Any]]:
        for group, factors in zip(self.groups, self.factors, strict=True):
            for param, rows, columns in factors:
                yield f"rows/{group.name}/{param.name}", rows
                yield f"columns/{group.name}/{param.name}", columns

    def update_group(self, i: int, step: int, rate: float) -> None:
        group, beta2 = self.groups[i], 1 - (step + 1) ** BETA2_FALLS
        for param, rows, columns in self.factors[i]:
            shape, decay = _matrix(param), WEIGHT_DECAY if is_decayed(param.name) else 0.0
            group.device.adafactor.update(
                param.data.reshape(shape), rows, columns, param.grad.reshape(shape),
                self.scale, rate, beta2, EPS1, CLIP, decay, self._scratch,
            )  # fmt: skip
        group.changed()


def _matrix(param: Param) -> tuple[int, int]:
    return math.prod(param.shape[:-1]), param.shape[-1]


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adam8bit": Adam8bit, "adafactor": Adafactor}
