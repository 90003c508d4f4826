"""--device tpu and --use_tpu from the command line, on JAX's CPU: runs as on any other device, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from commands import (
    Done,
    assert_one_line,
    command,
    contents,
    environment,
    make_checkpoint,
    minibert_in_process,
    minibert_process,
    write_mrpc,
)
from minibert import latest
from minibert.checkpoint import conversion
from test_squad import WIDE, write_squad

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason='JAX is an extra: pip install ".[jax]"')
SIZE = ("--batch-size", "8", "--max-seq-length", "32")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tpu")
    make_checkpoint(root / "checkpoint")
    write_mrpc(root / "glue")
    return root


def finetune(folder: Path, output: Path, *more: str) -> Done:
    given = ("--checkpoint", folder / "checkpoint", "--data-dir", folder / "glue", "--output-dir", output)
    return minibert_in_process("finetune", "mrpc", *given, *SIZE, "--learning-rate", "1e-3", *more)


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="session")
def run(folder: Path) -> Path:
    done = finetune(folder, folder / "run", "--device", "tpu", "--eval-every", "4")
    assert done.code == 0, done.err
    assert "fp32 on 1 x cpu, adam" in done.err
    return folder / "run"


@needs_jax
def test_a_run_is_that_of_the_cpu(folder, run, tmp_path):
    assert finetune(folder, tmp_path / "cpu", "--device", "cpu", "--precision", "fp32", "--eval-every", "4").code == 0
    np.testing.assert_allclose(losses(run), losses(tmp_path / "cpu"), rtol=0, atol=1e-4)
    assert contents(run).keys() == contents(tmp_path / "cpu").keys()
    ours, theirs = (json.loads((path / "run.json").read_text()) for path in (run, tmp_path / "cpu"))
    assert ours["settings"] | {"device": "cpu"} == theirs["settings"] and ours["settings"]["device"] == "tpu"
    assert "jax" in ours["versions"] and "numba" in theirs["versions"]
    ours, theirs = (json.loads((path / "eval_results.json").read_text()) for path in (run, tmp_path / "cpu"))
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


@needs_jax
def test_a_run_is_evaluated_and_predicts_on_either_device(run):
    devices = [("--device", name, "--precision", "fp32") for name in ("cpu", "tpu")]
    found = [minibert_in_process("evaluate", run, "--json", *device) for device in devices]
    results = [json.loads(done.out) for done in found]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=1e-5)
    texts = b"Anna sold the house .\tThe house was sold .\nThe cat was lost .\tA dog won .\n"
    rows = [minibert_in_process("predict", run, "--format", "jsonl", *device, stdin=texts) for device in devices]
    said = [[json.loads(line) for line in done.out.splitlines()] for done in rows]
    assert [row["prediction"] for row in said[0]] == [row["prediction"] for row in said[1]]
    values = [[list(row["probabilities"].values()) for row in one] for one in said]
    np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-5)


@needs_jax
def test_a_run_that_was_stopped_goes_on(folder, run, tmp_path, monkeypatch):
    from minibert.tpu.trainer import TpuTrainer

    real = TpuTrainer.update

    def update(self, stage, number, *rest):
        if number == 4:
            raise KeyboardInterrupt
        return real(self, stage, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(TpuTrainer, "update", update)
        assert finetune(folder, tmp_path / "run", "--device", "tpu", "--save-every", "2").code == 130
    assert_one_line(finetune(folder, tmp_path / "run", "--device", "cpu", "--resume"), 1, "device was 'tpu', now 'cpu'")
    done = minibert_in_process("finetune", "mrpc", "--output-dir", tmp_path / "run", "--resume")
    assert done.code == 0 and "going on after step 4" in done.err, done.err
    assert losses(tmp_path / "run") == losses(run)


@needs_jax
def test_squad(tmp_path):
    base = make_checkpoint(tmp_path / "base", config=WIDE)
    train, dev = write_squad(tmp_path / "train.json", 24), write_squad(tmp_path / "dev.json", 9, start=24)
    for name in ("cpu", "tpu"):
        done = minibert_in_process(
            "finetune", "squad", "--checkpoint", base, "--first", f"{train}:1", "--dev", dev, "--output-dir",
            tmp_path / name, "--max-seq-length", "48", "--doc-stride", "16", "--max-query-length", "12",
            "--batch-size", "5", "--learning-rate", "1e-3", "--precision", "fp32", "--device", name,
        )  # fmt: skip
        assert done.code == 0, done.err
    np.testing.assert_allclose(losses(tmp_path / "cpu"), losses(tmp_path / "tpu"), rtol=0, atol=1e-4)
    best = [json.loads((tmp_path / name / "nbest_predictions.json").read_text()) for name in ("cpu", "tpu")]
    assert best[0].keys() == best[1].keys()
    for ours, theirs in zip(best[0].values(), best[1].values(), strict=True):
        logits = (
            [[one["start_logit"], one["end_logit"]] for one in ours],
            [[o["start_logit"], o["end_logit"]] for o in theirs],
        )
        np.testing.assert_allclose(*logits, rtol=0, atol=1e-3)


@needs_jax
def test_googles_flags(folder, tmp_path):
    conversion.convert(folder / "checkpoint", tmp_path / "bert", "tensorflow")
    given = {
        "task_name": "MRPC", "data_dir": folder / "glue" / "MRPC", "vocab_file": tmp_path / "bert" / "vocab.txt",
        "bert_config_file": tmp_path / "bert" / "bert_config.json", "max_seq_length": 32, "train_batch_size": 8,
        "init_checkpoint": tmp_path / "bert" / "bert_model.ckpt", "do_train": "True", "do_eval": "True",
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in given.items()]
    on_tpu = "--use_tpu=True", "--tpu_name=grpc://x", "--num_tpu_cores=8", "--tpu_zone=z", "--gcp_project=p"
    ours = minibert_in_process("run-classifier", *flags, f"--output_dir={tmp_path / 'tpu'}", *on_tpu)
    theirs = minibert_in_process("run-classifier", *flags, f"--output_dir={tmp_path / 'cpu'}")
    assert ours.code == theirs.code == 0, ours.err
    assert "--tpu_name means nothing here: a TPU is found on the machine" in ours.err
    values = [
        [float(line.split(" = ")[1]) for line in done.out.splitlines()[1:]] for done in (ours, theirs)
    ]  # fmt: skip
    np.testing.assert_allclose(*values, rtol=0, atol=1e-4)
    assert latest.newest(tmp_path / "tpu") == latest.newest(tmp_path / "cpu") == "model.ckpt-9"


@needs_jax
@pytest.mark.slow
def test_two_processes_make_one_run(folder, run, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    arguments = (
        "finetune", "mrpc", "--checkpoint", folder / "checkpoint", "--data-dir", folder / "glue", "--output-dir",
        tmp_path / "out" / "run", *SIZE, "--learning-rate", "1e-3", "--eval-every", "4", "--device", "tpu",
    )  # fmt: skip
    (tmp_path / "scratch").mkdir()
    workers = [
        subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment({"MINIBERT_HOSTS": f"{address},2,{number}", "TMPDIR": str(tmp_path / "scratch")}),
        )
        for number in range(2)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    np.testing.assert_allclose(losses(tmp_path / "out" / "run"), losses(run), rtol=0, atol=1e-5)
    assert contents(tmp_path / "out" / "run").keys() == contents(run).keys()
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "run"] and not any(
        (tmp_path / "scratch").iterdir()
    )


@needs_jax
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--optimizer", "adam8bit"), ("optimizer adam8bit", "adam")),
        (("--layerwise-update",), ("--layerwise-update", "not for TPUs")),
        (("--recompute", "segments:2"), ("recompute segments:2", "none or layers")),
        (("--threads", "2"), ("--threads", "leave it out")),
        (("--memory", "1GB"), ("--memory", "not with --device tpu")),
        (("--memory-report",), ("--memory-report", "not with --device tpu")),
    ],
    ids=lambda value: value[0],
)
def test_what_means_nothing_on_a_tpu_is_refused(folder, tmp_path, options, words):
    assert_one_line(finetune(folder, tmp_path / "run", "--device", "tpu", *options), 1, *words)
    assert not (tmp_path / "run").exists()


@needs_jax
def test_without_a_tpu_it_is_one_line(folder, tmp_path):
    options = ("--checkpoint", folder / "checkpoint", "--data-dir", folder / "glue", "--output-dir", tmp_path / "run")
    google = [f"--{name}=none" for name in ("data_dir", "bert_config_file", "vocab_file")]
    commands = (
        ("finetune", "mrpc", *options, "--device", "tpu"),
        (
            "run-classifier",
            "--task_name=MRPC",
            *google,
            f"--output_dir={tmp_path}",
            "--do_train=True",
            "--use_tpu=True",
        ),
    )
    for arguments in commands:
        done = minibert_process(*arguments, env={"JAX_PLATFORMS": None})
        assert_one_line(done, 1, "no TPU on this machine", "JAX_PLATFORMS=cpu")


def test_without_jax_it_says_what_to_install(folder, tmp_path):
    without = "import sys; sys.modules['jax'] = None; import minibert.cli; minibert.cli.main()"
    given = ["finetune", "mrpc", "--checkpoint", folder / "checkpoint", "--data-dir", folder / "glue", "--output-dir"]
    arguments = [sys.executable, "-c", without, *map(str, given), str(tmp_path / "run"), *SIZE]
    for more, code in (("--device", "tpu"), 1), ((), 0):
        done = subprocess.run([*arguments, *more], capture_output=True, text=True, env=environment({}))
        assert done.returncode == code, done.stderr
        if code:
            assert_one_line(Done(code, done.stdout, done.stderr), code, 'pip install ".[tpu]"')
