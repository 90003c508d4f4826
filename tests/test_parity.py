"""fp32 parity with transformers, by recordings: logits, every gradient, ten steps, a hundred losses of MRPC.

tests/golden/record_model.py and record_training.py made the recordings; nothing here needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from golden import parity
from minibert import checkpoint, optim, parameters
from minibert.bert import Bert
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.settings import TrainConfig
from minibert.tokenizer import Features, Tokenizer
from minibert.training import Trainer
from models import mean


@pytest.fixture(params=parity.CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(case: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The case's checkpoint."""
    shared = request.getfixturevalue("shared") if case == "minilm" else None
    return parity.write_checkpoint(case, tmp_path, shared)


def load_bert(folder: Path) -> Bert:
    found = checkpoint.load(folder)
    bert = Bert(found.config, len(found.arrays["classifier.bias"]), devices.open("cpu"))
    bert.fill(found.arrays)
    return bert


def split_of(sequences: parity.Sequences) -> Split:
    features = Features(sequences.ids, sequences.segments.astype(np.int8), sequences.offsets)
    return Split("train", features, sequences.labels)


def gradients(bert: Bert, sequences: parity.Sequences) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss over the sequences and every parameter's gradient."""
    trainer = Trainer(bert, split_of(sequences), TrainConfig(task="mrpc", batch_size=len(sequences.labels)))
    with bert.device.session():
        losses = trainer.gradients(np.arange(len(sequences.labels)), key=None)
    return mean(bert.device, losses), bert.arrays(gradients=True)


def losses(bert: Bert, split: Split, steps: int, **settings) -> list[float]:
    trainer = Trainer(bert, split, TrainConfig(task="mrpc", **settings))
    with bert.device.session():
        return [trainer.step(step).loss for step in range(steps)]


def ten_steps(case: str, folder: Path) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses, and how far each parameter moved."""
    bert = load_bert(folder)
    before = {name: p.astype(np.float64) for name, p in bert.arrays().items()}
    settings = {"batch_size": parity.STEP_SEQUENCES, "learning_rate": parity.RATES[case], "seed": parity.STEPS_SEED}
    sequences = split_of(parity.training_sequences(case))
    found = losses(bert, sequences, parity.STEPS, epochs=1, warmup=0, **settings)
    return found, {name: p - before[name] for name, p in bert.arrays().items()}


def test_logits(case: str, folder: Path) -> None:
    from minibert.model import outputs

    recorded = parity.load(parity.HERE / f"model_{case}.npz")
    logits = outputs(load_bert(folder), split_of(parity.model_batch(case)).features)
    np.testing.assert_allclose(logits, recorded["logits"], rtol=0, atol=1e-5)


def test_gradients(case: str, folder: Path) -> None:
    recorded = parity.load(parity.HERE / f"model_{case}.npz")
    loss, found = gradients(load_bert(folder), parity.model_batch(case))
    assert loss == pytest.approx(float(recorded["loss"]), abs=1e-5)
    parity.assert_same_gradients(parity.load_brief(recorded), found)


def test_ten_steps(case: str, folder: Path) -> None:
    recorded = json.loads(parity.STEPS_FILE.read_text())[case]
    assert np.abs(np.subtract(recorded["losses"], recorded["untrained"])).max() > 0.1, "it hardly moved"
    found, moved = ten_steps(case, folder)
    np.testing.assert_allclose(found, recorded["losses"], rtol=0, atol=1e-5)
    moves = parity.load_brief(parity.load(parity.HERE / f"moved_{case}.npz"))
    parity.assert_same_moves(moves, moved)


@pytest.mark.parametrize("case", ["small_erf"])
def test_ten_steps_see_the_decay(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the losses are hardly other: the way of the parameters is what shows it."""
    moves = parity.load_brief(parity.load(parity.HERE / f"moved_{case}.npz"))
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="moved otherwise"):
        patch.setattr(optim, "WEIGHT_DECAY", 0.0)
        parity.assert_same_moves(moves, ten_steps(case, folder)[1])
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="moved otherwise"):
        patch.setattr(parameters, "is_decayed", lambda name: True)
        parity.assert_same_moves(moves, ten_steps(case, folder)[1])


