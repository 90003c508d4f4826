"""Training with JAX beside the engine's on the NumPy reference and the CPU: losses, weights, saved states, stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from golden import parity
from minibert import checkpoint, loop, tasks, training
from minibert import settings as settings_module
from minibert.bert import Bert
from minibert.errors import BackendError, ConfigError, RunError
from minibert.evaluation import Split, read_split
from minibert.kernels import devices
from minibert.model import outputs
from minibert.progress import Reporter
from minibert.runs import RunDirectory
from minibert.settings import TrainConfig
from minibert.tokenizer import Features, Tokenizer
from tpu_worker import assert_same_training, flat, trained, trainer

jax = pytest.importorskip("jax", reason='JAX is an extra: pip install ".[jax]"')

from minibert.tpu import device as tpu  # noqa: E402 - only where JAX is
from minibert.tpu import planning  # noqa: E402
from minibert.tpu.trainer import split  # noqa: E402


@pytest.fixture(scope="module")
def straight() -> tuple[np.ndarray, np.ndarray]:
    return trained(trainer("tpu"))


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_twenty_steps_with_dropout_in_micro_batches_are_those_of_the_engine(straight, name):
    assert_same_training(straight, trained(trainer(name, micro_batch=11)))


def test_schedule_and_bias_correction_are_the_engines():
    assert_same_training(*(trained(trainer(n, recipe="stable", warmup=0.2), 8) for n in ("tpu", "cpu")))


def test_every_stage_begins_with_moments_of_zero():
    assert_same_training(*(trained(trainer(n, stages=2, epochs=1), 8) for n in ("tpu", "cpu")))


def test_a_saved_state_goes_on_with_the_same_bits(straight, tmp_path):
    first = trainer("tpu")
    losses = [first.step(step).loss for step in range(5)]
    first.fetch()
    run = RunDirectory(tmp_path)
    run.save_state(5, first.optimizer)
    second = trainer("tpu")
    assert run.load_state(second.optimizer) == 5
    losses += [second.step(step).loss for step in range(5, 8)]
    assert losses == straight[0][:8, 0].tolist()
    other = trainer("cpu")  # what a TPU has saved another device can go on with
    assert run.load_state(other.optimizer) == 5
    assert other.step(5).loss == pytest.approx(losses[5], abs=1e-5)


def test_a_loss_that_is_not_finite_updates_nothing(tmp_path):
    t = trainer("tpu")
    t.bert.arrays()["classifier.weight"][...] = 3e38
    before = flat(t)
    description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
    with (
        RunDirectory.claim(tmp_path / "run", description, False, False) as run,
        pytest.raises(RunError, match="step 1 of 43.*lower learning rate"),
    ):
        loop.train(t, run, 1000, Reporter())
    np.testing.assert_array_equal(flat(t), before)
    assert not any(moments.any() for _, moments in t.optimizer.state())


def test_outputs_are_the_engines_and_follow_training():
    t, features = trainer("tpu"), models.split(40).features
    np.testing.assert_allclose(outputs(t.bert, features), outputs(trainer("cpu").bert, features), rtol=0, atol=1e-5)
    before = outputs(t.bert, features)
    trained(t, 2)
    assert np.abs(outputs(t.bert, features) - before).max() > 0.1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"optimizer": "adafactor"}, "adafactor.*TPU"),
        ({"recompute": "cheap"}, "recompute cheap.*layers"),
        ({"layerwise_update": True}, "--layerwise-update is not for TPUs"),
    ],
)
def test_what_tpus_have_not_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(task="test", device="tpu", **given)
    with pytest.raises(ConfigError, match="--shard-parameters"):
        TrainConfig(task="test", shard_parameters=True)


def test_tf32_is_refused_in_one_line():
    with pytest.raises(BackendError, match="tf32 is the GPU's"):
        TrainConfig(task="test", device="tpu", precision="tf32")


@pytest.mark.parametrize(
    ("settings", "count", "wanted"),
    [
        ({}, 8, (1, 32)),
        ({"micro_batch": 1}, 8, (4, 8)),  # with fewer rows than devices the rest would be padding
        ({"micro_batch": 12}, 8, (4, 8)),
        ({"micro_batch": 16}, 8, (2, 16)),
        ({"micro_batch": 11}, 1, (3, 11)),
        ({"micro_tokens": 640}, 1, (4, 8)),
        ({"micro_tokens": 10}, 1, (32, 1)),
    ],
)
def test_micro_batches_are_full(settings, count, wanted):
    assert split(32, 80, TrainConfig(task="test", **settings), count) == wanted


def test_a_model_stands_once_on_the_devices_while_it_is_trained():
    t = trainer("tpu")
    t.step(0)
    outputs(t.bert, t.stages[0].data.features)
    assert t.bert in t.bert.device._params
    t.step(1)
    assert t.bert not in t.bert.device._params


class Program:
    """Stands for a compiled update: it fits where layers are computed again, with at most `rows` examples at once."""

    tried: list[tuple[str, int]] = []

    def __init__(self, recompute: bool, rows: int):
        self.recompute, self.rows = recompute, rows

    def lower(self, micros: int, rows: int) -> Program:
        self.tried.append(("layers" if self.recompute else "none", rows))
        self.fits = self.recompute and rows <= self.rows
        return self

    def compile(self) -> None:
        if not self.fits:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it is too much")


@pytest.mark.parametrize(("rows", "wanted"), [(12, ("layers", None)), (3, ("layers", 96)), (0, None)])
def test_what_does_not_fit_is_made_smaller_until_it_does(rows, wanted, monkeypatch):
    monkeypatch.setattr(planning, "platform", lambda: "tpu")
    monkeypatch.setattr(planning.training, "program", lambda mesh, config, head, again, *_: Program(again, rows))
    monkeypatch.setattr(planning.training, "arguments", lambda mesh, config, head, micros, rows, *_: (micros, rows))
    t = trainer("tpu", micro_batch=11)
    monkeypatch.setattr(Program, "tried", [])
    data = [(stage.data, 1.0) for stage in t.stages]
    arguments = t.settings, t.bert.config, data, t.bert.device, "auto", False
    if wanted is None:
        with pytest.raises(ConfigError, match="does not suffice for 1 examples of 32 tokens"):
            planning.fitted(*arguments)
        assert Program.tried == [("none", 11), *(("layers", rows) for rows in (11, 6, 3, 2, 1))]
    else:
        found, told = planning.fitted(*arguments)
        assert (found.recompute, found.micro_tokens) == wanted and "layers" in told


def test_memory_that_runs_out_in_training_is_told():
    def program(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

    t = trainer("tpu")
    t._program = program
    with pytest.raises(RunError, match="1 x cpu does not suffice; train anew with --recompute layers"):
        t.step(0)


def test_precision_is_settled_by_what_jax_runs_on(monkeypatch):
    assert settings_module.settled_precision("auto", "tpu") == "fp32"
    monkeypatch.setattr(tpu, "platform", lambda: "tpu")
    assert settings_module.settled_precision("auto", "tpu") == "bf16"
    assert settings_module.settled_precision("fp32", "tpu") == "fp32"


def losses(folder: Path, data: Split, name: str, steps: int, rate: float = 0.0, **settings: Any) -> list[float]:
    """Of a checkpoint in training on one of the devices; `rate`: that of all dropouts."""
    found = checkpoint.load(folder)
    config = dataclasses.replace(
        found.config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate, classifier_dropout=rate
    )
    device = tpu.open("fp32") if name == "tpu" else devices.open(name)
    bert = Bert(config, 2, device)
    bert.fill(found.arrays)
    device_name = "cpu" if name == "reference" else name
    t = training.trainer(bert, data, TrainConfig(task="mrpc", precision="fp32", device=device_name, **settings))
    with device.session():
        return [t.step(step).loss for step in range(steps)]


@pytest.mark.slow
def test_twenty_steps_of_minilm_with_dropout_are_those_of_the_engine(shared, tmp_path):
    folder, sequences = parity.write_minilm(tmp_path, shared), parity.training_sequences("minilm")
    features = Features(sequences.ids, sequences.segments.astype(np.int8), sequences.offsets)
    data = Split("train", features, sequences.labels)
    found = {
        name: losses(folder, data, name, 20, 0.1, batch_size=8, epochs=2, learning_rate=5e-5, warmup=0.0)
        for name in ("tpu", "cpu", "reference")
    }
    for name in ("cpu", "reference"):
        np.testing.assert_allclose(found["tpu"], found[name], rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_first_losses_of_mrpc_are_the_cpus(shared, tmp_path):
    setting, folder = dict(parity.MRPC), parity.write_minilm(tmp_path, shared)
    steps = setting.pop("steps")
    data = read_split(tasks.get("mrpc"), "train", shared / "data/glue", Tokenizer.load(folder), 128)
    found = {name: losses(folder, data, name, steps, **setting) for name in ("tpu", "cpu")}
    np.testing.assert_allclose(found["tpu"], found["cpu"], rtol=0, atol=1e-3)


def test_memory_that_runs_out_when_a_result_is_asked_for_is_told(monkeypatch):
    def exhausted(tree):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while trying to allocate")

    t = trainer("tpu")
    t.step(0)
    monkeypatch.setattr("minibert.tpu.sharding.get", exhausted)
    for call in (lambda: t.step(1), t.fetch):
        with pytest.raises(RunError, match="1 x cpu does not suffice; train anew with --recompute layers"):
            call()
    with pytest.raises(RunError, match="does not suffice; a smaller model"):
        outputs(t.bert, t.stages[0].data.features)


def test_programs_are_kept_unless_the_user_says_where(monkeypatch, tmp_path):
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        tpu.keep_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "minibert" / "xla")
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
        tpu.keep_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "minibert" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
