"""SQuAD from the command line: training in stages, files, evaluation, answers; small texts and a very small model."""

from __future__ import annotations

import json
import os
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import minibert
from commands import (
    CONFIG,
    assert_one_line,
    assert_stopped,
    command,
    contents,
    environment,
    make_checkpoint,
    minibert_in_process,
)  # fmt: skip
from minibert import checkpoint, datasets, files, latest, loop, planning, training
from minibert.autograd import Tape, Tensor
from minibert.batch import pack
from minibert.checkpoint import conversion, names, tensorflow
from minibert.cli.finetune import _stage
from minibert.errors import CheckpointError, ConfigError, DataError, RunError
from minibert.kernels import devices
from minibert.model import tokenizer_of
from minibert.progress import Reporter
from minibert.random import Key, initial_weights
from minibert.squad import answering, evaluation, finetuning, reading
from minibert.squad.reader import Reader, tops
from minibert.squad.settings import SquadConfig
from minibert.tokenizer import Features
from models import CONFIG as SMALL
from models import arrays, split

WIDE = CONFIG.__class__(**{**CONFIG.__dict__, "max_position_embeddings": 64})
WHO = ("anna", "peter", "the company", "the team")


def write_squad(path: Path, count: int, version_2: bool = False, start: int = 0) -> Path:
    """`count` questions on as many texts, four an article; in SQuAD 2.0 every third has no answer."""
    articles: list[dict[str, Any]] = []
    for i in range(start, start + count):
        who, day = WHO[i % 4], ("monday", "friday")[i // 4 % 2]
        text = f"In the city, on {day}, {who}  sold {i} shares of the mill to the bank before the market closed."
        answer = {"text": who, "answer_start": text.index(who)}
        question: dict[str, Any] = {"id": f"q{i}", "question": "Who sold shares?", "answers": [answer]}
        if version_2:
            question["is_impossible"] = i % 3 == 0
            if i % 3 == 0:
                question |= {"question": "Who won the game?", "answers": []}
        if not articles or len(articles[-1]["paragraphs"]) == 4:
            articles.append({"title": f"article {len(articles)}", "paragraphs": []})
        articles[-1]["paragraphs"].append({"context": text, "qas": [question]})
    path.write_text(json.dumps({"version": "1.1", "data": articles}))
    return path


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Path]:
    return {
        "base": make_checkpoint(tmp_path / "base", config=WIDE),
        "train": write_squad(tmp_path / "train.json", 24),
        "dev": write_squad(tmp_path / "dev.json", 9, start=24),
        "train2": write_squad(tmp_path / "train2.json", 24, version_2=True),
        "dev2": write_squad(tmp_path / "dev2.json", 9, version_2=True, start=24),
    }


def options(output: Path, base: Path) -> list[str | Path]:
    return [
        "--checkpoint", base, "--output-dir", output, "--max-seq-length", "48", "--doc-stride", "16",
        "--max-query-length", "12", "--batch-size", "4", "--learning-rate", "1e-3",
    ]  # fmt: skip


