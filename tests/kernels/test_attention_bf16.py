"""Attention on the matrix unit: as accurate as bf16 allows, the masks of float32, inside its arrays, the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from bits import FEW_ULPS, assert_same_bits, in_rows, in_strips, needs_amx, on_a_line
from checks import assert_as_accurate
from minibert.kernels.attention import cpu, cpu_bf16, reference
from minibert.kernels.common.philox import attention_mask
from packed import BATCHES, PRIMES, exact, pack
from test_attention import KEY, compute, make
from test_matmul_bf16 import TILE_STATE, rounded, state_now

TILES = (15, 16, 17, 31, 32, 33, 63, 64, 65, 97)  # lengths about tiles and blocks
CASES = [(lengths, heads, d, rate) for lengths in BATCHES.values() for heads, d, rate in [(3, 8, 0.5), (2, 64, 0.1)]]
CASES += [(TILES, 2, 32, 0.0), (TILES, 2, 33, 0.1), (PRIMES, 3, 16, 0.0), (PRIMES, 1, 1, 0.1), (PRIMES, 2, 70, 0.1)]


def bits(a):
    """The nearest bf16 numbers as activations hold them."""
    return a.astype(ml_dtypes.bfloat16).view(np.uint16)


def numbers(a):
    """What activations hold, as float32."""
    return a.view(ml_dtypes.bfloat16).astype(np.float32)


def make_rounded(*arguments, **options):
    return [rounded(array) for array in make(*arguments, **options)]


def compute_bf16(batch, heads, rate, qkv, dy):
    """(y, lse, dqkv) as float32, from float32."""
    y, dqkv = (np.full(array.shape, 0xFFFF, np.uint16) for array in (dy, qkv))
    lse = np.full((len(dy), heads), np.nan, np.float32)
    longest = int(np.diff(batch.offsets).max(initial=0))
    scratch = np.full(cpu_bf16.workspace(len(dy), longest, heads, dy.shape[1]), 0xFF, np.uint8)
    tail = (batch.offsets, batch.examples, heads, rate, *KEY, scratch)
    cpu_bf16.forward(y, lse, bits(qkv), *tail)
    cpu_bf16.backward(dqkv, bits(dy), y, lse, bits(qkv), *tail)
    return numbers(y), lse, numbers(dqkv)


def naive(batch, heads, rate, qkv, dy):
    """(y, lse, dqkv) in plain NumPy: the operands of each product and the results rounded, all else in float32."""
    y, lse, dqkv = np.empty_like(dy), np.empty((len(dy), heads), np.float32), np.empty_like(qkv)
    for begin, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        if begin == end:
            continue
        length = end - begin
        q, k, v, dout = (
            part.reshape(length, heads, -1).swapaxes(0, 1) for part in (*np.split(qkv[begin:end], 3, 1), dy[begin:end])
        )
        root = np.sqrt(np.float32(q.shape[2]))
        mask = attention_mask(length, heads, batch.examples[begin], rate, *KEY)
        scores = q @ k.swapaxes(1, 2) / root
        highest = scores.max(2, keepdims=True)
        e = np.exp(scores - highest)
        total = e.sum(2, keepdims=True)
        p = e / total
        dp = mask * (dout @ v.swapaxes(1, 2))
        ds = rounded(p * (dp - (p * dp).sum(2, keepdims=True)))
        kept = rounded(p * mask)
        lse[begin:end] = (highest + np.log(total))[..., 0].T
        results = kept @ v, ds @ k / root, ds.swapaxes(1, 2) @ q / root, kept.swapaxes(1, 2) @ dout
        y[begin:end], *gradients = (x.swapaxes(0, 1).reshape(length, -1) for x in results)
        dqkv[begin:end] = np.concatenate(gradients, 1)
    return rounded(y), lse, rounded(dqkv)


def parts(y, lse, dqkv):
    return dict(zip(("y", "lse", "dq", "dk", "dv"), (y, lse, *np.split(dqkv, 3, 1)), strict=True))


@pytest.mark.parametrize("data", [{}, {"shift": 100.0}, {"size": 4.0}], ids=["plain", "shifted", "large"])
@pytest.mark.parametrize(("lengths", "heads", "d", "rate"), CASES)
def test_as_accurate_as_bf16_allows(lengths, heads, d, rate, data):
    batch = pack(lengths)
    qkv, dy = make_rounded(sum(lengths), heads * d, **data)
    got = parts(*compute_bf16(batch, heads, rate, qkv, dy))
    plain = parts(*naive(batch, heads, rate, qkv, dy))
    wanted = parts(*compute(reference, batch, heads, rate, *exact(qkv, dy)))
    for what in wanted:
        floor = FEW_ULPS if what == "lse" else 2e-3
        assert_as_accurate(got[what], plain[what], wanted[what], floor=floor, what=what)
        if what != "lse" and wanted[what].size > 5000:  # where luck evens out, errors are those of naive
            errors = [np.abs(x[what] - wanted[what]).mean() for x in (got, plain)]
            assert errors[0] <= 1.15 * errors[1], what


@pytest.mark.parametrize("length", [33, 64, 150])
def test_masks_are_those_of_float32(length):
    """With scores of zero and values that name their key, y shows which probabilities are kept."""
    batch = pack((length,))
    for begin in range(0, length, 64):
        qkv = np.zeros((length, 2 * 3 * 64), np.float32)
        for head in range(2):
            keys = np.arange(begin, min(begin + 64, length))
            qkv[keys, (4 + head) * 64 + keys - begin] = 1
        y = compute_bf16(batch, 2, 0.5, qkv, np.zeros((length, 128), np.float32))[0]
        kept = y.reshape(length, 2, 64).swapaxes(0, 1)[..., : len(keys)]
        mask = attention_mask(length, 2, batch.examples[0], 0.5, *KEY)[..., keys]
        np.testing.assert_allclose(kept, mask / length, rtol=2**-8)


def test_backward_has_forward_s_masks():
    """y is linear in v: sum(dy * y) = sum(dv * v), to rounding, only if the masks are the same."""
    batch = pack((61, 150))
    qkv, dy = make_rounded(211, 128)
    qkv[:, 256:], dy = np.abs(qkv[:, 256:]), np.abs(dy)
    y, _, dqkv = compute_bf16(batch, 2, 0.5, qkv, dy)
    np.testing.assert_allclose((dy * y).sum(), (dqkv[:, 256:] * qkv[:, 256:]).sum(), rtol=1e-3)


def test_one_key_is_exact():
    """With one token p = 1: y is v times its multiplier, and no gradient reaches q and k."""
    batch = pack((1,) * 40)
    qkv, dy = make_rounded(40, 48)
    y, _, dqkv = compute_bf16(batch, 3, 0.5, qkv, dy)
    masks = np.array([attention_mask(1, 3, example, 0.5, *KEY)[:, 0, 0] for example in batch.examples])
    assert 0 < (masks > 0).sum() < masks.size
    np.testing.assert_array_equal(y.reshape(40, 3, 16), qkv[:, 96:].reshape(40, 3, 16) * masks[..., None])
    np.testing.assert_array_equal(dqkv[:, :96], 0)


def guarded(shape, dtype, offset):
    """An array of ones inside a larger one, `offset` elements from a line, and that one: all bits are set there."""
    memory = np.full(np.prod(shape, dtype=int) * dtype().nbytes + 256, 0xFF, np.uint8)
    begin = -memory.ctypes.data % 64 + offset * dtype().nbytes
    array = memory[begin : begin + memory.size - 256].view(dtype).reshape(shape)
    array[...] = 1
    return array, memory


@pytest.mark.parametrize("seed", range(20))
def test_nothing_else_is_touched(seed):
    """Not a byte around the results and the scratch, and not one of the operands; results on no line are right, too."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([0, 1, *TILES], 3)
    heads, d = int(rng.integers(1, 4)), int(rng.choice([1, 8, 31, 32, 40, 64]))
    batch, (qkv, dy) = pack(lengths), map(bits, make(lengths.sum(), heads * d))
    kinds = {"y": (dy.shape, np.uint16), "lse": ((len(dy), heads), np.float32), "dqkv": (qkv.shape, np.uint16)}
    pairs = {name: guarded(*kind, seed % 16) for name, kind in kinds.items()}
    y, lse, dqkv = (pair[0] for pair in pairs.values())
    nbytes = cpu_bf16.workspace(len(dy), int(lengths.max()), heads, heads * d)
    scratch = np.full(nbytes + 128, 0xFF, np.uint8)  # NaN, wherever it is read before it is written
    inner = scratch[64 + seed : 64 + seed + nbytes]
    operands = qkv.copy(), dy.copy()
    tail = (batch.offsets, batch.examples, heads, 0.1, *KEY, inner)
    cpu_bf16.forward(y, lse, operands[0], *tail)
    cpu_bf16.backward(dqkv, operands[1], y, lse, operands[0], *tail)

    wanted = compute_bf16(batch, heads, 0.1, numbers(qkv), numbers(dy))
    for (name, (array, memory)), right in zip(pairs.items(), wanted, strict=True):
        np.testing.assert_array_equal(array if name == "lse" else numbers(array), right, name)
        array.view(np.uint8)[...] = 0xFF
        assert (memory == 0xFF).all(), f"{name}: written beside it"
    assert (scratch[: 64 + seed] == 0xFF).all() and (scratch[64 + seed + nbytes :] == 0xFF).all()
    np.testing.assert_array_equal(operands[0], qkv)
    np.testing.assert_array_equal(operands[1], dy)


