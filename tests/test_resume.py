"""`--resume` alone: what a run was begun with is in its run.json, and need not be said twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import minibert
from commands import Done, assert_one_line, contents, make_checkpoint, minibert_in_process, mrpc_rows, write_mrpc
from minibert import datasets
from minibert.seeds import finetune_seeds
from minibert.tasks import sample
from minibert.training import Trainer
from test_squad import WIDE, write_squad

SETTINGS = ("--batch-size", "8", "--epochs", "1", "--max-seq-length", "32", "--learning-rate", "1e-3", "--seed", "3")
OFTEN = ("--save-every", "1", "--eval-every", "2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Checkpoint, data and the working directory."""
    make_checkpoint(tmp_path / "bert")
    write_mrpc(tmp_path / "glue")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a command that is killed before its third step."""

    def run(*arguments: str | Path) -> None:
        begin = Trainer.begin

        def stop(self: Trainer, number: int) -> Any:
            if number == 2:
                raise KeyboardInterrupt
            return begin(self, number)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "begin", stop)
            done = minibert_in_process(*arguments)
        assert done.code == 130, done.err

    return run


def mrpc(output: str, *more: str) -> tuple[str, ...]:
    return "finetune", "mrpc", "--checkpoint", "bert", "--data-dir", "glue", "--output-dir", output, *SETTINGS, *more


def rewrite(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    said = json.loads((run / "run.json").read_text())
    change(said)
    (run / "run.json").write_text(json.dumps(said))


def assert_goes_on_to(straight: Path, run: Path, done: Done) -> None:
    assert done.code == 0 and "going on after step 2" in done.err, done.err
    for name in ("model.safetensors", "eval_results.json", "metrics.jsonl"):
        assert (run / name).read_bytes() == (straight / name).read_bytes(), name


def test_a_run_goes_on_as_it_was_begun(
    here: Path, killed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert minibert_in_process(*mrpc("straight", *OFTEN)).code == 0
    killed(*mrpc("runs/mrpc-001", *OFTEN))
    shutil.copytree("runs/mrpc-001", "copy")
    assert_goes_on_to(here / "straight", here / "runs/mrpc-001", minibert_in_process("finetune", "mrpc", "--resume"))
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # where the names of checkpoint and data mean nothing
    run = minibert.finetune("mrpc", resume=True, output_dir="../copy", precision="auto", micro_batch=None)
    assert contents(here / "copy")["metrics.jsonl"] == contents(here / "straight")["metrics.jsonl"]
    assert run.results == json.loads((here / "straight" / "eval_results.json").read_text())


def test_what_is_given_and_differs_is_told_before_anything_is_read(here: Path, killed: Callable[..., None]) -> None:
    killed(*mrpc("run", *OFTEN))
    shutil.rmtree("glue")
    for given, told in {
        ("--batch-size", "4"): "batch_size was 8, now 4",
        ("--optimizer", "adafactor"): "optimizer was 'adam', now 'adafactor'",
        ("--seed", "4"): "seed was 3, now 4",
    }.items():
        done = minibert_in_process("finetune", "mrpc", "--output-dir", "run", "--resume", *given)
        assert_one_line(done, 1, "run: holds an unfinished run of other settings", told)
    done = minibert_in_process("finetune", "rte", "--output-dir", "run", "--resume")
    assert_one_line(done, 1, "task was 'mrpc', now 'rte'")


def test_data_and_checkpoint_that_have_moved_are_given_again(here: Path, killed: Callable[..., None]) -> None:
    assert minibert_in_process(*mrpc("straight", *OFTEN)).code == 0
    killed(*mrpc("run", *OFTEN))
    resume = ("finetune", "mrpc", "--output-dir", "run", "--resume")
    for name in ("bert", "glue"):
        (here / name).rename(here / f"moved-{name}")
    assert_one_line(minibert_in_process(*resume), 1, f"{here}/bert: there is no such")
    assert_one_line(minibert_in_process(*resume, "--checkpoint", "moved-bert"), 1, f"{here}/glue: no such folder")
    done = minibert_in_process(*resume, "--data-dir", "moved-glue", "--checkpoint", "moved-bert")
    assert_goes_on_to(here / "straight", here / "run", done)


@pytest.mark.parametrize("described", ["now", "before it was recorded"])
def test_the_sample_goes_on_with_another_cache(
    here: Path, killed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, described: str
) -> None:
    monkeypatch.setattr(sample, "SIZES", {"train": 96, "dev": 20, "test": 1})
    begin = ("finetune", "mrpc", "--sample", "--epochs", "1", *OFTEN, "--output-dir")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    assert minibert_in_process(*begin, "straight").code == 0
    killed(*begin, "run")
    resume = ["finetune", "mrpc", "--resume", "--output-dir", "run"]
    if described != "now":
        model = str(here / "of an earlier installation")
        rewrite(here / "run", lambda said: (said.pop("sample"), said["checkpoint"].update(source=model)))
        resume += ["--sample", *OFTEN]
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "another"))
    shutil.rmtree("cache")
    assert_goes_on_to(here / "straight", here / "run", minibert_in_process(*resume))
    shutil.rmtree("another")
    evaluated = minibert_in_process("evaluate", "run")
    assert evaluated.code == 0 and "accuracy" in evaluated.out, evaluated.err


@pytest.mark.parametrize("regression", [False, True])
def test_ones_own_files_go_on(here: Path, killed: Callable[..., None], regression: bool) -> None:
    rows = [row.split("\t") for row in mrpc_rows(34)[1:]]
    for name, part in (("train", rows[:24]), ("dev", rows[24:])):
        lines = ["first\tsecond\tgrade", *("\t".join([a, b, label]) for label, _, _, a, b in part)]
        (here / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    begin = ["finetune", "table", "--train", "train.tsv", "--dev", "dev.tsv", "--text-a", "first", "--text-b", "second",
             "--label", "grade", "--checkpoint", "bert", *SETTINGS, *OFTEN]  # fmt: skip
    begin += ["--regression"] * regression
    assert minibert_in_process(*begin, "--output-dir", "straight").code == 0
    killed(*begin, "--output-dir", "run")
    shutil.copytree("run", "moved")
    done = minibert_in_process("finetune", "table", "--output-dir", "run", "--resume")
    assert_goes_on_to(here / "straight", here / "run", done)
    (here / "train.tsv").rename(here / "elsewhere.tsv")
    resume = ("finetune", "table", "--output-dir", "moved", "--resume")
    assert_one_line(minibert_in_process(*resume), 1, "train.tsv: no such file")
    resume = (*resume, "--train", "elsewhere.tsv")
    done = minibert_in_process(*resume, "--label", "second")
    assert done.code == 1 and ("is no number" if regression else "labels was ['0', '1'], now [") in done.err, done.err
    done = minibert_in_process(*resume, "--text-a", "second", "--text-b", "first")
    assert done.code == 1 and "other settings (columns was {'text_a': 'first', " in done.err, done.err
    done = minibert_in_process(*resume)
    assert_goes_on_to(here / "straight", here / "moved", done)
    with pytest.raises(minibert.MinibertError, match=r"is made of your own files: give train and dev"):
        minibert.finetune("table", output_dir="new")


def test_stages_go_on(here: Path, killed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(here / "wide", config=WIDE)
    train, dev = write_squad(here / "train-v1.1.json", 24), write_squad(here / "dev.json", 9, start=24)
    begin = ("finetune", "squad", "--first", f"{train}:1", "--then", f"{dev}:1", "--dev", dev, "--checkpoint", "wide",
             "--max-seq-length", "48", "--doc-stride", "16", "--max-query-length", "12", "--batch-size", "4",
             "--learning-rate", "1e-3", "--n-best-size", "7", *OFTEN[:2])  # fmt: skip
    assert minibert_in_process(*begin, "--output-dir", "straight").code == 0
    killed(*begin, "--output-dir", "runs/squad-001")
    shutil.copytree("runs/squad-001", "copy")
    done = minibert_in_process("finetune", "squad", "--resume")
    assert_goes_on_to(here / "straight", here / "runs/squad-001", done)
    # What was downloaded and is gone is fetched again, into the cache of whoever goes on.
    train.rename(here / "fetched.json")
    monkeypatch.setattr(datasets, "squad_files", lambda task, progress: (here / "fetched.json", None))
    run = minibert.finetune_squad("squad", resume=True, output_dir="copy")
    assert run.results == json.loads((here / "straight" / "eval_results.json").read_text())
    assert contents(here / "copy")["nbest_predictions.json"] == contents(here / "straight")["nbest_predictions.json"]


def test_seeds_go_on_with_the_settings_of_the_others(here: Path, killed: Callable[..., None]) -> None:
    begin = (*mrpc("seeds", *OFTEN), "--seeds", "2")
    whole = minibert_in_process(*begin)
    assert whole.code == 0, whole.err
    kept = contents(here / "seeds")
    shutil.rmtree("seeds/seed-4")
    resume = ("finetune", "mrpc", "--output-dir", "seeds", "--seeds", "2", "--seed", "3", "--resume")
    assert minibert_in_process(*resume).out == whole.out
    rewrite(here / "seeds" / "seed-3", lambda said: said.update(finished=False))
    assert minibert_in_process(*resume).out == whole.out
    for name in ("seed-3/metrics.jsonl", "seed-4/model.safetensors", "seed-4/metrics.jsonl", "seeds.json"):
        assert contents(here / "seeds")[name] == kept[name], name
    with pytest.raises(minibert.MinibertError, match=r"seed-3: was trained with checkpoint .*/bert, not other"):
        finetune_seeds("mrpc", 1, seed=3, output_dir="seeds", resume=True, checkpoint="other")
    shutil.copytree("glue", "same")
    shutil.copytree("bert", "moved")
    again = finetune_seeds("mrpc", 2, seed=3, output_dir="seeds", resume=True, data_dir="same", checkpoint="moved")
    assert json.loads((here / "seeds" / "seeds.json").read_text()) == again, "by what stands in them"
    train = here / "same" / "MRPC" / "train.tsv"
    train.write_text(train.read_text() + mrpc_rows(3)[1] + "\n")
    for count in (2, 3):  # all have been trained, or one has not even begun
        with pytest.raises(minibert.MinibertError, match=r"seed-3: was trained with train data .*, not"):
            finetune_seeds("mrpc", count, seed=3, output_dir="seeds", resume=True, data_dir="same")
    rewrite(here / "seeds" / "seed-3", lambda said: said.update(checkpoint={"source": "bert", "sha256": 5}))
    with pytest.raises(minibert.MinibertError, match="checkpoint sha256 is 5; restore the file"):
        finetune_seeds("mrpc", 1, seed=3, output_dir="seeds", resume=True, checkpoint="moved")
    rewrite(here / "seeds" / "seed-3", lambda said: said.pop("checkpoint"))
    with pytest.raises(minibert.MinibertError, match="checkpoint None, not moved"):
        finetune_seeds("mrpc", 1, seed=3, output_dir="seeds", resume=True, checkpoint="moved")
    with pytest.raises(minibert.MinibertError, match="batch_size 8, not 4"):
        finetune_seeds("mrpc", 1, seed=9, output_dir="seeds", resume=True, batch_size=4)
    assert not (here / "seeds" / "seed-9").exists()


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "there is no setting 'depth'": lambda said: said["settings"].update(depth=3),
    "epochs='many' is of the wrong kind": lambda said: said["settings"].update(epochs="many"),
    "batch size 0 is out of range": lambda said: said["settings"].update(batch_size=0),
    "checkpoint source is 5": lambda said: said["checkpoint"].update(source=5),
    "checkpoint source is 'a\\x00b'": lambda said: said["checkpoint"].update(source="a\0b"),
    "data_dir is '\\ud800'": lambda said: said.update(data_dir="\ud800"),
    "sample is 'yes'": lambda said: said.update(sample="yes"),
    "save_every is True": lambda said: said.update(save_every=True),
    "eval_every is -1": lambda said: said.update(eval_every=-1),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_a_damaged_description_is_one_line(here: Path, killed: Callable[..., None], told: str) -> None:
    killed(*mrpc("run", *OFTEN))
    rewrite(here / "run", DAMAGES[told])
    before = contents(here)
    done = minibert_in_process("finetune", "mrpc", "--output-dir", "run", "--resume")
    assert_one_line(done, 1, "run/run.json: ", told, "restore the file")
    assert contents(here) == before


@pytest.mark.parametrize(
    ("task", "told", "damage"),
    [
        ("table", "name a training, dev or test file", {"data": 5}),
        ("table", "data train path is ['x']", {"data": {"train": {"path": ["x"]}}}),
        ("table", "labels are no texts", {"data": {"dev": {"path": "x.tsv"}}, "labels": [1]}),
        ("squad", "there is a stage 5", {"stages": [5]}),
        ("squad", "there is a stage {'file': 'x', 'epochs': None}", {"stages": [{"file": "x", "epochs": None}]}),
        ("squad", "stages is 'x'", {"stages": "x"}),
    ],
)
def test_damaged_names_of_files_are_one_line(here: Path, task: str, told: str, damage: dict[str, Any]) -> None:
    said = {"finished": False, "settings": {"task": task, "max_seq_length": 128}}
    (here / "run").mkdir()
    (here / "run" / "run.json").write_text(json.dumps(said | damage))
    assert_one_line(minibert_in_process("finetune", task, "--output-dir", "run", "--resume"), 1, told)
