"""The whole model with the GPU's kernels: on the emulator here, on a device under `-m gpu`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import emulator
import gpus
from golden import parity
from minibert import checkpoint
from minibert.bert import Bert
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.devices import Device
from minibert.kernels.devices.recording import Refused
from minibert.memory_report import observed
from minibert.settings import TrainConfig
from minibert.squad.reader import Reader, tops
from minibert.tokenizer import Features
from minibert.training import Trainer
from models import CONFIG, bert, mean, split, spoil, trainer, weights

PLACES = [
    pytest.param("emulated", marks=gpus.needs_compiler), pytest.param("device", marks=pytest.mark.gpu),
]  # fmt: skip


class Place:
    """Where the GPU's kernels run, and how many steps are worth their time there."""

    def __init__(self, name: str):
        self.steps = 20 if name == "device" else 4
        self.real = name == "device"

    def open(self, precision: str = "fp32") -> Device:
        if not self.real:
            return emulator.device(precision)
        gpus.opened()
        return devices.open("gpu", precision=precision)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    found = Place(request.param)
    if found.real:
        yield found
    else:
        with emulator.emulated():
            yield found


def losses(t: Trainer, steps: int) -> list[float]:
    with t.bert.device.session():
        return [t.step(step).loss for step in range(steps)]


