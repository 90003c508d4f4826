"""Softmax and cross entropy in Numba, a row at a time."""

from __future__ import annotations

import numpy as np

from minibert.kernels.common import cross_entropy_cpu as cross_entropy
from minibert.kernels.devices.compiling import jit
from minibert.kernels.devices.cpu import run


def forward(loss: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
    run(_forward, len(loss), loss, logits, labels, grain=256)


def backward(dlogits: np.ndarray, dloss: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
    run(_backward, len(dloss), dlogits, dloss, logits, labels, grain=256)


@jit
def _forward(worker, begin, end, loss, logits, labels):
    for s in range(begin, end):
        loss[s] = cross_entropy.loss(logits[s], labels[s])


@jit
def _backward(worker, begin, end, dlogits, dloss, logits, labels):
    for s in range(begin, end):
        cross_entropy.gradient(dlogits[s], logits[s], labels[s], dloss[s])
