"""Differentiable operations: each allocates its result, calls one kernel and records how to go back.

T tokens, S sequences, C hidden, F features out, H heads, K classes. What a `vjp` captures is what is stored.
Gradients of parameters are added where they live (`Param.grad`), or overwrite what is there; those of activations are
returned.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from minibert.autograd import Tensor, record
from minibert.batch import Batch
from minibert.kernels.devices import Device
from minibert.parameters import Param
from minibert.random import Key

NO_DROPOUT = (0.0, 0, 0)


@cache
def _parse(spec: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    parts = (part.split(":") for part in spec.split(","))
    return tuple((name.strip(), tuple(dims.split())) for name, dims in parts)


def shapes(spec: str, **arrays: Any) -> None:
    """Checks that arrays agree on named sizes: shapes("x: T C, w: F C, b: F", x=x, w=w, b=b)."""
    sizes: dict[str, int] = {}
    for name, dims in _parse(spec):
        got = arrays[name].shape
        if len(got) != len(dims) or any(sizes.setdefault(d, n) != n for d, n in zip(dims, got, strict=True)):
            found = ", ".join(f"{n}: {tuple(a.shape)}" for n, a in arrays.items())
            raise ValueError(f"shapes do not agree: expected {spec}; got {found}")


def _scalars(rate: float, key: Key | None) -> tuple[float, int, int]:
    """Dropout as the kernels take it: rate, seed, stream. No key means evaluation: no dropout."""
    return (rate, key.seed, key.stream) if key is not None and rate > 0 else NO_DROPOUT


def _pieces(t: int, most: int) -> list[slice]:
    """t rows in even pieces of at most so many, each beginning on a line of memory."""
    count = max(1, -(-t // most))
    size = -(-t // (64 * count)) * 64
    return [slice(start, min(start + size, t)) for start in range(0, t, max(size, 1))]


def _two(parts: list[Any]) -> tuple[Any, Any]:
    """A gradient in one part or two, taken out of the list; None for a second that is not there."""
    dy = parts.pop()
    return dy, parts.pop() if parts else None


def _gradients(*weights: Param) -> tuple[list[Any], bool]:
    """The gradients of weights for the product that they come from, and whether it is to add to them; else it
    overwrites them.
    """
    add = not all(w.fresh for w in weights)
    grads = [w.grad if add else w.raw_grad for w in weights]
    for w in weights:
        w.fresh = False
    return grads, add


def embedding(
    device: Device, batch: Batch, word: Param, position: Param, segment: Param, gamma: Param, beta: Param,
    eps: float, rate: float, key: Key | None,
) -> Tensor:  # fmt: skip
    """dropout(LayerNorm(word + segment + position embeddings)): (T, C)."""
    shapes(
        "word: V C, position: P C, segment: G C, gamma: C, beta: C",
        word=word.data, position=position.data, segment=segment.data, gamma=gamma.data, beta=beta.data,
    )  # fmt: skip
    op, t, c = device.embedding, batch.tokens, word.shape[1]
    y = device.empty((t, c), device.activation_type, "activations")
    mean = device.empty((t,), device.float_type, "activations")
    rstd = device.empty_like(mean)
    where = (batch.ids, batch.segments, batch.positions, batch.examples)
    tables = (word.data, position.data, segment.data, gamma.data)
    dropout = _scalars(rate, key)
    op.forward(y, mean, rstd, *where, *tables, beta.data, eps, *dropout)

    def vjp(parts: list[Any]) -> tuple[()]:
        grads = (word.grad, position.grad, segment.grad, gamma.grad, beta.grad)
        room = device.scratch(op.workspace(t, c))
        op.backward(*grads, *_two(parts), mean, rstd, *where, *tables, *dropout, room)
        return ()

    return record(device, y, (), vjp, two=True)


def linear(x: Tensor, w: Param, b: Param | None, dtype: Any = None, shape: tuple[int, ...] | None = None) -> Tensor:
    """x wᵀ + b: (T, C) to (T, F), in x's own type or in `dtype`, in an array of this or another `shape`."""
    shapes("x: T C, w: F C", x=x.data, w=w.data)
    device, op, (t, c), f = x.device, x.device.matmul, x.data.shape, w.shape[0]
    room = op.workspace(t, f, c)
    y = device.empty(shape or (t, f), dtype or x.data.dtype, "activations")
    op.forward(y, x.data, w.operand, None if b is None else b.data, device.scratch(room))

    def vjp(dy: Any) -> tuple[Any]:
        dx = device.empty_like(x.data)
        db = None if b is None else b.grad
        (dw,), add = _gradients(w)
        op.backward(dx, dw, db, dy, x.data, w.operand, add, device.scratch(room))
        return (dx,)

    return record(device, y, (x,), vjp)