def test_a_run_its_files_and_what_is_made_of_them(small, tmp_path, monkeypatch):
    run = tmp_path / "run"
    done = minibert_in_process(
        "finetune", "squad", "--first", f"{small['train']}:1", "--then", f"{small['train']}:0.5", "--dev", small["dev"],
        *options(run, small["base"]),
    )  # fmt: skip
    assert done.code == 0 and "exact_match" in done.out, done.err
    description = json.loads((run / "run.json").read_text())
    assert description["steps"] == 9 and [stage["epochs"] for stage in description["stages"]] == [1, 0.5]
    rates = [json.loads(line)["learning_rate"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates[0] == rates[6] == 1e-3 and rates == sorted(rates[:6], reverse=True) + sorted(rates[6:], reverse=True)

    with pytest.raises(
        CheckpointError, match="answers questions and .* minibert answer and minibert.load_squad take it"
    ):
        minibert.load(run)
    assert_one_line(minibert_in_process("predict", run / "model.safetensors", stdin=b"a\tb\n"), 1, "answers questions")
    said = json.loads((run / "predictions.json").read_text())
    assert list(said) == [f"q{i}" for i in range(24, 33)]
    again = minibert_in_process("predict", run, "--input", small["dev"], "--output", tmp_path / "again")
    assert "predictions of 9 questions: " in again.err and str(tmp_path / "again" / "predictions.json") in again.err
    assert again.code == 0, again.err
    for name in ("predictions.json", "nbest_predictions.json"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes()
    files = minibert_in_process(
        "evaluate", "squad", "--data", small["dev"], "--predictions", run / "predictions.json", "--json"
    )
    results = json.loads((run / "eval_results.json").read_text())
    assert json.loads(files.out) == {name: results[name] for name in ("exact_match", "f1")}
    assert json.loads(minibert_in_process("evaluate", run, "--json").out) == json.loads(files.out)
    # What marks answers may be a file or anybody's checkpoint, where --task says so; this one's windows are a reader's.
    asked = (run / "model.safetensors", "--task", "squad")
    predicts, evaluates = ("predict", *asked, "--input", small["dev"], "--output", "out"), ("evaluate", *asked)
    for asking in (predicts, (*evaluates, "--data", small["dev"])):
        assert_one_line(minibert_in_process(*asking), 1, "leaves no room for the text beside --max-query-length")
    # A download that has gone from the cache is fetched again; of one's own file that has gone it is told.
    official = small["dev"].rename(tmp_path / "dev-v1.1.json")
    assert_one_line(minibert_in_process("evaluate", run), 1, "which is not there; add --data FILE")
    monkeypatch.setattr(datasets, "squad_files", lambda task, progress: (None, official))
    description["data"]["dev"]["path"] = str(tmp_path / "gone" / "dev-v1.1.json")
    (run / "run.json").write_text(json.dumps(description))
    assert json.loads(minibert_in_process("evaluate", run, "--json").out) == json.loads(files.out)
    monkeypatch.setattr(datasets, "squad_files", lambda task, progress: (None, small["train"]))
    assert_one_line(minibert_in_process("evaluate", run), 1, "which is not there; add --data FILE")  # it was one's own


def test_the_optimizer_is_the_run_s(small, tmp_path):
    run, parts = tmp_path / "run", ("--first", f"{small['train']}:0.5", "--dev", small["dev"])
    done = minibert_in_process("finetune", "squad", *parts, *options(run, small["base"]), "--optimizer", "adafactor")
    assert done.code == 0 and "adafactor; output" in done.err, done.err
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["optimizer"], settings["bias_correction"]) == ("adafactor", False)


def test_squad2_stores_its_threshold_and_predict_uses_it(small, tmp_path):
    run = tmp_path / "run"
    done = minibert_in_process(
        "finetune", "squad2", "--first", f"{small['train2']}:2", "--dev", small["dev2"], *options(run, small["base"])
    )
    assert done.code == 0 and "with thresholds found on other articles" in done.out, done.err
    results = json.loads((run / "eval_results.json").read_text())
    assert json.loads((run / "run.json").read_text())["null_score_diff_threshold"] == results["threshold"]
    assert f" {results['threshold']!r}\n" in done.out, "with all digits, to be given again"
    odds = json.loads((run / "null_odds.json").read_text())
    for threshold in (None, 1e6, -1e6):
        given = [] if threshold is None else ["--null-score-diff-threshold", str(threshold)]
        minibert_in_process("predict", run, "--input", small["dev2"], "--output", tmp_path / "out", *given)
        said = json.loads((tmp_path / "out" / "predictions.json").read_text())
        limit = results["threshold"] if threshold is None else threshold
        assert all((said[id] == "") == (odds[id] > limit) for id in odds)
    assert minibert_in_process("evaluate", run, "--null-score-diff-threshold", "1e6").code == 0


def test_steps_are_counted_by_questions_not_by_windows(small):
    """As Google's script does: 14,599 for SQuAD 1.1, though there are 88,641 windows."""
    config = SquadConfig(task="squad", max_seq_length=24, doc_stride=2, max_query_length=8, batch_size=4, epochs=3)
    tokenizer = tokenizer_of(checkpoint.find(small["base"]))
    made = finetuning.split(small["train"], tokenizer, config, Reporter(), False)
    assert made.count == 24 and len(made.features) > 72
    stage = training.Stage(made, 3, config)
    assert (stage.total, stage.warmup) == (18, 1)
    assert len({*np.concatenate([stage.numbers(step) for step in range(stage.total)])}) == 72


def test_a_run_of_two_stages_killed_anywhere_ends_in_the_same_bits(small, tmp_path, monkeypatch, capfd):
    def run(name: str, **more: Any) -> finetuning.SquadRun:
        return finetuning.finetune_squad(
            "squad", checkpoint=small["base"], stages=[(small["train"], 1), (small["dev"], 1)], dev_file=small["dev"],
            output_dir=tmp_path / name, max_seq_length=48, doc_stride=16, max_query_length=12, batch_size=4,
            learning_rate=1e-3, save_every=1, **more,
        )  # fmt: skip

    straight = contents(run("straight").path)
    begin = training.Trainer.begin
    for stop in (0, 2, 6, 7):  # before anything is saved, within the first stage, between both, within the second

        def killed(self: Any, number: int, stop: int = stop) -> Any:
            if number == stop:
                raise KeyboardInterrupt
            return begin(self, number)

        monkeypatch.setattr(training.Trainer, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            run(f"killed {stop}")
        monkeypatch.setattr(training.Trainer, "begin", begin)
        resumed = contents(run(f"killed {stop}", resume=True, report=Reporter(quiet=False)).path)
        told = "no step of it had been saved: the run begins anew" if stop == 0 else f"going on after step {stop}"
        assert told in capfd.readouterr().err
        for name in ("model.safetensors", "predictions.json", "nbest_predictions.json", "eval_results.json"):
            assert resumed[name] == straight[name], (stop, name)


def make_answerer(base: Path, task: str) -> answering.Answerer:
    """The checkpoint with a head that is drawn."""
    found = checkpoint.load(base, spans=True)
    drawn = initial_weights({n: names.shapes(found.config, spans=True)[n] for n in names.SPANS}, 0.5, 1)
    reader = Reader(found.config, devices.open("cpu"))
    reader.fill(dict(found.arrays) | drawn)
    settings = SquadConfig(task=task, max_seq_length=48, doc_stride=16, max_query_length=12, n_best_size=4)
    return answering.Answerer(reader, tokenizer_of(found), settings)


def test_an_answerer_says_what_it_is(small):
    where = f"{devices.open('cpu').precision} on {devices.open('cpu').description}"
    told = repr(make_answerer(small["base"], "squad2"))
    assert told == f"<minibert.Answerer: squad2, 0.0 M parameters, {where}>"


def test_a_damaged_setting_in_run_json_is_told_in_a_line():
    for damage in ({"doc_stride": "64"}, {"max_answer_length": 0}, {"task": 5}):
        with pytest.raises(RunError, match=r"run.json: its settings are damaged"):
            answering.settings_of({"settings": damage})
    with pytest.raises(ConfigError, match="task 'squad2.0' is none of SQuAD's: squad or squad2"):
        answering.settings_of(None, "squad2.0")
    for threshold in (float("inf"), float("nan")):  # which run.json could not hold
        with pytest.raises(ConfigError, match="null_score_diff_threshold .* must be a finite number"):
            SquadConfig(task="squad2", precision="fp32", null_score_diff_threshold=threshold)


@pytest.mark.parametrize(("task", "file"), [("squad", "dev"), ("squad2", "dev2")])
def test_results_do_not_depend_on_parts(small, tmp_path, monkeypatch, task, file):
    answerer, found = make_answerer(small["base"], task), []
    monkeypatch.setattr(reading, "PART", 2)
    for name, parts in (("parts", reading.parts(small[file])), ("whole", [reading.read(small[file])])):
        (tmp_path / name).mkdir()
        assert len(list(parts)) == (5 if name == "parts" else 1)
        found.append((evaluation.evaluate(answerer, parts, tmp_path / name), contents(tmp_path / name)))
    assert found[0] == found[1]


def test_memory_does_not_grow_with_the_questions(small, tmp_path, monkeypatch):
    """But for half a KiB of each, its id, answer and score: with all questions and windows it would be 3.5."""
    answerer = make_answerer(small["base"], "squad2")
    monkeypatch.setattr(reading, "PART", 20)
    monkeypatch.setattr(files, "CHUNK", 4096)

    def peak(count: int) -> int:
        path = write_squad(tmp_path / f"{count}.json", count, version_2=True)
        tracemalloc.start()
        evaluation.evaluate(answerer, reading.parts(path), tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # what is loaded at the first use
    assert peak(450) - peak(150) < 300 * 1024


def test_answers_are_parts_of_the_text_with_their_places(small, tmp_path):
    run = finetuning.finetune_squad(
        "squad", checkpoint=small["base"], stages=[(small["train"], 1)], dev_file=small["dev"],
        output_dir=tmp_path / "run", max_seq_length=48, doc_stride=16, max_query_length=12, batch_size=4,
    )  # fmt: skip
    texts = {
        "long": "anna sold the mill. " * 400,
        "emoji and marks": "Á\u0301nna \U0001f600 sold  the\u200b mill \u05d0\u05d1\u05d2 on friday\t.",
        "nothing": "  \n ",
    }
    for wrong in ((None, "a text"), ("Who?", 5)):
        with pytest.raises(DataError, match=r"the (question|context) is (None|5): give a text"):
            run.answer(*wrong)
    for context in texts.values():
        for answer in run.answer("Who sold the mill? " * 9, context, n=20):
            assert context[answer.start : answer.end] == answer.text and 0 <= answer.probability <= 1
    path = tmp_path / "text.txt"
    path.write_text(texts["long"])
    done = minibert_in_process("answer", run.path, "--context", path, "--json", stdin=b"Who?\n\nWhat was sold?\n")
    assert done.code == 0 and [json.loads(line)["question"] for line in done.out.splitlines()] == [
        "Who?", "What was sold?",
    ]  # fmt: skip
    shown = minibert_in_process("answer", run.path, "--context", path, "--question", "Who?", "--top", "2")
    assert len(shown.out.splitlines()) == 2
    read = ("answer", run.path, "--context", "-", "--top", "2")
    assert minibert_in_process(*read, "--question", "Who?", stdin=path.read_bytes()).out == shown.out
    assert_one_line(minibert_in_process(*read, stdin=b"text"), 2, "takes stdin for the text: give --question, too")
    assert_one_line(minibert_in_process(*read, "--question", " ", stdin=b"text"), 1, "the question is empty: ask one")
    asked = ("answer", run.path, "--context", path, "--top", "2")
    piped = minibert_in_process(*asked, stdin=b"Who?\nWhat was sold?\n").out.splitlines()
    assert len(piped) == 4 and piped[:2] == shown.out.splitlines()
    apart = ["Who?", *piped[:2], "", "What was sold?", *piped[2:], ""]
    assert on_a_terminal(*asked, stdin=b"Who?\nWhat was sold?\n").splitlines() == apart


def on_a_terminal(*arguments: str | Path, stdin: bytes) -> str:
    """What a command shows whose stdout is a terminal."""
    if not hasattr(os, "openpty"):
        pytest.skip("the system has no terminals of this kind")
    ours, theirs = os.openpty()
    done = subprocess.run(command(*arguments), input=stdin, stdout=theirs, env=environment({}), check=False)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()  # all of it: the little that a terminal keeps
    os.close(ours)
    assert done.returncode == 0
    return shown


def test_gradients_of_the_reader_s_loss_are_its_slopes():
    """In float64 along a random direction of all parameters; windows with and without an answer."""
    rng, outputs = np.random.default_rng(0), {"qa_outputs.weight": (2, 24), "qa_outputs.bias": (2,)}
    reader = Reader(SMALL, devices.open("reference", float_type="float64"))
    given = {name: value for name, value in arrays(SMALL, 2).items() if not name.startswith(("pooler", "classifier"))}
    reader.fill(given | {name: rng.standard_normal(shape) for name, shape in outputs.items()})
    data = split(5, SMALL)
    labels = np.array([[0, 0], [1, 2], [2, 2], [0, 0], [1, 1]], np.int32)
    part = pack(reader.device, data.features, np.arange(5), labels)

    def loss() -> Tensor:
        return reader.loss(reader.logits(part, Key(1, 0)), part)

    with Tape() as tape:
        losses = loss()
    weight = rng.standard_normal(5)
    tape.backward(losses, [weight])
    gradients, values = reader.arrays(gradients=True), reader.arrays()
    ways = {name: rng.standard_normal(value.shape) for name, value in values.items()}
    wanted = sum(float((gradients[name] * way).sum()) for name, way in ways.items())
    moved = []
    for step in (1e-6, -2e-6):
        for name, way in ways.items():
            values[name] += step * way
        moved.append(float(loss().data @ weight))
    assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["finetune", "squad", "--then", "x.json:1"], ["--first"]),
        (["finetune", "squad", "--first", "x.json:many"], ["FILE:EPOCHS"]),
        (["evaluate", "squad", "--data", "x", "--predictions", "y", "--device", "gpu"], ["--device does not go with"]),
        (["evaluate", "squad", "--data", "x", "--predictions", "y", "--precision", "fp32"], ["--precision does not"]),
        (["finetune", "squad", "--sample"], ["sample"]),
        (["finetune", "mrpc", "--doc-stride", "3"], ["squad"]),
        (["evaluate", "squad", "--data", "x.json"], ["--predictions"]),
        (["evaluate", "squad", "--data", "x", "--predictions", "y", "--null-odds", "z"], ["squad2"]),
    ],
)
def test_wrong_usage(arguments, words):
    done = minibert_in_process(*arguments)
    assert done.code == 2
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("train.json", ("train.json", 1.0)),
        ("train.json:2", ("train.json", 2.0)),
        ("gs://bucket/train.json", ("gs://bucket/train.json", 1.0)),
        ("gs://bucket/train.json:0.5", ("gs://bucket/train.json", 0.5)),
    ],
)
def test_a_stage_is_a_file_and_its_epochs(text, stage):
    assert _stage(text) == stage


