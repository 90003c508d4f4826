"""Embedding, LayerNorm and dropout in CUDA: one pass each way, then dz is sorted and summed for the three tables."""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels.common import layer_norm_gpu as norm
from minibert.kernels.common.cuda import Kernels, blocks, opened
from minibert.kernels.common.philox import scale, threshold
from minibert.kernels.common.sums_gpu import add_partials

SORTED, PIECE, COLUMNS, WARPS = 512, 64, 128, 8  # as in gpu.cu
TABLES = 3
LINE = 16  # bytes that an access may have
_kernels = Kernels(__file__)


def workspace(t: int, c: int) -> int:
    """Bytes of scratch for backward: dz (T, C), partial sums of dgamma and dbeta, tokens in two orders, runs' edges."""
    return sum(_parts(t, c))


def _parts(t: int, c: int) -> tuple[int, ...]:
    """Bytes of dz, partial sums, and for each table twice keys, twice tokens, and edges."""
    sizes = 4 * t * c, norm.partials_bytes(t, c), *4 * (4 * TABLES * t,), 4 * TABLES * blocks(t, PIECE) * 2 * c
    return tuple(-(-size // LINE) * LINE for size in sizes)


def forward(
    y: Any, mean: Any, rstd: Any, ids: Any, segments: Any, positions: Any, examples: Any, word: Any, position: Any,
    segment: Any, gamma: Any, beta: Any, eps: float, rate: float, seed: int, stream: int,
) -> None:  # fmt: skip
    t, c = y.shape
    rows = max(norm.LEAST, min(16, t // 1536))  # which read gamma and beta once: more where there are blocks enough
    _kernels.launch(
        "forward", blocks(t, rows), norm.threads(c), y, mean, rstd, ids, segments, positions, examples, word, position,
        segment, gamma, beta, eps, threshold(rate), scale(rate), seed, stream, rows, t, c,
    )  # fmt: skip


def backward(
    dword: Any, dposition: Any, dsegment: Any, dgamma: Any, dbeta: Any, dy: Any, dy2: Any, mean: Any, rstd: Any,
    ids: Any, segments: Any, positions: Any, examples: Any, word: Any, position: Any, segment: Any, gamma: Any,
    rate: float, seed: int, stream: int, scratch: Any,
) -> None:  # fmt: skip
    t, c = dy.shape
    rooms, start = [], 0
    for size in _parts(t, c):
        rooms.append(scratch[start : start + size])
        start += size
    dz, edges, partials = rooms[0].view(np.float32), rooms[6].view(np.float32), norm.partials(rooms[1], t, c)
    pieces = rooms[2].view(np.int32), rooms[3].view(np.int32)
    keys, tokens = rooms[4].view(np.int32), rooms[5].view(np.int32)
    sorted_by, driver = (blocks(t, SORTED), TABLES), opened()
    with driver.aside():
        _kernels.launch("sort_pieces", sorted_by, SORTED, *pieces, ids, positions, segments, t)
        _kernels.launch("merge_pieces", sorted_by, SORTED, keys, tokens, *pieces, t)
    _kernels.launch(
        "backward", norm.chunks(t, c), norm.threads(c), dz, partials, dy, dy2, mean, rstd, ids, segments, positions,
        examples, word, position, segment, gamma, threshold(rate), scale(rate), seed, stream, norm.chunk_rows(t, c),
        t, c,
    )  # fmt: skip
    add_partials(dgamma, partials, dbeta)
    driver.join()
    grid, gradients = (blocks(t, PIECE), blocks(c, COLUMNS), TABLES), (dword, dposition, dsegment)
    _kernels.launch("add_runs", grid, COLUMNS, *gradients, edges, dz, keys, tokens, t, c)
    _kernels.launch("add_crossing_runs", grid, 32 * WARPS, *gradients, edges, keys, t, c)
