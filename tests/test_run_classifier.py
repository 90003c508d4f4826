"""`minibert run-classifier`: Google's flags, files and rules; the commands of Google's README as they stand there."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import minibert
from commands import (
    CONFIG,
    Done,
    assert_one_line,
    contents,
    make_checkpoint,
    minibert_in_process,
    minibert_process,
    mrpc_rows,
    write_mrpc,
)  # fmt: skip
from minibert import checkpoint, estimator, latest, planning, tasks
from minibert.checkpoint import conversion, names, sources
from minibert.progress import Reporter
from minibert.squad.words import Cutter
from minibert.tokenizer import FILES


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a small Google checkpoint in `bert` and MRPC's layout in `glue`."""
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "bert", "tensorflow")
    write_mrpc(tmp_path / "glue", train=32, dev=11)
    rows = [f"{i}\t{row.partition(chr(9))[2]}" for i, row in enumerate(mrpc_rows(9)[1:])]
    text = "\n".join(["index\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows])
    (tmp_path / "glue" / "MRPC" / "test.tsv").write_text(text + "\n")
    return tmp_path


def flags(here: Path, **more: object) -> list[str]:
    given = {
        "task_name": "MRPC", "data_dir": here / "glue" / "MRPC", "vocab_file": here / "bert" / "vocab.txt",
        "bert_config_file": here / "bert" / "bert_config.json", "init_checkpoint": here / "bert" / "bert_model.ckpt",
        "max_seq_length": 32, "train_batch_size": 8, "output_dir": here / "out", **more,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def classify(here: Path, **more: object) -> Done:
    return minibert_in_process("run-classifier", *flags(here, **more))


def block(done: Done) -> dict[str, str]:
    """The eval block on stdout."""
    title, *lines = done.out.splitlines()
    assert title == "***** Eval results *****"
    return dict(line.removeprefix("  ").split(" = ") for line in lines)


def test_train_evaluate_and_predict_write_googles_files(here: Path) -> None:
    done = classify(here, do_train="true", do_eval="True", do_predict=1)
    assert done.code == 0, done.err
    said = block(done)
    assert list(said) == ["eval_accuracy", "eval_loss", "global_step", "loss"]
    assert said["global_step"] == "12"  # 32 / 8 * 3
    assert str(np.float32(said["eval_accuracy"])) == said["eval_accuracy"]
    text = (here / "out" / "eval_results.txt").read_text()
    assert text == "".join(f"{name} = {value}\n" for name, value in said.items())
    rows = (here / "out" / "test_results.tsv").read_text().splitlines()
    probabilities = np.array([row.split("\t") for row in rows], float)
    assert probabilities.shape == (9, 2) and np.allclose(probabilities.sum(1), 1, atol=1e-6)
    assert {p.name for p in (here / "out").iterdir()} == {
        "checkpoint", "eval_results.txt", "test_results.tsv", "metrics.jsonl",
        "model.ckpt-12.index", "model.ckpt-12.data-00000-of-00001", "run.json", "config.json", *FILES,
    }  # fmt: skip
    assert latest.newest(here / "out") == "model.ckpt-12"


@pytest.mark.parametrize("form", ["", "/model.ckpt-12"])
def test_what_was_trained_is_evaluated_alike_in_another_run(here: Path, form: str) -> None:
    first = classify(here, do_train="true", do_eval="true", do_predict="true")
    trained = f"{here / 'out'}{form}"
    done = classify(here, do_eval="true", do_predict="true", init_checkpoint=trained, output_dir=here / "again")
    assert done.code == 0, done.err
    same = block(first) | {"global_step": "0"}  # a run of its own, which has made no step
    assert block(done) == same
    assert (here / "again" / "test_results.tsv").read_bytes() == (here / "out" / "test_results.tsv").read_bytes()


def test_the_trained_checkpoint_converts_to_what_transformers_reads(here: Path) -> None:
    classify(here, do_train="true")
    conversion.convert(here / "out", here / "hf", "hf")
    found = checkpoint.load(here / "hf")
    assert not found.missing_head and found.config.id2label == ("0", "1")


def test_the_trained_checkpoint_is_used_as_any_other(here: Path) -> None:
    given = {"max_seq_length": 12, "do_train": "true", "do_eval": "true", "do_predict": "true"}
    trained = block(classify(here, **given))  # texts have up to 20 tokens
    rows = (here / "out" / "test_results.tsv").read_text()
    test = here / "glue" / "MRPC" / "test.tsv"
    assert minibert_in_process("predict", here / "out", "--input", test, "--format", "google").out == rows
    done = minibert_in_process("evaluate", here / "out", "--json")
    results = json.loads(done.out)
    assert str(np.float32(results["accuracy"])) == trained["eval_accuracy"]
    assert str(np.float32(results["loss"])) == trained["eval_loss"]


def test_google_s_words_are_those_of_what_was_trained(here: Path) -> None:
    rows = [*mrpc_rows(3)[1:], f"0\t7\t8\t{'a' * 140} [SEP] cat\t[MASK] dog"]
    text = "\n".join(["index\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows])
    (here / "glue" / "MRPC" / "test.tsv").write_text(text + "\n")
    assert classify(here, do_train="true", do_predict="true").code == 0
    test = here / "glue" / "MRPC" / "test.tsv"
    done = minibert_in_process("predict", here / "out", "--input", test, "--format", "google")
    assert done.out == (here / "out" / "test_results.tsv").read_text()


def test_what_is_beside_the_checkpoints_is_of_what_was_trained_last(here: Path) -> None:
    assert classify(here, do_train="true").code == 0
    for path in [here / "out" / "checkpoint", *(here / "out").glob("model.ckpt*")]:
        path.unlink()
    rows = [
        "index\tsentence1\tsentence2\tlabel",
        "0\tThe cat .\tA cat .\tentailment",
        "1\tA dog .\tA cat .\tnot_entailment",
    ]
    for split in ("train", "dev"):
        (here / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    given = {
        "task_name": "rte",
        "data_dir": here,
        "train_batch_size": 2,
        "max_seq_length": 12,
        "do_lower_case": "false",
    }
    assert classify(here, do_train="true", **given).code == 0
    model = minibert.load(here / "out")
    assert model.labels == ("entailment", "not_entailment") and model.max_seq_length == 12
    assert not model.tokenizer.lowercase and model.pairs


RUN = '{"finished": true, "settings": {"task": "mrpc", "max_seq_length": 9}}'


@pytest.mark.parametrize(
    ("theirs", "content"),
    [("vocab.txt", RUN), ("config.json", RUN), ("run.json", "{}"), ("run.json", "no JSON")],
)
def test_a_config_and_a_vocabulary_of_somebody_else_s_stay(here: Path, theirs: str, content: str) -> None:
    (here / "out").mkdir()
    (here / "out" / theirs).write_text(content)
    before = contents(here / "out")
    done = classify(here, do_train="true")
    assert done.code == 0 and f"has {theirs} already: config and vocabulary are not written" in done.err
    after = contents(here / "out")
    assert after.items() >= before.items()
    assert not {"run.json", "config.json", *FILES} & (after.keys() - before.keys())


def test_a_run_of_finetune_is_not_trained_over(here: Path) -> None:
    """Its metrics and results would be replaced, and its own weights read all the same."""
    (here / "out").mkdir()
    (here / "out" / "run.json").write_text(RUN)
    before = contents(here / "out")
    assert_one_line(classify(here, do_train="true"), 1, "out: holds a run of minibert finetune; choose another")
    assert contents(here / "out") == before


def test_a_regression_has_no_labels_and_is_used_as_any_other(here: Path) -> None:
    data = Path(__file__).parent / "fixtures" / "glue" / "STS-B"
    given = {"task_name": "STS-B", "data_dir": data, "train_batch_size": 2, "do_train": "true", "do_eval": "true"}
    trained = block(classify(here, **given))
    described = json.loads((here / "out" / "run.json").read_text())
    assert described["labels"] == [] and described["script"] == "run_classifier.py"
    config = checkpoint.load(here / "out").config
    assert config.problem_type == "regression" and len(config.id2label) == 1, "transformers' form names the one output"
    results = json.loads(minibert_in_process("evaluate", here / "out", "--json").out)
    assert str(np.float32(results["pearson"])) == trained["eval_pearson"]
    assert minibert.load(here / "out").labels == ()


def save_turned(here: Path) -> None:
    """A classifier whose outputs stand in another order than the script's, in `turned`."""
    found = checkpoint.load(here / "bert")
    rng = np.random.default_rng(0)
    heads = {"classifier.weight": rng.standard_normal((2, found.config.hidden_size), np.float32)}
    arrays = found.arrays | heads | {"classifier.bias": np.float32([0.5, 0])}
    checkpoint.save(here / "turned", dataclasses.replace(found.config, id2label=("1", "0")), arrays)


def test_outputs_in_another_order_are_matched_by_their_names(here: Path) -> None:
    found = checkpoint.load(here / "bert")
    rows = {"classifier.weight": np.random.default_rng(0).standard_normal((2, found.config.hidden_size), np.float32)}
    arrays = found.arrays | rows | {"classifier.bias": np.float32([0.5, 0])}
    results = []
    for labels in (("0", "1"), ("1", "0"), ("LABEL_0", "LABEL_1"), ("no", "yes")):
        folder = here / "-".join(labels)
        order = slice(None, None, -1 if labels[0] == "1" else 1)
        heads = {name: np.ascontiguousarray(arrays[name][order]) for name in names.HEAD}
        checkpoint.save(folder, dataclasses.replace(found.config, id2label=labels), arrays | heads)
        places = {"init_checkpoint": folder / "model.safetensors", "bert_config_file": folder / "config.json"}
        results.append(classify(here, do_eval="true", output_dir=here / "evaluated", **places))
    said = "calls its labels no, yes, but mrpc has 0, 1"
    assert_one_line(results.pop(), 1, said, "name them so in its id2label")
    assert results[0].code == 0 and block(results[0]) == block(results[1]) == block(results[2])


def test_of_outputs_that_are_only_counted_nobody_knows_the_order(here: Path) -> None:
    """num_labels is no Google's: such a config has another origin, and there the order may be another."""
    conversion.convert(make_checkpoint(here / "named", ("no", "yes")), here / "tf", "tensorflow")
    path = here / "tf" / "bert_config.json"
    raw = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("id2label", "label2id")}
    given = {
        "task_name": "RTE", "data_dir": Path(__file__).parent / "fixtures" / "glue", "do_eval": "true",
        "init_checkpoint": here / "tf" / "bert_model.ckpt", "bert_config_file": path,
    }  # fmt: skip
    path.write_text(json.dumps(raw | {"num_labels": 2}))
    words = ("calls its labels LABEL_0, LABEL_1", "rte has entailment, not_entailment", "name them so in its id2label")
    assert_one_line(classify(here, **given), 1, str(path), *words)
    path.write_text(json.dumps(raw | {"id2label": {"0": "entailment", "1": "not_entailment"}}))
    named = classify(here, **given)
    path.write_text(json.dumps(raw))  # as Google's, which name no labels
    assert named.code == 0 and classify(here, **given) == named


def test_what_was_trained_from_another_order_has_the_script_s(here: Path) -> None:
    """The config still names the order of the checkpoint that training began with."""
    save_turned(here)
    places = {"init_checkpoint": here / "turned", "bert_config_file": here / "turned" / "config.json"}
    trained = block(classify(here, do_train="true", do_eval="true", **places))
    assert block(classify(here, do_eval="true", **places)) == trained
    places["init_checkpoint"] = here / "out" / "model.ckpt-12"
    again = block(classify(here, do_eval="true", output_dir=here / "again", **places))
    assert again == trained | {"global_step": "0"}


def test_of_a_converted_checkpoint_the_names_count(here: Path) -> None:
    save_turned(here)
    (here / "turned" / "vocab.txt").write_bytes((here / "bert" / "vocab.txt").read_bytes())
    conversion.convert(here / "turned", here / "tf", "tensorflow")
    said = []
    for folder, name in (("turned", "config.json"), ("tf", "bert_config.json")):
        places = {"init_checkpoint": here / folder, "bert_config_file": here / folder / name}
        said.append(block(classify(here, do_eval="true", output_dir=here / "evaluated", **places)))
    assert said[0] == said[1]


def test_words_are_googles(here: Path) -> None:
    """Up to 200 letters, where transformers has 100, and special tokens are words like any other."""
    tokenizer = estimator.tokenizer_of(
        Mock(vocab_file=here / "bert" / "vocab.txt", do_lower_case=True, init_checkpoint=None), Reporter()
    )
    ids = {token: i for i, token in enumerate(tokenizer.vocab)}
    for text in ("a" * 150, "[SEP] a", "a" * 201):
        found = tokenizer.encode([(text, None)], 400).ids.tolist()[1:-1]
        assert found == Cutter(tokenizer).pieces(text) and ids["[SEP]"] not in found


def test_help_has_a_short_name(here: Path) -> None:
    for name in ("run-classifier", "run-squad"):
        short, long = (minibert_in_process(name, flag) for flag in ("-h", "--help"))
        assert short == long and long.out


def test_a_checkpoint_in_the_output_directory_comes_first(here: Path) -> None:
    first = classify(here, do_train="true", do_eval="true")
    done = classify(here, do_eval="true")
    assert block(done) == block(first)
    assert "model.ckpt-12 is used, not --init_checkpoint" in done.err


@pytest.mark.parametrize("form", ["out", "out/", "out/model.ckpt-12", "out/model.ckpt-12.index", "bert/../out"])
def test_nothing_comes_before_the_checkpoint_that_was_given(
    here: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.chdir(here)
    first = classify(here, do_train="true", do_eval="true")
    done = classify(here, do_eval="true", init_checkpoint=form)
    assert block(done) == block(first)
    assert "is used" not in done.err
    older = classify(here, do_train="true", do_eval="true", num_train_epochs=4, init_checkpoint="out/model.ckpt-12")
    assert "is used" not in older.err, "it goes on from there"
    done = classify(here, do_eval="true", init_checkpoint="out/model.ckpt-12")
    assert "model.ckpt-16 is used, not --init_checkpoint=out/model.ckpt-12" in done.err


def test_predictions_say_where_they_are(here: Path) -> None:
    done = classify(here, do_train="true", do_predict="true", num_train_epochs=1)
    assert done.err.splitlines()[-1] == f"predictions of 9 rows: {here / 'out' / 'test_results.tsv'}"
    assert done.out == ""


def test_what_is_no_better_than_the_majority_is_told_in_figures(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(*arguments: object, **options: object) -> dict:
        return real(*arguments, **options) | {"beats_majority": False}

    real = estimator.evaluate
    monkeypatch.setattr(estimator, "evaluate", poor)
    done = classify(here, do_train="true", do_eval="true", num_train_epochs=1)
    told = next(line for line in done.err.splitlines() if line.startswith("no better than"))
    assert re.fullmatch(
        r"no better than always predicting the most frequent label, which gives accuracy 0\.\d{4}, f1 0\.\d{4}", told
    )


def test_complete_training_is_skipped_loudly(here: Path) -> None:
    first = classify(here, do_train="true", do_eval="true")
    before = contents(here / "out")
    done = classify(here, do_train="true", do_eval="true")
    assert "TRAINING IS SKIPPED" in done.err and block(done) == block(first)
    assert contents(here / "out") == before


def test_training_goes_on_where_it_stopped(here: Path) -> None:
    """To the bit: weights, moments and the step come back from TensorFlow's checkpoint."""
    classify(here, do_train="true", save_checkpoints_steps=5)
    whole = sources.find(here / "out" / "model.ckpt-12")
    for name in ("model.ckpt-10.index", "model.ckpt-12.index"):
        (here / "out" / name).rename(here / f"moved-{name}")
    latest.write(here / "out", "model.ckpt-5", ["model.ckpt-5"])
    done = classify(here, do_train="true", save_checkpoints_steps=5)
    assert done.code == 0 and "going on after step 5" in done.err
    again = sources.find(here / "out" / "model.ckpt-12")
    assert again.tensors.keys() == whole.tensors.keys() and again.slots.keys() == whole.slots.keys()
    for part in ("tensors", "slots"):
        for name, entry in getattr(whole, part).items():
            assert getattr(again, part)[name].bytes() == entry.bytes(), name


def test_five_checkpoints_are_kept(here: Path) -> None:
    (here / "out").mkdir()
    (here / "out" / "model.ckpt-mine").write_text("not ours")
    (here / "out" / "model.ckpt-1000000.index").write_text("what somebody else has trained")
    (here / "out" / ".model.ckpt-4.index.0123abcd.tmp").write_text("left by a process that was killed")
    classify(here, do_train="true", save_checkpoints_steps=2, num_train_epochs=4)
    kept = sorted(int(p.stem.rpartition("-")[2]) for p in (here / "out").glob("*.index"))
    assert kept == [8, 10, 12, 14, 16, 1000000] and not list((here / "out").glob(".*"))
    assert len(list((here / "out").glob("model.ckpt-*"))) == 12
    listed = re.findall(r'all_model_checkpoint_paths: "(.*)"', (here / "out" / "checkpoint").read_text())
    assert listed == [f"model.ckpt-{n}" for n in kept[:-1]]


def test_memory_is_planned(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = classify(here, do_train="true")
    assert done.code == 0 and "memory: at most" in done.err
    monkeypatch.setattr(planning, "budget", lambda memory, device: 1000)
    done = classify(here, do_train="true", output_dir=here / "new")
    assert done.code == 1 and "does not suffice" in done.err.splitlines()[-1]


def test_case_as_google_checks_it(here: Path) -> None:
    (here / "cased_L-12_H-768_A-12").symlink_to(here / "bert")
    (here / "uncased_L-12_H-768_A-12").symlink_to(here / "bert")
    for name, lower in (("cased", "true"), ("uncased", "false")):
        start = here / f"{name}_L-12_H-768_A-12" / "bert_model.ckpt"
        done = classify(here, do_train="true", init_checkpoint=start, do_lower_case=lower)
        assert_one_line(done, 1, f"is {name}: give --do_lower_case={lower == 'false'}")
    cased = (here / "bert" / "vocab.txt").read_text().splitlines()
    (here / "vocab.txt").write_text("\n".join(x if x[0] in "[#" else x.capitalize() for x in cased) + "\n")
    done = classify(here, do_train="true", vocab_file=here / "vocab.txt")
    assert done.code == 0 and "has capitals" in done.err


@pytest.mark.parametrize(
    "written", [["--do_eval"], ["-do_eval=t"], ["--do_eval", "--nodo_train"], ["--do_eval=TRUE", "--do_train=0"]]
)
def test_booleans_as_absl_reads_them(here: Path, written: list[str]) -> None:
    classify(here, do_train="true")
    done = minibert_in_process("run-classifier", *flags(here), *written)
    assert done.code == 0, done.err
    assert "eval_accuracy" in block(done)


def test_flags_that_mean_nothing_say_so_once_and_unknown_ones_are_errors(here: Path) -> None:
    done = classify(here, do_train="true", iterations_per_loop=1000, num_tpu_cores=8, tpu_name="x")
    assert done.code == 0
    for name in ("iterations_per_loop", "num_tpu_cores", "tpu_name"):
        assert done.err.count(f"--{name} means nothing here") == 1
    assert_one_line(classify(here, do_train="true", learning_rat=1), 2, "--learning_rat")
    one_dash = minibert_in_process("run-classifier", *flags(here), "-max_seq_len=128")
    assert_one_line(one_dash, 2, "--max_seq_len", "--max_seq_length")
    assert_one_line(classify(here, do_train="yes"), 2, "neither true nor false")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, ["--do_train=true"]),
        ({"do_eval": "true"}, ["has no classifier yet", "--do_train=true"]),
        ({"do_eval": "true", "init_checkpoint": None}, ["holds no checkpoint", "--init_checkpoint"]),
        ({"do_train": "true", "init_checkpoint": "/none/bert_model.ckpt"}, ["/none/bert_model.ckpt"]),
        ({"do_train": "true", "vocab_file": "/none/vocab.txt"}, ["/none/vocab.txt"]),
        ({"do_train": "true", "bert_config_file": "/none/c.json"}, ["/none/c.json"]),
        ({"do_train": "true", "data_dir": "/none"}, ["/none"]),
        ({"do_train": "true", "max_seq_length": 64}, ["--max_seq_length=64", "32"]),
        ({"do_train": "true", "task_name": "mrcp"}, ["did you mean mrpc"]),
        ({"do_train": "true", "eval_batch_size": 0}, ["--eval_batch_size=0"]),
        ({"do_train": "true", "train_batch_size": 1000}, ["batch"]),
    ],
)
def test_bad_flags_get_one_line(here: Path, wrong: dict[str, object], words: list[str]) -> None:
    done = classify(here, **wrong)
    assert done.code == 1 and not (here / "out" / "checkpoint").exists()
    last = done.err.splitlines()[-1]
    assert last.startswith("minibert: ") and all(word in last for word in words), done.err


def test_examples_that_make_no_batch_are_told_before_weights_are_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "load", Mock(side_effect=AssertionError("read")))
    said = assert_one_line(classify(here, do_train="true", train_batch_size=1000), 1, "32 examples", "no batch of 1000")
    assert "--" not in said, "other commands' flags have other names"


def test_from_random_weights(here: Path) -> None:
    done = classify(here, do_train="true", do_eval="true", init_checkpoint=None)
    assert done.code == 0 and "random weights" in done.err and block(done)["global_step"] == "12"


def test_the_loss_is_the_mean_over_evaluation_batches(here: Path) -> None:
    """Of 11 rows in batches of 8 the last three weigh more than in eval_loss; in one batch they do not."""
    classify(here, do_train="true")
    said = block(classify(here, do_eval="true"))
    assert said["loss"] != said["eval_loss"]
    said = block(classify(here, do_eval="true", eval_batch_size=11))
    assert float(said["loss"]) == pytest.approx(float(said["eval_loss"]), rel=1e-6)


def test_every_task_has_googles_accuracy_and_training_needs_no_dev_file(here: Path) -> None:
    """CoLA's own metric is Matthews'; Google's script gives accuracy all the same."""
    (here / "cola").mkdir()
    rows = [f"x\t{i % 2}\t*\tThe {w} was sold ." for i, w in enumerate(["cat", "dog", "house", "mill"] * 4)]
    (here / "cola" / "train.tsv").write_text("\n".join(rows) + "\n")
    assert classify(here, task_name="CoLA", data_dir=here / "cola", do_train="true").code == 0
    (here / "cola" / "dev.tsv").write_text("\n".join(rows[:6]) + "\n")
    said = block(classify(here, task_name="CoLA", data_dir=here / "cola", do_eval="true"))
    assert list(said) == ["eval_accuracy", "eval_loss", "global_step", "loss"]
    assert float(said["eval_accuracy"]) * 6 == pytest.approx(round(float(said["eval_accuracy"]) * 6))


def test_a_task_without_such_a_file_is_told_so(here: Path) -> None:
    done = classify(here, task_name="AX", do_train="true")
    assert done.code == 1 and "ax has no train file" in done.err.splitlines()[-1]


# --- the chapter's own commands


def chapter_commands(shared: Path) -> list[list[str]]:
    """Every run_classifier.py command of the chapter as a list of words, nothing changed."""
    text = (shared / "finetuning-chapter.txt").read_text(encoding="utf-8")
    found = re.findall(r"^python run_classifier\.py \\\n((?:.*\\\n)*.*\n)", text, re.MULTILINE)
    return [shlex.split(command.replace("\\\n", " ")) for command in found]


def run_chapter(shared: Path, folders: dict[str, Path]) -> list[Done]:
    """Runs them with the paths replaced."""
    done = []
    for words in chapter_commands(shared):
        for name, folder in folders.items():
            words = [word.replace(name, str(folder)) for word in words]
        done.append(minibert_process("run-classifier", *words))
    return done


def test_the_chapters_commands_run_as_they_stand(shared: Path, here: Path) -> None:
    config = CONFIG.__class__(**{**vars(CONFIG), "max_position_embeddings": 128})
    make_checkpoint(here / "long", config=config)
    conversion.convert(here / "long", here / "base", "tensorflow")
    trained, predicted = run_chapter(
        shared, {"$BERT_BASE_DIR": here / "base", "$GLUE_DIR": here / "glue", "/tmp/mrpc_output": here / "mrpc",
                 "$TRAINED_CLASSIFIER": here / "mrpc"},
    )  # fmt: skip
    assert trained.code == predicted.code == 0, trained.err + predicted.err
    assert block(trained)["global_step"] == "3"
    assert len((here / "mrpc" / "test_results.tsv").read_text().splitlines()) == 9


@pytest.mark.slow
def test_the_chapters_commands_on_mrpc(shared: Path, tmp_path: Path) -> None:
    """With MiniLM as bert_model.ckpt: 343 steps, an eval block in Google's form, a model above the majority class."""
    conversion.convert(shared / "checkpoints" / "all-MiniLM-L6-v2", tmp_path / "bert", "tensorflow")
    trained, predicted = run_chapter(
        shared, {"$BERT_BASE_DIR": tmp_path / "bert", "$GLUE_DIR": shared / "data" / "glue",
                 "/tmp/mrpc_output": tmp_path / "mrpc", "$TRAINED_CLASSIFIER": tmp_path / "mrpc"},
    )  # fmt: skip
    assert trained.code == predicted.code == 0, trained.err + predicted.err
    said = block(trained)
    assert said["global_step"] == "343" and float(said["eval_accuracy"]) > 0.69
    assert said["loss"] == said["eval_loss"] or float(said["loss"]) == pytest.approx(float(said["eval_loss"]), rel=1e-6)
    test = tasks.get("mrpc").read("test", shared / "data" / "glue" / "MRPC")
    assert len((tmp_path / "mrpc" / "test_results.tsv").read_text().splitlines()) == len(test) == 1725


@pytest.mark.parametrize("lacking", ["dev.tsv", "test.tsv"])
def test_what_is_missing_is_told_before_training(here: Path, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimator, "train", Mock(side_effect=AssertionError("trained")))
    (here / "glue" / "MRPC" / lacking).unlink()
    assert_one_line(classify(here, do_train="true", do_eval="true", do_predict="true"), 1, f"{lacking}: no such file")
