"""Attention's kernels for the GPU: as accurate as the CPU's, masks bit for bit, the same bits whatever the order."""

from __future__ import annotations

import numpy as np
import pytest

import gpus
from bits import FEW_ULPS
from checks import assert_as_accurate
from minibert.kernels.attention import gpu, reference
from minibert.kernels.common.philox import attention_mask
from packed import exact, pack
from test_attention import KEY, compute, make
from test_attention_bf16 import bits, guarded, make_rounded, naive, numbers, parts
from test_matmul_bf16 import rounded

BACKENDS = gpus.backends("attention")
LENGTHS = (1, 2, 3, 17, 31, 61)
# lengths, heads, head size, rate
CASES = [((), 2, 8, 0.1), ((1,), 3, 8, 0.5), ((7, 0, 19), 3, 5, 0.5), (LENGTHS, 2, 64, 0.1), ((130,), 1, 32, 0.0)]


@pytest.mark.parametrize("data", [{}, {"shift": 100.0}, {"size": 16.0}], ids=["plain", "shifted", "huge"])
@pytest.mark.parametrize(("lengths", "heads", "d", "rate"), [*CASES, ((1, 80), 1, 70, 0.1), ((40,), 1, 1, 0.1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_float32(backend, lengths, heads, d, rate, data):
    batch, inputs = pack(lengths), make(sum(lengths), heads * d, **data)
    results = [compute(which, batch, heads, rate, *arrays)
               for which, arrays in [(backend, inputs), (reference, inputs), (reference, exact(*inputs))]]  # fmt: skip
    for what, got, plain, wanted in zip(("y", "lse", "dqkv"), *results, strict=True):
        assert_as_accurate(got, plain, wanted, k=3, floor=5e-7, what=what)


def in_bf16(backend, batch, heads, rate, qkv, dy):
    """(y, lse, dqkv) as float32 of activations in bf16, from float32."""
    y, lse, dqkv = compute(backend, batch, heads, rate, bits(qkv), bits(dy))
    return numbers(y), lse, numbers(dqkv)


@pytest.mark.parametrize("data", [{}, {"shift": 100.0}, {"size": 4.0}], ids=["plain", "shifted", "large"])
@pytest.mark.parametrize(("lengths", "heads", "d", "rate"), CASES)
@pytest.mark.parametrize("widths", [gpu.TENSOR_WIDTHS, ()], ids=["tensor", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16(monkeypatch, backend, widths, lengths, heads, d, rate, data):
    """By the CPU's bars, in test_attention_bf16.py; on tensor cores, and by their plain twins."""
    monkeypatch.setattr(gpu, "TENSOR_WIDTHS", widths)
    batch = pack(lengths)
    qkv, dy = make_rounded(sum(lengths), heads * d, **data)
    got = parts(*in_bf16(backend, batch, heads, rate, qkv, dy))
    plain = parts(*naive(batch, heads, rate, qkv, dy))
    wanted = parts(*compute(reference, batch, heads, rate, *exact(qkv, dy)))
    for what in wanted:
        assert_as_accurate(got[what], plain[what], wanted[what], floor=FEW_ULPS if what == "lse" else 2e-3, what=what)
        if what != "lse" and wanted[what].size > 5000:
            errors = [np.abs(x[what] - wanted[what]).mean() for x in (got, plain)]
            assert errors[0] <= 1.15 * errors[1], what


@pytest.mark.parametrize("length", [33, 64, 150])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_masks_are_those_of_the_definition(compute, backend, length):
    """With scores of zero and values that name their key, y shows which probabilities are kept."""
    batch, heads, d = pack((3, length)), 2, 64
    for begin in range(0, length, d):
        keys = np.arange(begin, min(begin + d, length))
        qkv = np.zeros((3 + length, 3, heads, d), np.float32)
        qkv[3 + keys, 2, :, keys - begin] = 1
        dy = np.zeros((3 + length, heads * d), np.float32)
        y = compute(backend, batch, heads, 0.5, qkv.reshape(3 + length, -1), dy)[0]
        kept = y[3:].reshape(length, heads, d).swapaxes(0, 1)[..., : len(keys)]
        mask = attention_mask(length, heads, batch.examples[3], 0.5, *KEY)[..., keys]
        np.testing.assert_allclose(kept, mask / length, rtol=2**-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_backward_has_forward_s_masks(compute, backend):
    """y is linear in v: sum(dy * y) = sum(dv * v), to rounding, only if the masks are the same."""
    batch = pack((61, 150))
    qkv, dy = make_rounded(211, 128)
    qkv[:, 256:], dy = np.abs(qkv[:, 256:]), np.abs(dy)
    y, _, dqkv = compute(backend, batch, 2, 0.5, qkv, dy)
    np.testing.assert_allclose((dy * y).sum(), (dqkv[:, 256:] * qkv[:, 256:]).sum(), rtol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_one_key(compute, backend):
    """With one token p = 1: y is v times its multiplier, and no gradient reaches q and k."""
    batch = pack((1,) * 40)
    qkv, dy = make_rounded(40, 64)
    y, _, dqkv = compute(backend, batch, 2, 0.5, qkv, dy)
    masks = np.array([attention_mask(1, 2, example, 0.5, *KEY)[:, 0, 0] for example in batch.examples])
    assert 0 < (masks > 0).sum() < masks.size
    np.testing.assert_array_equal(y.reshape(40, 2, 32), qkv[:, 128:].reshape(40, 2, 32) * masks[..., None])
    np.testing.assert_allclose(dqkv[:, :128], 0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_may_rise_along_the_keys(backend):
    """By more powers of two than float32 has, from tile to tile."""
    batch = pack((200,))
    qkv, dy = make_rounded(200, 32, size=16.0)
    qkv[:, 32:64] *= np.linspace(0.1, 1, 200, dtype=np.float32)[:, None]
    qkv = rounded(qkv)
    got, plain = in_bf16(backend, batch, 1, 0.0, qkv, dy), naive(batch, 1, 0.0, qkv, dy)
    wanted = compute(reference, batch, 1, 0.0, *exact(qkv, dy))
    assert_as_accurate(got[0], plain[0], wanted[0], floor=2e-3, what="y")
    assert_as_accurate(got[1], plain[1], wanted[1], floor=FEW_ULPS, what="lse")


@gpus.needs_compiler
def test_a_card_without_tensor_cores_takes_the_plain_twin():
    batch = pack((40,))
    arrays = make_rounded(40, 64)
    older, newer = (
        in_bf16(gpus.Emulated("attention", capability=which), batch, 2, 0.1, *arrays) for which in [(7, 5), (9, 0)]
    )
    assert any((a != b).any() for a, b in zip(older, newer, strict=True))
    for a, b in zip(older, newer, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


@pytest.mark.parametrize("sequences", [33, 1030])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_every_sequence_is_found(compute, backend, sequences):
    """Among many, most of them empty: without dropout one token's y is its v."""
    batch = pack(np.arange(sequences) % 16 == 0)
    qkv, dy = make_rounded(len(batch.positions), 32)
    y, _, dqkv = compute(backend, batch, 1, 0.0, qkv, dy)
    np.testing.assert_array_equal(y, qkv[:, 64:])
    np.testing.assert_array_equal(dqkv[:, 64:], dy)


@gpus.needs_compiler
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_the_order_of_threads_changes_no_bit(compute):
    batch = pack((70, 40))
    qkv, dy = make_rounded(110, 64)
    results = [compute(gpus.Emulated("attention", order=order), batch, 1, 0.1, qkv, dy) for order in (0, 1, 12345)]
    for other in results[1:]:
        for got, wanted in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_packing_changes_no_bit(compute, backend):
    """Neither do the larger blocks that long sequences get."""
    batch = pack((1, 2, 3, 5, 17, 101))
    qkv, dy = make_rounded(129, 64)
    whole = compute(backend, batch, 2, 0.1, qkv, dy)
    alone = pack((101,), [batch.examples[-1]])
    for got, wanted in zip(compute(backend, alone, 2, 0.1, qkv[-101:], dy[-101:]), whole, strict=True):
        np.testing.assert_array_equal(got, wanted[-101:])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", range(4), ids=["q", "k", "v", "dy"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compute", [compute, in_bf16], ids=["fp32", "bf16"])
def test_a_bad_number_stays_visible_where_it_belongs(compute, backend, part, bad):
    """In its sequence and head wherever the definition shows it, and nowhere else."""
    batch = pack((20, 45, 33))
    qkv, dy = make_rounded(98, 96)
    (dy if part == 3 else qkv)[30, 40 if part == 3 else 96 * part + 40] = bad  # the second sequence and head of three
    with np.errstate(invalid="ignore"):
        got = parts(*compute(backend, batch, 3, 0.0, qkv, dy))
        wanted = parts(*naive(batch, 3, 0.0, qkv, dy))
    for what, array in got.items():
        there, in_numpy = (~np.isfinite(x.reshape(98, 3, -1)) for x in (array, wanted[what]))
        assert (there | ~in_numpy).all(), what
        there[20:65, 1] = False
        assert not there.any(), what
    assert any(not np.isfinite(array).all() for array in got.values())


@gpus.needs_compiler
@pytest.mark.parametrize("storage", [np.float32, np.uint16])
def test_nothing_else_is_touched(storage):
    """Not a byte around the results and the scratch, and not one of the operands."""
    backend, batch, heads, d = gpus.Emulated("attention"), pack((65, 0, 30)), 2, 32
    qkv, dy = make(95, heads * d)
    if storage == np.uint16:
        qkv, dy = bits(qkv), bits(dy)
    kinds = {"y": (dy.shape, storage), "lse": ((95, heads), np.float32), "dqkv": (qkv.shape, storage)}
    pairs = {name: guarded(*kind, 8) for name, kind in kinds.items()}
    scratch, around = guarded((backend.workspace(95, 65, heads, heads * d),), np.uint8, 16)
    y, lse, dqkv = (array for array, _ in pairs.values())
    operands = qkv.copy(), dy.copy()
    tail = (batch.offsets, batch.examples, heads, 0.1, *KEY, scratch)
    backend.forward(y, lse, operands[0], *tail)
    backend.backward(dqkv, operands[1], y, lse, operands[0], *tail)
    for array, memory in [*pairs.values(), (scratch, around)]:
        array.view(np.uint8)[...] = 0xFF
        assert (memory == 0xFF).all(), "written beside it"
    np.testing.assert_array_equal(operands[0], qkv)
    np.testing.assert_array_equal(operands[1], dy)
