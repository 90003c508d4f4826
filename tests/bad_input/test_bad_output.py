"""Output that cannot be written or would replace something: one line; nothing is lost, and a run goes on later."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from commands import Done, assert_one_line, assert_stopped, contents, minibert_in_process
from damage import finetune, predict, rows, tensors, unfinish, write


def test_output_directory_with_a_finished_run(here: Path) -> None:
    before = contents(here)
    assert_one_line(finetune(here), 1, str(here / "run"), "finished run", "--overwrite")
    assert_one_line(finetune(here, "--resume"), 1, str(here / "run"), "finished", "--overwrite")
    assert contents(here) == before


def test_output_directory_with_an_unfinished_run(here: Path) -> None:
    unfinish(here / "run")
    before = contents(here)
    assert_one_line(finetune(here), 1, "unfinished run of the same settings", "--resume")
    for more in ((), ("--resume",)):
        done = finetune(here, "--learning-rate", "1e-4", *more)
        assert_one_line(done, 1, "other settings", "learning_rate was 2e-05, now 0.0001", "--overwrite")
    assert contents(here) == before
    rows(here / "glue" / "MRPC" / "train.tsv", lambda all: all[:-1])
    assert_one_line(finetune(here, "--resume"), 1, "other settings", "train data was")


def test_output_directory_with_something_else(here: Path) -> None:
    (here / "run").rename(here / "old")
    (here / "run").mkdir()
    write(here / "run" / "thesis.tex", b"years of work")
    before = contents(here)
    assert_one_line(finetune(here), 1, str(here / "run"), "not empty", "--overwrite")
    assert_one_line(finetune(here, "--seeds", "2"), 1, str(here / "run"), "not empty", "--overwrite")
    assert contents(here) == before
    assert finetune(here, "--overwrite").code == 0
    assert (here / "run" / "thesis.tex").read_bytes() == b"years of work", "--overwrite removes what runs write"


def test_overwriting_keeps_the_old_run_until_the_new_one_can_start(here: Path) -> None:
    (here / "glue" / "MRPC" / "train.tsv").write_text("")
    before = contents(here)
    assert_one_line(finetune(here, "--overwrite"), 1, "train.tsv", "empty")
    assert contents(here) == before


def test_output_directory_is_the_checkpoint(here: Path) -> None:
    for of_a_run, said in (
        (False, "holds config.json, and no run"),
        (True, "the checkpoint that training starts from"),
    ):
        if of_a_run:
            (here / "checkpoint" / "run.json").write_bytes((here / "run" / "run.json").read_bytes())
        before = contents(here)
        done = finetune(here, "--overwrite", output="checkpoint")
        assert_one_line(done, 1, str(here / "checkpoint"), said, "--output-dir")
        assert contents(here) == before


def test_output_directory_in_use(here: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    (here / "new").mkdir()
    with open(here / "new" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # which leaves room for other shared ones, and none for ours
        for more in ((), ("--overwrite",)):
            assert_one_line(
                finetune(here, *more, output="new"), 1, str(here / "new"), "another process", "--output-dir"
            )
    assert finetune(here, output="new").code == 0


def test_nothing_to_resume(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line(finetune(here, "--resume", output="new"), 1, str(here / "new"), "no run to resume", "--resume")
    assert not (here / "new").exists()
    monkeypatch.chdir(here)
    assert_one_line(minibert_in_process("finetune", "mrpc", "--resume"), 1, "no unfinished run of mrpc")
    assert_one_line(minibert_in_process("finetune", "mrpc", "--resume", "--seeds", "2"), 1, "name it with --output-dir")


@pytest.mark.parametrize("damage", [b"", b"garbage", bytes(range(256)) * 50])
def test_a_damaged_state(here: Path, damage: bytes) -> None:
    unfinish(here / "run")
    write(here / "run" / "state.safetensors", damage)
    assert_stopped(finetune(here, "--resume"), 1, "state.safetensors", "--overwrite")


def test_output_under_a_file(here: Path) -> None:
    write(here / "file", b"content")
    for output in ("file", "file/run"):
        assert_one_line(finetune(here, output=output), 1, str(here / output), "cannot write", "is a file, not a folder")
    done = minibert_in_process(
        "predict", here / "run", "--input", here / "glue/MRPC/dev.tsv", "--output", here / "file/predictions.tsv"
    )
    assert_one_line(done, 1, "predictions.tsv", "cannot write")
    assert (here / "file").read_bytes() == b"content"


def test_output_that_may_not_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    assert_one_line(finetune(here, output="new"), 1, str(here / "new"), "cannot write: Permission denied", "check who")


class FullDisk:
    """os.fsync that finds the disk full at the call of that number, from 1, and ever after."""

    def __init__(self, at: int):
        self.at, self.calls = at, 0

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_any_write_and_then_is_not(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a run fails once: one line, and the run goes on from there to the bits of an undisturbed one."""
    assert finetune(here, "--save-every", "1", "--overwrite").code == 0
    straight = contents(here / "run")
    refused = 0
    for at in range(1, 100):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FullDisk(at))
            done = finetune(here, "--save-every", "1", output="new")
        if done.code == 0:
            break
        refused += 1
        assert_stopped(done, 1, str(here / "new"), "No space left on device", "free some space")
        assert not list((here / "new").glob("*.tmp")) and not list((here / "new").glob(".*.tmp"))
        more = ["--resume"] if (here / "new" / "run.json").exists() else []
        done = finetune(here, "--save-every", "1", *more, output="new")
        assert done.code == 0, done.err
        for name in ("model.safetensors", "metrics.jsonl", "eval_results.json"):
            assert (here / "new" / name).read_bytes() == straight[name], f"{name} after write {at}"
        shutil.rmtree(here / "new")
    assert refused >= 10


