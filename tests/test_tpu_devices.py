"""Training shared out over devices and over processes: the losses and the weights of one device."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jax", reason='JAX is an extra: pip install ".[jax]"')

from safetensors import safe_open  # noqa: E402 - only where JAX is

import models  # noqa: E402
from commands import command, environment, make_checkpoint, write_mrpc  # noqa: E402
from minibert.errors import BackendError, RunError  # noqa: E402
from minibert.tpu import device as tpu  # noqa: E402
from minibert.tpu import model  # noqa: E402
from tpu_worker import assert_same_training, trained, trainer  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def one() -> tuple[np.ndarray, np.ndarray]:
    return trained(trainer("tpu"))


def start(target: Path, devices: int, *how: str, program: str = "tpu_worker.py", **variables: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([environment({})["PYTHONPATH"], str(HERE)])
    env = environment({"XLA_FLAGS": flags, "PYTHONPATH": path, **variables})
    command = [sys.executable, HERE / program, target, *how]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_same(workers: list[subprocess.Popen], target: Path, world: tuple[int, int], one: tuple) -> None:
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    found = np.load(target)
    assert tuple(found["world"]) == world
    assert_same_training((found["told"], found["weights"]), one, 1e-5)
    assert found["compiled"] == 0, "nothing is compiled once training is under way"


def collectives(program: str) -> Iterator[tuple[int, str, int]]:
    """Of each array that a compiled program sends between devices: loops around it, kind, elements that arrive."""
    blocks = dict(re.findall(r"^((?:ENTRY )?%[\w.-]+) [^\n]*\{\n(.*?)^\}", program, re.M | re.S))
    kinds = r" = (.*) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("

    def walk(name: str, loops: int) -> Iterator[tuple[int, str, int]]:
        for types, kind in re.findall(kinds, blocks[name]):
            for shape in re.findall(r"\[([\d,]*)\]", types):
                yield loops, kind, math.prod(int(size) for size in shape.split(",") if size)
        for how, inner in re.findall(r"(body|calls|to_apply)=(%[\w.-]+)", blocks[name]):
            yield from walk(inner, loops + (how == "body"))

    (entry,) = (name for name in blocks if name.startswith("ENTRY"))
    yield from walk(entry, 0)


slowly = partial(pytest.param, marks=pytest.mark.slow)  # each of these takes some ten seconds


@pytest.mark.parametrize(
    ("hosts", "words"), [("here,2", "neither auto nor ADDRESS:PORT"), ("localhost:1,2,2", "did not come together")]
)
def test_processes_that_are_named_wrongly_are_told(hosts, words, monkeypatch):
    monkeypatch.setenv(tpu.HOSTS, hosts)
    with pytest.raises(BackendError, match=f"MINIBERT_HOSTS={hosts}: .*{words}"):
        tpu._join()


def test_processes_that_do_not_agree_stop(monkeypatch):
    monkeypatch.setattr(tpu.jax, "process_count", lambda: 2)
    gather = "process_allgather"
    monkeypatch.setattr(tpu.multihost_utils, gather, lambda mine: np.stack([mine, mine]))
    state = {"params": {"w": np.ones(3, np.float32)}}
    tpu.check_agreement(512, "rate 1", state, [np.ones(3)])
    other = np.array([0, 0, 0, 1], np.uint32)  # of other data
    monkeypatch.setattr(tpu.multihost_utils, gather, lambda mine: np.stack([mine, mine + other]))
    with pytest.raises(RunError, match="different data or settings: give all of them the same files and options"):
        tpu.check_agreement(512, "rate 1", state, [np.ones(3)])
    monkeypatch.setattr(tpu.multihost_utils, gather, lambda mine: np.stack([mine, mine + np.uint32(1)]))
    with pytest.raises(RunError, match="--output-dir that all of them see"):
        trainer("tpu").step(0)


def test_eight_devices_sum_gradients_once_an_update(one, tmp_path):
    target = tmp_path / "found.npz"
    assert_same([start(target, 8)], target, (8, 1), one)
    sent = {(loops, kind) for loops, kind, _ in collectives(str(np.load(target)["program"]))}
    assert sent == {(0, "all-reduce")}, "more is sent than sums after the loop over micro-batches"


def test_eight_devices_that_share_weights_gather_a_layers(one, tmp_path):
    target = tmp_path / "found.npz"
    assert_same([start(target, 8, "shared")], target, (8, 1), one)
    sent = list(collectives(str(np.load(target)["program"])))
    layer = model.shapes(models.CONFIG, 3)[model.LAYERS].values()
    sizes = [weight.size // weight.shape[0] for weight in layer if weight.ndim == 3]
    wanted = [*[("all-gather", size) for size in 2 * sizes], *[("reduce-scatter", size // 8) for size in sizes]]
    assert sorted((kind, size) for loops, kind, size in sent if loops == 2) == sorted(wanted), (
        "not each weight twice, forward and backward, and its gradient once"
    )
    assert not any(kind == "all-reduce" for loops, kind, _ in sent if loops)
    assert max(size for *_, size in sent) < models.CONFIG.vocab_size * models.CONFIG.hidden_size, "a table is sent"


@pytest.mark.slow
def test_gradients_of_shared_weights_are_those_of_one_device_whatever_divides():
    worker = start(Path("-"), 5, program="tpu_gradients.py")
    told, errors = worker.communicate(timeout=600)
    assert worker.returncode == 0, errors
    for *case, apart in json.loads(told):
        assert apart < (1e-5 if "fp32" in case else 1e-4), case


@pytest.mark.slow
def test_devices_that_few_weights_can_be_shared_by(one, tmp_path):
    """By five the feed-forward's rows, of all that there is."""
    assert_same([start(tmp_path / "found.npz", 5, "shared")], tmp_path / "found.npz", (5, 1), one)


@pytest.mark.parametrize("how", [slowly(()), slowly(("shared",))], ids=["replicated", "shared"])
def test_two_processes(one, tmp_path, how):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    target = tmp_path / "found.npz"
    workers = [start(target, 1, *how, MINIBERT_HOSTS=f"{address},2,{number}") for number in range(2)]
    assert_same(workers, target, (2, 2), one)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_in_the_one_that_writes(tmp_path):
    """All of them end after the same step."""
    make_checkpoint(tmp_path / "checkpoint")
    write_mrpc(tmp_path / "glue")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    run = tmp_path / "run"
    arguments = (
        "finetune", "mrpc", "--device", "tpu", "--checkpoint", tmp_path / "checkpoint", "--data-dir", tmp_path / "glue",
        "--batch-size", "8", "--max-seq-length", "32", "--output-dir", run,
    )  # fmt: skip
    where = [environment({"MINIBERT_HOSTS": f"{address},2,{number}"}) for number in range(2)]
    call, until = command(*arguments, "--epochs", "400"), time.monotonic() + 120
    workers = [subprocess.Popen(call, env=env, stderr=subprocess.PIPE, text=True) for env in where]
    try:
        while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
            assert time.monotonic() < until and all(worker.poll() is None for worker in workers)
            time.sleep(0.05)
        workers[1].send_signal(signal.SIGTERM)
        for worker in workers:
            _, said = worker.communicate(timeout=120)
            assert worker.returncode == 143 and "stopped after step" in said, said
    finally:
        for worker in workers:
            worker.kill()
    done = len((run / "metrics.jsonl").read_text().splitlines())
    with safe_open(run / "state.safetensors", "numpy") as state:
        assert int(state.metadata()["step"]) == done
