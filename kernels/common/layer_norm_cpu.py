"""LayerNorm's rows in Numba, for the kernels that fuse it with something else."""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.cpu import inlined


@inlined
def normalise_row(y, gamma, beta, eps):
    """Turns the row y, in place, into its LayerNorm; returns its mean and rstd.

    The mean is found in two steps, the second being what the first has left over: at a mean of 100 sigma the first
    one's rounding would be the largest error of the result.
    """
    inverse = np.float32(1) / np.float32(y.size)
    total = np.float32(0)
    for i in range(y.size):
        total += y[i]
    mean = total * inverse
    rest = np.float32(0)
    squares = np.float32(0)
    for i in range(y.size):
        y[i] -= mean
        rest += y[i]
        squares += y[i] * y[i]
    rest *= inverse
    rstd = np.float32(1) / np.sqrt(squares * inverse - rest * rest + eps)
    for i in range(y.size):
        y[i] = (y[i] - rest) * rstd * gamma[i] + beta[i]
    return mean + rest, rstd


@inlined
def normalise_row_backward(dz, dgamma, dbeta, dy, gamma, rstd):
    """Turns the row dz, which comes holding xhat, in place into LayerNorm's gradient.

    dgamma and dbeta (C,) are added to.
    """
    c = dz.size
    inverse = np.float32(1) / np.float32(c)
    total = np.float32(0)
    moment = np.float32(0)
    for i in range(c):
        g = dy[i] * gamma[i]
        total += g
        moment += g * dz[i]
        dgamma[i] += dy[i] * dz[i]
        dbeta[i] += dy[i]
    total *= inverse
    moment *= inverse
    for i in range(c):
        dz[i] = rstd * (dy[i] * gamma[i] - total - dz[i] * moment)
