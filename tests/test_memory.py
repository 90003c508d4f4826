"""Planned memory: the dry device against real training, the programme against all policies, settings that fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import emulator
import gpus
from commands import make_checkpoint
from commands import minibert_in_process as command
from minibert import batch, chain, memory_report, models, planning, policies, starting
from minibert.begun import Begun
from minibert.errors import ConfigError
from minibert.evaluation import Split
from minibert.kernels import devices
from minibert.kernels.devices import PROCESS, gpu, host
from minibert.memory import Kept, LayerUse, Planner, parse_size
from minibert.model import outputs
from minibert.planning import Plan, columns, filled, fitted, heaviest
from minibert.random import Key
from minibert.settings import TrainConfig
from minibert.squad.reader import Reader
from minibert.tokenizer import Features
from minibert.training import Stage, Trainer
from models import CONFIG, bert, split

DEEP = dataclasses.replace(CONFIG, num_hidden_layers=5)
WIDE = dataclasses.replace(models.config("base"), num_hidden_layers=6)
LENGTHS = [30, 12, 33, 7]
POLICIES = ("none", "cheap", "layers", "segments:2", "k((c)k)(k)k")
HOSTED = ("host", "[k](k)[kk]k", "(k[k])[[c]k]k", "kk[k]c[k]")


def data_of(lengths: list[int], spans: bool) -> Split:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int32) % CONFIG.vocab_size
    labels = np.zeros((len(lengths), 2) if spans else len(lengths), np.int32)
    return Split("train", Features(ids, np.zeros_like(ids, np.int8), offsets), labels)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("spans", [False, True], ids=["classifier", "spans"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_planner_counts_what_training_takes_to_the_byte(precision, spans, policy, layerwise):
    device = devices.open("cpu", precision=precision)
    settings = TrainConfig(
        task="t", batch_size=len(LENGTHS), epochs=3, recompute=policy, layerwise_update=layerwise, learning_rate=1e-3,
        precision=precision,
    )  # fmt: skip
    model = Reader(dataclasses.replace(DEEP, id2label=()), device) if spans else bert(device, DEEP)
    trainer = Trainer(model, data_of(LENGTHS, spans), settings)
    with device.session():
        for step in range(3):
            trainer.update(trainer.stages[0], step, np.arange(len(LENGTHS)), Key(1, step))
    use = Planner(DEEP, settings, device, spans).use(LENGTHS, policy, layerwise)
    assert use.kinds == dict(device.peak)
    assert abs(use.process - PROCESS - device.resident_peak) <= 0.02 * device.resident_peak


@gpus.needs_compiler
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("policy", ["layers", *HOSTED])
def test_the_planner_counts_to_the_byte_what_a_gpu_takes(policy, layerwise):
    settings = TrainConfig(
        task="t", batch_size=len(LENGTHS), epochs=2, recompute=policy, layerwise_update=layerwise, device="gpu",
        precision="bf16",
    )  # fmt: skip
    with emulator.emulated():
        device = emulator.device("bf16")
        trainer = Trainer(bert(device, DEEP), data_of(LENGTHS, False), settings)
        trainer.replay.give_up()  # recordings have memory of their own
        for step in range(2):
            trainer.update(trainer.stages[0], step, np.arange(len(LENGTHS)), Key(1, step))
        device.peak["activations"] += 4  # the loss of what fills the batch up is not read
        assert Planner(DEEP, settings, device).use(LENGTHS, policy, layerwise).kinds == dict(device.peak)


def on_a_gpu() -> Plan:
    settings = TrainConfig(task="t", batch_size=400, device="gpu", precision="bf16")
    return Plan(dataclasses.replace(CONFIG, num_hidden_layers=12), settings, gpu.Gpu("bf16"), 0)


def test_inputs_in_the_host_s_memory_leave_two_of_them_on_the_device():
    planner, lengths = on_a_gpu().planner, [40] * 400
    layers, hosted = (planner.use(lengths, policy).kinds["activations"] for policy in ("layers", "host"))
    assert (layers - hosted) / planner.layer(lengths).input == pytest.approx(9, abs=0.1)  # of eleven


@pytest.mark.parametrize(("share", "waits"), [(0.7, False), (0.55, False), (0.4, True), (0.38, True)])
def test_a_gpu_s_plan_lets_inputs_wait_in_the_host_s_memory_where_nothing_faster_fits(share, waits):
    plan, lengths = on_a_gpu(), [40] * 800  # four pieces of the feed-forward half
    plan.memory = gpu.PROCESS + int(share * (plan.planner.use(lengths, "none").process - gpu.PROCESS))
    choice = plan.choose(lengths, whole=True)
    assert choice.peak <= plan.memory and ("[" in choice.recompute) == waits
    plan.planner.device.host_apart = False
    try:
        time = plan.choose(lengths, whole=True).time
    except ConfigError:
        time = 99.0
    assert time > choice.time if waits else time == choice.time


def test_a_gpu_s_table_has_a_column_for_the_host_s_memory():
    assert [column.name for column in columns(12, True)] == [
        "none", "cheap", "layers", "segments:4", "host", "host, layerwise"
    ]  # fmt: skip
    assert [column.name for column in columns(12, False)][-2:] == ["segments:4", "segments:4, layerwise"]
    done = command("plan", "--checkpoint", "tiny", "--device", "gpu", "--memory", "1GB", "--max-seq-length", "64")
    assert done.code == 0 and "host+layerwise" in done.out
    done = command("plan", "--checkpoint", "tiny", "--device", "cpu", "--memory", "1GB", "--max-seq-length", "64")
    assert done.code == 0 and "host" not in done.out


@pytest.mark.parametrize("policy", ["host", "[k]k", "(k[k])k"])
def test_a_device_that_shares_the_host_s_memory_refuses_to_move_inputs_there(policy):
    with pytest.raises(ConfigError, match="the only one here; use --recompute layers"):
        TrainConfig(task="t", recompute=policy, device="cpu")
    done = command("finetune", "mrpc", "--sample", "--recompute", policy, "--device", "cpu")
    assert done.code == 1 and "the only one here" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("optimizer", ["adam8bit", "adafactor"])
def test_the_planner_counts_every_optimizer(optimizer):
    device = devices.open("cpu")
    settings = TrainConfig(task="t", batch_size=len(LENGTHS), epochs=3, optimizer=optimizer)
    trainer = Trainer(bert(device, DEEP), data_of(LENGTHS, False), settings)
    with device.session():
        for step in range(2):
            trainer.step(step)
    assert Planner(DEEP, settings, device).use(LENGTHS, "none").kinds == dict(device.peak)


def test_a_dry_device_takes_no_memory_and_computes_nothing():
    dry = devices.open("dry", other=devices.open("cpu"))
    array = dry.empty((10**6, 10**6), "float32", "activations")
    assert array.shape == (10**6, 10**6) and dry.in_use["activations"] == 4 * 10**12
    assert array[:1000].reshape(-1).strides == (0,)
    dry.fetch(array, dry.send(array))
    dry.matmul.forward("nothing", "is", "looked", "at")
    assert dry.matmul.workspace(100, 200, 300) == devices.open("cpu").matmul.workspace(100, 200, 300)
    del array
    assert dry.in_use["activations"] == 0


def peak_of(policy: policies.Policy, use: LayerUse, last: LayerUse | None = None, stored: int = 0) -> tuple[int, float]:
    """The most bytes at any moment, and the layers computed again: a literal walk there and back. Where inputs wait in
    the host's memory, with one that comes back ahead of time.
    """
    if any(isinstance(part, policies.Hosted) for part in policy):
        stored += use.input
    highest, again, stack = 0, 0.0, []
    for i, part in enumerate(policy):
        if isinstance(part, tuple):
            highest = max(highest, stored + use.input + use.full.forward + use.full.stays)
            stored += use.input
            if isinstance(part, policies.Hosted):
                stored, again = stored - use.input, again + chain.COPIES
            stack.append(part)
        else:
            layer = last if last and i + 1 == len(policy) else use
            stack.append(layer.full if part == "k" else layer.cheap)
            stored += stack[-1].stays
            again += chain.CHEAP * (part == "c")
    while stack:
        part = stack.pop()
        if isinstance(part, tuple):
            stored -= 0 if isinstance(part, policies.Hosted) else use.input
            inner, more = peak_of(part, use, None, stored)
            highest, again = max(highest, inner), again + policies.length(part) + more
        else:
            highest = max(highest, stored + part.backward)
            stored -= part.stays
    return highest, again


def every(count: int, host: bool) -> list[policies.Policy]:
    """All policies for so many layers; if `host`, also those in which inputs of outermost parts wait elsewhere."""
    if count == 0:
        return [()]
    found = [(letter, *rest) for letter in "kc" for rest in every(count - 1, host)]
    for part in range(1, count):
        for inner, rest in itertools.product(every(part, False), every(count - part, host)):
            found += [(kind(inner), *rest) for kind in (tuple, policies.Hosted)[: 1 + host]]
    return found


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("host", [False, True])
def test_the_programme_finds_the_cheapest_of_all_policies(host, size):
    use = LayerUse(size, Kept(96, 8, 56), Kept(80, 8, 64))  # multiples of its grain
    last = LayerUse(size, Kept(32, 8, 40), Kept(24, 8, 72))
    walked = [peak_of(policy, use, last) for policy in every(5, host)]
    assert len(walked) > 300
    for room in range(60, 600, 8):
        fitting = [again for peak, again in walked if peak <= room]
        found = chain.cheapest(5, room, use, last, host)
        if not fitting:
            assert found is None, room
            continue
        assert found is not None and found.work == pytest.approx(min(fitting)), room
        assert peak_of(policies.parse(found.policy, 5), use, last)[0] <= room
        assert chain.slowdown(found.policy, 5) == pytest.approx(1 + found.work / 15)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("spans", [False, True])
def test_the_programme_knows_to_about_an_input_what_policies_take(precision, spans):
    device = devices.open("cpu", precision=precision)
    planner, lengths = Planner(WIDE, TrainConfig(task="t", precision=precision), device, spans), [300] * 100
    use, last = planner.layer(lengths), planner.layer(lengths, last=True)
    none = planner.use(lengths, "none").process
    assert peak_of(policies.parse("none", 6), use, last)[0] == chain.taken(6, use, last)
    for policy in ("cheap", "layers", "segments:2", "(kkk)ccc", "((k)k)cckk", "(ccc)kkk", "kc(k)kck", "(cc)(kk)kk"):
        walked = peak_of(policies.parse(policy, 6), use, last)[0] - chain.taken(6, use, last)
        assert planner.use(lengths, policy).process - none == pytest.approx(walked, abs=use.input), policy


def test_more_memory_is_never_slower_nor_are_layers_updated_one_by_one_where_that_is_not_needed():
    plan = Plan(WIDE, TrainConfig(task="t", batch_size=100), devices.open("cpu"), 0)
    none, least = (plan.planner.use([300] * 100, policy).process for policy in ("none", "segments:3"))
    found = []
    for step in range(33):
        plan.memory = least + (none - least) * step // 32
        found.append(plan.choose([300] * 100, whole=True))
        assert found[-1].peak <= plan.memory and not found[-1].layerwise
    times = [choice.time for choice in found]
    assert times == sorted(times, reverse=True) and times[0] > 1.2 and times[-1] == 1


def test_a_search_for_what_no_policy_can_reach_ends_soon(monkeypatch):
    """The peak of an update layer by layer may be the weights' and moments', whatever is computed again."""
    plan = Plan(WIDE, TrainConfig(task="t", batch_size=2, optimizer="adafactor"), devices.open("cpu"), 0)
    plan.memory = plan.planner.use([8] * 2, "none", layerwise=True).process - 1
    counted, use = [], plan.planner.use
    monkeypatch.setattr(plan.planner, "use", lambda *given: counted.append(given) or use(*given))
    assert plan._search([8] * 2, None, layerwise=True) is None and len(counted) < 20


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    plan = Plan(DEEP, TrainConfig(task="t"), devices.open("cpu"), PROCESS + 10**6)
    for recompute, guess in itertools.product(POLICIES, (0, 1, 7, 5000)):
        count = plan.largest(20, recompute, guess=guess)
        assert plan.planner.use([20] * count, recompute).process <= plan.memory
        assert plan.planner.use([20] * (count + 1), recompute).process > plan.memory
    assert Plan(DEEP, TrainConfig(task="t"), devices.open("cpu"), PROCESS).largest(20, "none") == 0


def test_a_right_guess_is_all_that_is_tried_but_for_the_next(monkeypatch):
    plan = Plan(DEEP, TrainConfig(task="t"), devices.open("cpu"), PROCESS + 10**6)
    count, counted, use = plan.largest(20, "none"), [], plan.planner.use
    monkeypatch.setattr(plan.planner, "use", lambda *given: counted.append(given) or use(*given))
    assert plan.largest(20, "none", guess=count) == count and len(counted) == 2


def test_pieces_of_the_feed_forward_half_share_their_scratch():
    planner = Plan(DEEP, TrainConfig(task="t"), devices.open("cpu"), 0).planner
    planner.device.log = []
    planner.layer([4 * planner.device.piece])
    taken = [nbytes for kind, nbytes in planner.device.log if kind == "workspace" and nbytes > 0]
    planner.device.log = []
    planner.layer([planner.device.piece])
    assert len(taken) == sum(kind == "workspace" and nbytes > 0 for kind, nbytes in planner.device.log)


@pytest.mark.parametrize("shape", ["small", "base"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_evaluation_takes_no_more_than_training(shape, share):
    config = models.config(shape)
    plan = Plan(config, TrainConfig(task="t", batch_size=32), devices.open("cpu"), 0)
    planner, lengths = plan.planner, [256] * 32
    least, whole = planner.use([256], "segments:4").process, planner.use(lengths, "none").process
    plan.memory = least + int(share * (whole - least))
    choice = plan.choose(lengths)
    settings = TrainConfig(
        task="t", batch_size=32, epochs=1, micro_tokens=choice.micro_tokens, recompute=choice.recompute
    )  # fmt: skip
    bert = planner.trainer.bert
    bert.at_once = batch.EVALUATED
    data = planner._sequences(lengths)
    Trainer(bert, data, settings).rest()
    planner._begin()
    outputs(bert, data.features)
    assert planner.device.process + planner.device.resident_peak <= plan.memory


def choose(memory: int, **settings):
    plan = Plan(DEEP, TrainConfig(task="t", batch_size=64, **settings), devices.open("cpu"), PROCESS + memory)
    return plan, plan.choose([20] * 64)


def test_less_memory_chooses_smaller_micro_batches_and_then_recomputation():
    needed = Plan(DEEP, TrainConfig(task="t"), devices.open("cpu"), 0).planner.use([20] * 64, "none").process - PROCESS
    times = []
    for share in (1.0, 0.5, 0.25, 0.2):
        plan, choice = choose(int(share * needed))
        assert choice.peak <= plan.memory
        times.append(choice.time)
    assert times == sorted(times) and times[0] == 1 and times[-1] > 1
    assert choose(needed)[1].micro_tokens is None
    assert choose(needed // 2)[1].micro_tokens == 640
    plan, whole = choose(needed // 2), None
    whole = plan[0].choose([20] * 64, whole=True)
    assert whole.micro_tokens is None and "(" in whole.recompute and whole.peak <= plan[0].memory


def test_no_micro_batch_of_unequal_lengths_is_heavier_than_the_planned_one():
    rng = np.random.default_rng(7)
    for _ in range(500):
        kinds = rng.integers(1, rng.integers(2, 400), rng.integers(1, 30))
        lengths = rng.choice(kinds, rng.integers(1, 40))
        most, tokens = int(rng.integers(1, len(lengths) + 1)), int(rng.integers(1, lengths.sum() + 2))
        planned = filled({*kinds.tolist()}, tokens, most)
        assert max(planned) == max(kinds) and len(planned) <= most
        for part in (lengths[some] for some in batch.cut(lengths, most, tokens)):
            assert part.sum() <= sum(planned) and len(part) <= len(planned)
    assert filled({20}, 639, 64) == [20] * 31  # of equal lengths not a token more
    assert filled({20}, 10**12, 64) == [20] * 64  # nor more than there are


def test_no_batch_of_unequal_lengths_is_heavier_than_the_planned_one():
    rng = np.random.default_rng(5)
    data = data_of([*rng.integers(4, 12, 63).tolist(), 40], False)
    stage = Stage(data, 8, TrainConfig(task="t", batch_size=16, epochs=8))
    lengths = np.diff(data.features.offsets)
    batches = [lengths[stage.numbers(step)] for step in range(stage.total)]
    planned = heaviest([stage], 16)
    assert len(planned) == 16 and max(planned) == 40 and sum(planned) == max(map(sum, batches))
    parts = heaviest([stage], 5)
    assert len(parts) == 5 and max(parts) == 40 and sum(parts) < sum(planned)


@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.8])
def test_training_on_unequal_lengths_keeps_to_its_plan(share):
    """The plan beside every micro-batch that batches of very different lengths are cut into."""
    rng = np.random.default_rng(3)
    data = data_of(rng.integers(3, 41, 256).tolist(), False)
    settings, device = TrainConfig(task="t", batch_size=16, epochs=1), devices.open("cpu")
    stage, planner = Stage(data, 1, settings), Planner(DEEP, settings, device)
    needed = planner.use(heaviest([stage], 16), "none").process - PROCESS
    limit = PROCESS + int(share * needed)
    chosen, _ = fitted(settings, DEEP, [(data, 1)], device, limit, None)
    lengths = np.diff(data.features.offsets)
    for step in range(stage.total):
        of_step = lengths[stage.numbers(step)]
        for part in batch.cut(of_step, 16, chosen.micro_tokens):
            assert planner.use(of_step[part].tolist(), chosen.recompute).process <= limit


def test_a_run_that_goes_on_is_planned_for_the_memory_that_there_is_now():
    data, device = data_of([20] * 64, False), devices.open("cpu")
    settings = TrainConfig(task="t", batch_size=64, epochs=1, micro_tokens=640, recompute="layers")
    planner = Planner(DEEP, settings, device)
    layers, leaner = (planner.use([20] * 32, policy).process for policy in ("layers", "segments:2"))

    def resumed(limit: int, recompute: str = "auto", own: str = "layers") -> TrainConfig:
        begun = Begun({"settings": settings.to_dict() | {"recompute": own}}, Path())
        asked = begun.settings(TrainConfig, "t", {} if recompute == "auto" else {"recompute": recompute})
        return starting.fit(asked, DEEP, [(data, 1)], device, limit, True, recompute)[0]

    assert resumed(layers).recompute == resumed(10 * layers).recompute == policies.spelled("layers", 5)
    tight = resumed(leaner)  # its own policy does not fit any more; micro-batches stay, whose bits are its own
    assert tight.micro_tokens == 640 and tight.recompute != policies.spelled("layers", 5)
    assert resumed(10 * layers, own="none").recompute == "none" != resumed(leaner, own="none").recompute
    for limit, recompute in ((leaner, "layers"), (PROCESS, "auto")):
        with pytest.raises(ConfigError, match="does not suffice: .* give this run more --memory"):
            resumed(limit, recompute)


def test_what_cannot_fit_is_told_with_what_would_help():
    with pytest.raises(
        ConfigError, match=r"memory of 0\.336 GB does not suffice: 1 example of at most 20 tokens takes"
    ):
        choose(1000)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("12GB", 12 * 10**9),
        ("11.5g", 11_500_000_000),
        ("800 MB", 8 * 10**8),
        ("4GiB", 4 << 30),
        ("1000000", 10**6),
        ("7k", 7000),
    ],
)
def test_sizes_are_read_as_people_write_them(given, wanted):
    assert parse_size(given) == wanted


@pytest.mark.parametrize("given", ["", "GB", "12 apples", "-1GB", "1e9", "3iB"])
def test_what_is_no_size_is_told(given):
    with pytest.raises(ConfigError, match="not a size"):
        parse_size(given)


@pytest.mark.parametrize(("given", "meant"), [("12", "12GB"), ("0.5 b", "0.5GB"), ("999999", "999999GB")])
def test_a_size_without_its_unit_is_asked_about(given, meant):
    with pytest.raises(ConfigError, match=f"bytes; write {meant}"):
        parse_size(given)


def test_free_memory_is_the_least_of_what_the_system_and_its_limits_leave(tmp_path: Path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable:   1000 kB\n")
    assert host.available(proc, groups) == 1_024_000
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    (groups / "a" / "b" / "memory.max").write_text("max\n")
    (groups / "a" / "b" / "memory.current").write_text("5\n")
    assert host.available(proc, groups) == 1_024_000
    (groups / "a" / "memory.max").write_text("900000\n")
    (groups / "a" / "memory.current").write_text("100000\n")
    assert host.available(proc, groups) == 800_000
    (groups / "a" / "memory.stat").write_text("anon 90\ninactive_file 30000\nactive_file 7\n")
    assert host.available(proc, groups) == 830_000  # files that were not used lately are given back when asked for
    (proc / "self" / "cgroup").write_text("4:cpu,memory:/old\n")
    (groups / "memory" / "old").mkdir(parents=True)
    (groups / "memory" / "old" / "memory.limit_in_bytes").write_text("700000\n")
    (groups / "memory" / "old" / "memory.usage_in_bytes").write_text("1\n")
    assert host.available(proc, groups) == 699_999
    (groups / "memory" / "old" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 100\n")
    assert host.available(proc, groups) == 700_099


def test_plan_prints_the_chapter_s_table_and_the_same_as_json():
    done = command("plan", "--checkpoint", "base", "--memory", "12GB")
    assert done.code == 0 and done.err == ""
    rows = [line.split() for line in done.out.splitlines()]
    theirs = {
        row[0]: row[1] for row in rows if row and row[0] in ("64", "128", "256", "320", "384", "512") and len(row) > 5
    }
    assert theirs == {"64": "64", "128": "32", "256": "16", "320": "14", "384": "12", "512": "6"}
    assert "on a card of 12 GB" not in done.out
    less = command("plan", "--checkpoint", "base", "--memory", "8GB", "--max-seq-length", "128")
    assert "TensorFlow: on a card of 12 GB, whatever --memory is" in less.out
    done = command(
        "plan", "--checkpoint", "tiny", "--task", "squad", "--memory", "1GB", "--max-seq-length", "64", "--json"
    )
    found = json.loads(done.out)
    assert found["memory"] == 10**9 and found["rows"][0]["tensorflow"] is None
    assert found["rows"][0]["largest"].keys() == found["columns"].keys()


def test_plan_of_a_model_that_is_shorter_than_all_lengths(tmp_path):
    asked = ("plan", "--checkpoint", make_checkpoint(tmp_path / "bert"), "--memory", "1GB")  # of 32 positions
    assert [row["max_seq_length"] for row in json.loads(command(*asked, "--json").out)["rows"]] == [32]
    done = command(*asked)
    assert done.code == 0 and "\n      32 " in done.out, done


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "lots"), "not a size"),
        (("--max-seq-length", "513"), "1 to 512"),
        (("--checkpoint", "nowhere/"), "nowhere"),
        (("--memory", "12"), "12 bytes; write 12GB"),
        (("--memory", "1GB"), None),
        (("--memory", "100MB"), None),
    ],
)
def test_plan_says_in_a_line_what_is_wrong(arguments, words):
    done = command("plan", *arguments)
    if words is None:  # too little is an answer, not an error, and takes no table
        assert done.code == 0 and "does not suffice" in done.out and len(done.out.splitlines()) == 1
    else:
        assert done.code == 1 and words in done.err and len(done.err.splitlines()) == 1 and done.out == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_finetune_trains_within_the_memory_that_it_is_given(precision: str, tmp_path: Path):
    few = ("finetune", "mrpc", "--sample", "--epochs", "0.1", "--memory-report", "--precision", precision)
    few = (*few, "--output-dir", str(tmp_path / "run"))
    done = command(*few, "--memory", "365MB", "--save-every", "2")
    assert done.code == 0, done.err
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["micro_tokens"] or settings["recompute"] != "none"
    report = json.loads((tmp_path / "run" / "memory.json").read_text())
    assert report.keys() == {"tokens", "peak", "layers", "marks", "curve"}
    assert PROCESS + sum(report["peak"].values()) < 365e6
    assert max(sum(point.values()) for point in report["curve"]) == sum(report["peak"].values())
    names = [layer["name"] for layer in report["layers"]]
    assert names[0] == "embeddings" and names[-1] == "head" and len(names) == 6
    assert sum(layer["weights"] for layer in report["layers"]) == report["peak"]["weights"]
    done = command(*few[:-1], str(tmp_path / "none"), "--memory", "200MB")
    assert done.code == 1 and "does not suffice" in done.err and len(done.err.splitlines()) == 3  # two about the sample
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("recompute", ["layers", "((k)k)k(k)c"])
def test_a_policy_that_is_given_is_kept_and_only_micro_batches_are_chosen(recompute):
    plan, needed = Plan(DEEP, TrainConfig(task="t", batch_size=64), devices.open("cpu"), 0), PROCESS
    needed = plan.planner.use([20] * 64, recompute).process
    plan.memory = needed - 1
    choice = plan.choose([20] * 64, recompute)
    assert choice.recompute == policies.spelled(recompute, 5) and choice.micro_tokens == 640
    plan.memory = needed
    assert plan.choose([20] * 64, recompute).micro_tokens is None


@pytest.mark.parametrize(
    "bad",
    ["", "some", "segments", "segments:0", "segments:x", "layers:2", "k(", "k)", "()k", "(k", "[]k", "[k)k", "(k]k"],
)
def test_what_is_no_policy_is_told(bad):
    with pytest.raises(
        ConfigError, match="unknown recompute policy .* there are auto, none, cheap, layers, host, segments:K"
    ):
        TrainConfig(task="t", recompute=bad)


def test_a_policy_that_is_given_by_name_is_told_by_it():
    for given in ("segments:2", "((k)k)((k)k)k"):
        few = DEEP, [(split(40, DEEP), 1)], devices.open("cpu"), 10**9
        told = fitted(TrainConfig(task="t", precision="fp32"), *few, given)[1]
        assert f"; recompute {given}: about" in told


def test_a_policy_for_other_layers_is_told():
    with pytest.raises(ConfigError, match="a policy for 3 layers, the model has 5"):
        policies.parse("k(kk)", 5)
    with pytest.raises(ConfigError, match="a policy for 3 layers, the model has 5"):
        policies.parse("k[kk]", 5)


@pytest.mark.parametrize("limit", [None, 10**12])
def test_more_layers_in_a_segment_than_there_are_are_told(limit):
    layers = CONFIG.num_hidden_layers
    settings = TrainConfig(task="mrpc", recompute=f"segments:{layers + 1}", precision="fp32")
    given = CONFIG, [(split(40, CONFIG), 1)], devices.open("cpu"), limit
    with pytest.raises(ConfigError, match=f"recompute segments:{layers + 1}: the model has {layers} layers"):
        fitted(settings, *given, settings.recompute)
    fitted(settings, *given, f"segments:{layers}")


def test_named_policies_as_text():
    assert [policies.spelled(name, 5) for name in ("none", "cheap", "layers", "host", "segments:2", "segments:9")] == [
        "kkkkk", "ccccc", "(k)(k)(k)(k)k", "[k][k][k][k]k", "((k)k)((k)k)k", "(k)(k)(k)(k)k",
    ]  # fmt: skip


def test_square_brackets_are_parts_whose_inputs_wait_in_the_host_s_memory():
    policy = policies.parse("[k](k)[[c]k]k", 5)
    assert policy == (("k",), ("k",), (("c",), "k"), "k")
    assert [isinstance(part, policies.Hosted) for part in policy] == [True, False, True, False]
    assert isinstance(policy[2][0], policies.Hosted)
    names = ("none", "layers", "segments:4", "host", "(k[k])k")
    assert [policies.hosted(name) for name in names] == [False, False, False, True, True]


def test_a_picture_that_cannot_be_drawn_is_told_with_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_report.importlib.util, "find_spec", lambda name: None)
    told = memory_report.write(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["memory.json"]
    assert 'memory.json; memory.png needs matplotlib: pip install ".[plot]"' in told


def test_the_picture_of_memory_is_a_png():
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    device = devices.open("cpu")
    settings = TrainConfig(task="t", batch_size=len(LENGTHS), epochs=3)
    trainer = Trainer(bert(device, DEEP), data_of(LENGTHS, False), settings)
    with device.session():
        trainer.step(0)
        _, found = memory_report.observed(trainer, 1)
    assert found["layers"][2]["activations"] > 0 and not trainer.bert.watchers and device.log is None
    assert memory_report.picture(found).startswith(b"\x89PNG")


def test_a_size_past_all_numbers_is_one_line():
    with pytest.raises(ConfigError, match=r"memory 9999.*: no machine has that"):
        parse_size("9" * 400 + "GB")


def test_a_budget_is_what_is_free_and_what_the_process_has_of_its_allowance(tmp_path, monkeypatch):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("VmRSS:\t  90000 kB\nRssAnon:\t  50000 kB\nRssFile:\t 40000 kB\n")
    assert host.resident(tmp_path) == 50_000 * 1024 and host.resident(tmp_path / "nowhere") is None
    device = devices.open("cpu")
    monkeypatch.setattr(device, "free_memory", lambda: 10**9)
    for resident, counted in ((50 << 20, 50 << 20), (PROCESS * 2, PROCESS), (None, PROCESS)):
        monkeypatch.setattr(host, "resident", lambda resident=resident: resident)
        assert planning.budget(None, device) == int(planning.SPARE * 10**9) + counted
    assert planning.budget("2GB", device) == 2 * 10**9