def test_a_full_disk_leaves_earlier_predictions(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(1))
    assert_one_line(predict(here), 1, "predictions.tsv", "No space left", "free some space")
    assert (here / "predictions.tsv").read_text() == "earlier\n"


def test_a_file_size_limit_stops_a_real_write(here: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # room for run.json, not for a state
    try:
        done = finetune(here, "--save-every", "1", output="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_stopped(done, 1, "state.safetensors", "cannot write: File too large")
    assert sorted(path.name for path in (here / "new").iterdir()) == ["metrics.jsonl", "run.json"]


def test_metrics_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minibert import runs

    def full(path: Path, content: bytes) -> None:
        write(path, content)
        if path.name == "metrics.jsonl":
            path.unlink()
            path.symlink_to("/dev/full")

    monkeypatch.setattr(runs.files, "write_whole", full)
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert_stopped(finetune(here, output="new"), 1, "metrics.jsonl", "No space left", "free some space")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_stdout_that_cannot_be_written(here: Path) -> None:
    import subprocess

    from commands import command, environment

    with open("/dev/full", "wb") as full:
        for arguments in (["evaluate", "run"], ["predict", "run", "--input", "glue/MRPC/dev.tsv"]):
            done = subprocess.run(
                command(*arguments), stdout=full, stderr=subprocess.PIPE, env=environment({}), cwd=here
            )
            assert_one_line(Done(done.returncode, "", done.stderr.decode()), 1, "No space left on device")


def test_a_loss_that_is_not_finite(here: Path) -> None:
    large = lambda a: a.update({"bert.pooler.dense.weight": a["bert.pooler.dense.weight"] * np.float32(1e38)})  # noqa: E731
    tensors(large)(here / "checkpoint")
    tensors(lambda a: a["bert.embeddings.LayerNorm.weight"].fill(1e38))(here / "checkpoint")
    done = finetune(here, output="new")
    assert_stopped(done, 1, str(here / "new"), "at step 1 of 3", "state before it is kept", "learning rate")
    assert (here / "new" / "state.safetensors").is_file()
