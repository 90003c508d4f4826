"""LayerNorm's rows in Numba, for the kernels that fuse it with something else.

A row is worked on in buffers on the stack, of whole lanes (`room`), known by their addresses: they stay in the L1 cache
while the row is read and written once, whatever type it is stored in. Lanes past the row's end hold zeros.
"""

from __future__ import annotations

import numpy as np

from minibert.kernels.devices.compiling import inlined

from . import lanes, storage

BUFFERS = 4  # of backward: see `split`


@inlined
def room(c):
    """How many float32 a buffer for a row of c has."""
    return (c + 15) // 16 * 16


@inlined
def centre(row, c, sums, eps):
    """Takes the mean off the row, whose elements add up to `sums`; returns mean, rstd and what of the mean is left.

    The mean is found in two steps, the second being what the first has left over: at a mean of 100 sigma the first
    one's rounding would be the largest error of the result.
    """
    inverse = np.float32(1) / np.float32(c)
    mean = lanes.total(sums) * inverse
    # Two sums of each, in turns: an addition waits for the one before, and this loop has little else to do.
    rests = other_rests = squares = other_squares = lanes.splat(np.float32(0))
    for i in range(0, c, 16):
        z = lanes.where(storage.inside(i, c), lanes.load(row + 4 * i) - mean)
        lanes.store(row + 4 * i, z)
        rests, other_rests = other_rests, rests + z
        squares, other_squares = other_squares, squares + z * z
    rest = lanes.total(rests + other_rests) * inverse
    variance = lanes.total(squares + other_squares) * inverse - rest * rest
    rstd = np.float32(1) / np.sqrt(max(variance, np.float32(0)) + eps)  # rounding leaves less for equal values
    return mean + rest, rstd, rest


@inlined
def scaled(row, i, rest, rstd, gamma, beta, inside):
    """16 elements of the LayerNorm of a row that `centre` has passed."""
    xhat = (lanes.load(row + 4 * i) - rest) * rstd
    return xhat * storage.load(gamma, i, inside) + storage.load(beta, i, inside)


@inlined
def split(rows, c):
    """The addresses of backward's four buffers, which lie one after the other: xhat, g, dgamma, dbeta."""
    return rows, rows + 4 * room(c), rows + 8 * room(c), rows + 12 * room(c)


@inlined
def clear(buffers, c):
    """dgamma = 0, dbeta = 0"""
    for i in range(0, c, 16):
        lanes.store(buffers[2] + 4 * i, lanes.splat(np.float32(0)))
        lanes.store(buffers[3] + 4 * i, lanes.splat(np.float32(0)))


@inlined
def arriving(dy, dy2, place, inside):
    """16 elements of the gradient that arrives: dy, and dy2 where it is not None, added in float32."""
    if dy2 is None:
        return storage.load(dy, place, inside)
    return storage.load(dy, place, inside) + storage.load(dy2, place, inside)


@inlined
def fetch_arriving(dy, dy2, place):
    """Asks for what `arriving` will read."""
    storage.fetch(dy, place)
    if dy2 is not None:
        storage.fetch(dy2, place)


@inlined
def collect(buffers, i, xhat, dy, gamma):
    """For 16 elements: keeps xhat and g = dy * gamma, adds to dgamma and dbeta; returns g and g * xhat."""
    xhats, gs, dgamma, dbeta = buffers
    g = dy * gamma
    lanes.store(xhats + 4 * i, xhat)
    lanes.store(gs + 4 * i, g)
    lanes.store(dgamma + 4 * i, lanes.load(dgamma + 4 * i) + dy * xhat)
    lanes.store(dbeta + 4 * i, lanes.load(dbeta + 4 * i) + dy)
    return g, g * xhat


@inlined
def over_row(sums, moments, c):
    """The means of g and of g * xhat, of which `collect` gave the summands."""
    inverse = np.float32(1) / np.float32(c)
    return lanes.total(sums) * inverse, lanes.total(moments) * inverse


@inlined
def gradient(buffers, i, means, rstd):
    """16 elements of LayerNorm's gradient."""
    xhat, g = lanes.load(buffers[0] + 4 * i), lanes.load(buffers[1] + 4 * i)
    return (g - means[0] - xhat * means[1]) * rstd


@inlined
def hand_over(partials, chunk, buffers, c):
    """The chunk's rows of `partials` (2, chunks, C) = dgamma, dbeta"""
    for i in range(0, c, 16):
        inside = storage.inside(i, c)
        storage.store(partials, chunk * c + i, lanes.load(buffers[2] + 4 * i), inside)
        storage.store(partials, (partials.shape[1] + chunk) * c + i, lanes.load(buffers[3] + 4 * i), inside)
