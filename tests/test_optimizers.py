"""The optimizers of a run: what they keep and count, that they resume to the bit, and what they leave alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minibert import settings
from minibert.errors import ConfigError, RunError
from minibert.kernels import devices
from minibert.loop import train
from minibert.optimizers import OPTIMIZERS
from minibert.progress import Reporter
from minibert.runs import RunDirectory
from minibert.tasks import Task
from models import CONFIG, clip, trainer, weights

TASK = Task("test", ("no", "yes", "maybe"), ("accuracy",), True)
EACH = pytest.mark.parametrize("name", OPTIMIZERS)


def drive(t, steps: int, seed: int = 0) -> None:
    """Updates with random gradients, without the model; padding gets none, as in training."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        for group in t.bert.groups:
            for param in group:
                param.grad[...] = rng.standard_normal(param.shape) * 0.01
        clip(t.optimizer)
        t.optimizer.update(step, 1e-2)


def test_the_setting_and_the_table_have_the_same_names():
    assert tuple(OPTIMIZERS) == settings.OPTIMIZERS
    with pytest.raises(ConfigError, match="optimizer sgd is out of range: it must be adam, adam8bit, adafactor"):
        trainer(optimizer="sgd")


def test_adafactor_has_no_bias_correction_whatever_the_recipe():
    assert not trainer(optimizer="adafactor", recipe="stable").settings.bias_correction
    assert trainer(optimizer="adam8bit", recipe="stable").settings.bias_correction
    with pytest.raises(ConfigError, match="bias correction True.*off for adafactor"):
        trainer(optimizer="adafactor", bias_correction=True)


@EACH
def test_what_it_keeps_is_counted_as_moments(name):
    wide = dataclasses.replace(CONFIG, hidden_size=96, intermediate_size=384)
    t = trainer(config=wide, optimizer=name)
    count = sum(group.weights.size for group in t.bert.groups)
    kept = sum(array.nbytes for _, array in t.optimizer.state())
    assert kept <= {"adam": 8, "adam8bit": 2.2, "adafactor": 0.2}[name] * count
    assert kept <= t.bert.device.in_use["moments"] <= kept + 64 * len(list(t.optimizer.state()))


@EACH
def test_an_update_allocates_nothing_uses_the_gradients_up_and_leaves_padding_alone(name, monkeypatch):
    t = trainer(optimizer=name)
    before = weights(t)
    drive(t, 1)
    monkeypatch.setattr(type(t.bert.device), "empty", None)
    drive(t, 3)
    for group in t.bert.groups:
        assert not group.gradients.any()
        padding = np.ones(group.weights.size, bool)
        for param in group:
            padding[param.span] = False
        assert not group.weights[padding].any()
    for key, array in weights(t).items():
        assert not np.array_equal(array, before[key]), key


@EACH
def test_without_gradients_weights_of_products_and_embeddings_decay_and_nothing_else(name):
    t = trainer(optimizer=name)
    before = weights(t)
    t.optimizer.update(0, 0.5)
    for key, array in weights(t).items():
        kept = 1.0 if key.endswith("bias") or "LayerNorm" in key else 1 - 0.5 * 0.01
        np.testing.assert_allclose(array, kept * before[key], rtol=1e-6, err_msg=key)


