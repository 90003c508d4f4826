"""LayerNorm's rows in Numba, for the kernels that fuse it with something else.

Gradients of gamma and beta are summed over chunks of ROWS tokens, whoever computes them, and then over the chunks
in order: the same bits for any number of threads.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.cpu import jit

from .philox_cpu import inlined

ROWS = 32


def chunks(t: int) -> int:
    """How many chunks of tokens; each has a row of partial sums for gamma and one for beta."""
    return -(-t // ROWS)


@inlined
def normalise_row(y, gamma, beta, eps):
    """Turns the row y, in place, into its LayerNorm; returns its mean and rstd."""
    c = y.size
    inverse = np.float32(1) / np.float32(c)
    total = np.float32(0)
    for i in range(c):
        total += y[i]
    mean = total * inverse
    total = np.float32(0)
    for i in range(c):
        y[i] -= mean
        total += y[i] * y[i]
    rstd = np.float32(1) / np.sqrt(total * inverse + eps)
    for i in range(c):
        y[i] = y[i] * rstd * gamma[i] + beta[i]
    return mean, rstd


@inlined
def normalise_row_backward(dz, partial, dy, gamma, rstd):
    """Turns the row dz, which comes holding xhat, in place into LayerNorm's gradient.

    partial (2, C): dgamma's and dbeta's sums, added to.
    """
    c = dz.size
    inverse = np.float32(1) / np.float32(c)
    total = np.float32(0)
    moment = np.float32(0)
    for i in range(c):
        g = dy[i] * gamma[i]
        total += g
        moment += g * dz[i]
        partial[0, i] += dy[i] * dz[i]
        partial[1, i] += dy[i]
    total *= inverse
    moment *= inverse
    for i in range(c):
        dz[i] = rstd * (dy[i] * gamma[i] - total - dz[i] * moment)


@jit
def add_partials(worker, begin, end, dgamma, dbeta, partials):
    """dgamma, dbeta += the partial sums (chunks, 2, C), in order."""
    dgamma, dbeta = dgamma[begin:end], dbeta[begin:end]
    for chunk in range(partials.shape[0]):
        dgamma_part, dbeta_part = partials[chunk, 0][begin:end], partials[chunk, 1][begin:end]
        for i in range(dgamma.size):
            dgamma[i] += dgamma_part[i]
            dbeta[i] += dbeta_part[i]
