"""Benchmark cases: each kernel at the sizes of a real training step, checked against the reference before it is timed.

`cases(size)` gives them for BERT-Base or MiniLM at MRPC's lengths, `full_cases(size)` some for full windows that are
larger than a card's caches; `minibert bench` and benches/test_kernels.py time them on a device, which decides how
activations are stored and weights are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from minibert import limits
from minibert.kernels import load
from minibert.kernels.adam8bit.codes import BLOCK
from minibert.kernels.devices import Device

SIZES = {"base": (768, 12, 3072), "minilm": (384, 12, 1536)}  # hidden, heads, feed-forward
DROPOUT, NO_DROPOUT = (0.1, 7, 3), (0.0, 0, 0)  # rate, seed, stream
WINDOW = 512  # tokens of a full one
UNCLIPPED = np.ones(1, np.float32)  # the optimizers' scale
GOOGLE = (UNCLIPPED, 1e-4, 0.9, 0.999, 1e-6, 0.01, 1.0, 1.0)  # Adam's, from scale and rate to the corrections
# From the reference, by how activations are stored: a wrong index is farther. Codes are rounded: some to a neighbour.
FAR = {"float32": 1e-5, "uint16": 1e-2, "uint8": 1e-3}


class Rows(NamedTuple):
    """An activation, float32 here: stored as the device stores them. `heads`: it is queries, keys and values of so
    many, which lie as the device's attention takes them.
    """

    array: np.ndarray
    heads: int = 0


class Weight(NamedTuple):
    """A weight of a product: packed as the device packs them."""

    array: np.ndarray


@dataclass(frozen=True)
class Case:
    """A kernel and its arguments, outputs first. `flops` is what its products need, `moved` the bytes that it must read
    and write at least, where these are not all of its arguments' once. `room`: arguments of its `workspace`. `before`:
    the kernel that is called first, and its arguments: those that both have are the same arrays.
    """

    name: str
    operation: str
    function: str
    outputs: int
    arguments: tuple[Any, ...]
    flops: float = 0
    moved: float = 0
    room: tuple[int, ...] | None = None
    before: tuple[str, tuple[Any, ...]] | None = None

    def prepare(self, device: Device) -> Call:
        """The call on that device, its scratch allocated and its result checked."""
        module = getattr(device, self.operation)
        scratch = [] if self.room is None else [device.scratch(module.workspace(*self.room))]
        arguments = [*self._prepared(module, lambda a: _placed(a, device), scratch), *scratch]
        kernel = getattr(module, self.function)
        kernel(*arguments)
        self._check([device.numpy(a) for a in arguments[: self.outputs]], device)
        bf16 = device.activation_type == np.uint16
        nbytes = (self.moved or sum(_bare(a).nbytes for a in self.arguments if isinstance(_bare(a), np.ndarray))) - sum(
            a.array.nbytes // 2 for a in self.arguments if isinstance(a, Rows) and bf16 and not self.moved
        )
        return Call(lambda: kernel(*arguments), nbytes)

    def _prepared(self, module: Any, place: Callable[[Any], Any], room: list[Any]) -> list[Any]:
        """The arguments, placed, after the call of the kernel before."""
        name, first = self.before or ("", ())
        placed = {id(a): place(a) for a in (*first, *self.arguments)}
        if name:
            getattr(module, name)(*(placed[id(a)] for a in first), *room)
        return [placed[id(a)] for a in self.arguments]

    def _check(self, got: list[np.ndarray], device: Device) -> None:
        room = [] if self.room is None else [np.empty(0, np.uint8)]
        reference = load(self.operation, "reference")
        exact = self._prepared(reference, lambda a: _as_stored(a, device), room)
        getattr(reference, self.function)(*exact, *room)
        for array, wanted in zip(got, exact, strict=False):
            apart = np.subtract(_as_floats(array), wanted, dtype=np.float64)
            error = np.linalg.norm(apart) / max(float(np.linalg.norm(wanted)), 1e-30)
            if not error < FAR["uint8" if array.dtype == np.uint8 else device.activation_type.name]:
                raise AssertionError(f"{self.name}: relative error {error:.2g}: not timed")


class Call(NamedTuple):
    """A checked case, ready to run; and the bytes that it must read and write at least."""

    run: Callable[[], None]
    nbytes: float


class Measured(NamedTuple):
    """A kernel's median time, its rate and its limit's: floating-point operations a second, or bytes."""

    name: str
    seconds: float
    rate: float
    limit: float
    unit: str


def measure(case: Case, device: Device, precision: str, rounds: int = 9) -> Measured:
    """Times a case. Products are compared with what the device multiplies at best, others with copying their bytes."""
    call = case.prepare(device)
    seconds = median(device.seconds(call.run) for _ in range(rounds))
    if case.flops:
        return Measured(case.name, seconds, case.flops / seconds, limits.product_rate(precision, device), "FLOP/s")
    return Measured(case.name, seconds, call.nbytes / seconds, limits.copy_rate(int(call.nbytes), device), "B/s")


def _bare(argument: Any) -> Any:
    return argument.array if isinstance(argument, Rows | Weight) else argument


def _placed(argument: Any, device: Device) -> Any:
    array = _bare(argument)
    if isinstance(argument, Rows) and device.activation_type == np.uint16:
        array = array.astype(ml_dtypes.bfloat16).view(np.uint16)
    if isinstance(argument, Rows) and argument.heads:
        t, c3 = array.shape
        shape = device.projected_shape(t, c3 // 3, argument.heads)
        array = array if len(shape) == 2 else np.ascontiguousarray(array.reshape(t, shape[0], -1).swapaxes(0, 1))
    if isinstance(argument, Weight) and device.operand_type is not None:
        array = array.astype(ml_dtypes.bfloat16).view(device.operand_type)
    elif isinstance(argument, Weight) and (size := device.matmul.prepared_bytes(*array.shape)):
        prepared = device.scratch(size)
        device.matmul.prepare(prepared, array)
        return prepared
    return device.array(array) if isinstance(array, np.ndarray) else array


def _as_stored(argument: Any, device: Device) -> Any:
    """The argument as the reference gets it: the same numbers, in float32."""
    array = _bare(argument)
    if isinstance(argument, Rows | Weight) and device.activation_type == np.uint16:
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)
    return array.copy() if isinstance(array, np.ndarray) else array


def _as_floats(array: np.ndarray) -> np.ndarray:
    """As the reference has it, strips (N / 32, T, 32) as rows."""
    if array.ndim == 3:
        array = array.swapaxes(0, 1).reshape(array.shape[1], -1)
    return array.view(ml_dtypes.bfloat16).astype(np.float32) if array.dtype == np.uint16 else array


def mrpc_offsets(sequences: int = 32) -> np.ndarray:
    """Where sequences of MRPC-like lengths begin: 32 of them with a mean of 53 tokens."""
    spread = (np.arange(sequences) * 37 % sequences) / max(sequences - 1, 1)
    return np.concatenate([[0], np.cumsum((27 + 52 * spread).astype(int))]).astype(np.int32)


def cases(size: str) -> Iterator[Case]:
    """Every kernel of a training step at the sizes of `base` or `minilm`."""
    make = _Make(size, mrpc_offsets())
    for part in (_products, _attention, _norms, _embedding, _optimizer):
        yield from part(make)


def full_cases(size: str, sequences: int = 64) -> Iterator[Case]:
    """What reads and writes memory, for so many windows of 512 tokens; attention and GELU, whose references take
    longer, for a quarter of them, with dropout attention's forward pass alone.
    """
    few = _Make(size, WINDOW * np.arange(-(-sequences // 4) + 1, dtype=np.int32))
    yield from _attention(few, NO_DROPOUT)
    yield next(_attention(few, DROPOUT))
    yield from _gelu(few)
    make = _Make(size, WINDOW * np.arange(sequences + 1, dtype=np.int32))
    for part in (_norms, _embedding):
        yield from part(make)


class _Make:
    """Sizes of a batch and random arrays for it."""

    def __init__(self, size: str, offsets: np.ndarray):
        self.c, self.heads, self.f = SIZES[size]
        self.rng, self.offsets = np.random.default_rng(0), offsets
        self.t, self.lengths = int(self.offsets[-1]), np.diff(self.offsets)
        examples = np.repeat(np.arange(len(self.lengths)), self.lengths).astype(np.int32)
        positions = (np.arange(self.t) - np.repeat(self.offsets[:-1], self.lengths)).astype(np.int32)
        self.place = positions, examples

    def __call__(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def rows(self, width: int, heads: int = 0) -> Rows:
        return Rows(self(self.t, width), heads)


def _name(operation: str, function: str, shape: tuple[int, ...]) -> str:
    return f"{operation}.{function} {'x'.join(map(str, shape))}"


def _products(make: _Make) -> Iterator[Case]:
    t, c, f = make.t, make.c, make.f
    for out, into, heads in ((3 * c, c, make.heads), (c, c, 0)):
        x, w, b, dy = make.rows(into), Weight(make(out, into) / 30), make(out), make.rows(out, heads)
        work, dw, db, room = 2.0 * t * out * into, np.zeros((out, into), np.float32), np.zeros_like(b), (t, out, into)
        name = _name("matmul", "forward", (t, into, out))
        yield Case(name, "matmul", "forward", 1, (make.rows(out, heads), x, w, b), work, room=room)
        name = _name("matmul", "backward", (t, into, out))
        yield Case(name, "matmul", "backward", 3, (make.rows(into), dw, db, dy, x, w, False), 2 * work, room=room)
    x, dy, w1, b1, w2, b2 = make.rows(c), make.rows(c), make(f, c) / 30, make(f), make(c, f) / 60, make(c)
    work, room, h = 4.0 * t * c * f, (t, f, c), make.rows(f)
    weights = Weight(w1), b1, Weight(w2)
    name = _name("feed_forward", "forward", (t, c, f))
    forward = make.rows(c), h, x, *weights, b2, False
    yield Case(name, "feed_forward", "forward", 1, forward, work, room=room)
    grads = tuple(np.zeros_like(p) for p in (w1, b1, w2, b2))
    inputs = make.rows(c), *grads, dy, x, h, *weights, False, False
    name = _name("feed_forward", "backward", (t, c, f))
    before = "forward", forward  # h is as the backend likes it
    yield Case(name, "feed_forward", "backward", 5, inputs, 2 * work, room=room, before=before)


def _attention(make: _Make, dropout: tuple = DROPOUT) -> Iterator[Case]:
    t, c, heads = make.t, make.c, make.heads
    qkv, y, lse = make.rows(3 * c, heads), make.rows(c), np.empty((t, heads), np.float32)
    work, where = 4.0 * c * float((make.lengths**2).sum()), (make.offsets, make.place[1], heads, *dropout)
    room, shape, rest = (t, int(make.lengths.max()), heads, c), (t, 3 * c), "" if dropout[0] else ", no dropout"
    name = _name("attention", "forward", shape) + rest
    yield Case(name, "attention", "forward", 2, (y, lse, qkv, *where), work, room=room)
    load("attention", "reference").forward(y.array, lse, qkv.array, *where, np.empty(0, np.uint8))
    inputs = make.rows(3 * c, heads), make.rows(c), y, lse, qkv, *where
    name = _name("attention", "backward", shape) + rest
    yield Case(name, "attention", "backward", 1, inputs, 2.5 * work, room=room)


def _norms(make: _Make) -> Iterator[Case]:
    t, c, name = make.t, make.c, "dropout_add_layer_norm"
    x, residual, gamma, beta = make.rows(c), make.rows(c), make(c), make(c)
    mean, rstd = np.empty(t, np.float32), np.empty(t, np.float32)
    where = *make.place, 1e-12, *DROPOUT
    outputs = make.rows(c), mean, rstd
    yield Case(_name(name, "forward", (t, c)), name, "forward", 3, (*outputs, x, residual, gamma, beta, *where))
    load(name, "reference").forward(
        np.empty((t, c), np.float32), mean, rstd, x.array, residual.array, gamma, beta, *where
    )
    grads = make.rows(c), make.rows(c), np.zeros_like(gamma), np.zeros_like(beta)
    saved = make.rows(c), None, x, residual, mean, rstd, gamma, *make.place, *DROPOUT
    yield Case(_name(name, "backward", (t, c)), name, "backward", 4, (*grads, *saved), room=(t, c))
    yield Case(_name("add", "forward", (t, c)), "add", "forward", 1, (make.rows(c), x, residual))
    firsts = make.offsets[:-1].copy()
    taken = make.rows(c), make(len(firsts), c), firsts
    yield Case(_name("take_rows", "backward", (t, c)), "take_rows", "backward", 1, taken)


def _gelu(make: _Make) -> Iterator[Case]:
    """A pass of its own where products do not compute it on their way."""
    t, f, name = make.t, make.f, "bias_gelu"
    x, bias = make.rows(f), make(f)
    yield Case(_name(name, "forward", (t, f)), name, "forward", 1, (make.rows(f), x, bias, False))
    grads = make.rows(f), np.zeros_like(bias)
    yield Case(
        _name(name, "backward", (t, f)), name, "backward", 2, (*grads, make.rows(f), x, bias, False), room=(t, f)
    )


def _embedding(make: _Make) -> Iterator[Case]:
    t, c = make.t, make.c
    tables = tuple(make(n, c) for n in (30522, 512, 2))
    gamma, beta, mean, rstd = make(c), make(c), np.empty(t, np.float32), np.empty(t, np.float32)
    indices = make.rng.integers(0, 30522, t, np.int32), np.zeros(t, np.int32), *make.place
    inputs = *indices, *tables, gamma, beta, 1e-12, *DROPOUT
    forward = make.rows(c), mean, rstd, *inputs
    yield Case(_name("embedding", "forward", (t, c)), "embedding", "forward", 3, forward, moved=6 * t * c)
    load("embedding", "reference").forward(np.empty((t, c), np.float32), mean, rstd, *inputs)
    grads = *(np.zeros_like(table) for table in tables), np.zeros_like(gamma), np.zeros_like(beta)
    saved = make.rows(c), None, mean, rstd, *indices, *tables, gamma, *DROPOUT
    name = _name("embedding", "backward", (t, c))
    yield Case(name, "embedding", "backward", 5, (*grads, *saved), moved=14 * t * c, room=(t, c))


def _adam8bit(make: _Make, p: np.ndarray, g: np.ndarray) -> Case:
    """From codes of all sizes, with a V that M may have."""
    blocks = -(-p.size // BLOCK)
    m, root = make.rng.integers(0, 256, (2, blocks, BLOCK), np.uint8)
    m_largest = np.abs(make(blocks))
    inputs = p, m, root, m_largest, m_largest / 2, g, *GOOGLE
    return Case(_name("adam8bit", "update", p.shape), "adam8bit", "update", 5, inputs, moved=4 * p.nbytes)


def _optimizer(make: _Make) -> Iterator[Case]:
    p, m, g = (make(12 * make.c**2) for _ in range(3))
    v = np.abs(make(p.size))
    yield Case(_name("adam", "update", p.shape), "adam", "update", 3, (p, m, v, g, *GOOGLE), moved=7 * p.nbytes)
    yield _adam8bit(make, p, g)
    rows, columns = np.abs(make(12 * make.c)), np.abs(make(make.c))
    matrices = p.reshape(-1, make.c), rows, columns, g.reshape(-1, make.c)
    scalars, name = (UNCLIPPED, 1e-4, 0.9, 1e-30, 1.0, 0.01), _name("adafactor", "update", matrices[0].shape)
    yield Case(name, "adafactor", "update", 3, (*matrices, *scalars), moved=5 * p.nbytes, room=matrices[0].shape)
    yield Case(_name("sum_squares", "forward", g.shape), "sum_squares", "forward", 1, (np.zeros(1), g), room=(g.size,))
