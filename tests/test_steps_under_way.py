"""Steps asked for and not waited for: what each tells of itself, and what a bad one keeps the others from doing."""

from __future__ import annotations

import json

import numpy as np
import pytest

import emulator
import gpus
from minibert.errors import RunError
from minibert.kernels import devices
from minibert.loop import train
from minibert.progress import Reporter
from minibert.runs import RunDirectory
from minibert.settings import TrainConfig
from minibert.tasks import Task
from minibert.training import NotFinite, Trainer
from models import bert, split, trainer, weights

TASK = Task("test", ("no", "yes", "maybe"), ("accuracy",), True)


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=gpus.needs_compiler)])
def place(request):
    """A device; on the second the host is a step ahead."""
    if request.param == "cpu":
        yield devices.open("cpu")
        return
    with emulator.emulated():
        yield emulator.device()


def broken(t, step: int, at: int):
    """trainer.begin, but that gradients of step `at` hold a NaN by then."""
    if step == at:
        t.bert.head["classifier.bias"].grad[0] = np.nan
    return Trainer.begin(t, step)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_step_that_is_not_finite_leaves_the_state_before_it(layerwise, place, tmp_path):
    """Also where the device has been asked for the next step, and where that one begins a stage."""

    def run_to(folder, stop):
        model, data = bert(place), split(12, longest=12)
        settings = {"batch_size": 4, "epochs": 1, "learning_rate": 1e-3, "warmup": 0.0, "layerwise_update": layerwise}
        t = Trainer(model, data, TrainConfig(task="test", **settings), [(data, 1)])
        t.begin = lambda step: broken(t, step, stop)
        description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
        with RunDirectory.claim(folder, description, resume=True, overwrite=False) as run:
            train(t, run, 100, Reporter())
        return t

    straight = run_to(tmp_path / "straight", None)
    for at in (0, 1, 2, 3, 5) if place.backend == "cpu" else (0, 2, 3):  # first, within, the beginning of a stage
        folder = tmp_path / f"broken at {at}"
        with pytest.raises(RunError, match=f"norm is nan at step {at + 1} of 6; the state before it is kept"):
            run_to(folder, at)
        told = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in told] == list(range(1, at + 1))
        resumed = run_to(folder, None)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
        for name, array in weights(straight).items():
            np.testing.assert_array_equal(weights(resumed)[name], array, err_msg=name)


def test_steps_asked_for_after_one_that_is_not_finite_update_nothing_until_it_is_known(place):
    t = trainer(place)
    with place.session():
        t.step(0)
        before = weights(t)
        second, third = broken(t, 1, 1), t.begin(2)
        with pytest.raises(NotFinite):
            second()
        for name, array in weights(t).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
        with pytest.raises(NotFinite):
            third()
        t.step(1)
    assert all(not np.array_equal(array, before[name]) for name, array in weights(t).items())


def test_each_of_the_steps_under_way_tells_of_itself(place):
    one, two = trainer(place), trainer(place)
    with place.session():
        alone = [one.step(step) for step in range(2)]
        under_way = [two.begin(step) for step in range(2)]
        assert [wait() for wait in under_way] == alone


def test_a_step_after_one_with_an_infinite_loss_is_not_told_as_done(place, monkeypatch):
    """Though its own loss and norm are finite, as were the gradients."""
    t = trainer(place)
    with place.session():
        t.step(0)
        before, plain = weights(t), t.gradients

        def infinite(*arguments):
            losses = plain(*arguments)
            losses[0] = np.inf
            return losses

        monkeypatch.setattr(t, "gradients", infinite)
        first = t.begin(1)
        monkeypatch.undo()
        second = t.begin(2)
        with pytest.raises(NotFinite, match="the loss is inf"):
            first()
        with pytest.raises(NotFinite, match="an earlier step was not finite"):
            second()
    for name, array in weights(t).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_memory_that_runs_out_in_an_update_ends_the_run_and_the_steps_before_it_are_told(place, tmp_path, monkeypatch):
    t = trainer(place)

    def scarce(group, step, rate):
        if (step, group) == (3, 2):
            raise MemoryError
        plain(group, step, rate)

    plain = t.optimizer.update_group
    monkeypatch.setattr(t.optimizer, "update_group", scarce)
    description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
    with (
        RunDirectory.claim(tmp_path / "run", description, resume=False, overwrite=False) as run,
        pytest.raises(RunError, match="some weights are updated, others are not; go on from the last"),
    ):
        train(t, run, 100, Reporter())
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_reading_that_finds_no_memory_takes_the_step_again_once(place, monkeypatch):
    straight, t = trainer(place), trainer(place)
    plain, calls = place.read_later, []

    def scarce(array):
        calls.append(array)
        if len(calls) == 2:
            raise MemoryError
        return plain(array)

    with place.session():
        wanted = straight.step(0)
        monkeypatch.setattr(place, "read_later", scarce)
        assert t.step(0) == wanted
    for name, array in weights(straight).items():
        np.testing.assert_array_equal(weights(t)[name], array, err_msg=name)