def attention(qkv: Tensor, batch: Batch, heads: int, rate: float, key: Key | None) -> Tensor:
    """Self-attention inside each sequence: (T, 3C), in an array of the device's `projected_shape`, to (T, C). Keeps its
    result and a number per row and head.
    """
    device, op, t, shape = qkv.device, qkv.device.attention, batch.tokens, qkv.data.shape
    c = math.prod((*shape[:-2], shape[-1])) // 3
    y = device.empty((t, c), qkv.data.dtype, "activations")
    lse = device.empty((t, heads), device.float_type, "activations")
    dropout = _scalars(rate, key)
    where = (batch.offsets, batch.examples, heads)
    room = op.workspace(t, batch.longest, heads, c)
    op.forward(y, lse, qkv.data, *where, *dropout, device.scratch(room))
    out = Tensor(y, device)
    del y  # what `out` holds can be forgotten

    def vjp(dy: Any) -> tuple[Any]:
        dqkv = device.empty_like(qkv.data)
        op.backward(dqkv, dy, out.data, lse, qkv.data, *where, *dropout, device.scratch(room))
        return (dqkv,)

    return record(device, out, (qkv,), vjp)


def feed_forward(x: Tensor, w1: Param, b1: Param, w2: Param, b2: Param, form: str) -> Tensor:
    """gelu(x w1ᵀ + b1) w2ᵀ + b2, `form` "erf" or "tanh": (T, C). Keeps x and x w1ᵀ."""
    arrays = {"x": x.data, "w1": w1.data, "b1": b1.data, "w2": w2.data, "b2": b2.data}
    shapes("x: T C, w1: F C, b1: F, w2: C F, b2: C", **arrays)
    device, op, (t, c), f, tanh = x.device, x.device.feed_forward, x.data.shape, len(b1.data), form == "tanh"
    pieces = _pieces(t, device.piece)  # of which a shorter one may take more scratch
    room = max((op.workspace(n, f, c) for n in {r.stop - r.start for r in pieces}), default=0)
    y = device.empty_like(x.data)
    h = device.empty((t, f), device.activation_type, "activations")
    weights = w1.operand, b1.data, w2.operand, b2.data
    scratch = device.scratch(room)
    for r in pieces:
        op.forward(y[r], h[r], x.data[r], *weights, tanh, scratch)
    del weights, scratch

    def vjp(dy: Any) -> tuple[Any]:
        dx = device.empty_like(x.data)
        weights = w1.operand, b1.data, w2.operand
        db1, db2, scratch = b1.grad, b2.grad, device.scratch(room)
        for r in pieces:
            (dw1, dw2), add = _gradients(w1, w2)
            op.backward(dx[r], dw1, db1, dw2, db2, dy[r], x.data[r], h[r], *weights, tanh, add, scratch)
        return (dx,)

    return record(device, y, (x,), vjp)


def bias_gelu(x: Tensor, b: Param, form: str) -> Tensor:
    """GELU(x + b), `form` "erf" or "tanh": (T, F). Keeps x."""
    shapes("x: T F, b: F", x=x.data, b=b.data)
    device, op, tanh = x.device, x.device.bias_gelu, form == "tanh"
    y = device.empty_like(x.data)
    op.forward(y, x.data, b.data, tanh)

    def vjp(dy: Any) -> tuple[Any]:
        dx = device.empty_like(dy)
        op.backward(dx, b.grad, dy, x.data, b.data, tanh, device.scratch(op.workspace(*dy.shape)))
        return (dx,)

    return record(device, y, (x,), vjp)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    gamma: Param,
    beta: Param,
    positions: Any,
    examples: Any,
    eps: float,
    rate: float,
    key: Key | None,
) -> Tensor:
    """LayerNorm(residual + dropout(x)): (T, C). Keeps x, residual and two numbers a row."""
    shapes(
        "x: T C, residual: T C, gamma: C, beta: C",
        x=x.data,
        residual=residual.data,
        gamma=gamma.data,
        beta=beta.data,
    )
    device, op, (t, c) = x.device, x.device.dropout_add_layer_norm, x.data.shape
    y = device.empty_like(x.data)
    mean = device.empty((t,), device.float_type, "activations")
    rstd = device.empty_like(mean)
    dropout = _scalars(rate, key)
    where = (positions, examples)
    op.forward(y, mean, rstd, x.data, residual.data, gamma.data, beta.data, *where, eps, *dropout)

    def vjp(parts: list[Any]) -> tuple[Any, Any]:
        dy, dy2 = _two(parts)
        dx, dresidual = device.empty_like(dy), device.empty_like(dy)
        saved = (x.data, residual.data, mean, rstd, gamma.data)
        room = device.scratch(op.workspace(t, c))
        op.backward(dx, dresidual, gamma.grad, beta.grad, dy, dy2, *saved, *where, *dropout, room)
        return dx, dresidual

    return record(device, y, (x, residual), vjp, two=True)


