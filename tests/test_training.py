"""The loop on a small model: accumulation, recomputation, resuming, schedules, and what they must never change."""

from __future__ import annotations

import dataclasses
import itertools
import signal

import numpy as np
import pytest

from minibert import batch, optim
from minibert.autograd import Tape
from minibert.errors import ConfigError, RunError, Stopped
from minibert.kernels import devices
from minibert.kernels.devices import cpu
from minibert.loop import train
from minibert.progress import Reporter
from minibert.random import Key, order
from minibert.runs import RunDirectory, read_description
from minibert.settings import TrainConfig
from minibert.tasks import Task
from minibert.tokenizer import Features
from minibert.training import Trainer
from models import CONFIG, bert, clip, mean, split, trainer, weights

TASK = Task("test", ("no", "yes", "maybe"), ("accuracy",), True)


def gradients(trainer, numbers, step=0):
    """The gradients of a batch by parameter name, dropout as in that step."""
    for group in trainer.bert.groups:
        group.renew_gradients()
    with trainer.bert.device.session():
        trainer.gradients(numbers, Key(trainer.settings.seed, step))
    return {name: array.copy() for name, array in trainer.bert.arrays(gradients=True).items()}


def difference(a, b):
    return np.linalg.norm(np.subtract(a, b, dtype=np.float64)) / max(np.linalg.norm(b), 1e-30)


def assert_same_gradients(got, wanted, tolerance):
    for name, exact in wanted.items():
        if name.endswith("self.key.bias"):  # exactly zero but for rounding
            layer = name.rsplit("attention", 1)[0]
            largest = max(np.linalg.norm(g) for n, g in wanted.items() if n.startswith(layer))
            assert np.linalg.norm(got[name]) <= 1e-6 * largest, name
        else:
            assert difference(got[name], exact) <= tolerance, name


def moved(before, after):
    return np.sqrt(sum(((after[n] - before[n]).astype(np.float64) ** 2).sum() for n in before))


@pytest.mark.parametrize("key", [None, Key(9, 4)], ids=["plain", "dropout"])
def test_every_gradient_of_the_model_follows_its_slope_in_float64(key):
    device = devices.open("reference", float_type="float64")
    t = trainer(device, count=5)
    numbers, rng = np.arange(5), np.random.default_rng(0)
    for group in t.bert.groups:
        group.gradients.fill(0)
    t.gradients(numbers, key)

    def loss():
        return mean(t.bert.device, t.gradients(numbers, key))

    found = {name: g.copy() for name, g in t.bert.arrays(gradients=True).items()}
    for name, array in t.bert.arrays().items():
        direction, start, h = rng.standard_normal(array.shape), array.copy(), 1e-5
        values = []
        for shift in (h, -h, 2 * h, -2 * h):
            array[...] = start + shift * direction
            values.append(loss())
        array[...] = start
        slope = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
        assert abs(slope - (found[name] * direction).sum()) <= 1e-7 * max(1, abs(slope)), name


def test_cpu_gradients_agree_with_the_float64_reference():
    numbers = np.arange(12)
    exact = gradients(trainer(devices.open("reference", float_type="float64")), numbers)
    assert_same_gradients(gradients(trainer(), numbers), exact, 1e-5)


@pytest.mark.parametrize("micro", [1, 3, 8, 13])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(micro):
    numbers = np.arange(32)
    whole = gradients(trainer(batch_size=32), numbers)
    assert_same_gradients(gradients(trainer(batch_size=32, micro_batch=micro), numbers), whole, 1e-5)


@pytest.mark.parametrize("tokens", [1, 100, 333, 10_000])
def test_micro_batches_of_so_many_tokens_add_up_too(tokens):
    numbers = np.arange(32)
    whole = gradients(trainer(batch_size=32), numbers)
    assert_same_gradients(gradients(trainer(batch_size=32, micro_tokens=tokens), numbers), whole, 1e-5)


@pytest.mark.parametrize("tokens", [1, 33, 50, 100, 333, 10_000])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_micro_batches_by_tokens_are_few_and_even(tokens, most):
    lengths = np.random.default_rng(tokens).integers(3, 34, 40)
    parts, limit = batch.cut(lengths, most, tokens), max(tokens, int(lengths.max()))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(40))
    sums = [int(lengths[part].sum()) for part in parts]
    assert max(sums) <= limit
    assert all(part.stop - part.start <= most for part in parts)
    # No other cut of neighbours into so few has a smaller largest part, and none has fewer: by trying them all.
    fewest = {0: (0, 0)}
    for end in range(1, 41):
        options = []
        for start in range(max(0, end - most), end):
            total = int(lengths[start:end].sum())
            if total <= limit:
                options.append((fewest[start][0] + 1, max(fewest[start][1], total)))
        fewest[end] = min(options)
    assert (len(parts), max(sums)) == fewest[40]