def test_a_zero_is_a_value_too(monkeypatch):
    given: dict[str, Any] = {}

    def finetune(task: str, **options: Any) -> None:
        given.update(options)
        raise ConfigError("enough")

    monkeypatch.setattr(finetuning, "finetune_squad", finetune)
    words = "--seed 0 --warmup 0 --null-score-diff-threshold 0 --no-bias-correction".split()
    assert_one_line(minibert_in_process("finetune", "squad2", *words), 1, "enough")
    values = {name: value for name, value in given.items() if name not in ("report", "stages")}
    assert values == {"seed": 0, "warmup": 0, "null_score_diff_threshold": 0, "bias_correction": False}
    done = minibert_in_process("finetune", "mrpc", "--null-score-diff-threshold", "0")
    assert done.code == 2 and "squad2" in done.err


@pytest.mark.parametrize("version_2", [False, True])
def test_what_run_squad_trains_is_used_as_any_other(small, tmp_path, version_2):
    data = {
        "train_file": small["train2" if version_2 else "train"],
        "predict_file": small["dev2" if version_2 else "dev"],
    }
    conversion.convert(small["base"], tmp_path / "bert", "tensorflow")
    given = {
        "vocab_file": tmp_path / "bert" / "vocab.txt", "bert_config_file": tmp_path / "bert" / "bert_config.json",
        "init_checkpoint": tmp_path / "bert" / "bert_model.ckpt", "do_train": "true", "do_predict": "true",
        "max_seq_length": 48, "doc_stride": 16, "max_query_length": 12, "train_batch_size": 4, "learning_rate": 1e-3,
        "n_best_size": 7, "version_2_with_negative": version_2, "null_score_diff_threshold": -0.5,
        "output_dir": tmp_path / "out", **data,
    }  # fmt: skip
    assert minibert_in_process("run-squad", *(f"--{name}={value}" for name, value in given.items())).code == 0
    pooler = "bert/pooler/dense/kernel"  # which Google's script restores from its output directory
    newest = tensorflow.read(tmp_path / "out" / latest.newest(tmp_path / "out"))
    begun = tensorflow.read(tmp_path / "bert" / "bert_model.ckpt")
    np.testing.assert_array_equal(newest.entries[pooler].read(), begun.entries[pooler].read())
    files = ("predictions.json", "nbest_predictions.json", *["null_odds.json"] * version_2)
    done = minibert_in_process("predict", tmp_path / "out", "--input", data["predict_file"], "--output", tmp_path / "o")
    assert done.code == 0, done.err
    for name in files:
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    (tmp_path / "text").write_text("In the city anna sold shares .")
    done = minibert_in_process("answer", tmp_path / "out", "--context", tmp_path / "text", "--question", "Who sold?")
    assert done.code == 0, done.err
    if (
        version_2
    ):  # a threshold that only predicting is told, as Google's README has it, holds from then on; 0 is no word
        given |= {"do_train": "false", "null_score_diff_threshold": "1e6"}
        described = json.loads((tmp_path / "out" / "run.json").read_text())
        assert minibert_in_process("run-squad", *(f"--{name}={value}" for name, value in given.items())).code == 0
        del given["null_score_diff_threshold"]
        assert minibert_in_process("run-squad", *(f"--{name}={value}" for name, value in given.items())).code == 0
        described["settings"]["null_score_diff_threshold"] = 1e6
        assert json.loads((tmp_path / "out" / "run.json").read_text()) == described


