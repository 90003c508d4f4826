"""The commands on good input: what they print, what they write, and how they behave in a pipe."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from commands import (
    PAIRS,
    ROOT,
    assert_one_line,
    command,
    contents,
    environment,
    make_checkpoint,
    minibert_in_process,
    minibert_process,
    mrpc_rows,
    parsed,
    write_mrpc,
)
from minibert import checkpoint, google, hub, models, prediction
from minibert.cli import cli, show
from minibert.kernels.common import unit
from minibert.kernels.devices import gpu
from minibert.model import Prediction
from minibert.tasks import Example
from minibert.tasks.table import known_texts

GLUE = Path(__file__).parent / "fixtures" / "glue"
SIZE = ("--batch-size", "8", "--max-seq-length", "32")
RUN_FILES = {
    "run.json", "metrics.jsonl", "config.json", "model.safetensors", "vocab.txt", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "eval_results.txt", "eval_results.json",
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    make_checkpoint(root / "checkpoint")
    write_mrpc(root / "glue")
    return root


@pytest.fixture(scope="session")
def run(folder: Path) -> Path:
    """A finished run of six steps."""
    done = finetune(folder, "--output-dir", folder / "run", "--learning-rate", "1e-3", "--eval-every", "3")
    assert done.code == 0, done.err
    assert re.search(r"^accuracy +0\.\d{4} .*0\.5000$", done.out, re.M) and str(folder / "run") in done.out
    assert "mrpc: 24 examples, 6 steps of 8" in done.err and "step 6/6  loss 0." in done.err
    assert "tokens/s" in done.err and "loss 0." not in done.out
    return folder / "run"


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a classifier whose answers differ from text to text."""
    return make_checkpoint(tmp_path_factory.mktemp("classifier"), ("other", "same"))


def finetune(folder: Path, *more: str | Path, task: str = "mrpc"):
    arguments = "--checkpoint", folder / "checkpoint", "--data-dir", folder / "glue", "--epochs", "2", *SIZE
    return minibert_in_process("finetune", task, *arguments, *more)


def json_of(path: Path) -> dict:
    return json.loads(path.read_text())


# --- help


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_help_has_an_example_that_parses(name: str) -> None:
    done = minibert_in_process(name, "--help")
    assert done.code == 0 and done.err == ""
    example = re.search(rf"^ *Example:\n +.*?minibert {name} ?((?:.*\\\n)*.*)$", done.out, re.M)
    assert example, done.out
    arguments = shlex.split(example[1].replace("\\\n", " "))
    assert parsed(name, *arguments).command_path.startswith(f"minibert {name}")


def test_help_names_the_columns_of_texts_that_are_known() -> None:
    done = minibert_in_process("finetune", "--help")
    assert f"[default: found by name: {known_texts()}]" in " ".join(done.out.split())


def test_help_names_every_alias_of_a_checkpoint() -> None:
    told = re.sub(r"(?<=\w-)\s+", "", minibert_in_process("finetune", "--help").out)  # names are broken at hyphens
    named = re.search(r"--checkpoint.*?--data-dir", told, re.S)
    assert named
    ends = {"L-2_H-128", "L-12_H-768"}
    missing = (hub.ALIASES.keys() - google.MINIATURES.keys() | ends) - set(re.findall(r"[\w-]+", named[0]))
    assert not missing and ends <= hub.ALIASES.keys()
    assert ", ".join(models.NAMES) in " ".join(named[0].split()), "the first seven are those of random:"


def test_help_of_the_whole() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = minibert_in_process(*arguments)
        assert done.code == 0 and done.err == ""
        assert all(name in done.out for name in cli.commands) and "minibert finetune mrpc --sample" in done.out


@pytest.mark.parametrize("group", [cli, cli.commands["tpu"]], ids=["minibert", "tpu"])
def test_no_summary_of_a_command_is_cut_off(group: click.Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    told = minibert_in_process(*([] if group is cli else ["tpu"]), "--help").out.partition("\nCommands:\n")[2]
    for name, known in group.commands.items():
        summary = (known.help or "").partition("\n\n")[0].removesuffix(".")
        assert re.search(rf"^  {name} +{re.escape(summary)}\.?$", told, re.M), told


def test_every_option_of_every_command_is_explained() -> None:
    for name, known in cli.commands.items():
        for parameter in known.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"


def test_version() -> None:
    done = minibert_in_process("--version")
    assert done.code == 0 and done.out.startswith("minibert") and done.out.count("\n") == 1


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    plain = minibert_process("evaluate", tmp_path / "nothing")
    assert_one_line(plain, 1, "nothing")
    done = minibert_process("--debug", "evaluate", tmp_path / "nothing")
    assert done.code == 1 and "Traceback" in done.err and "RunError" in done.err


# --- what a run leaves behind


def documented(heading: str) -> set[str]:
    """The keys or files that a table of docs/files.md lists below a heading."""
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    part = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.M)[1]
    part = re.split(r"^#", part, flags=re.M)[0]
    return {name for row in re.findall(r"^\| (`.*?) \|", part, re.M) for name in re.findall(r"`(.*?)`", row)}