@pytest.mark.parametrize(("heads", "d"), [(1, 32), (3, 64), (2, 96)])
@pytest.mark.parametrize("lengths", [(1,), (0, 33, 31, 0), (5, 32, 64, 1, 100)])
def test_strips_give_the_bits_of_rows(lengths, heads, d):
    batch, (qkv, dy) = pack(lengths), map(bits, make(sum(lengths), heads * d))
    y, lse, strips = np.empty_like(dy), np.empty((len(dy), heads), np.float32), in_strips(qkv)
    dqkv = on_a_line(strips.shape, np.uint16)
    scratch = np.full(cpu_bf16.workspace(len(dy), max(lengths), heads, heads * d), 0xFF, np.uint8)
    tail = (batch.offsets, batch.examples, heads, 0.1, *KEY, scratch)
    cpu_bf16.forward(y, lse, strips, *tail)
    cpu_bf16.backward(dqkv, dy, y, lse, strips, *tail)
    results = numbers(y), lse, numbers(in_rows(dqkv))
    for found, wanted in zip(results, compute_bf16(batch, heads, 0.1, numbers(qkv), numbers(dy)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", range(4), ids=["q", "k", "v", "dy"])
def test_a_bad_number_stays_visible_where_it_belongs(part, bad):
    """In its sequence and head wherever float32 shows it, and nowhere else."""
    batch = pack((20, 45, 33))
    qkv, dy = make_rounded(98, 48)
    (dy if part == 3 else qkv)[30, 20 if part == 3 else 48 * part + 20] = bad  # the second sequence and head of three
    with np.errstate(invalid="ignore"):
        got = parts(*compute_bf16(batch, 3, 0.0, qkv, dy))
        wanted = parts(*compute(cpu, batch, 3, 0.0, qkv, dy))
    for what, array in got.items():
        bad_there, bad_in_float32 = (~np.isfinite(x.reshape(98, 3, -1)) for x in (array, wanted[what]))
        assert (bad_there | ~bad_in_float32).all(), what
        bad_there[20:65, 1] = False
        assert not bad_there.any(), what
    assert any(not np.isfinite(array).all() for array in got.values())


def test_threads_and_packing_change_no_bit():
    batch = pack(PRIMES)
    qkv, dy = make(len(batch.positions), 96)
    assert_same_bits(lambda: compute_bf16(batch, 3, 0.1, qkv, dy))
    whole = compute_bf16(batch, 3, 0.1, qkv, dy)
    alone = pack((127,), [batch.examples[-1]])
    for got, wanted in zip(compute_bf16(alone, 3, 0.1, qkv[-127:], dy[-127:]), whole, strict=True):
        np.testing.assert_array_equal(got, wanted[-127:])


@pytest.mark.slow  # test_install.py has all kernels of a run
def test_same_bits_compiled_and_from_the_cache(tmp_path):
    code = (
        "import hashlib, numpy as np\n"
        "from minibert.kernels.attention import cpu_bf16 as k\n"
        "rng = np.random.default_rng(0)\n"
        "qkv, dy = (rng.integers(0x3E00, 0x4000, (70, n), np.uint16) for n in (192, 64))  # 1/8 to 2\n"
        "y, lse, dqkv = np.zeros_like(dy), np.zeros((70, 2), np.float32), np.zeros_like(qkv)\n"
        "offsets, examples = np.array([0, 37, 70], np.int32), np.zeros(70, np.int32)\n"
        "tail = offsets, examples, 2, 0.1, 5, 6, np.zeros(k.workspace(70, 37, 2, 64), np.uint8)\n"
        "k.forward(y, lse, qkv, *tail)\n"
        "k.backward(dqkv, dy, y, lse, qkv, *tail)\n"
        "hits = sum(sum(f.stats.cache_hits.values()) for f in (k._forward, k._backward))\n"
        "print(hits, hashlib.sha256(b''.join(a.tobytes() for a in (y, lse, dqkv))).hexdigest())"
    )

    def once() -> tuple[int, str]:
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        hits, digest = done.stdout.split()
        return int(hits), digest

    (compiled, first), (cached, second) = once(), once()
    assert compiled == 0 and cached == 2
    assert first == second


@needs_amx
def test_the_unit_is_off_after_a_call():
    compute_bf16(pack((3,)), 1, 0.0, *make(3, 8))
    assert state_now() & TILE_STATE == 0
