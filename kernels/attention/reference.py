"""Attention in NumPy, a sequence at a time: the definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minibert.kernels.common.philox import attention_mask


def workspace(t: int, longest: int, heads: int, c: int) -> int:
    return 0


def forward(
    y: np.ndarray,
    lse: np.ndarray,
    qkv: np.ndarray,
    offsets: np.ndarray,
    examples: np.ndarray,
    heads: int,
    rate: float,
    seed: int,
    stream: int,
    scratch: np.ndarray,
) -> None:
    for rows in _sequences(offsets):
        q, k, v = (_split(part, heads) for part in np.split(qkv[rows], 3, 1))
        mask = attention_mask(q.shape[1], heads, examples[rows.start], rate, seed, stream, qkv.dtype)
        scores = q @ k.swapaxes(1, 2) / np.sqrt(qkv.dtype.type(q.shape[2]))  # (H, L, L)
        highest = scores.max(2, keepdims=True)
        e = np.exp(scores - highest)
        total = e.sum(2, keepdims=True)
        y[rows] = _join((e / total * mask) @ v)
        lse[rows] = (highest + np.log(total))[..., 0].T


def backward(
    dqkv: np.ndarray,
    dy: np.ndarray,
    y: np.ndarray,
    lse: np.ndarray,
    qkv: np.ndarray,
    offsets: np.ndarray,
    examples: np.ndarray,
    heads: int,
    rate: float,
    seed: int,
    stream: int,
    scratch: np.ndarray,
) -> None:
    for rows in _sequences(offsets):
        q, k, v = (_split(part, heads) for part in np.split(qkv[rows], 3, 1))
        mask = attention_mask(q.shape[1], heads, examples[rows.start], rate, seed, stream, qkv.dtype)
        root = np.sqrt(qkv.dtype.type(q.shape[2]))
        dout = _split(dy[rows], heads)
        p = np.exp(q @ k.swapaxes(1, 2) / root - lse[rows].T[..., None])
        dp = mask * (dout @ v.swapaxes(1, 2))
        ds = p * (dp - (dout * _split(y[rows], heads)).sum(2, keepdims=True)) / root
        dq, dk, dv = ds @ k, ds.swapaxes(1, 2) @ q, (p * mask).swapaxes(1, 2) @ dout
        dqkv[rows] = np.concatenate([_join(dq), _join(dk), _join(dv)], 1)


def _sequences(offsets: np.ndarray) -> Iterator[slice]:
    return (slice(begin, end) for begin, end in zip(offsets[:-1], offsets[1:], strict=True) if begin < end)


def _split(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)  # (H, L, D)


def _join(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)  # (L, C)
