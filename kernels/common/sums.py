"""Sums over tokens: over chunks of fixed length first, whoever computes them, then over the chunks in order.

So the number of threads never changes a bit, and rounding errors stay those of short sums.
"""

from __future__ import annotations

from minibert.kernels.devices.compiling import jit

CHUNK = 64  # tokens


def chunks(t: int) -> int:
    """How many chunks t tokens make."""
    return -(-t // CHUNK)


@jit
def add_partials(total, partials):
    """total (N,) += the partial sums (chunks, N), in order."""
    for chunk in range(partials.shape[0]):
        for i in range(total.size):
            total[i] += partials[chunk, i]
