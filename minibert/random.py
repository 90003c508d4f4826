"""Randomness as an argument: keys for dropout, for the order of examples and for initial weights.

Everything is drawn from Philox4x32-10 by counter (kernels/common/philox.py), so a mask, an order or a weight
depends on what it is for and never on what was drawn before. The third counter word keeps the uses apart:
dropout puts the example's number there, which is below 2**31.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from minibert.kernels.common import philox

SITES = {"embedding": 0, "attention": 1, "attention_output": 2, "ffn": 3, "classifier": 4}
ORDER, WEIGHTS = 0xFFFFFFFF, 0xFFFFFFFE


@dataclass(frozen=True)
class Key:
    """Names one dropout: the run's seed, the optimizer step, the layer and the site in it."""

    seed: int
    step: int = 0
    layer: int = 0
    site: int = 0

    def at(self, site: str, layer: int = 0) -> Key:
        return replace(self, layer=layer, site=SITES[site])

    @property
    def stream(self) -> int:
        """The fourth counter word: 512 dropouts a step, 8 a layer; steps repeat after 2**23."""
        return (self.step * 512 + self.layer * 8 + self.site) & 0xFFFFFFFF


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `count` examples (int64) that is the same on every machine and version."""
    block = np.arange(-(-count // 4), dtype=np.uint64)
    words = philox.words(block, 0, ORDER, epoch, seed)
    return np.argsort(words.reshape(-1)[:count], kind="stable")


def truncated_normal(shape: tuple[int, ...], std: float, seed: int, name: str) -> np.ndarray:
    """float32 values from a normal of deviation `std` cut at two deviations, as BERT initialises."""
    count = int(np.prod(shape))
    block = np.arange(-(-count // 4), dtype=np.uint64)
    words = philox.words(block, 0, WEIGHTS, zlib.crc32(name.encode()), seed)
    uniform = (words.reshape(-1)[:count] + 0.5) / 2.0**32
    return (std * np.interp(uniform, _UNIFORM, _QUANTILES)).astype(np.float32).reshape(shape)


# The inverse distribution between -2 and 2 by linear interpolation; off by at most 5e-6 deviations.
_UNIFORM = np.linspace(0, 1, 4097)
_QUANTILES = np.array(
    [NormalDist().inv_cdf(p) for p in NormalDist().cdf(-2) + _UNIFORM * (2 * NormalDist().cdf(2) - 1)]
)


def initial_weights(shapes: dict[str, tuple[int, ...]], std: float, seed: int) -> dict[str, np.ndarray]:
    """Fresh parameters by name: truncated normal, but biases 0 and LayerNorm weights 1."""

    def initial(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        if name.endswith("LayerNorm.weight"):
            return np.ones(shape, np.float32)
        return truncated_normal(shape, std, seed, name)

    return {name: initial(name, shape) for name, shape in shapes.items()}
