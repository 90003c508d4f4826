"""Regressions on one's own files: learnt in deviations from the mean, told and predicted in the labels' own unit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

import minibert
from commands import PAIRS, make_checkpoint, minibert_in_process
from minibert import checkpoint, evaluation
from minibert.checkpoint import names
from minibert.cli import show
from minibert.errors import DataError, RunError
from minibert.tasks import get
from minibert.tasks.table import table
from minibert.training import Trainer
from minibert.units import of_labels

PRICES = (50_000, 120_000, 260_000, 460_000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("units")
    make_checkpoint(root / "checkpoint")
    write(root / "house.csv", PRICES)
    return root


def write(path: Path, labels: tuple[float, ...], column: str = "price") -> Path:
    rows = [f'"{PAIRS[i % 8][0].replace(chr(34), "")}",{labels[i % len(labels)]}' for i in range(24)]
    path.write_text("\n".join([f"text,{column}", *rows]) + "\n")
    return path


def train(folder: Path, output: Path, file: str = "house.csv", label: str = "price", **more) -> minibert.Run:
    task = table(folder / file, folder / file, label=label, regression=True)
    usual = {"epochs": 1, "batch_size": 8, "max_seq_length": 32, "learning_rate": 1e-3, "precision": "fp32"}
    return minibert.finetune(task, output_dir=output, **({"checkpoint": folder / "checkpoint"} | usual | more))


@pytest.fixture(scope="session")
def run(folder: Path) -> minibert.Run:
    return train(folder, folder / "run", eval_every=3)


def test_predictions_and_results_are_in_the_labels_unit(folder: Path, run: minibert.Run) -> None:
    examples = table(folder / "house.csv", label="price", regression=True).read("train")
    labels = np.array([example.label for example in examples])
    found = np.array([p.label for p in minibert.load(run.path, precision="fp32").predict([e.text_a for e in examples])])
    assert run.results["rmse"] == pytest.approx(np.sqrt(((found - labels) ** 2).mean()), rel=1e-5)
    assert run.results["majority"]["rmse"] == pytest.approx(labels.std())
    assert abs(found.mean() - labels.mean()) < 2 * labels.std()
    assert "eval_rmse" in (run.path / "eval_results.txt").read_text()
    evaluated = evaluation.evaluate_run(run.path, precision="fp32")
    assert evaluated["rmse"] == run.results["rmse"]
    assert json.loads((run.path / "config.json").read_text())["id2label"] == {"0": "price"}


def test_while_it_trains_a_run_counts_in_deviations(run: minibert.Run) -> None:
    unit = json.loads((run.path / "run.json").read_text())["unit"]
    assert unit == pytest.approx({"mean": np.mean(PRICES), "deviation": np.std(PRICES)})
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] < 20 for line in lines if "loss" in line)
    (told,) = (line["eval"] for line in lines if "eval" in line)
    assert told["rmse"] * unit["deviation"] == pytest.approx(run.results["rmse"], rel=1e-4)
    assert told["pearson"] == pytest.approx(run.results["pearson"], abs=1e-4)


def test_a_resumed_run_has_the_bits_of_a_straight_one(
    folder: Path, run: minibert.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trainer.begin

    def begin(self: Trainer, number: int):
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(self, number)

    monkeypatch.setattr(Trainer, "begin", begin)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run")
    monkeypatch.undo()
    resumed = train(folder, tmp_path / "run", resume=True)
    assert (resumed.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    assert resumed.results == run.results


def test_an_unfinished_run_without_a_unit_does_not_go_on_in_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minibert.finetuning.units.of_labels", lambda *_: None)
    monkeypatch.setattr("minibert.finetuning.loop.train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"run of other settings \(unit was None, now \{'mean'"):
        train(folder, tmp_path / "run", resume=True)


def test_a_head_of_the_same_column_goes_on_and_one_of_another_does_not(
    folder: Path, run: minibert.Run, tmp_path: Path
) -> None:
    gone_on = train(folder, tmp_path / "on", checkpoint=run.path, learning_rate=1e-12)
    assert gone_on.results["rmse"] == pytest.approx(run.results["rmse"], rel=1e-4)
    write(tmp_path / "other.csv", PRICES, "rent")
    train(tmp_path, tmp_path / "off", "other.csv", "rent", checkpoint=run.path, learning_rate=1e-12)
    heads = [checkpoint.load(tmp_path / name).arrays[names.HEAD[0]] for name in ("on", "off")]
    before = checkpoint.load(run.path).arrays[names.HEAD[0]]
    np.testing.assert_allclose(heads[0], before, rtol=1e-5)
    assert not np.allclose(heads[1], before, rtol=0.1)


@pytest.mark.parametrize(("label", "told"), [("7", "column 'price' holds the one number 7"), ("1e39", "too large")])
def test_labels_that_cannot_be_learnt(folder: Path, tmp_path: Path, label: str, told: str) -> None:
    write(tmp_path / "a.csv", (label,))
    with pytest.raises(DataError, match=told) as error:
        train(tmp_path, tmp_path / "run", "a.csv", checkpoint=folder / "checkpoint")
    assert str(tmp_path / "a.csv") in str(error.value) and "\n" not in str(error.value)


def test_sts_b_is_learnt_as_it_stands() -> None:
    from minibert.units import of_labels

    task = get("sts-b")
    examples = task.read("train", Path(__file__).parent / "fixtures" / "glue")
    assert of_labels(task, examples) is None and task.metrics == ("pearson", "spearman") and task.outputs == ("score",)


def test_large_numbers_fit_the_printed_table(run: minibert.Run, capsys: pytest.CaptureFixture[str]) -> None:
    values = run.results | {
        "rmse": 161_234.5, "majority": {"rmse": 157_000.0, "pearson": 0.0, "spearman": 0.0},
        "interval": run.results["interval"] | {"rmse": [140_000.0, 180_000.0]}, "loss": 2.6e10, "pearson": 0.5,
    }  # fmt: skip
    show.table(values)
    said = capsys.readouterr().out
    assert "rmse            161,234  140,000 to 180,000  157,000\n" in said and "loss            2.6e+10\n" in said
    assert "\nrmse 161,234 is not below that of the mean, 157,000: a model that always" in said


def test_seeds_of_a_regression(folder: Path, tmp_path: Path) -> None:
    done = minibert_in_process(
        "finetune", "table", "--train", folder / "house.csv", "--dev", folder / "house.csv", "--label", "price",
        "--regression", "--checkpoint", folder / "checkpoint", "--output-dir", tmp_path / "run", "--epochs", "1",
        "--batch-size", "8", "--max-seq-length", "32", "--seeds", "2",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.out.split()[:5] == ["seed", "rmse", "pearson", "spearman", "loss"]
    summary = json.loads((tmp_path / "run" / "seeds.json").read_text())
    assert f"{np.std(PRICES):,.0f}" in done.out and summary["majority"]["rmse"] == pytest.approx(np.std(PRICES))


def test_numbers_that_float32_cannot_tell_apart_are_refused(folder: Path, tmp_path: Path) -> None:
    for start, step in ((1_700_000_000, 1), (20_230_101, 1)):
        write(folder / "dates.csv", tuple(start + step * i for i in range(20)))
        with pytest.raises(DataError, match=rf"column 'price': its numbers, {start} to .*subtract {start} from"):
            train(folder, tmp_path / "run", "dates.csv")
    near = write(folder / "near.csv", (1_000_000.0, 1_000_050.5, 1_000_099.0))  # which float32 holds
    task = table(near, label="price", regression=True)
    assert of_labels(task, task.read("train")) is not None