def dropout(x: Tensor, positions: Any, examples: Any, rate: float, key: Key | None) -> Tensor:
    """x with elements dropped and the rest scaled up: (S, C). The mask is made again in the backward pass."""
    scalars = _scalars(rate, key)
    if scalars is NO_DROPOUT:
        return x
    device, op = x.device, x.device.dropout
    y = device.empty_like(x.data)
    op.forward(y, x.data, positions, examples, *scalars)

    def vjp(dy: Any) -> tuple[Any]:
        dx = device.empty_like(dy)
        op.backward(dx, dy, positions, examples, *scalars)
        return (dx,)

    return record(device, y, (x,), vjp)


def take_rows(x: Tensor, rows: Any) -> Tensor:
    """x[rows] for distinct rows: (T, C) to (S, C). These few are of the device's float type from here on."""
    device, op, shape, dtype = x.device, x.device.take_rows, x.data.shape, x.data.dtype
    y = device.empty((len(rows), shape[1]), device.float_type, "activations")
    op.forward(y, x.data, rows)

    def vjp(dy: Any) -> tuple[Any]:
        dx = device.empty(shape, dtype, "activations")
        op.backward(dx, dy, rows)
        return (dx,)

    return record(device, y, (x,), vjp)


def bias_tanh(x: Tensor, b: Param) -> Tensor:
    """tanh(x + b): (S, C). Keeps its result."""
    shapes("x: S C, b: C", x=x.data, b=b.data)
    device, op = x.device, x.device.bias_tanh
    y = device.empty_like(x.data)
    op.forward(y, x.data, b.data)

    def vjp(dy: Any) -> tuple[Any]:
        dx = device.empty_like(dy)
        op.backward(dx, b.grad, dy, y)
        return (dx,)

    return record(device, y, (x,), vjp)


def softmax_cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """-log softmax(logits)[label] of each row: (S, K) to (S,)."""
    shapes("logits: S K, labels: S", logits=logits.data, labels=labels)
    device, op = logits.device, logits.device.softmax_cross_entropy
    loss = device.empty(labels.shape, logits.data.dtype, "activations")
    op.forward(loss, logits.data, labels)

    def vjp(dloss: Any) -> tuple[Any]:
        dlogits = device.empty_like(logits.data)
        op.backward(dlogits, dloss, logits.data, labels)
        return (dlogits,)

    return record(device, loss, (logits,), vjp)


def mean_squared_error(x: Tensor, target: Any) -> Tensor:
    """(x - target)² of each row: (S, 1) to (S,)."""
    shapes("x: S 1, target: S", x=x.data, target=target)
    device, op = x.device, x.device.mean_squared_error
    loss = device.empty(target.shape, x.data.dtype, "activations")
    op.forward(loss, x.data, target)

    def vjp(dloss: Any) -> tuple[Any]:
        dx = device.empty_like(x.data)
        op.backward(dx, dloss, x.data, target)
        return (dx,)

    return record(device, loss, (x,), vjp)


def span_cross_entropy(logits: Tensor, offsets: Any, starts: Any, ends: Any) -> Tensor:
    """The mean of -log softmax of both columns at `starts` and `ends`, within each window: (T, 2) to (S,)."""
    shapes("starts: S, ends: S", starts=starts, ends=ends)
    device, op = logits.device, logits.device.span_cross_entropy
    loss = device.empty(starts.shape, logits.data.dtype, "activations")
    op.forward(loss, logits.data, offsets, starts, ends)

    def vjp(dloss: Any) -> tuple[Any]:
        dlogits = device.empty_like(logits.data)
        op.backward(dlogits, dloss, logits.data, offsets, starts, ends)
        return (dlogits,)

    return record(device, loss, (logits,), vjp)
