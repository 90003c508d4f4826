"""Run directories: numbers, locks, leftovers of killed processes, and saved states that are not this run's."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import numpy as np
import pytest

import minibert
from minibert import runs
from minibert.checkpoint import huggingface
from minibert.checkpoint.tensors import of_array
from minibert.errors import ConfigError, RunError
from minibert.runs import RunDirectory
from models import trainer

DESCRIPTION = {"settings": {"task": "mrpc", "max_seq_length": 16}, "checkpoint": {}, "data": {}}


def claim(path, resume=False, overwrite=False, **changes):
    return RunDirectory.claim(path, DESCRIPTION | changes, resume, overwrite)


def test_runs_are_numbered_and_the_newest_unfinished_is_found_by_number(tmp_path):
    for name in ("mrpc-999", "mrpc-1000", "mrpc-notes", "mrpc-5-old", "rte-2000"):
        with claim(tmp_path / name):
            pass
    assert runs.next_directory("mrpc", tmp_path).name == "mrpc-1001"
    assert runs.next_directory("cola", tmp_path).name == "cola-001"
    assert runs.newest_unfinished("mrpc", tmp_path).name == "mrpc-1000"
    with claim(tmp_path / "mrpc-1000", resume=True) as run:
        run.describe(finished=True)
    assert runs.newest_unfinished("mrpc", tmp_path).name == "mrpc-999"


def test_one_process_at_a_time_and_the_lock_goes_with_it(tmp_path):
    second = claim(tmp_path / "run", resume=True)
    with claim(tmp_path / "run"), pytest.raises(RunError, match="another process"), second:
        pass
    assert not (tmp_path / "run" / ".lock").exists()
    with claim(tmp_path / "run", resume=True):
        pass


def test_two_runs_that_were_given_the_same_number_get_two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = [runs.find_place("sst-2", None, False, False) for _ in range(2)]
    assert places[0] == places[1] and places[0].path.name == "sst-2-001" and not places[0].path.exists()
    with ExitStack() as stack:
        claimed = [RunDirectory.claim(p.path, DESCRIPTION, False, False, p.mirror, p.numbered) for p in places]
        assert [stack.enter_context(claim).path.name for claim in claimed] == ["sst-2-001", "sst-2-002"]
    named = runs.find_place("sst-2", tmp_path / "own", False, False)
    resumed = runs.find_place("sst-2", None, True, False)
    assert resumed.path.name == "sst-2-002" and not named.numbered and not resumed.numbered


def test_a_file_system_without_locks_is_trained_into_all_the_same(tmp_path, monkeypatch):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", flock)
    with claim(tmp_path / "run") as run:
        assert run.description["finished"] is False and (tmp_path / "run" / "run.json").is_file()


def test_other_labels_are_another_run(tmp_path):
    with claim(tmp_path / "run", labels=["a", "b"]):
        pass
    with (
        pytest.raises(RunError, match=r"labels was \['a', 'b'\], now \['b', 'a'\]"),
        claim(tmp_path / "run", True, labels=["b", "a"]),
    ):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".run.json.0a1b2c3d.tmp").write_text("{")
    (folder / ".state.safetensors.00000000.tmp").write_bytes(bytes(100))
    with claim(folder):
        assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("change", ["shape", "step", "missing"])
def test_a_state_of_another_run_is_refused(tmp_path, change):
    t = trainer()
    arrays = dict(runs._state_arrays(t.optimizer))
    name = next(iter(arrays))
    if change == "shape":
        arrays[name] = np.zeros(1, np.float32)  # NumPy would spread it over the weights
    elif change == "missing":
        del arrays[name]
    entries = {name: of_array(name, array) for name, array in arrays.items()}
    huggingface.write(tmp_path / runs.STATE, entries, {"step": "-5" if change == "step" else "5"})
    with pytest.raises(RunError, match="not this run's saved state"):
        RunDirectory(tmp_path).load_state(t.optimizer)


def test_resume_and_overwrite_contradict_each_other(tmp_path):
    with pytest.raises(ConfigError, match="one of them"):
        minibert.finetune("mrpc", output_dir=tmp_path / "run", resume=True, overwrite=True)


def test_a_task_without_training_data_is_refused_before_anything_is_fetched(tmp_path):
    with pytest.raises(ConfigError, match="cannot be trained"):
        minibert.finetune("ax", output_dir=tmp_path / "run")


def test_what_no_run_has_written_is_not_overwritten(tmp_path):
    for name in ("model.safetensors", "vocab.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "notes").write_text("mine, too")
    refused = pytest.raises(RunError, match="holds model.safetensors, and no run; move it away")
    with refused, claim(tmp_path, overwrite=True):
        pass
    assert {path.read_text() for path in tmp_path.iterdir() if path.name != ".lock"} == {"mine", "mine, too"}
    for name in ("model.safetensors", "vocab.txt"):
        (tmp_path / name).unlink()
    with claim(tmp_path, overwrite=True):
        (tmp_path / "model.safetensors").write_text("the run's")
    with claim(tmp_path, overwrite=True):
        assert {path.name for path in tmp_path.iterdir()} == {"notes", "run.json", ".lock"}