def recomputed(case: str, device: Device, folder: Path) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and gradients of what transformers computed and tests/golden has recorded."""
    found = checkpoint.load(parity.write_checkpoint(case, folder, None))
    model = Bert(found.config, len(found.arrays["classifier.bias"]), device)
    model.fill(found.arrays)
    sequences = parity.model_batch(case)
    data = Split(
        "train", Features(sequences.ids, sequences.segments.astype(np.int8), sequences.offsets), sequences.labels
    )
    count = len(sequences.labels)
    losses = Trainer(model, data, TrainConfig(task="mrpc", batch_size=count)).gradients(np.arange(count), key=None)
    return mean(device, losses), model.arrays(gradients=True)


CASES = pytest.mark.parametrize("case", ["small_erf", "small_tanh"])


@CASES
def test_losses_and_gradients_are_those_of_transformers(case, place, tmp_path):
    recorded = parity.load(parity.HERE / f"model_{case}.npz")
    loss, gradients = recomputed(case, place.open(), tmp_path)
    assert loss == pytest.approx(float(recorded["loss"]), abs=1e-5)
    parity.assert_same_gradients(parity.load_brief(recorded), gradients)


@CASES
def test_in_bf16_they_are_near_those_of_transformers(case, place, tmp_path):
    """On the emulator gradients are 0.06 of their norm apart, 0.14 at most; those of one wrong operation 1 and more."""
    recorded = parity.load(parity.HERE / f"model_{case}.npz")
    loss, gradients = recomputed(case, place.open("bf16"), tmp_path)
    assert loss == pytest.approx(float(recorded["loss"]), abs=2e-2)
    brief = parity.load_brief(recorded)
    names = [name for name in brief.names if not name.endswith(parity.KEY_BIAS)]  # whose exact gradient is zero
    apart = [parity.difference(brief, name, gradients[name]) for name in names]
    assert np.median(apart) < 0.1 and max(apart) < 0.3


@pytest.mark.parametrize("optimizer", ["adam", "adam8bit", "adafactor"])
def test_training_with_dropout_is_that_of_the_cpu(place, optimizer):
    ours, theirs = (trainer(device, optimizer=optimizer) for device in (place.open(), devices.open("cpu")))
    start = weights(ours)
    got, wanted = (losses(t, place.steps) for t in (ours, theirs))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    after, expected = weights(ours), weights(theirs)
    for name in [name for name in start if name.endswith("self.key.bias")]:
        del start[name]  # its gradient is zero but for rounding, which Adafactor scales up to a step of full size
    way = np.sqrt(sum(((expected[n] - start[n]).astype(np.float64) ** 2).sum() for n in start))
    apart = np.sqrt(sum(((after[n] - expected[n]).astype(np.float64) ** 2).sum() for n in start))
    # Codes of 8 bits fall to a neighbour, and Adafactor takes steps of full size where gradients are next to nothing.
    assert apart <= (1e-4 if optimizer == "adam" else 1e-2) * way


def test_bf16_follows_fp32(place):
    got, wanted = (losses(trainer(place.open(precision)), place.steps) for precision in ("bf16", "fp32"))
    assert got != wanted
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_policies_and_repetition_change_no_bit(place, precision):
    def trained(recompute: str) -> list[bytes]:
        t = trainer(place.open(precision), recompute=recompute)
        losses(t, 2)
        return [array.tobytes() for array in weights(t).values()]

    once = trained("none")
    assert trained("none") == once and trained("layers") == once and trained("cheap") == once


@pytest.mark.parametrize("heads", [2, 4])  # of 64 and of 32 columns, which attention takes to tensor cores
@pytest.mark.parametrize(
    "place", [pytest.param("emulated", marks=[gpus.needs_compiler, pytest.mark.slow]), PLACES[1]], indirect=True
)
def test_attention_on_tensor_cores_in_a_whole_model(place, heads):
    """Recorded, launched one by one and recomputed: the same bits; and the losses of the CPU's fp32, nearly."""
    config = dataclasses.replace(
        CONFIG, hidden_size=128, num_attention_heads=heads, intermediate_size=160, max_position_embeddings=96
    )
    data = split(24, config, longest=90)  # over 64 tokens: blocks of 128 threads, keys in several stages

    def trained(device: Device, record: bool = True, **more: str) -> tuple[list[float], list[bytes]]:
        settings = {"batch_size": 6, "micro_batch": 3, "epochs": 10, "learning_rate": 1e-3, "warmup": 0.0}
        on = {"device": "gpu", "precision": "bf16"} if device.backend == "gpu" else {"precision": "fp32"}
        t = Trainer(bert(device, config), data, TrainConfig(task="test", **settings, **on, **more))
        if t.replay and not record:
            t.replay.give_up()
        found = losses(t, place.steps)
        assert not t.replay or any(size.recording for size in t.replay.sizes.values()) == record
        return found, [array.tobytes() for array in weights(t).values()]

    once = trained(place.open("bf16"))
    assert trained(place.open("bf16"), record=False) == once
    assert trained(place.open("bf16"), recompute="layers") == once
    np.testing.assert_allclose(once[0], trained(devices.open("cpu"))[0], rtol=0, atol=5e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inputs_that_wait_in_the_host_s_memory_change_no_bit(place, precision):
    """Nor where other policies' batches are recorded: these are not, but filled up they are."""
    deep = dataclasses.replace(CONFIG, num_hidden_layers=5)

    def trained(recompute: str) -> tuple[list[float], list[bytes]]:
        t = trainer(place.open(precision), config=deep, recompute=recompute)
        found = losses(t, 2)
        assert recompute == "none" or not any(size.recording for size in t.replay.sizes.values())
        return found, [array.tobytes() for array in weights(t).values()]

    once = trained("none")
    for policy in ("host", "(k[k])[[c]k]k"):
        assert trained(policy) == once, policy


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@gpus.needs_compiler
def test_the_order_of_threads_changes_no_bit(precision):
    found = []
    for order in (0, 1, 23):
        with emulator.emulated(order=order):
            t = trainer(emulator.device(precision))
            losses(t, 1)
            found.append([array.tobytes() for array in weights(t).values()])
    assert found[0] == found[1] == found[2]


def test_answers_are_those_of_the_cpu(place):
    data = split(9)
    found = []
    for device in (place.open(), devices.open("cpu")):
        reader = Reader(CONFIG, device)
        reader.fill(bert_arrays(reader))
        spans = Split("train", data.features, np.array([[1, 2]] * 9, np.int32))
        losses = Trainer(reader, spans, TrainConfig(task="squad", batch_size=9)).gradients(np.arange(9), key=None)
        found.append((mean(device, losses), list(tops(reader, [data.features], 3))))
    (loss, ours), (expected, theirs) = found
    assert loss == pytest.approx(expected, abs=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.places, b.places)
        np.testing.assert_allclose(a.values, b.values, atol=1e-5)
        np.testing.assert_allclose(a.null, b.null, atol=1e-5)


def bert_arrays(reader: Reader) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    return {name: 0.15 * rng.standard_normal(a.shape).astype(np.float32) for name, a in reader.arrays().items()}


def test_predictions_are_those_of_the_cpu(place):
    from minibert.model import outputs

    features = split(70).features
    ours, theirs = (outputs(bert(device), features) for device in (place.open(), devices.open("cpu")))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_recorded_steps_have_the_bits_of_steps_launched_one_by_one(place):
    """With the same filling: losses, weights, and the masks of dropout, which follow the step."""

    def trained(record: bool) -> tuple[list[float], list[bytes]]:
        t = trainer(place.open("bf16"), micro_batch=4)
        if not record:
            t.replay._room = lambda: False
        found = losses(t, 6)
        recorded = [size.recording for size in t.replay.sizes.values()]
        assert any(recorded) == record and len(recorded) < 12, "no size came twice"
        return found, [array.tobytes() for array in weights(t).values()]

    assert trained(True) == trained(False)


def test_what_stands_in_fresh_gradients_changes_no_bit(place):
    """Recorded passes that overwrite, and others that add: three of one size a step."""
    found = []
    for spoilt in (False, True):
        t = trainer(place.open("bf16"), batch_size=3, micro_batch=1)
        found.append((losses(spoil(t) if spoilt else t, 5), [array.tobytes() for array in weights(t).values()]))
        assert {size.recording is not None for size in t.replay.sizes.values()} == {True}
        assert len({len(size.overwritten) for size in t.replay.sizes.values()}) == 2
    assert found[0] == found[1]


def test_gradients_that_some_have_looked_at_are_added_to(place):
    found = []
    for looked_at in (False, True):
        t = trainer(place.open(), batch_size=3, micro_batch=1)
        losses(t, 2)
        for group in t.bert.groups[1:2] if looked_at else ():
            _ = group.gradients
        spoil(t)
        found.append((losses(t, 3), [array.tobytes() for array in weights(t).values()]))
    assert found[0] == found[1]


def test_a_pass_that_cannot_be_recorded_overwrites_all_the_same(place, monkeypatch):
    t, plain = (trainer(place.open(), batch_size=1) for _ in range(2))  # all of one size

    def refuse(call, record=t.bert.device.record):
        record(call)
        raise Refused("not here")

    with monkeypatch.context() as patch:
        patch.setattr(t.bert.device, "record", refuse)
        with pytest.warns(UserWarning, match="not here"):
            got = losses(spoil(t), 3)
    plain.replay.give_up()
    assert got == losses(plain, 3)


def test_a_step_that_is_watched_has_the_same_bits(place):
    """A resumed run watches another step than one that was never interrupted."""

    def trained(observe: bool) -> tuple[list[float], list[bytes]]:
        t = trainer(place.open("bf16"))
        with t.bert.device.session():
            found = [(observed(t, step)[0] if observe and step == 1 else t.begin(step))().loss for step in range(2)]
        return found, [array.tobytes() for array in weights(t).values()]

    assert trained(True) == trained(False)


def test_recordings_of_two_models_on_one_device(place):
    """One runs out of memory: the other's recordings are made anew."""
    device = place.open()
    first, second = trainer(device, micro_batch=4), trainer(device, micro_batch=4)
    alone = losses(trainer(device, micro_batch=4), 4)
    found = losses(first, 2)
    losses(second, 2)
    second.replay.forget()
    assert any(size.recording for size in first.replay.sizes.values())
    assert found + [first.step(step).loss for step in (2, 3)] == alone
    assert {size.generation for size in first.replay.sizes.values() if size.recording} <= {device.generation}


def test_filled_steps_are_those_of_batches_as_they_are(place):
    found = []
    for replay in (True, False):
        t = trainer(place.open())
        t.replay = t.replay if replay else None
        found.append((losses(t, 2), weights(t)))
    (ours, filled), (theirs, whole) = found
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    for name, wanted in whole.items():
        np.testing.assert_allclose(filled[name], wanted, rtol=0, atol=1e-5, err_msg=name)


def test_batches_that_outlast_their_launches_are_not_recorded(place, monkeypatch):
    for most, recorded in ((10, False), (10_000, True)):
        monkeypatch.setattr("minibert.replay.MOST", most)
        t = trainer(place.open())
        losses(t, 8)
        assert bool(t.replay.sizes) == recorded


def test_after_an_evaluation_a_size_is_recorded_when_it_comes_for_the_second_time(place):
    t = trainer(place.open())
    losses(t, 8)
    t.rest()
    plain, runs = t.replay.run, []
    t.replay.run = lambda *arguments: runs.append(len(t.replay.sizes)) or plain(*arguments)
    losses(t, 1)
    assert runs == [0] and not t.replay.sizes, "what it takes is not known yet"
