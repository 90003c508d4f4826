"""Adam with moments of 8 bits in NumPy: the definition."""

from __future__ import annotations

import numpy as np

from .codes import SIGNED, TINY, UNSIGNED

POSITIVE = SIGNED[:128]


def update(
    p: np.ndarray,
    m: np.ndarray,
    root: np.ndarray,
    m_largest: np.ndarray,
    root_largest: np.ndarray,
    g: np.ndarray,
    scale: np.ndarray,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    correction1: float,
    correction2: float,
) -> None:
    if np.isnan(scale[0]):
        return
    scaled = np.zeros(m.shape, p.dtype)  # the last block is filled up with zeros
    scaled.reshape(-1)[: p.size] = g * scale
    m_now = beta1 * SIGNED.astype(p.dtype)[m] * m_largest[:, None] + (1 - beta1) * scaled
    v_now = beta2 * (UNSIGNED.astype(p.dtype)[root] * root_largest[:, None]) ** 2 + (1 - beta2) * scaled**2
    u = m_now / correction1 / (np.sqrt(v_now / correction2) + eps)
    p -= lr * (u.reshape(-1)[: p.size] + decay * p)
    m_largest[...], share = shares(np.abs(m_now))
    m[...] = nearest(share, POSITIVE) + 128 * (m_now < 0)
    root_largest[...], share = shares(np.sqrt(v_now))
    root[...] = np.maximum(nearest(share, UNSIGNED), share > 0)


def shares(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each row of x >= 0, and each x as a share of it."""
    largest = x.max(1)
    largest[largest < TINY] = 0
    return largest, np.divide(x, largest[:, None], out=np.zeros_like(x), where=largest[:, None] > 0)


def nearest(share: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The places of the numbers, which ascend, that are nearest to the shares."""
    return np.searchsorted((numbers[1:] + numbers[:-1]) / 2, share)