def test_an_empty_batch_has_no_parts():
    assert batch.cut(np.zeros(0, np.int64), 3, None) == batch.cut(np.zeros(0, np.int64), 3, 5) == []


WAYS = {
    "8x4": {"micro_batch": 8},
    "20+12": {"micro_batch": 20},
    "32x1": {"micro_batch": 1},
    "even": {"micro_tokens": 150},
}


def test_batches_of_any_parts_are_those_of_all_together():
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 30, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int32)
    whole = Features(ids, ids.astype(np.int8), offsets)
    for most, tokens in ((4, 1000), (100, 50), (5, 60), (3, 1)):
        wanted = [(offsets[part.start], offsets[part.stop]) for part in batch.filled(lengths, most, tokens)]
        for cuts in ([0, 60], [0, 1, 2, 30, 31, 60], [0, 0, 17, 17, 59, 60, 60]):
            parts = [batch._some(whole, low, high) for low, high in itertools.pairwise(cuts)]
            found = list(batch.regrouped(parts, most, tokens))
            assert [(some.ids[0], some.ids[-1] + 1) for some in found] == wanted
            assert all(some.offsets[0] == 0 and some.offsets[-1] == len(some.ids) for some in found)


def test_parameters_after_ten_steps_at_full_rate_are_the_same_however_a_batch_is_cut():
    before = weights(trainer())
    after = {}
    for way, settings in {None: {}, **WAYS}.items():
        t = trainer(batch_size=32, **settings)
        with t.bert.device.session():
            for step in range(10):
                t.step(step)
        after[way] = weights(t)
    distance = moved(before, after[None])
    assert distance > 0.1
    for way in WAYS:
        assert moved(after[None], after[way]) <= 1e-4 * distance, way


def test_the_mean_of_means_would_fail_the_comparison_of_gradients():
    numbers, t = np.arange(32), trainer(batch_size=32)
    whole = gradients(t, numbers)
    first, second = gradients(t, numbers[:20]), gradients(t, numbers[20:])  # each divided by its own count
    wrong = {name: (first[name] + second[name]) / 2 for name in whole}
    with pytest.raises(AssertionError):
        assert_same_gradients(wrong, whole, 1e-5)
    right = {name: (20 * first[name] + 12 * second[name]) / 32 for name in whole}
    assert_same_gradients(right, whole, 1e-5)


def test_the_mean_of_means_would_fail_the_comparison_of_parameters():
    before, exact, means = weights(trainer()), trainer(batch_size=32), trainer(batch_size=32)
    with exact.bert.device.session():
        for step in range(10):
            exact.step(step)
            numbers, key = means.stages[0].numbers(step), Key(means.settings.seed, step)
            for part in (numbers[:20], numbers[20:]):
                means.gradients(part, key)  # adds the mean over the part
            for group in means.bert.groups:
                group.gradients[...] /= 2
            clip(means.optimizer)
            means.optimizer.update(step, 1e-3 * (1 - step / means.total))
    assert moved(weights(exact), weights(means)) > 1e-3 * moved(before, weights(exact))


POLICIES = ("none", "cheap", "layers", "segments:2", "c(kc)((c)k)")  # for five layers


