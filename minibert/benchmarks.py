"""Benchmark cases: each kernel at the sizes of a real training step, checked against the reference before it is timed.

`cases(size)` gives them for BERT-Base or MiniLM at MRPC's lengths; benches/test_kernels.py times them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from minibert.kernels import devices, load
from minibert.kernels.devices import Device

SIZES = {"base": (768, 12, 3072), "minilm": (384, 12, 1536)}  # hidden, heads, feed-forward
DROPOUT = (0.1, 7, 3)  # rate, seed, stream


@dataclass(frozen=True)
class Case:
    """A kernel and its arguments. `flops` is what its products need, `nbytes` what must be read and written once."""

    name: str
    operation: str
    function: str
    arguments: tuple[Any, ...]
    outputs: int
    flops: float
    nbytes: float
    scratch: int

    def prepare(self, device: Device) -> Callable[[], None]:
        """The call on that device, its scratch allocated and its result checked."""
        module = load(self.operation, device.backend)
        arguments = [device.array(a) if isinstance(a, np.ndarray) else a for a in self.arguments]
        if self.scratch >= 0:
            arguments.append(device.scratch(self.scratch))
        kernel = getattr(module, self.function)
        kernel(*arguments)
        self._check([device.numpy(a) for a in arguments[: self.outputs]])
        return lambda: kernel(*arguments)

    def _check(self, got: list[np.ndarray]) -> None:
        exact = [_as_floats(a).copy() if isinstance(a, np.ndarray) else a for a in self.arguments]
        room = () if self.scratch < 0 else (np.empty(0, np.uint8),)
        getattr(load(self.operation, "reference"), self.function)(*exact, *room)
        for array, wanted in zip(got, exact, strict=False):
            error = np.linalg.norm(_as_floats(array) - wanted) / max(float(np.linalg.norm(wanted)), 1e-30)
            if not error < (1e-5 if array.dtype != np.uint16 else 3e-3):
                raise AssertionError(f"{self.name}: relative error {error:.2g}: not timed")

    def stored_in_bf16(self, tokens: int) -> Case:
        """The same case on activations in bf16: the arrays of one row a token."""
        arguments = tuple(
            a.astype(ml_dtypes.bfloat16).view(np.uint16)
            if isinstance(a, np.ndarray) and a.shape[:-1] == (tokens,)
            else a
            for a in self.arguments
        )
        saved = sum(a.nbytes // 2 for a in self.arguments if isinstance(a, np.ndarray) and a.shape[:-1] == (tokens,))
        return replace(self, name=f"{self.name} bf16", arguments=arguments, nbytes=self.nbytes - saved)


def _as_floats(array: np.ndarray) -> np.ndarray:
    """bf16, which travels as uint16, as float32; other arrays as they are."""
    return array.view(ml_dtypes.bfloat16).astype(np.float32) if array.dtype == np.uint16 else array


def mrpc_offsets(sequences: int = 32) -> np.ndarray:
    """Where sequences of MRPC-like lengths begin: 32 of them with a mean of 53 tokens."""
    spread = (np.arange(sequences) * 37 % sequences) / max(sequences - 1, 1)
    return np.concatenate([[0], np.cumsum((27 + 52 * spread).astype(int))]).astype(np.int32)


def cases(size: str, backend: str = "cpu") -> Iterator[Case]:
    """Every kernel of a training step at the sizes of `base` or `minilm`."""
    c, heads, f = SIZES[size]
    rng, offsets = np.random.default_rng(0), mrpc_offsets()
    t, lengths = int(offsets[-1]), np.diff(offsets)
    examples = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    positions = (np.arange(t) - np.repeat(offsets[:-1], lengths)).astype(np.int32)

    def make(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    def case(
        operation: str, function: str, outputs: int, *arguments: Any, flops: float = 0, room: Any = None, moved: int = 0
    ) -> Case:
        moved = moved or sum(a.nbytes for a in arguments if isinstance(a, np.ndarray))
        scratch = -1 if room is None else load(operation, backend).workspace(*room)
        name = f"{operation}.{function} {'x'.join(map(str, arguments[0].shape))}"
        return Case(name, operation, function, arguments, outputs, flops, moved, scratch)

    for out, into in ((3 * c, c), (c, c), (f, c), (c, f)):
        x, w, b, dy = make(t, into), make(out, into) / 30, make(out), make(t, out)
        work, dw, db = 2.0 * t * out * into, np.zeros_like(w), np.zeros_like(b)
        yield case("matmul", "forward", 1, np.empty_like(dy), x, w, b, flops=work)
        yield case("matmul", "backward", 3, np.empty_like(x), dw, db, dy, x, w, flops=2 * work, room=(t, out, into))

    qkv, y, lse = make(t, 3 * c), np.empty((t, c), np.float32), np.empty((t, heads), np.float32)
    work, where = 4.0 * c * float((lengths**2).sum()), (offsets, examples, heads, *DROPOUT)
    room = (int(lengths.max()), heads, c)
    yield case("attention", "forward", 2, y, lse, qkv, *where, flops=work, room=room)
    load("attention", "reference").forward(y, lse, qkv, *where, np.empty(0, np.uint8))
    dqkv = np.empty_like(qkv)
    yield case("attention", "backward", 1, dqkv, make(t, c), y, lse, qkv, *where, flops=2.5 * work, room=room)

    x, b, db = make(t, f), make(f), np.zeros(f, np.float32)
    yield case("bias_gelu", "forward", 1, np.empty_like(x), x, b, False)
    yield case("bias_gelu", "backward", 2, np.empty_like(x), db, make(t, f), x, b, False, room=(t, f))

    x, residual, gamma, beta = make(t, c), make(t, c), make(c), make(c)
    mean, rstd, place = np.empty(t, np.float32), np.empty(t, np.float32), (positions, examples)
    name = "dropout_add_layer_norm"
    inputs = (x, residual, gamma, beta, *place, 1e-12, *DROPOUT)
    both = [case(name, "forward", 3, np.empty_like(x), mean, rstd, *inputs)]
    load(name, "reference").forward(np.empty_like(x), mean, rstd, *inputs)
    grads = (np.empty_like(x), np.empty_like(x), np.zeros_like(gamma), np.zeros_like(beta))
    saved = (make(t, c), x, residual, mean, rstd, gamma)
    both.append(case(name, "backward", 4, *grads, *saved, *place, *DROPOUT, room=(t, c)))
    both.append(case("add", "forward", 1, np.empty_like(x), x, residual))
    rows = offsets[:-1].copy()
    both.append(case("take_rows", "backward", 1, np.empty_like(x), make(len(rows), c), rows))

    tables, dtables = zip(*((make(n, c), np.zeros((n, c), np.float32)) for n in (30522, 512, 2)), strict=True)
    indices = (rng.integers(0, 30522, t, np.int32), np.zeros(t, np.int32), *place)
    inputs, row_bytes = (*indices, *tables, gamma, beta, 1e-12, *DROPOUT), 4 * t * c
    both.append(case("embedding", "forward", 3, np.empty_like(x), mean, rstd, *inputs, moved=2 * row_bytes))
    load("embedding", "reference").forward(np.empty_like(x), mean, rstd, *inputs)
    grads = (*dtables, np.zeros_like(gamma), np.zeros_like(beta))
    saved = (make(t, c), mean, rstd, *indices, *tables, gamma, *DROPOUT)
    both.append(case("embedding", "backward", 5, *grads, *saved, room=(t, c), moved=4 * row_bytes))
    yield from both
    yield from (one.stored_in_bf16(t) for one in both)

    p, m, g = make(12 * c * c), make(12 * c * c), make(12 * c * c)
    v = np.abs(make(12 * c * c))
    bert = (1e-4, 0.9, 0.999, 1e-6, 0.01, 1.0, 1.0)
    yield case("adam", "update", 4, p, m, v, g, 1.0, *bert, moved=8 * p.nbytes)
    yield case("sum_squares", "forward", 1, np.zeros(1), g, room=(g.size,))


def copy_rate(nbytes: int, repeats: int = 5) -> float:
    """Bytes a second, read and written, of copying `nbytes` with all workers: the limit of memory-bound kernels."""
    import time

    device = devices.open("cpu")
    a, b = device.zeros((nbytes // 4,), "float32", "workspace"), device.empty((nbytes // 4,), "float32", "workspace")
    add, best = device.add, float("inf")
    add.forward(b, a, a)
    for _ in range(repeats):
        start = time.perf_counter()
        add.forward(b, a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * nbytes / best