def test_a_run_directory_holds_what_is_documented_and_nothing_else(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert documented("A run directory") == RUN_FILES | {"state.safetensors", "memory.json", "memory.png"}


def test_run_json(run: Path, folder: Path) -> None:
    raw = json_of(run / "run.json")
    assert set(raw) == documented("run.json")
    assert raw["settings"]["learning_rate"] == 1e-3 and raw["settings"]["max_seq_length"] == 32
    assert raw["finished"] is True and raw["steps"] == 6 and raw["seed"] == 1
    assert set(raw["data"]) == {"train", "dev"} and len(raw["data"]["train"]["sha256"]) == 64
    assert raw["checkpoint"]["source"] == str(folder / "checkpoint") and len(raw["checkpoint"]["sha256"]) == 64
    assert {"python", "minibert", "numpy", "numba"} <= raw["versions"].keys()


def test_memory_json_is_documented() -> None:
    assert documented("memory.json") == {"tokens", "peak", "layers", "curve", "marks"}  # as test_memory.py finds them


def test_metrics_jsonl(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "eval" not in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert {key for line in lines for key in line} == documented("metrics.jsonl")
    assert [line["step"] for line in lines if "eval" in line] == [3, 6]
    final = json_of(run / "eval_results.json")
    assert lines[-1]["eval"]["accuracy"] == final["accuracy"] and lines[-1]["eval"]["loss"] == final["loss"]


def test_eval_results(run: Path) -> None:
    results = json_of(run / "eval_results.json")
    assert set(results) == documented("eval_results.json")
    assert results["global_step"] == 6 and results["examples"] == 10 and results["majority"]["accuracy"] == 0.5
    lines = (run / "eval_results.txt").read_text().splitlines()
    assert lines == sorted(lines)
    values = dict(line.split(" = ") for line in lines)
    assert set(values) == {"eval_accuracy", "eval_combined", "eval_f1", "eval_loss", "global_step", "loss"}
    assert float(values["eval_accuracy"]) == results["accuracy"] and values["global_step"] == "6"


def test_the_model_of_a_run(run: Path) -> None:
    found = checkpoint.load(run)
    assert found.config.id2label == ("0", "1") and found.arrays["classifier.weight"].shape == (2, 16)
    assert json_of(run / "config.json")["label2id"] == {"0": 0, "1": 1}


def test_a_result_at_the_majority_is_called_one(run: Path) -> None:
    results = json_of(run / "eval_results.json")
    out = minibert_in_process("evaluate", run).out
    assert ("not above the majority class" in out) == (not results["beats_majority"])


def test_the_figure_that_is_not_above_the_majority_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    values = {
        "accuracy": 0.7, "f1": 0.8120, "majority": {"accuracy": 0.6838, "f1": 0.8122}, "beats_majority": False,
        "interval": {"accuracy": [0.6, 0.8], "f1": [0.7, 0.9]}, "loss": 0.5, "notes": ["all predictions are strange"],
        "confusion": [[1, 0], [0, 1]],
    }  # fmt: skip
    show.table(values)
    said = capsys.readouterr().out
    assert "\nf1 0.8120 is not above the majority class's 0.8122: a model that always says the same" in said
    assert said.count("is not above") == 1 and "\nnote: all predictions are strange\n" in said
    show.table(values | {"f1": 0.8122})
    assert "\nf1 0.8122 is not above the majority class's 0.8122" in capsys.readouterr().out
    show.table(values | {"f1": 0.82, "beats_majority": True, "notes": []})
    said = capsys.readouterr().out
    assert "not above" not in said and "note" not in said


def test_runs_are_numbered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mrpc-notes").mkdir(parents=True)
    for number in ("001", "002"):
        done = finetune(folder)
        assert done.code == 0 and f"runs/mrpc-{number}" in done.out
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mrpc-001", "mrpc-002", "mrpc-notes"]


def test_seeds(folder: Path, tmp_path: Path) -> None:
    done = finetune(folder, "--output-dir", tmp_path / "out", "--seeds", "2", "--seed", "5")
    assert done.code == 0, done.err
    for reader in ("predict", "evaluate"):
        told = minibert_in_process(reader, tmp_path / "out", stdin=b"")
        assert_one_line(told, 1, "out: holds the runs seed-5 ... seed-6: name one, such as", "out/seed-5")
    summary = json_of(tmp_path / "out" / "seeds.json")
    assert [one["seed"] for one in summary["runs"]] == [5, 6]
    results = [json_of(tmp_path / "out" / f"seed-{seed}" / "eval_results.json") for seed in (5, 6)]
    losses = [one["loss"] for one in results]
    assert losses[0] != losses[1]
    assert summary["mean"]["loss"] == pytest.approx(np.mean(losses))
    assert summary["deviation"]["loss"] == pytest.approx(np.std(losses, ddof=1))
    failed = sum(not one["beats_majority"] for one in results)
    assert f"{failed} of 2 runs failed to beat the majority class" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[:6]] == [
        "seed",
        "5",
        "6",
        "mean",
        "deviation",
        "majority",
    ]
    # One seed is lost: --resume trains that one alone, and refuses other settings for the rest.
    kept = contents(tmp_path / "out" / "seed-6")
    shutil.rmtree(tmp_path / "out" / "seed-5")
    again = finetune(folder, "--output-dir", tmp_path / "out", "--seeds", "2", "--seed", "5", "--resume")
    assert again.code == 0 and again.out == done.out and contents(tmp_path / "out" / "seed-6") == kept
    more = ("--seeds", "2", "--seed", "5", "--resume", "--learning-rate", "1e-4")
    assert_one_line(finetune(folder, "--output-dir", tmp_path / "out", *more), 1, "seed-5", "learning_rate 2e-05")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_saves_and_resume_goes_on_to_the_same_bits(folder: Path, tmp_path: Path, number: int) -> None:
    many = ("--epochs", "60", "--threads", "1")
    arguments = ("--checkpoint", "checkpoint", "--data-dir", "glue", *SIZE, *many, "--output-dir", tmp_path / "run")
    process = subprocess.Popen(
        command("finetune", "mrpc", *arguments), env=environment({}), cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    last = err.decode().splitlines()[-1]
    assert process.returncode == 128 + number and out == b"" and b"Traceback" not in err, err
    stopped = re.fullmatch(rf"minibert: {tmp_path}/run: stopped after step (\d+) of 180; add --resume to go on", last)
    assert stopped and (tmp_path / "run" / "state.safetensors").is_file()
    again = finetune(folder, *many, "--output-dir", tmp_path / "run", "--resume")
    assert again.code == 0 and f"going on after step {stopped[1]}\n" in again.err
    assert finetune(folder, *many, "--output-dir", tmp_path / "straight").code == 0
    for name in ("model.safetensors", "metrics.jsonl", "eval_results.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert not (tmp_path / "run" / "state.safetensors").exists()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the system has no terminals of this kind")
def test_a_closed_terminal_saves_too(folder: Path, tmp_path: Path) -> None:
    """The terminal's end is a SIGHUP, and every later word to it an error."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    arguments = ("--checkpoint", "checkpoint", "--data-dir", "glue", *SIZE, "--epochs", "400", "--threads", "1")
    process = subprocess.Popen(
        command("finetune", "mrpc", *arguments, "--output-dir", tmp_path / "run"), env=environment({}), cwd=folder,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    log = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 5):
        time.sleep(0.01)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert (tmp_path / "run" / "state.safetensors").is_file()


def test_ctrl_c_outside_training(classifier: Path) -> None:
    process = subprocess.Popen(
        command("predict", classifier), env=environment({}), start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin and process.stdout
    process.stdin.write(b"The cat .\n")
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.split(b"\n")[-2:] == [b"minibert: interrupted", b""], err


# --- evaluate


def test_evaluate_gives_the_results_of_the_run(run: Path, folder: Path) -> None:
    results = json_of(run / "eval_results.json")
    del results["global_step"]
    for more in ([], ["--data-dir", folder / "glue"], ["--data-dir", folder / "glue" / "MRPC", "--task", "MRPC"]):
        done = minibert_in_process("evaluate", run, "--json", *more)
        assert done.code == 0 and done.err == "" and json.loads(done.out) == results


def test_evaluate_tells_pairs_from_single_texts(run: Path, tmp_path: Path) -> None:
    """Both tasks have the labels 0 and 1."""
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nThe mill closed .\t1\n")
    done = minibert_in_process("evaluate", run, "--task", "sst-2", "--data-dir", tmp_path)
    assert_one_line(done, 1, f"{run}: was trained on pairs, but sst-2 has single texts; give it pairs")
    done = minibert_in_process("evaluate", run, "--input", tmp_path / "dev.tsv")
    assert_one_line(done, 1, f"was trained on pairs, but {tmp_path}/dev.tsv has single texts")
    assert_one_line(minibert_in_process("predict", run, "--input", tmp_path / "dev.tsv"), 1, "trained on pairs")


def test_evaluate_another_split_and_one_without_labels(run: Path) -> None:
    done = minibert_in_process("evaluate", run, "--split", "train", "--json")
    assert json.loads(done.out)["examples"] == 24
    assert_one_line(minibert_in_process("evaluate", run, "--split", "half"), 1, "no split 'half'", "train, dev, test")
    fixture = minibert_in_process("evaluate", run, "--split", "test", "--data-dir", GLUE)
    assert_one_line(fixture, 1, "no labels", "predict")


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    """A checkpoint with MNLI's labels in another order, and its rows with them, gives the same results."""
    names = ("contradiction", "entailment", "neutral")
    first = make_checkpoint(tmp_path / "first", names)
    found = checkpoint.load(first)
    order = [2, 0, 1]
    arrays = {name: array.copy() for name, array in found.arrays.items()}
    for name in ("classifier.weight", "classifier.bias"):
        arrays[name] = arrays[name][order]
    shutil.copytree(first, tmp_path / "second")
    config = type(found.config)(**{**vars(found.config), "id2label": tuple(names[i] for i in order)})
    checkpoint.save(tmp_path / "second", config, arrays)
    ask = ("--task", "mnli", "--data-dir", GLUE, "--json")
    results = [json.loads(minibert_in_process("evaluate", tmp_path / name, *ask).out) for name in ("first", "second")]
    assert results[0] == results[1] and np.count_nonzero(np.sum(results[0]["confusion"], axis=0)) > 1
    # Training goes on with the head, its rows in the task's order.
    train = ("--data-dir", GLUE, "--learning-rate", "1e-9", "--epochs", "1", "--batch-size", "10", *SIZE[2:])
    for name in ("first", "second"):
        output = tmp_path / f"run-{name}"
        done = minibert_in_process("finetune", "mnli", "--checkpoint", tmp_path / name, "--output-dir", output, *train)
        assert done.code == 0 and "going on with it" in done.err
        assert checkpoint.load(output).config.id2label == names
        np.testing.assert_allclose(
            checkpoint.load(output).arrays["classifier.weight"], found.arrays["classifier.weight"], atol=1e-6
        )
    out = json.loads(minibert_in_process("evaluate", tmp_path / "run-second", "--json", "--data-dir", GLUE).out)
    assert out["confusion"] == results[0]["confusion"] and out["dev-mismatched"]["examples"] == 10
    # Both development sets, as the run has them; --split gives one.
    wanted = json_of(tmp_path / "run-second" / "eval_results.json")
    del wanted["global_step"]
    assert out == wanted
    one = minibert_in_process("evaluate", tmp_path / "run-second", "--json", "--split", "dev-mismatched")
    assert json.loads(one.out) == wanted["dev-mismatched"]
    plain = minibert_in_process("evaluate", tmp_path / "run-second").out
    first, second = plain.split("\ndev-mismatched\n")
    assert all(re.search(r"^accuracy +0\.\d{4} ", part, re.M) for part in (first, second))


# --- predict


def test_predict_tells_a_folder_from_what_is_not_there(classifier: Path, tmp_path: Path) -> None:
    done = minibert_in_process("predict", classifier, "--input", tmp_path)
    assert_one_line(done, 1, f"{tmp_path}: is a folder; give a file")
    done = minibert_in_process("predict", classifier, "--input", tmp_path / "in.tsv")
    assert_one_line(done, 1, "in.tsv: no such file; check the path, or leave --input out to read stdin")


def lines_of_pairs() -> bytes:
    return "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode()


def test_a_text_with_a_carriage_return_is_a_text(classifier: Path, tmp_path: Path) -> None:
    done = minibert_in_process("predict", classifier, stdin=b"the cat \r sat\tthe dog\n")
    assert done.code == 0 and done.out.count("\n") == 2, done
    (tmp_path / "old mac.tsv").write_bytes(b"the cat\rthe dog\r")
    done = minibert_in_process("predict", classifier, "--input", tmp_path / "old mac.tsv")
    assert done.code in (0, 1) and "Traceback" not in done.err, done


def test_predict_from_file_and_stdin_to_file_and_stdout(classifier: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.tsv"
    source.write_bytes(b"id\tsentence1\tsentence2\n" + b"".join(
        f"n{i}\t{a}\t{b}\n".encode() for i, (a, b) in enumerate(PAIRS)
    ))  # fmt: skip
    done = minibert_in_process("predict", classifier, "--input", source)
    assert done.code == 0 and done.err == ""
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["id", "prediction", "other", "same"]
    assert [row[0] for row in rows] == [f"n{i}" for i in range(len(PAIRS))]
    assert {row[1] for row in rows} == {"other", "same"}, "a classifier that tells nothing apart tests nothing"
    for row in rows:
        values = [float(value) for value in row[2:]]
        assert sum(values) == pytest.approx(1, abs=2e-6) and header[2 + int(np.argmax(values))] == row[1]
    as_stdin = minibert_in_process("predict", classifier, stdin=source.read_bytes())
    assert as_stdin == done
    plain = minibert_in_process("predict", classifier, stdin=lines_of_pairs())
    assert plain.out == re.sub(r"^n(\d)", r"\1", done.out, flags=re.M)
    target = tmp_path / "out.tsv"
    written = minibert_in_process("predict", classifier, "--input", source, "--output", target)
    assert written == (0, "", "") and target.read_text() == done.out


@pytest.mark.parametrize("target", ["in.tsv", "sub/../in.tsv", "link.tsv", "hard.tsv"])
def test_predict_does_not_replace_its_input(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(prediction, "load", None)  # it is told before that
    (tmp_path / "sub").mkdir()
    (tmp_path / "in.tsv").write_bytes(lines_of_pairs())
    (tmp_path / "link.tsv").symlink_to("in.tsv")
    (tmp_path / "hard.tsv").hardlink_to(tmp_path / "in.tsv")
    before = contents(tmp_path)
    for source in ("in.tsv", "link.tsv"):
        done = minibert_in_process("predict", classifier, "--input", tmp_path / source, "--output", tmp_path / target)
        assert_one_line(done, 1, f"{target}: is the input", "choose another --output")
    assert contents(tmp_path) == before and (tmp_path / "link.tsv").is_symlink()


def test_predict_jsonl_and_google(classifier: Path, tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps({"id": i, "sentence1": a, "sentence2": b}) + "\n" for i, (a, b) in
                              enumerate(PAIRS)))  # fmt: skip
    done = minibert_in_process("predict", classifier, "--input", source, "--format", "jsonl")
    objects = [json.loads(line) for line in done.out.splitlines()]
    assert [set(one) for one in objects] == [{"id", "prediction", "probabilities"}] * len(PAIRS)
    assert all(list(one["probabilities"]) == ["other", "same"] for one in objects)
    google = minibert_in_process("predict", classifier, "--input", source, "--format", "google")
    rows = [line.split("\t") for line in google.out.splitlines()]
    assert len(rows) == len(PAIRS), "no header"
    for row, one in zip(rows, objects, strict=True):
        assert [str(np.float32(value)) for value in one["probabilities"].values()] == row


def test_predicts_help_knows_how_a_file_is_answered(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert f"{prediction.TOGETHER:,} texts at a time" in " ".join(minibert_in_process("predict", "--help").out.split())
    monkeypatch.setattr(prediction, "TOGETHER", 3)
    (tmp_path / "in.tsv").write_bytes(lines_of_pairs() + b"one text where pairs were\n")
    source = ["predict", classifier, "--input", tmp_path / "in.tsv"]
    done = minibert_in_process(*source)
    assert done.code == 1 and done.out.count("\n") == 1 + len(PAIRS) // 3 * 3, "what came before is written"
    assert minibert_in_process(*source, "--output", tmp_path / "out").code == 1 and not (tmp_path / "out").exists()


def test_predict_shows_that_it_goes_on(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.tsv").write_bytes(lines_of_pairs())
    monkeypatch.setattr("minibert.progress.PLAIN_SECONDS", 0.0)
    done = minibert_in_process("predict", classifier, "--input", tmp_path / "in.tsv", "--output", tmp_path / "out.tsv")
    assert done.code == 0 and re.fullmatch(r"8 texts, [\d,]+ per second\n", done.err)
    done = minibert_in_process("predict", classifier, "--input", tmp_path / "in.tsv")
    assert done.err == "", "what is watched itself needs no telling"


def test_predict_wants_what_the_run_had(run: Path) -> None:
    done = minibert_in_process("predict", run, stdin=b"It rained .\n")
    assert_one_line(
        done, 1, "'It rained .': is one text, but the model was trained on pairs: give it pairs; in lines a tab"
    )


def test_a_mistyped_run_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "runs" / "mrpc-001").mkdir(parents=True)
    done = minibert_process("predict", "runs/mprc-001", cwd=tmp_path, stdin=b"a\tb\n")
    assert_one_line(done, 1, "runs/mprc-001: there is no such run or checkpoint")
    (tmp_path / "some").mkdir()
    done = minibert_process("predict", "some/mprc-001", cwd=tmp_path, stdin=b"a\tb\n")
    assert_one_line(done, 1, "some/mprc-001: there is no such path here; as a name on the hub: ")


@pytest.mark.parametrize("path", ["./mrpc-1", "../mrpc-1", "/mrpc-1", "mrpc-1", "some/where/mrpc-1"])
def test_a_run_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("A text .")
    commands = (["predict"], ["evaluate"], ["answer", "--context", "text", "--question", "What?"])
    for name, *more in commands:
        said = f"minibert: {path}: there is no such run or checkpoint: minibert finetune TASK makes one"
        assert assert_one_line(minibert_in_process(name, path, *more), 1) == said
    for i, run in enumerate(("old", "mrpc-001")):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "run.json").touch()
        os.utime(tmp_path / "runs" / run / "run.json", (i, i))
    (tmp_path / "runs" / "notes").mkdir()
    for name, *more in commands:
        told = assert_one_line(minibert_in_process(name, path, *more), 1)
        assert told.endswith(": there are runs/mrpc-001, runs/old")


@pytest.mark.parametrize("path", ["./base", "../base", "/base"])
def test_what_can_only_be_a_path_gets_no_list_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)  # beside a checkout there may be a folder `base`
    done = minibert_in_process("finetune", "mrpc", "--checkpoint", path, "--output-dir", tmp_path / "run")
    assert assert_one_line(done, 1) == f"minibert: {path}: there is no such file or folder: check the path"


def test_predict_for_glues_server(classifier: Path, tmp_path: Path) -> None:
    """Index and label; scores of a regression between 0 and 5, with three decimals."""
    source = tmp_path / "test.tsv"
    source.write_text("index\tsentence1\tsentence2\n" + "".join(f"{i}\t{a}\t{b}\n" for i, (a, b) in enumerate(PAIRS)))
    done = minibert_in_process("predict", classifier, "--input", source, "--format", "glue")
    plain = minibert_in_process("predict", classifier, "--input", source)
    rows = [line.split("\t")[:2] for line in plain.out.splitlines()[1:]]
    assert done.out == "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i, label in rows)
    for score, text in ((-0.2, "0.000"), (2.34567, "2.346"), (7.0, "5.000")):
        assert prediction._glue_row(Example("7", "a", None, None), Prediction(score, {})) == f"7\t{text}\n"


def test_an_id_cannot_break_the_table(classifier: Path) -> None:
    stdin = json.dumps({"id": "a\tb\nc", "sentence1": "The cat .", "sentence2": "The dog ."}).encode()
    header, row = minibert_in_process("predict", classifier, stdin=stdin).out.splitlines()
    assert len(row.split("\t")) == len(header.split("\t")) and row.startswith("a b c\t")
    assert len(minibert_in_process("predict", classifier, "--format", "glue", stdin=stdin).out.split("\n")) == 3
    done = minibert_in_process("predict", classifier, "--format", "jsonl", stdin=stdin)
    assert json.loads(done.out)["id"] == "a\tb\nc"


def test_predict_nothing(classifier: Path) -> None:
    done = minibert_in_process("predict", classifier, stdin=b"")
    assert done == (0, "id\tprediction\tother\tsame\n", "")


def test_predict_into_a_device(classifier: Path, tmp_path: Path) -> None:
    """What is no file is written to and stays what it is."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "in.tsv").write_bytes(lines_of_pairs())
    process = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    done = minibert_in_process("predict", classifier, "--input", tmp_path / "in.tsv", "--output", tmp_path / "pipe")
    assert done == (0, "", "")
    assert process.communicate(timeout=10)[0].count(b"\n") == len(PAIRS) + 1
    assert (tmp_path / "pipe").is_fifo()


@pytest.fixture
def filter_process(classifier: Path) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        command("predict", classifier, "--threads", "1"), env=environment({}), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        yield process
        process.kill()


def read_lines(process: subprocess.Popen, count: int) -> list[bytes]:
    """As many lines of its stdout; fails where they do not come."""
    found = b""
    while found.count(b"\n") < count:
        assert process.stdout and select.select([process.stdout], [], [], 60)[0], f"no answer; so far {found!r}"
        block = process.stdout.read(1 << 16)
        assert block, process.stderr and process.stderr.read()
        found += block
    return found.splitlines()


def test_an_answer_does_not_wait_for_the_next_question(filter_process: subprocess.Popen) -> None:
    assert filter_process.stdin and filter_process.stdout and filter_process.stderr
    filter_process.stdin.write(b"The cat was lost .\tAnna lost the cat .\n")
    first = read_lines(filter_process, 2)
    assert first[0] == b"id\tprediction\tother\tsame" and first[1].startswith(b"0\t")
    filter_process.stdin.write(b"The dog .\tThe cat .\nThe mill .\tThe ")  # the last line is not whole yet
    assert read_lines(filter_process, 1)[0].startswith(b"1\t")
    filter_process.stdin.write(b"bank .")
    filter_process.stdin.close()
    assert read_lines(filter_process, 1)[0].startswith(b"2\t")
    assert filter_process.wait(60) == 0 and filter_process.stderr.read() == b""


def test_a_reader_that_goes_away_is_no_error(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_bytes(lines_of_pairs() * 500)
    piped = " ".join(command("predict", str(classifier), "--input", str(tmp_path / "in.tsv")))
    done = subprocess.run(
        ["bash", "-c", f"{piped} | head -1; echo ${{PIPESTATUS[0]}}"], capture_output=True, env=environment({})
    )
    assert done.stdout == b"id\tprediction\tother\tsame\n0\n" and done.stderr == b""


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"], ["--version"], ["evaluate", "run"]])
def test_a_reader_that_has_gone_before_the_first_line(run: Path, arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(*arguments), stdout=write, stderr=subprocess.PIPE, env=environment({}), cwd=run.parent
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_bad_line_in_the_middle_names_itself(classifier: Path) -> None:
    done = minibert_in_process("predict", classifier, stdin=lines_of_pairs() * 8 + b"only one column\n")
    assert done.code == 1 and done.out.count("\n") == 65, "the whole batches before it are answered"
    assert done.err.splitlines() == ["minibert: <stdin>: line 65: 1 columns, not 2; correct the row"]


# --- regression, own files


def test_regression_end_to_end(folder: Path, tmp_path: Path) -> None:
    train = ("--checkpoint", folder / "checkpoint", "--data-dir", GLUE, "--output-dir", tmp_path / "run", *SIZE)
    done = minibert_in_process("finetune", "sts-b", *train, "--epochs", "2")
    assert done.code == 0, done.err
    results = json_of(tmp_path / "run" / "eval_results.json")
    assert {"pearson", "spearman", "majority"} <= results.keys() and "confusion" not in results
    assert done.out.splitlines()[0].endswith("     mean") and "majority" not in done.out
    assert json_of(tmp_path / "run" / "config.json")["problem_type"] == "regression"
    evaluated = json.loads(minibert_in_process("evaluate", tmp_path / "run", "--json").out)
    assert evaluated["pearson"] == results["pearson"] and evaluated["loss"] == results["loss"]
    predicted = minibert_in_process("predict", tmp_path / "run", stdin=lines_of_pairs())
    header, *rows = [line.split("\t") for line in predicted.out.splitlines()]
    assert header == ["id", "prediction"] and all(np.isfinite(float(row[1])) for row in rows)
    objects = minibert_in_process("predict", tmp_path / "run", "--format", "jsonl", stdin=lines_of_pairs()).out
    for line, row in zip(objects.splitlines(), rows, strict=True):
        assert json.loads(line)["prediction"] == pytest.approx(float(row[1]), rel=5e-6, abs=0)
        assert json.loads(line).keys() == {"id", "prediction"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_own_files_end_to_end(folder: Path, tmp_path: Path, kind: str) -> None:
    names, labels = ("first", "second", "verdict"), ("yes, quite", "no", "perhaps")

    def write(path: Path, count: int) -> None:
        cells = [(*PAIRS[i % 8], labels[i % 3]) for i in range(count)]
        if kind == "jsonl":
            path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in cells))
        else:
            quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in (names, *cells)]
            path.write_text("\r\n".join(quoted) + "\r\n")

    write(tmp_path / f"train.{kind}", 24)
    write(tmp_path / f"dev.{kind}", 9)
    done = minibert_in_process(
        "finetune", "table", "--train", tmp_path / f"train.{kind}", "--dev", tmp_path / f"dev.{kind}",
        "--text-a", "first", "--text-b", "second", "--label", "verdict", "--checkpoint", folder / "checkpoint",
        "--output-dir", tmp_path / "run", "--epochs", "1", *SIZE,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "\nlabels: no 8, perhaps 8, yes, quite 8\n" in f"\n{done.err}"
    assert checkpoint.load(tmp_path / "run").config.id2label == ("no", "perhaps", "yes, quite")
    results = json_of(tmp_path / "run" / "eval_results.json")
    assert results["examples"] == 9 and results["majority"]["accuracy"] == pytest.approx(1 / 3)
    dev = ("--input", tmp_path / f"dev.{kind}")
    evaluated = minibert_in_process("evaluate", tmp_path / "run", "--json", *dev)
    assert json.loads(evaluated.out)["accuracy"] == results["accuracy"]
    # Without a file it is the run's own development file.
    results.pop("global_step")
    for more in ([], ["--task", "table"], ["--split", "dev"]):
        assert json.loads(minibert_in_process("evaluate", tmp_path / "run", "--json", *more).out) == results
    predicted = minibert_in_process("predict", tmp_path / "run", *dev)
    assert predicted.out.splitlines()[0] == "id\tprediction\tno\tperhaps\tyes, quite"
    assert predicted.out.count("\n") == 10
    # The columns are known on stdin too, and labels are not looked at.
    rows = [(*PAIRS[i % 8], "?") for i in range(9)]
    tsv = "".join("\t".join(row) + "\n" for row in (names, *rows)).encode()
    lines = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows).encode()
    for stdin in (tsv, lines):
        assert minibert_in_process("predict", tmp_path / "run", stdin=stdin) == predicted
    (tmp_path / "unlabelled.jsonl").write_bytes(lines)
    unlabelled = ("--input", tmp_path / "unlabelled.jsonl")
    assert minibert_in_process("predict", tmp_path / "run", *unlabelled) == predicted
    assert_one_line(minibert_in_process("evaluate", tmp_path / "run", *unlabelled), 1, "line 1: unknown label '?'")
    assert_one_line(minibert_in_process("evaluate", tmp_path / "run", "--data-dir", tmp_path), 1, "give --input FILE")
    (tmp_path / f"dev.{kind}").unlink()
    assert_one_line(minibert_in_process("evaluate", tmp_path / "run"), 1, f"dev.{kind}: no such file")


def test_the_label_whose_f1_is_told_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "the cat,good\nthe dog,bad\n" * 8)
    files = ("--train", path, "--dev", path, "--checkpoint", folder / "checkpoint", "--output-dir", tmp_path / "run")
    done = minibert_in_process("finetune", "Table", *files, "--epochs", "1", *SIZE)
    assert done.code == 0, done.err
    for out in (done.out, minibert_in_process("evaluate", tmp_path / "run").out):
        assert re.search(r"^f1 .*\nloss .*\nnote: f1 is that of the label 'good'$", out, re.M), out


def test_the_rows_of_the_helpers_are_balanced() -> None:
    labels = [row[0] for row in mrpc_rows(16)[1:]]
    assert labels.count("0") == labels.count("1") == 8


def test_compile_names_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "usable", lambda: False)
    for mode, wanted in ((unit.mode(), ["cpu, fp32", "cpu, bf16"]), (None, ["cpu, fp32"])):
        monkeypatch.setattr(unit, "mode", lambda mode=mode: mode)
        done = minibert_in_process("compile")
        assert done.code == 0 and [line.partition(":")[0] for line in done.out.splitlines()] == wanted
