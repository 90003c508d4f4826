"""The model in jax.numpy beside its definitions: dropout's bits, logits, every gradient; what padding must not do."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import models
from golden import parity
from minibert import checkpoint
from minibert.bert import Bert
from minibert.checkpoint import names
from minibert.config import BertConfig
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.common import philox
from minibert.random import Key
from minibert.settings import TrainConfig
from minibert.squad.reader import Reader
from minibert.tokenizer import Features
from minibert.training import Trainer

jax = pytest.importorskip("jax", reason='JAX is an extra: pip install ".[jax]"')

from minibert.tpu import batches, dropout, model, training  # noqa: E402 - only where JAX is

GOLDEN = json.loads((parity.HERE / "dropout.json").read_text())
ROWS, LENGTH = 4, 40  # of each of the micro-batches, seven examples in all: one row is left over
KEY = Key(2**40 + 9, 4)

_logits = jax.jit(model.logits, static_argnames=("config", "recompute", "precision"))
_gradients = jax.jit(training.gradients, static_argnames=("config", "recompute", "precision"))
_words, _hidden = jax.jit(dropout.words), jax.jit(dropout.hidden_mask, static_argnums=(0, 1, 3))
_attention = jax.jit(dropout.attention_mask, static_argnums=(0, 1, 3))


def key_of(seed: int, stream: int) -> np.ndarray:
    return np.array([seed & philox.WORD, seed >> 32, stream], np.uint32)


def unpack(rows: list[str], length: int) -> np.ndarray:
    return np.array([np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8))[:length] for row in rows], bool)


@pytest.mark.parametrize("case", GOLDEN["words"])
def test_words(case):
    counter = [np.uint32(word) for word in case["counter"][:3]]
    assert _words(*counter, key_of(case["seed"], case["counter"][3])).tolist() == case["words"]


@pytest.mark.parametrize("case", [case for case in GOLDEN["hidden"] if max(case["positions"]) < 2**10])
def test_hidden_mask(case):
    examples = np.array(case["examples"], np.int32)
    key = key_of(case["seed"], case["stream"])
    mask = np.asarray(_hidden(max(case["positions"]) + 1, case["c"], examples, case["rate"], key))
    found = mask[np.arange(len(examples)), case["positions"]]
    np.testing.assert_array_equal(found, unpack(case["kept"], case["c"]))


@pytest.mark.parametrize("case", GOLDEN["attention"], ids=lambda case: f"{case['length']} {case['rate']}")
def test_attention_mask(case):
    examples, key = np.array([case["example"]], np.int32), key_of(case["seed"], case["stream"])
    found = _attention(case["length"], case["heads"], examples, case["rate"], key)[0]
    np.testing.assert_array_equal(found, [unpack(rows, case["length"]) for rows in case["kept"]])


def test_keys_are_the_engines():
    for key in (KEY, Key(2**64 - 1, 2**23 + 5), Key(0, 0)):
        packed = dropout.pack(key)
        for site, layer in (("embedding", 0), ("attention", 11), ("ffn", 23), ("classifier", 0)):
            found = np.asarray(dropout.at(packed, site, layer)).tolist()
            assert found == [key.seed & philox.WORD, key.seed >> 32, key.at(site, layer).stream]


def test_what_is_kept_is_scaled_as_the_definition_scales_it():
    ones = np.ones((2, 5, 24), np.float32)
    found = dropout.hidden(ones, np.array([3, 9], np.int32), 0.1, dropout.pack(KEY))
    wanted = [
        philox.hidden_mask(np.arange(5), np.full(5, n), 24, 0.1, KEY.seed, KEY.at("embedding").stream) for n in (3, 9)
    ]
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("head", [3, 1, model.SPANS])
def test_a_checkpoint_comes_back_as_it_was(head):
    spans = head == model.SPANS
    shapes = names.shapes(models.CONFIG, None if spans else head, spans)
    arrays = {name: np.random.default_rng(i).random(s, np.float32) for i, (name, s) in enumerate(shapes.items())}
    params = model.from_arrays(arrays)
    found = model.to_arrays(params)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    described = model.shapes(models.CONFIG, head)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), described)


@pytest.mark.parametrize("case", ["small_erf", pytest.param("minilm", marks=pytest.mark.slow)])  # tanh: below
def test_recorded_logits_and_gradients(case, tmp_path, request):
    shared = request.getfixturevalue("shared") if case == "minilm" else None
    found = checkpoint.load(parity.write_checkpoint(case, tmp_path, shared))
    recorded, sequences = parity.load(parity.HERE / f"model_{case}.npz"), parity.model_batch(case)
    features = Features(sequences.ids, sequences.segments.astype(np.int8), sequences.offsets)
    batch = batches.pad(features, np.arange(7), sequences.labels, 64, 8)
    params = model.from_arrays(found.arrays)
    logits = np.asarray(_logits(params, batch, found.config))
    np.testing.assert_allclose(logits[:7], recorded["logits"], rtol=0, atol=1e-5)
    loss, gradients = _gradients(params, {name: a[None] for name, a in batch.items()}, found.config, None)
    assert float(loss) == pytest.approx(float(recorded["loss"]), abs=1e-5)
    parity.assert_same_gradients(parity.load_brief(recorded), model.to_arrays(gradients))


# Beside the engine, with dropout: the classifier, a regression and the reader.

HEADS: dict[str, Any] = {"classes": 3, "regression": 1, "spans": model.SPANS}
# What shifts a reader's logits of all tokens alike has a gradient of exactly zero.
ZERO = ("qa_outputs.bias", f"encoder.layer.{models.CONFIG.num_hidden_layers - 1}.output.LayerNorm.bias")


def config_of(head: str) -> BertConfig:
    return dataclasses.replace(models.CONFIG, hidden_act="gelu_new" if head == "regression" else "gelu")


def data_of(head: str) -> Split:
    data, rng = models.split(7), np.random.default_rng(8)
    if head == "regression":
        return dataclasses.replace(data, labels=rng.normal(size=7).astype(np.float32))
    if head == "spans":
        return dataclasses.replace(data, labels=rng.integers(0, 3, (7, 2)).astype(np.int32))
    return data


def weights_of(head: str) -> dict[str, np.ndarray]:
    if head != "spans":
        return models.arrays(outputs=HEADS[head])
    arrays = {name: a for name, a in models.arrays().items() if not name.startswith(("pooler", "classifier"))}
    rng = np.random.default_rng(2)
    return arrays | {
        n: rng.normal(size=s).astype(np.float32) for n, s in (("qa_outputs.weight", (2, 24)), ("qa_outputs.bias", (2,)))
    }


def of_engine(head: str, device: devices.Device) -> tuple[float, dict[str, np.ndarray]]:
    config = config_of(head)
    bert = Reader(config, device) if head == "spans" else Bert(config, HEADS[head], device)
    bert.fill(weights_of(head))
    trainer = Trainer(bert, data_of(head), TrainConfig(task="test", batch_size=7, epochs=1, precision="fp32"))
    with device.session():
        losses = trainer.gradients(np.arange(7), KEY)
    return models.mean(device, losses), bert.arrays(gradients=True)


def of_jax(head: str, fill: int = 0) -> tuple[float, dict[str, np.ndarray]]:
    """In two micro-batches of four rows; `fill` is what stands wherever nothing should be read. The reader's layers are
    computed again in the backward pass.
    """
    data = data_of(head)
    batch = batches.pad(data.features, np.arange(7), data.labels, LENGTH, 2 * ROWS)
    padding = np.arange(LENGTH) >= batch["lengths"][:, None]
    padding[7:] = True
    batch["ids"][padding], batch["segments"][padding] = fill, fill % 2
    micros = {name: a.reshape(2, ROWS, *a.shape[1:]) for name, a in batch.items()}
    params = model.from_arrays(weights_of(head))
    loss, gradients = _gradients(params, micros, config_of(head), dropout.pack(KEY), recompute=head == "spans")
    return float(loss), model.to_arrays(gradients)


@pytest.mark.parametrize(
    "head", ["spans", *(pytest.param(h, marks=pytest.mark.slow) for h in ("classes", "regression"))]
)
def test_gradients_with_dropout_are_those_of_the_definition_and_of_the_cpu(head):
    loss, found = of_jax(head)
    for device in (devices.open("reference", float_type="float64"), devices.open("cpu")):
        exact, wanted = of_engine(head, device)
        assert loss == pytest.approx(exact, abs=1e-5)
        zeros = ZERO if head == "spans" else ()
        for name in zeros:
            assert parity.norm(found[name]) < 1e-6 * parity.norm(wanted["qa_outputs.weight"]), name
        brief = parity.Brief.of({name: g for name, g in wanted.items() if name not in zeros})
        parity.assert_same_gradients(brief, {name: g for name, g in found.items() if name not in zeros})


SLOW = [pytest.param(head, marks=pytest.mark.slow) for head in ("classes", "regression")]  # a compilation each


@pytest.mark.parametrize("head", ["spans", *SLOW])
def test_padding_and_filled_rows_change_no_bit(head):
    clean, found = of_jax(head)
    loss, dirty = of_jax(head, fill=77)
    assert loss == clean
    for name, gradient in found.items():
        np.testing.assert_array_equal(dirty[name], gradient, err_msg=name)


def test_bf16_is_near():
    batch = batches.pad(data_of("classes").features, np.arange(7), None, LENGTH, 7)
    params = model.from_arrays(weights_of("classes"))
    exact, found = (np.asarray(_logits(params, batch, models.CONFIG, precision=p)) for p in ("fp32", "bf16"))
    assert found.dtype == np.float32 and 1e-4 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("head", ["classes", "spans"])
def test_in_bf16_gradients_of_weights_are_float32(head):
    """Sums of products are: rounded to bf16 they would be off by up to 2^-9, as what goes into them is."""
    data = data_of(head)
    batch = {n: a[None] for n, a in batches.pad(data.features, np.arange(7), data.labels, LENGTH, 7).items()}
    params = model.from_arrays(weights_of(head))
    for name, gradient in _gradients(params, batch, models.CONFIG, None, precision="bf16")[1][model.LAYERS].items():
        narrow = np.asarray(gradient).astype(ml_dtypes.bfloat16).astype(np.float32)
        assert gradient.dtype == np.float32 and (name.endswith("bias") or np.mean(narrow == gradient) < 0.5), name