def test_adafactor_s_averages_begin_with_the_first_squares_and_slow_down():
    """beta2 = 1 - t^-0.8: nothing is kept of zero, then 1 - 2^-0.8 of the first."""
    t = trainer(optimizer="adafactor")
    squares = []
    for step in (0, 1):
        for group in t.bert.groups:
            group.gradients.fill(0)
        grad = np.random.default_rng(step).standard_normal((24, 24)) * 1e-3
        t.bert.head["pooler.dense.weight"].grad[...] = grad
        squares.append((grad**2).mean(0))
        t.optimizer.update(step, 0.0)
    state = dict(t.optimizer.state())
    wanted = (1 - 2**-0.8) * squares[0] + 2**-0.8 * squares[1]
    np.testing.assert_allclose(state["columns/head/pooler.dense.weight"], wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adam8bit"])
def test_bias_correction_makes_the_first_update_a_sign(name):
    """Whatever the gradient's size, beside which Adam's eps is small here: the rate, against its sign."""
    t = trainer(optimizer=name, bias_correction=True)
    before, rng = weights(t), np.random.default_rng(0)
    for group in t.bert.groups:
        for param in group:
            param.grad[...] = rng.choice([-0.01, 0.02], param.shape)
    signs = {key: np.sign(g) for key, g in t.bert.arrays(gradients=True).items()}
    t.optimizer.update(0, 0.1)
    for key, array in weights(t).items():
        kept = 1.0 if key.endswith("bias") or "LayerNorm" in key else 1 - 0.1 * 0.01
        np.testing.assert_allclose(array, kept * before[key] - 0.1 * signs[key], rtol=1e-4, atol=1e-4, err_msg=key)


@EACH
def test_the_cpu_goes_where_the_reference_goes(name):
    """Adam8bit rounds to codes, now and then to the other neighbour, which is an eighth of the number at worst."""
    start, ours, theirs = (
        trainer(device, optimizer=name)
        for device in (None, devices.open("cpu"), devices.open("reference", float_type="float64"))
    )
    drive(ours, 5)
    drive(theirs, 5)
    for key, first in weights(start).items():
        got, wanted = weights(ours)[key], weights(theirs)[key]
        apart, way = np.linalg.norm(got - wanted), np.linalg.norm(wanted - first)
        assert apart <= (1e-2 if name == "adam8bit" else 1e-4) * way, key


@EACH
def test_forgetting_is_beginning_anew(name):
    used, new = trainer(optimizer=name), trainer(optimizer=name)
    drive(used, 3)
    for group, fresh in zip(used.bert.groups, new.bert.groups, strict=True):
        group.weights[...] = fresh.weights
    used.optimizer.forget()
    drive(used, 2, seed=1)
    drive(new, 2, seed=1)
    for key, array in weights(new).items():
        np.testing.assert_array_equal(weights(used)[key], array, err_msg=key)


class Killed(BaseException):
    """Stands for a process that is gone: nothing catches it."""


def run_to(folder, stop: int | None, name: str, resumed: dict | None = None):
    """Twelve steps in `folder`, saved after every fifth, or as far as the step in which the process is "killed"."""
    t = trainer(optimizer=name, epochs=2)
    plain = t.begin

    def begin(n):
        if n == stop:
            raise Killed
        return plain(n)

    t.begin = begin
    description = {"settings": resumed or t.settings.to_dict(), "checkpoint": {}, "data": {}}
    with RunDirectory.claim(folder, description, resume=True, overwrite=False) as run:
        train(t, run, 5, Reporter())
    return weights(t)


@EACH
def test_a_killed_run_resumes_to_the_bit(name, tmp_path):
    straight = run_to(tmp_path / "straight", None, name)
    with pytest.raises(Killed):
        run_to(tmp_path / "killed", 8, name)
    for key, array in run_to(tmp_path / "killed", None, name).items():
        np.testing.assert_array_equal(array, straight[key], err_msg=key)


def test_a_run_older_than_the_setting_is_one_of_adam(tmp_path):
    """Its run.json has no such key."""
    old = trainer(epochs=2).settings.to_dict()
    del old["optimizer"]
    with pytest.raises(Killed):
        run_to(tmp_path / "old", 8, "adam", old)
    with pytest.raises(RunError, match="optimizer was 'adam', now 'adafactor'"):
        run_to(tmp_path / "old", None, "adafactor")
    straight = run_to(tmp_path / "straight", None, "adam")
    for key, array in run_to(tmp_path / "old", None, "adam").items():
        np.testing.assert_array_equal(array, straight[key], err_msg=key)