def after_20_steps(recompute: str, precision: str) -> tuple[list[float], dict[str, np.ndarray], int]:
    """Losses, weights, and the most bytes of activations, of a deep and narrow model with dropout."""
    device = devices.open("cpu", precision=precision)
    t = trainer(device, recompute=recompute, config=dataclasses.replace(CONFIG, num_hidden_layers=5))
    with t.bert.device.session():
        losses = [t.step(step).loss for step in range(20)]
    return losses, weights(t), t.bert.device.peak["activations"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_gives_the_same_bits_after_20_steps_with_dropout_and_takes_less_memory(precision):
    losses, kept, most = after_20_steps("none", precision)
    for policy in POLICIES[1:]:
        again, made, peak = after_20_steps(policy, precision)
        assert again == losses, policy
        for name, array in kept.items():
            np.testing.assert_array_equal(array, made[name], err_msg=f"{policy}: {name}")
        assert peak < most, policy


@pytest.mark.parametrize("policy", ["none", "cheap", "layers"])
def test_strips_of_queries_keys_and_values_change_no_bit(policy, monkeypatch):
    """In bf16 they lie as strips where heads have 32 columns, as here, and as rows elsewhere."""
    config, found = dataclasses.replace(CONFIG, hidden_size=64, num_attention_heads=2), []
    for shape in (cpu.Cpu.projected_shape, devices.Device.projected_shape):
        monkeypatch.setattr(cpu.Cpu, "projected_shape", shape)
        t = trainer(devices.open("cpu", precision="bf16"), recompute=policy, config=config)
        with t.bert.device.session():
            found.append(([t.step(step).loss for step in range(3)], weights(t)))
        assert len(t.bert.device.projected_shape(7, 64, 2)) == 4 - len(found)
    (losses, strips), (wanted, rows) = found
    assert losses == wanted
    for name, array in strips.items():
        np.testing.assert_array_equal(array, rows[name], err_msg=name)


def test_the_number_of_threads_changes_no_gradient_beyond_blas_rounding():
    numbers, before, found = np.arange(24), cpu.threads(), []
    try:
        for threads in (1, 2, 3):
            cpu.set_threads(threads)
            found.append(gradients(trainer(), numbers))
    finally:
        cpu.set_threads(before)
    assert_same_gradients(found[0], found[1], 1e-5)
    assert_same_gradients(found[2], found[1], 1e-5)


def test_dropout_differs_from_step_to_step_and_not_in_evaluation():
    t = trainer()
    numbers = np.arange(4)
    with t.bert.device.session():
        first, again, second, *plain = (
            mean(t.bert.device, t.gradients(numbers, key)) for key in (Key(1, 0), Key(1, 0), Key(1, 1), None, None)
        )
    assert first == again != second and plain[0] == plain[1]


class Killed(BaseException):
    """Stands for a process that is gone: nothing catches it."""


def run_to(folder, stop, save_every, total=24):
    """Trains in `folder` from its state on until the process is "killed" in step `stop`, or to the end."""
    t = trainer(epochs=total * 8 / 48)
    assert t.total == total
    plain = t.begin

    def begin(n):
        if n == stop:
            raise Killed
        return plain(n)

    t.begin = begin
    description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
    with RunDirectory.claim(folder, description, resume=True, overwrite=False) as run:
        train(t, run, save_every, Reporter())
    return weights(t), (folder / "metrics.jsonl").read_text()


def test_killed_at_ten_random_steps_and_resumed_gives_the_bits_of_a_straight_run(tmp_path):
    straight, log = run_to(tmp_path / "straight", None, 7)
    stops = np.random.default_rng(11).choice(24, 10, replace=False)
    for i, stop in enumerate(sorted(map(int, stops))):
        folder = tmp_path / f"killed-{i}"
        with pytest.raises(Killed):
            run_to(folder, stop, 1 + i % 5)
        resumed, resumed_log = run_to(folder, None, 4)
        assert resumed_log == log
        for name, array in straight.items():
            np.testing.assert_array_equal(array, resumed[name], err_msg=f"{name} after a kill in step {stop}")


def test_the_last_step_is_saved_until_the_results_are_there(tmp_path):
    """What goes wrong after it, a full disk or Ctrl-C in the evaluation, must not cost the training."""
    ended, _ = run_to(tmp_path / "run", None, 1000)
    t = trainer(epochs=4)
    assert RunDirectory(tmp_path / "run").load_state(t.optimizer) == t.total == 24
    for name, array in weights(t).items():
        np.testing.assert_array_equal(array, ended[name])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_state_before_it(tmp_path):
    t = trainer()
    t.bert.arrays()["classifier.weight"][...] = 3e38
    description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
    before = weights(t)
    with RunDirectory.claim(tmp_path / "run", description, False, False) as run:
        with pytest.raises(RunError, match="step 1 of 60.*lower learning rate"), np.errstate(all="ignore"):
            train(t, run, 1000, Reporter())
        other = trainer()
        assert run.load_state(other.optimizer) == 0
    for name, array in before.items():
        np.testing.assert_array_equal(array, weights(other)[name])


def test_google_step_counts_and_rates():
    assert optim.step_counts(3668, 32, 3.0, 0.1) == (343, 34)
    assert optim.step_counts(87599, 12, 2.0, 0.1) == (14599, 1459)
    assert optim.step_counts(8551, 32, 3.0, 0.1)[0] == 801
    rate = lambda s, schedule="google": optim.learning_rate(schedule, s, 2e-5, 343, 34)  # noqa: E731
    assert rate(0) == 0
    assert rate(33) == pytest.approx(1.941e-5, rel=1e-3)
    assert rate(34) == pytest.approx(1.802e-5, rel=1e-3)
    assert rate(342) == pytest.approx(5.83e-8, rel=1e-3)
    assert rate(34, "hf") == 2e-5 and rate(33, "hf") == pytest.approx(33 / 34 * 2e-5)
    assert rate(342, "hf") == pytest.approx(2e-5 / 309)
    assert rate(17, "electra") == pytest.approx(2e-5 * (1 - 17 / 343) * 0.5)
    assert optim.learning_rate("google", 0, 1.0, 10, 0) == 1.0


def test_epochs_are_permutations_that_run_into_each_other():
    t = trainer(count=43, epochs=3)
    stream = np.concatenate([t.stages[0].numbers(step) for step in range(t.total)])
    assert sorted(stream[:43]) == list(range(43)) and sorted(stream[43:86]) == list(range(43))
    assert not np.array_equal(stream[:43], stream[43:86])
    assert not np.array_equal(order(43, 1, 0), order(43, 2, 0))
    np.testing.assert_array_equal(order(7, 1, 0), ORDER_7)


ORDER_7 = np.array([5, 1, 4, 2, 3, 0, 6])  # recorded: the order of every run hangs on it


def test_texts_beyond_the_embeddings_are_refused():
    """Kernels check no index: they would read and write past the tables."""
    model = bert(devices.open("cpu"))
    for change, word in (("ids", "word"), ("segments", "segment"), ("offsets", "position")):
        data = split(4).features
        array = getattr(data, change).copy()
        array[-1] += 100
        with pytest.raises(ConfigError, match=word):
            model.check(dataclasses.replace(data, **{change: array}))
    model.check(split(4).features)


def test_no_whole_batch_is_an_error():
    with pytest.raises(ConfigError, match="make no batch of 64"):
        trainer(batch_size=64, epochs=1)


def test_training_on_one_batch_learns_it():
    t = trainer(count=8, epochs=200, batch_size=8)
    with t.bert.device.session():
        losses = [t.step(step).loss for step in range(60)]
    assert losses[-1] < 0.1 * losses[0]


def test_packing_does_not_change_a_prediction():
    from minibert.model import outputs

    model, data = bert(devices.open("cpu")), split(40)
    together = outputs(model, data.features)
    from minibert import batch

    for i in (0, 7, 39):
        alone = model.logits(batch.pack(model.device, data.features, [i], None))
        np.testing.assert_allclose(alone.data[0], together[i], rtol=1e-5, atol=1e-6)


def test_settings_out_of_range_are_named():
    for bad, word in [({"epochs": 0}, "epochs"), ({"batch_size": 0}, "batch"), ({"micro_batch": 9}, "micro"),
                      ({"learning_rate": -1}, "rate"), ({"warmup": 1.0}, "warm"), ({"seed": -1}, "seed")]:  # fmt: skip
        with pytest.raises(ConfigError, match=word):
            TrainConfig(task="mrpc", **({"batch_size": 8} | bad))


def test_tapes_hold_no_attention_matrix():
    """Stored activations grow with the length, not with its square."""
    model = bert(devices.open("cpu"))
    sizes = []
    from minibert import batch

    for longest in (20, 40):
        data = split(4, longest=40)
        features = type(data.features)(
            np.zeros(longest * 4, np.int32), np.zeros(longest * 4, np.int8), np.arange(5) * longest
        )
        packed = batch.pack(model.device, features, np.arange(4), None)
        with Tape():
            logits = model.logits(packed)
            sizes.append(model.device.in_use["activations"])
            del logits
    assert sizes[1] <= 2.3 * sizes[0]


def test_layers_updated_one_by_one_are_updated_with_the_same_bits_and_less_memory():
    ends = []
    for layerwise in (False, True):
        t = trainer(layerwise_update=layerwise, recompute="layers")
        with t.bert.device.session():
            done = [t.step(step) for step in range(5)]
        ends.append((done, weights(t), t.bert.device.peak["gradients"]))
    assert ends[0][0] == ends[1][0]
    for name, array in ends[0][1].items():
        np.testing.assert_array_equal(array, ends[1][1][name], err_msg=name)
    assert ends[1][2] < ends[0][2] / 2


class Scarce(cpu.Cpu):
    """A CPU on which the allocations whose numbers are in `failing` fail; they are counted from 0."""

    def __init__(self, failing=()):
        super().__init__()
        self.failing, self.count = set(failing), 0

    def empty(self, shape, dtype, kind):
        self.count += 1
        if self.count - 1 in self.failing:
            raise MemoryError
        return super().empty(shape, dtype, kind)


def test_a_step_that_ran_out_of_memory_is_taken_again_with_the_same_bits():
    plain = trainer(Scarce(), micro_batch=3)
    built = plain.bert.device.count
    with plain.bert.device.session():
        wanted = [plain.step(step) for step in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(10):
        t = trainer(Scarce(), micro_batch=3)
        t.bert.device.failing = set(rng.integers(built, plain.bert.device.count, 2).tolist())
        with t.bert.device.session():
            got = [t.step(step) for step in range(4)]
        assert t.bert.device.count > plain.bert.device.count  # something was computed again
        if t.micro_tokens is None:
            assert got == wanted
            for name, array in weights(plain).items():
                np.testing.assert_array_equal(array, weights(t)[name], err_msg=name)


def test_after_a_second_failure_micro_batches_are_halved_and_equal_to_rounding():
    plain, t = trainer(Scarce()), trainer(Scarce())
    before, built = weights(plain), t.bert.device.count
    t.bert.device.failing = set(range(built + 150, built + 153))  # the step, and both times that it is taken again
    with plain.bert.device.session():
        for step in range(6):
            plain.step(step)
            t.step(step)
    assert t.micro_tokens is not None
    assert len(t._parts(np.arange(8), t.stages[0].data)) > 1
    assert moved(weights(plain), weights(t)) <= 1e-4 * moved(before, weights(plain))


def test_memory_for_not_even_one_example_is_told():
    t = trainer(Scarce())
    t.bert.device.failing = set(range(t.bert.device.count + 10, 10_000))
    with pytest.raises(RunError, match="memory does not suffice"), t.bert.device.session():
        t.step(0)


def test_memory_that_runs_out_amid_a_layerwise_update_is_told_and_never_taken_again():
    t = trainer(Scarce(), layerwise_update=True)
    with t.bert.device.session():
        first = t.bert.device.count
        t.step(0)
        a_step = t.bert.device.count - first
        t.bert.device.failing = {t.bert.device.count + a_step - 5}
        with pytest.raises(RunError, match="from the last saved state"):
            t.step(1)


def test_nothing_is_allocated_once_an_update_has_begun():
    t = trainer(Scarce())
    with t.bert.device.session():
        t.step(0)
        t.gradients(np.arange(8), Key(1, 1))
        allocated = t.bert.device.count
        t.bert.device.failing = set(range(allocated, 10_000))
        clip(t.optimizer)
        t.optimizer.update(1, 1e-3)
    assert t.bert.device.count == allocated


def test_the_stable_recipe_has_the_schedule_of_its_paper_and_bias_correction():
    for recipe, schedule, corrected in (("google", "google", False), ("stable", "hf", True)):
        settings = TrainConfig(task="test", recipe=recipe)
        assert (settings.schedule, settings.bias_correction) == (schedule, corrected)


def test_where_memory_ran_out_the_user_is_told_and_a_resume_knows(tmp_path, monkeypatch, capfd):
    t = trainer()
    real, failures = Trainer.update, iter([True, True])

    def scarce(*arguments):
        if next(failures, None):
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(Trainer, "update", scarce)
    description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
    with RunDirectory.claim(tmp_path / "run", description, False, False) as run:
        train(t, run, 1000, Reporter(quiet=False))
    assert f"memory ran out: from here on micro-batches have at most {t.micro_tokens} tokens" in capfd.readouterr().err
    assert t.micro_tokens and read_description(tmp_path / "run")["settings"]["micro_tokens"] == t.micro_tokens


def test_a_signal_while_the_last_state_is_saved_ends_the_run(tmp_path, monkeypatch):
    t, real = trainer(), RunDirectory.save_state

    def save(self, step, optimizer):
        real(self, step, optimizer)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "save_state", save)
    description = {"settings": t.settings.to_dict(), "checkpoint": {}, "data": {}}
    stopped = pytest.raises(Stopped, match=f"stopped after step {t.total} of {t.total}")
    with RunDirectory.claim(tmp_path / "run", description, False, False) as run, stopped:
        train(t, run, 1000, Reporter())