@pytest.mark.slow
def test_first_losses_of_mrpc(shared: Path, tmp_path: Path) -> None:
    from minibert import tasks
    from minibert.evaluation import read_split

    recorded = json.loads(parity.MRPC_FILE.read_text())
    settings = dict(recorded["settings"])
    steps, longest = settings.pop("steps"), settings["max_seq_length"]
    folder = parity.write_minilm(tmp_path, shared)
    bert = load_bert(folder)
    split = read_split(tasks.get("mrpc"), "train", shared / "data/glue", Tokenizer.load(folder), longest)
    found = losses(bert, split, steps, **settings)
    np.testing.assert_allclose(found, recorded["losses"], rtol=0, atol=1e-3)


# The checker itself: each of these faults has to be found, in the recordings' own models.


@pytest.fixture(scope="module")
def computed() -> tuple[parity.Brief, dict[str, np.ndarray]]:
    """Gradients of the small model's shapes, and their recording in brief."""
    whole = {name: parity.uniform(3, name, w.shape, 0.01) for name, w in parity.small_weights().items()}
    for name in whole:
        if name.endswith("self.key.bias"):
            whole[name] *= 1e-9
    return parity.Brief.of(whole), whole


def changed(gradients: dict[str, np.ndarray], name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    return gradients | {name: value}


def test_checker_accepts_rounding(computed: tuple) -> None:
    brief, whole = computed
    rounded = {n: g * (1 + parity.uniform(4, n, g.shape, 5e-6)) for n, g in whole.items()}
    parity.assert_same_gradients(brief, rounded)


def test_checker_finds_a_scaled_gradient(computed: tuple) -> None:
    brief, whole = computed
    for name, gradient in whole.items():
        if not name.endswith("self.key.bias"):
            with pytest.raises(AssertionError, match=f"^{name}: differs"):
                parity.assert_same_gradients(brief, changed(whole, name, gradient * np.float32(1.001)))


def test_checker_finds_swapped_heads(computed: tuple) -> None:
    """The norm stays the same; projections and entries do not."""
    brief, whole = computed
    for part in ("query", "key", "value"):
        name = f"encoder.layer.1.attention.self.{part}.weight"
        heads = whole[name].reshape(parity.SMALL["num_attention_heads"], -1)
        swapped = heads[[0, 1, 3, 2, 4, 5]].reshape(whole[name].shape)
        with pytest.raises(AssertionError, match=f"^{name}: differs"):
            parity.assert_same_gradients(brief, changed(whole, name, swapped))


def test_checker_finds_one_wrong_row(computed: tuple) -> None:
    """One word's gradient lost, out of 997: neither the norm nor 64 entries must have seen it."""
    brief, whole = computed
    name = "embeddings.word_embeddings.weight"
    wrong = whole[name].copy()
    wrong[500] = 0
    with pytest.raises(AssertionError, match=f"^{name}: differs"):
        parity.assert_same_gradients(brief, changed(whole, name, wrong))


def test_checker_finds_what_is_no_number_missing_or_not_zero(computed: tuple) -> None:
    brief, whole = computed
    name = "encoder.layer.1.attention.self.key.bias"
    with pytest.raises(AssertionError, match="not finite"):
        parity.assert_same_gradients(brief, changed(whole, name, np.full_like(whole[name], np.nan)))
    with pytest.raises(AssertionError, match=name):
        parity.assert_same_gradients(brief, changed(whole, name, whole[name] + np.float32(1e-5)))
    with pytest.raises(AssertionError, match=name):
        parity.assert_same_gradients(brief, {n: g for n, g in whole.items() if n != name})


def test_estimate_of_a_difference(computed: tuple) -> None:
    """An error of a known size in a random direction is seldom estimated as less than it is."""
    brief, whole = computed
    low = 0
    for name, gradient in whole.items():
        error = parity.uniform(5, name, gradient.shape, 1.0)
        error *= 3e-4 * parity.norm(gradient) / parity.norm(error)
        estimate = parity.difference(brief, name, gradient + error)
        assert estimate < 30 * 3e-4, name
        low += estimate < 3e-4 * 0.99
    assert low <= 0.05 * len(whole)