def test_google_s_flags_take_negative_numbers_after_a_space():
    done = minibert_in_process("run-squad", "--null_score_diff_threshold", "-1.5", "-do_predict", "--output_dir", "x")
    assert done.code == 2 and "-1.5" not in done.err and "--bert_config_file" in done.err, done.err


def test_other_epochs_of_a_later_stage_are_another_run(small, tmp_path, monkeypatch):
    def run(epochs: float, **more: Any) -> None:
        finetuning.finetune_squad(
            "squad", checkpoint=small["base"], stages=[(small["train"], 0.5), (small["train"], epochs)],
            dev_file=small["dev"], output_dir=tmp_path / "run", max_seq_length=48, doc_stride=16, max_query_length=12,
            batch_size=4, **more,
        )  # fmt: skip

    def killed(self: Any, number: int) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Trainer, "begin", killed)
        run(0.5)
    with pytest.raises(RunError, match=r"epochs of stages was \[0.5, 0.5\], now \[0.5, 7\]"):
        run(7, resume=True)


def test_what_cannot_be_evaluated_is_told_before_training(small, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train", None)
    first = ["--first", f"{small['train']}:1"]
    run = [*options(tmp_path / "run", small["base"])]
    assert_stopped(minibert_in_process("finetune", "squad", *first, "--dev", small["dev2"], *run), 1, "has no answers")
    monkeypatch.setattr(datasets, "squad_files", Mock(side_effect=AssertionError("downloaded")))
    lacking = ["--first", "no-such.json:1", *run]
    assert_one_line(minibert_in_process("finetune", "squad", *lacking), 1, "no-such.json: no such file")
    for epochs in ("nan", "inf", "0"):
        bad = ["--first", f"{small['train']}:{epochs}", "--dev", small["dev"], *run]
        assert_one_line(minibert_in_process("finetune", "squad", *bad), 1, "a stage needs more than 0")


def test_windows_that_make_no_batch_are_told_before_weights_are_read(small, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Unread, "read", Mock(side_effect=AssertionError("read")))
    monkeypatch.setattr(planning, "budget", lambda memory, device: None)  # so that no plan finds out
    stages = ["--first", f"{small['train']}:1", "--then", f"{small['train']}:0.1", "--dev", small["dev"]]
    done = minibert_in_process("finetune", "squad", *stages, *options(tmp_path / "run", small["base"]))
    assert_stopped(done, 1, "24 examples for 0.1 epochs make no batch of 4")
    given = {
        "bert_config_file": small["base"] / "config.json", "vocab_file": small["base"] / "vocab.txt",
        "init_checkpoint": small["base"] / "model.safetensors", "output_dir": tmp_path / "out", "do_train": True,
        "train_file": small["train"], "train_batch_size": 25, "num_train_epochs": 0.5, "max_seq_length": 48,
        "max_query_length": 12,
    }  # fmt: skip
    done = minibert_in_process("run-squad", *(f"--{name}={value}" for name, value in given.items()))
    assert_stopped(done, 1, "24 examples for 0.5 epochs make no batch of 25")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
def test_while_a_run_trains_nothing_of_its_checkpoint_is_in_memory(small, tmp_path, monkeypatch):
    def begin(trainer: training.Trainer, number: int, plain=training.Trainer.begin):
        assert str(small["base"]) not in Path("/proc/self/maps").read_text()
        return plain(trainer, number)

    monkeypatch.setattr(training.Trainer, "begin", begin)
    stages = ["--first", f"{small['train']}:1", "--dev", small["dev"]]
    done = minibert_in_process("finetune", "squad", *stages, *options(tmp_path / "run", small["base"]))
    assert done.code == 0, done.err


def test_a_checkpoint_of_squad2_is_told_so(small, tmp_path):
    run = tmp_path / "run"
    long = CONFIG.__class__(**{**CONFIG.__dict__, "max_position_embeddings": 128})
    base = make_checkpoint(tmp_path / "long", config=long)
    parts = ["--first", f"{small['train2']}:0.5", "--dev", small["dev2"], *options(run, base)]
    assert minibert_in_process("finetune", "squad2", *parts).code == 0
    description = json.loads((run / "run.json").read_text())
    description["settings"]["recompute"] = "host"  # as on a GPU, which answering has nothing to do with
    (run / "run.json").write_text(json.dumps(description))
    predict = ["predict", run, "--input", small["dev2"], "--output", tmp_path / "said"]
    assert minibert_in_process(*predict).code == 0
    (run / "run.json").unlink()
    assert_one_line(minibert_in_process("evaluate", run, "--data", small["dev2"]), 1, "has no answers: take squad2")
    threshold = ["--null-score-diff-threshold", "-1000"]
    assert_one_line(minibert_in_process(*predict, *threshold), 1, "--task squad2")
    assert minibert_in_process("evaluate", run, "--data", small["dev2"], "--task", "squad2").code == 0
    assert minibert_in_process(*predict, *threshold, "--task", "squad2").code == 0
    assert set(json.loads((tmp_path / "said" / "predictions.json").read_text()).values()) == {""}
    (tmp_path / "text").write_text("Anna was born in 1850 .")
    asked = ["answer", run, "--context", tmp_path / "text", "--question", "When?", "--top", "50"]
    assert "(no answer in the text)" not in minibert_in_process(*asked).out
    assert "(no answer in the text)" in minibert_in_process(*asked, "--task", "squad2").out
    (tmp_path / "text").write_text("")
    assert minibert_in_process(*asked).out == "(no answer in the text)\n"
    done = minibert_in_process(*asked[:4], stdin=b"\xff?\n")
    assert_one_line(done, 1, "stdin: byte 0 is not UTF-8")


@pytest.mark.parametrize("name", ["predictions.json", "nbest_predictions.json", "null_odds.json"])
def test_predictions_do_not_replace_the_questions(small, tmp_path, name):
    (tmp_path / "said").mkdir()
    (tmp_path / "questions.json").write_bytes(small["dev"].read_bytes())
    (tmp_path / "said" / name).symlink_to(tmp_path / "questions.json")
    with pytest.raises(DataError, match=f"{name}: is the input, .*questions.json, which would be lost"):
        evaluation.predict_file("no model", tmp_path / "questions.json", tmp_path / "said")


def test_questions_without_a_prediction_are_told(small, tmp_path, caplog):
    said = tmp_path / "predictions.json"
    said.write_text(json.dumps({"q24": "x"}))
    done = minibert_in_process("evaluate", "squad", "--data", small["dev"], "--predictions", said)
    assert done.code == 0 and "8 questions without a prediction: q25, q26, q27, q28, q29, ..." in caplog.text


def test_a_run_does_not_remove_what_it_starts_from(small, tmp_path):
    parts = ["--first", f"{small['train']}:1", "--dev", small["dev"]]
    before = contents(small["base"])
    done = minibert_in_process("finetune", "squad", *parts, *options(small["base"], small["base"]), "--overwrite")
    assert_one_line(done, 1, "holds config.json, and no run")
    both = [*options(tmp_path / "run", small["base"]), "--resume", "--overwrite"]
    assert_one_line(minibert_in_process("finetune", "squad", *parts, *both), 1, "give one of them")
    assert contents(small["base"]) == before and not (tmp_path / "run").exists()


def test_windows_without_room_for_text_are_told_with_what_would_do(small, tmp_path):
    told = minibert_in_process("finetune", "squad", "--max-seq-length", "64", "--output-dir", tmp_path / "run")
    assert_one_line(told, 1, "--max-seq-length 64", "--max-query-length 64", "more than 67, or --max-query-length 16")
    SquadConfig(task="squad", max_seq_length=64, max_query_length=16)
    SquadConfig(task="squad", max_seq_length=68)


def test_what_is_missing_gets_one_line(small, tmp_path):
    run = [*options(tmp_path / "run", small["base"])]
    first = ["--first", f"{small['train']}:1", "--dev", small["dev"]]
    assert_one_line(
        minibert_in_process("finetune", "squad", "--first", "none.json:1", *first[2:], *run), 1, "none.json"
    )
    assert_stopped(minibert_in_process("finetune", "squad2", *first, *run), 1, "is_impossible")
    assert_one_line(minibert_in_process("finetune", "squad", "--data-dir", tmp_path, *run), 1, "train-v1.1.json")
    assert_one_line(minibert_in_process("answer", small["base"], "--context", small["dev"]), 1, "finetune squad")
    (tmp_path / "bad.json").write_text('{"data": [{"paragraphs": 3}]}')
    bad = minibert_in_process("finetune", "squad", "--first", f"{tmp_path / 'bad.json'}:1", *first[2:], *run)
    assert_one_line(bad, 1, "bad.json")
    with pytest.raises(Exception, match="marks no answers"):
        answering.load_squad(small["base"])


def test_more_answers_than_a_window_has_tokens_take_no_more_memory(small):
    reader = make_answerer(small["base"], "squad").reader
    features = Features(np.arange(5, 12, dtype=np.int32), np.zeros(7, np.int8), np.array([0, 7]))
    (top,) = tops(reader, [features], 100_000)
    assert top.places.shape == (1, 2, reader.config.max_position_embeddings)
    assert sorted(top.places[0, 0, :7]) == [*range(7)] and (top.places[0, 0, 7:] == -1).all()


def test_for_stages_of_one_s_own_the_development_file_alone_is_fetched(small, tmp_path):
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad" / "dev-v1.1.json").write_bytes(small["dev"].read_bytes())
    stage = ["--first", f"{small['train']}:0.5", "--data-dir", tmp_path]
    assert minibert_in_process("finetune", "squad", *stage, *options(tmp_path / "run", small["base"])).code == 0
