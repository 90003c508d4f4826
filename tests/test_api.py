"""The Python API, as README shows it, and transformers reading what it writes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import signal
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import minibert
from commands import PAIRS, VOCABULARY, make_checkpoint, write_mrpc
from minibert import MinibertError, checkpoint, datasets, finetuning, loop
from minibert.errors import ConfigError, DataError, RunError
from minibert.evaluation import evaluate_run
from minibert.kernels import devices
from minibert.model import column_order
from minibert.progress import Reporter
from minibert.settings import TrainConfig
from minibert.squad.settings import SquadConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("api")
    make_checkpoint(root / "checkpoint")
    write_mrpc(root / "glue")
    return root


def train(folder: Path, output: Path, **more) -> minibert.Run:
    usual = {"checkpoint": folder / "checkpoint", "epochs": 1, "batch_size": 8, "max_seq_length": 32}
    return minibert.finetune("mrpc", data_dir=folder / "glue", output_dir=output, **(usual | more))


@pytest.fixture(scope="session")
def run(folder: Path) -> minibert.Run:
    return train(folder, folder / "run", learning_rate=1e-3)


def test_five_lines(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"checkpoint": folder / "checkpoint", "data_dir": folder / "glue", "max_seq_length": 32, "batch_size": 8}
    run = minibert.finetune("mrpc", output_dir=tmp_path / "run", **options)
    model = minibert.load(run.path)
    answer = model.predict([("The mill closed .", "The mill shut .")])[0]
    assert answer.label in ("0", "1") and sum(answer.probabilities.values()) == pytest.approx(1)
    assert set(run.results) >= {"accuracy", "f1", "majority", "interval", "loss", "global_step"}
    assert capfd.readouterr() == ("", ""), "a library says nothing"


def test_a_run_its_path_and_its_path_as_text_load_the_same_model(run: minibert.Run) -> None:
    pairs = PAIRS[:3]
    wanted = run.predict(pairs)
    assert [p.probabilities for p in wanted] == [p.probabilities for p in minibert.load(run).predict(pairs)]
    for source in (run.path, str(run.path)):
        assert minibert.load(source).predict(pairs) == wanted
    assert minibert.load(run).labels == ("0", "1") and minibert.load(run).max_seq_length == 32


def test_texts_for_a_checkpoint_that_is_no_run_are_cut_at_its_last_position(tmp_path: Path) -> None:
    assert minibert.load(make_checkpoint(tmp_path, ("a", "b"))).max_seq_length == 32


def test_one_text_is_not_taken_for_a_list_of_letters(run: minibert.Run) -> None:
    with pytest.raises(ConfigError, match=r"not one: \[text\]"):
        run.predict("He sold .")


def test_labels_that_nobody_named_are_numbers(folder: Path, tmp_path: Path) -> None:
    """transformers calls them LABEL_0, LABEL_1; of named ones nobody knows which is which."""
    named, plain = (make_checkpoint(tmp_path / a, (a, b)) for a, b in (("0", "1"), ("LABEL_0", "LABEL_1")))
    wanted = evaluate_run(named, task="mrpc", data_dir=folder / "glue")
    assert evaluate_run(plain, task="mrpc", data_dir=folder / "glue") == wanted
    with pytest.raises(ConfigError, match="LABEL_0, LABEL_1, but rte has .*name them so in its config.json"):
        evaluate_run(plain, task="rte", data_dir=folder / "glue")
    assert column_order(("LABEL_0",), ("score",)) == [0] and column_order(("b", "a"), ("a", "b")) == [1, 0]


def test_predictions_follow_the_order_and_the_most_probable_label(folder: Path, tmp_path: Path) -> None:
    model = minibert.load(make_checkpoint(tmp_path, ("a", "b", "c")))
    together = model.predict([*PAIRS, "one text alone", ("a pair", None)] * 5)
    assert len(together) == 50 and {p.label for p in together} > {together[0].label}
    for i in (0, 7, 8, 33):
        pair = [*PAIRS, "one text alone", ("a pair", None)][i % 10]
        (alone,) = model.predict([pair])
        assert together[i].label == alone.label == max(alone.probabilities, key=alone.probabilities.__getitem__)
        np.testing.assert_allclose(list(together[i].probabilities.values()), list(alone.probabilities.values()), 1e-4)
    assert model.predict([]) == []


def test_a_model_of_pairs_takes_pairs_and_one_of_single_texts_those(run: minibert.Run) -> None:
    model = minibert.load(run)
    with pytest.raises(DataError, match="'one text alone': is one text, but the model was trained on pairs"):
        model.predict([*PAIRS, "one text alone"])
    model.pairs = False
    with pytest.raises(DataError, match="'a': is a pair of texts, but the model was trained on single texts"):
        model.predict(["one text alone", ("a", "b")])


def test_the_same_seed_gives_the_same_run_and_another_another(folder: Path, tmp_path: Path, run: minibert.Run) -> None:
    again = train(folder, tmp_path / "again", learning_rate=1e-3)
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    assert again.results == run.results
    other = train(folder, tmp_path / "other", learning_rate=1e-3, seed=2)
    assert (other.path / "model.safetensors").read_bytes() != (run.path / "model.safetensors").read_bytes()


def test_errors_are_minibert_errors(folder: Path, tmp_path: Path, run: minibert.Run) -> None:
    with pytest.raises(DataError, match="no such folder"):
        train(tmp_path, tmp_path / "new", checkpoint=folder / "checkpoint")
    with pytest.raises(ConfigError, match="epochs -1"):
        train(folder, tmp_path / "new", epochs=-1)
    with pytest.raises(RunError, match="finished run"):
        train(folder, run.path)
    with pytest.raises(MinibertError, match="nothing: there is no such run or checkpoint"):
        minibert.load(tmp_path / "nothing")
    with pytest.raises(MinibertError, match="no string"):
        minibert.load(run).predict([("a text", 5)])  # type: ignore[list-item]
    assert issubclass(DataError, MinibertError) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epoch": 3}, r"no setting 'epoch'; did you mean epochs\?"),
        ({"output_path": "a"}, r"no setting 'output_path'; did you mean output_dir\?"),
        ({"lr": 3}, "no setting 'lr'; there are epochs, .*learning_rate, .*seed, .*report_memory"),
        ({"doc_stride": 64}, "no setting 'doc_stride'; there are"),
        ({"epochs": "3"}, "epochs='3' is of the wrong kind: it must be a number"),
        ({"epochs": True}, "epochs=True is of the wrong kind: it must be a number"),
        ({"batch_size": 8.5}, "batch_size=8.5 is of the wrong kind: it must be a whole number"),
        ({"recipe": None}, "recipe=None is of the wrong kind: it must be a text"),
        ({"layerwise_update": "no"}, "layerwise_update='no' .* True or False"),
        ({"threads": "2"}, "threads='2': it must be a whole number, at least 1"),
        ({"save_every": 0}, "save_every=0: it must be a whole number, at least 1"),
        ({"memory": 10**6}, "memory of 0.001 GB does not suffice"),
        ({"memory": 12}, "12 bytes; write 12GB"),
        ({"label": "verdict"}, "label: only the task table, of your own files, has such settings, not mrpc"),
        ({"checkpoint": 5}, "checkpoint=5: it must be a path"),
        ({"threads": np.float64(2)}, "threads=.*2.0.*: it must be a whole number, at least 1"),
    ],
    ids=str,
)
def test_a_setting_that_is_unknown_or_of_another_kind(folder: Path, tmp_path: Path, given: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train(folder, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [None, 5, 1.5])
def test_what_is_no_path_is_told(given: object, folder: Path) -> None:
    for load in (minibert.load, minibert.load_squad):
        with pytest.raises(ConfigError, match=f"{given}: is no run or checkpoint; give its path or its name"):
            load(given)
    if given is not None:
        for train_it in (
            minibert.finetune,
            minibert.finetune_squad,
            lambda **more: minibert.finetune_seeds("rte", 1, **more),
        ):
            with pytest.raises(ConfigError, match=f"output_dir={given}: it must be a path"):
                train_it(output_dir=given)


def test_what_is_no_task_no_stage_and_no_threshold_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task 5 is no name of a task"):
        minibert.finetune(5)
    for stages, told in (
        ([("f.json", "2")], "f.json: 2 epochs: a stage needs"),
        ([(5, 2)], "stage=5: it must be a path"),
    ):
        with pytest.raises(ConfigError, match=told):
            minibert.finetune_squad(stages=stages, dev_file="f.json", output_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="null_score_diff_threshold belongs to squad2"):
        minibert.finetune_squad(null_score_diff_threshold=1.0, output_dir=tmp_path / "run")


def test_numbers_may_be_numpys_and_are_recorded_as_pythons(folder: Path, tmp_path: Path) -> None:
    numbers = {"threads": np.int64(1), "batch_size": np.int32(8), "seed": np.int64(2), "epochs": np.float32(1)}
    run = train(folder, tmp_path / "run", **numbers, save_every=np.int64(2), warmup=np.float64(0.5))
    settings = json.loads((run.path / "run.json").read_text())["settings"]
    assert settings["batch_size"] == 8 and settings["epochs"] == 1.0 and settings["warmup"] == 0.5
    kept = TrainConfig(task="t", epochs=np.float64(2), batch_size=np.int64(4))
    assert repr(kept.epochs) == "2.0" and repr(kept.batch_size) == "4" and repr(kept.micro_batch) == "4"
    with pytest.raises(ConfigError, match="threads='1': it must be a whole number"):
        minibert.load(run, threads="1")


def test_ones_own_files_by_name(folder: Path, tmp_path: Path) -> None:
    for name in ("train", "dev"):
        rows = [f"good text {i},yes\nbad text {i},no\n" for i in range(8)]
        (tmp_path / f"{name}.csv").write_text("".join(["words,verdict\n", *rows]))
    own = {"train": str(tmp_path / "train.csv"), "dev": tmp_path / "dev.csv", "text_a": "words", "label": "verdict"}
    more = {"checkpoint": folder / "checkpoint", "batch_size": 8, "max_seq_length": 16, "threads": 1}
    run = minibert.finetune("table", **own, **more, output_dir=tmp_path / "run")
    assert minibert.load(run).labels == ("no", "yes")
    seeds = minibert.finetune_seeds("Table", 1, **own, **more, output_dir=tmp_path / "seeds")
    assert len(seeds["runs"]) == 1
    with pytest.raises(ConfigError, match="table: is made of your own files: give train and dev"):
        minibert.finetune("table", train=own["train"])


def test_the_version() -> None:
    from importlib.metadata import version

    assert minibert.__version__ == version("minibert") and "__version__" in dir(minibert)


def test_what_may_be_left_open_may_be_given_as_none(folder: Path, tmp_path: Path) -> None:
    open_ones = ("micro_batch", "micro_tokens", "schedule", "bias_correction", "gelu")
    assert train(folder, tmp_path / "run", **dict.fromkeys(open_ones)).results["global_step"] == 3


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        ("squad3", {}, "finetune_squad trains squad or squad2, not 'squad3'"),
        ("squad", {"doc_strid": 64}, r"finetune_squad has no setting 'doc_strid'; did you mean doc_stride\?"),
        ("squad2", {"doc_stride": "64"}, "doc_stride='64' is of the wrong kind: it must be a whole number"),
        ("squad2", {"null_score_diff_threshold": "0"}, "null_score_diff_threshold='0' .* a number"),
    ],
)
def test_a_setting_of_squad_that_is_unknown_or_of_another_kind(task: str, given: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        minibert.finetune_squad(task, **given)


@pytest.mark.parametrize("form", [list, np.array, lambda pairs: np.array(pairs, object)])
def test_pairs_may_be_lists_or_rows_of_an_array(run: minibert.Run, form) -> None:
    model = minibert.load(run)
    assert model.predict(form(PAIRS)) == model.predict([[a, b] for a, b in PAIRS]) == model.predict(PAIRS)


@pytest.mark.parametrize("wrong", [("a", "b", "c"), ("a",), 1, None, b"a"], ids=str)
def test_what_is_no_text_and_no_pair_is_told_with_its_place(run: minibert.Run, wrong: object) -> None:
    with pytest.raises(DataError, match="text 1: .* is neither a text nor a pair of texts") as error:
        run.predict([PAIRS[0], wrong])  # type: ignore[list-item]
    assert repr(wrong) in str(error.value)
    with pytest.raises(ConfigError, match="a list of texts, not 5"):
        run.predict(5)  # type: ignore[arg-type]


def test_a_pair_may_be_a_list(run: minibert.Run) -> None:
    assert run.predict([list(PAIRS[0])]) == run.predict([PAIRS[0]])  # type: ignore[list-item]


def test_the_public_names_are_what_dir_shows() -> None:
    shown = {name for name in dir(minibert) if not name.startswith("__")}
    assert shown == set(minibert.__all__) and {"finetune", "load", "finetune_squad", "load_squad"} <= shown
    assert all(hasattr(minibert, name) for name in dir(minibert))


@pytest.mark.parametrize(
    ("function", "settings"), [(minibert.finetune, TrainConfig), (minibert.finetune_squad, SquadConfig)]
)
def test_help_names_every_setting_and_its_default(function, settings: type[TrainConfig]) -> None:
    told = " ".join(inspect.getdoc(minibert.finetune).split()) + " ".join(inspect.getdoc(function).split())
    arguments = inspect.signature(function).parameters
    for field in dataclasses.fields(settings):
        if field.name not in arguments:
            assert re.search(rf"\b{field.name}\b", told), field.name
    for name in ("epochs", "batch_size", "max_seq_length", "warmup", "seed"):
        usual = getattr(settings(task="squad"), name)
        assert f"{name} {usual:g}" in told, name


def test_a_model_says_what_it_is(tmp_path: Path) -> None:
    device = devices.open("cpu").description
    assert repr(minibert.load(make_checkpoint(tmp_path, ("no", "yes")), precision="fp32")) == (
        f"<minibert.Model: labels no, yes, 0.0 M parameters, fp32 on {device}>"
    )
    one = minibert.load(make_checkpoint(tmp_path / "one", ("score",)), precision="fp32")
    assert repr(one).startswith("<minibert.Model: a regression, 0.0 M parameters")


@pytest.mark.parametrize(("began", "goes_on"), [({}, {}), ({"recompute": "layers"},) * 2, ({}, {"recompute": "cheap"})])
def test_ctrl_c_is_a_keyboard_interrupt_with_the_state_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: dict[str, str], goes_on: dict[str, str]
) -> None:
    from minibert.training import Trainer

    plain = Trainer.begin

    def begin(self: Trainer, number: int):
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(self, number)

    monkeypatch.setattr(Trainer, "begin", begin)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"run: stopped after step 2 of 3; add --resume"):
        train(folder, tmp_path / "run", learning_rate=1e-3, **began)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    resumed = train(folder, tmp_path / "run", learning_rate=1e-3, resume=True, **goes_on)
    straight = train(folder, tmp_path / "straight", learning_rate=1e-3)
    assert (resumed.path / "model.safetensors").read_bytes() == (straight.path / "model.safetensors").read_bytes()


def test_sigterm_saves_ends_with_its_status_and_gives_the_handlers_back(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one within a moment is the same wish, as timeout(1) sends it."""
    signals_at_step(monkeypatch, 1, signal.SIGTERM, signal.SIGTERM)
    before = [signal.getsignal(number) for number in loop.SIGNALS]
    with pytest.raises(SystemExit, match=r"run: stopped after step 2 of 3; add --resume") as stopped:
        train(folder, tmp_path / "run")
    assert stopped.value.code == 143 and (tmp_path / "run" / "state.safetensors").is_file()
    assert [signal.getsignal(number) for number in loop.SIGNALS] == before


def test_a_second_signal_stops_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals_at_step(monkeypatch, 1, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(folder, tmp_path / "run")
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_second_sigterm_after_a_while_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[tuple[int, object]] = []
    with loop._interrupts() as received:
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(loop, "TWICE", -1.0)
        monkeypatch.setattr(signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(number))))
        os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM] and raised == [(signal.SIGTERM, signal.SIG_DFL)]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None], ids=["none", "own"])
def test_a_handler_of_the_program_and_nohup_stay(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler
) -> None:
    signals_at_step(monkeypatch, 1, signal.SIGTERM)
    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert train(folder, tmp_path / "run").results["global_step"] == 3
    finally:
        assert signal.signal(signal.SIGTERM, before) is handler


def signals_at_step(monkeypatch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Raises signals in this process when it begins a step, counted from 0."""
    from minibert.training import Trainer

    plain = Trainer.begin

    def begin(self: Trainer, number: int):
        for each in numbers if number == step else ():
            signal.raise_signal(each)
        return plain(self, number)

    monkeypatch.setattr(Trainer, "begin", begin)


def test_resuming_what_was_never_saved_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from minibert.training import Trainer

    def killed(self: Trainer, number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "begin", killed)
        train(folder, tmp_path / "run", report=Reporter(quiet=False))
    told = f"{tmp_path}/run: no step of it had been saved: the run begins anew\n"
    assert told not in capfd.readouterr().err
    train(folder, tmp_path / "run", resume=True, report=Reporter(quiet=False))
    assert told in capfd.readouterr().err


def test_a_run_resumed_with_more_memory_goes_on_with_the_plan_that_it_began_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minibert.kernels.devices import PROCESS
    from minibert.training import Trainer

    fp32 = {"learning_rate": 1e-3, "precision": "fp32"}
    whole = train(folder, tmp_path / "whole", **fp32)
    needed = sum(json.loads((whole.path / "run.json").read_text())["peak_bytes"].values())
    memory = {**fp32, "memory": str(PROCESS + 3 * needed // 4)}
    straight = train(folder, tmp_path / "straight", **memory)
    plain = Trainer.begin

    def begin(self: Trainer, number: int):
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(self, number)

    monkeypatch.setattr(Trainer, "begin", begin)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "run", **memory)
    monkeypatch.undo()
    resumed = train(folder, tmp_path / "run", **fp32, memory="100GB", resume=True)
    plans = [json.loads((run.path / "run.json").read_text())["settings"] for run in (whole, straight, resumed)]
    assert plans[0]["micro_tokens"] is None and plans[0]["recompute"] == "none"
    assert plans[1] == plans[2] and plans[1] != plans[0]
    assert (resumed.path / "model.safetensors").read_bytes() == (straight.path / "model.safetensors").read_bytes()


@pytest.fixture
def stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that Ctrl-C stopped after two of three steps."""
    from minibert.training import Trainer

    plain = Trainer.begin

    def begin(self: Trainer, number: int):
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "begin", begin)
        train(folder, tmp_path / "run", learning_rate=1e-3)
    return tmp_path / "run"


def rewrite(run: Path, **settings) -> None:
    """Changes settings in run.json; None removes one."""
    described = json.loads((run / "run.json").read_text())
    described["settings"] = {n: v for n, v in (described["settings"] | settings).items() if v is not None}
    (run / "run.json").write_text(json.dumps(described))


def test_a_run_of_before_there_were_plans_and_optimizers_goes_on(folder: Path, stopped: Path) -> None:
    rewrite(stopped, optimizer=None, micro_tokens=None, layerwise_update=None)
    assert "layerwise_update" not in json.loads((stopped / "run.json").read_text())["settings"]
    assert train(folder, stopped, learning_rate=1e-3, resume=True).results["global_step"] == 3


def test_what_is_given_to_a_resumed_run_is_never_overruled_by_its_plan(folder: Path, stopped: Path) -> None:
    for given in ({"micro_tokens": 40}, {"layerwise_update": True}):
        with pytest.raises(minibert.MinibertError, match=f"{next(iter(given))} was"):
            train(folder, stopped, learning_rate=1e-3, resume=True, **given)
    train(folder, stopped, learning_rate=1e-3, resume=True, recompute="cheap")  # whose bits are the same
    assert json.loads((stopped / "run.json").read_text())["settings"]["recompute"] == "c"


@pytest.mark.parametrize("damage", [{"recompute": 5}, {"micro_tokens": "many"}, {"layerwise_update": 1}])
def test_a_damaged_plan_is_told_in_a_line(folder: Path, stopped: Path, damage: dict) -> None:
    rewrite(stopped, **damage)
    with pytest.raises(minibert.MinibertError, match=rf"run.json: {next(iter(damage))}=.* is of the wrong kind"):
        train(folder, stopped, learning_rate=1e-3, resume=True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
def test_while_a_run_trains_nothing_of_its_checkpoint_is_in_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages of a mapped file count as the process's own."""
    from minibert.training import Trainer

    def begin(trainer: Trainer, number: int, plain=Trainer.begin):
        assert str(folder / "checkpoint") not in Path("/proc/self/maps").read_text()
        return plain(trainer, number)

    monkeypatch.setattr(Trainer, "begin", begin)
    assert train(folder, tmp_path / "run").results["global_step"] == 3


@pytest.mark.parametrize(
    ("count", "more", "told"),
    [
        (0, {}, "count=0: it must be a whole number, at least 1"),
        ("2", {}, "count='2': it must be a whole number"),
        (2, {"seed": "1"}, "seed='1' is of the wrong kind: it must be a whole number"),
        (2, {"seed": 2**63}, "it must be from 0"),
        (2, {"epochs": 0}, "epochs 0 is out of range"),
        (2, {"epoch": 1}, "no setting 'epoch'; did you mean epochs"),
    ],
)
def test_seeds_of_no_number(folder: Path, tmp_path: Path, count: object, more: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        minibert.finetune_seeds("mrpc", count, data_dir=folder / "glue", output_dir=tmp_path / "seeds", **more)
    assert not (tmp_path / "seeds").exists()


def test_seeds_started_together_have_a_folder_each_which_goes_where_nothing_begins(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minibert import seeds

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(seeds, "next_directory", lambda task: Path(f"runs/{task}-001"))
    (tmp_path / "runs" / "mrpc-001").mkdir(parents=True)  # by another process, since then
    with pytest.raises(minibert.MinibertError, match="nothing-here"):
        minibert.finetune_seeds("mrpc", 2, data_dir=folder / "glue", checkpoint="./nothing-here")
    assert os.listdir("runs") == ["mrpc-001"]
    options = {"checkpoint": folder / "checkpoint", "data_dir": folder / "glue", "batch_size": 8, "max_seq_length": 32}
    assert minibert.finetune_seeds("mrpc", 1, **options)["path"] == "runs/mrpc-002"


def test_seeds_that_were_planned_resume(folder: Path, tmp_path: Path) -> None:
    from minibert.kernels.devices import PROCESS
    from minibert.seeds import finetune_seeds

    whole = train(folder, tmp_path / "whole", learning_rate=1e-3, precision="fp32")
    needed = sum(json.loads((whole.path / "run.json").read_text())["peak_bytes"].values())
    options = {
        "checkpoint": folder / "checkpoint", "data_dir": folder / "glue", "max_seq_length": 32, "batch_size": 8,
        "epochs": 1, "output_dir": tmp_path / "seeds", "recompute": "auto", "precision": "fp32",
        "memory": str(PROCESS + 3 * needed // 4),
    }  # fmt: skip
    first = finetune_seeds("mrpc", 1, **options)
    settings = json.loads((tmp_path / "seeds" / "seed-1" / "run.json").read_text())["settings"]
    assert settings["micro_tokens"] or settings["recompute"] != "none"
    again = finetune_seeds("mrpc", 2, **options, resume=True)
    assert again["runs"][0] == first["runs"][0] and len(again["runs"]) == 2


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_training_in_a_thread(folder: Path, tmp_path: Path, handler) -> None:
    """Only the main thread may handle signals; others train without."""
    before = signal.signal(signal.SIGINT, handler)
    found: list[minibert.Run] = []
    thread = threading.Thread(target=lambda: found.append(train(folder, tmp_path / "run")))
    thread.start()
    thread.join()
    assert signal.signal(signal.SIGINT, before) is handler
    assert found and found[0].results["global_step"] == 3


@pytest.mark.filterwarnings("default")  # of other people's packages
def test_transformers_loads_a_run_and_computes_the_same(run: minibert.Run) -> None:
    torch = pytest.importorskip("torch", reason="torch and transformers are not installed (the extra `peers`)")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra `peers`)")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run.path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.path)
    assert theirs.config.id2label == {0: "0", 1: "1"}
    ours = minibert.load(run, precision="fp32")
    features = ours.tokenizer.encode(PAIRS, ours.max_seq_length)
    outputs = ours.outputs(features)
    for i, (a, b) in enumerate(PAIRS):
        encoded = tokenizer(a, b, return_tensors="pt")
        assert encoded["input_ids"][0].tolist() == features.ids[features.offsets[i] : features.offsets[i + 1]].tolist()
        with torch.no_grad():
            logits = theirs(**encoded).logits[0].numpy()
        np.testing.assert_allclose(outputs[i], logits, atol=1e-5)
    assert len(tokenizer) == len(VOCABULARY)


@pytest.mark.parametrize(
    ("labels", "kept"), [(("0", "1"), True), (("LABEL_0", "LABEL_1"), False), (("no", "yes"), False)]
)
def test_a_head_is_kept_for_labels_of_its_very_names(tmp_path: Path, labels: tuple[str, ...], kept: bool) -> None:
    """What is called LABEL_0 and LABEL_1 may have been trained for anything."""
    found = checkpoint.load(make_checkpoint(tmp_path, labels))
    model = dataclasses.replace(found.config, id2label=("1", "0"))
    bert = finetuning._build(found, model, 1, devices.open("cpu"), Reporter())
    turned = found.arrays["classifier.weight"][::-1]
    assert np.array_equal(bert.arrays()["classifier.weight"], turned) == kept


def test_texts_are_cut_where_the_tokenizer_says(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, ("no", "yes"))
    for told, length in ((12, 12), (1000, 32), (int(1e30), 32), ("12", 32), (None, 32)):
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"model_max_length": told}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        assert minibert.load(tmp_path).max_seq_length == length


def test_a_token_that_the_model_has_no_row_for_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, ("no", "yes"))
    size = len(VOCABULARY)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[E1]": size}))
    with pytest.raises(ConfigError, match=rf"has {size + 1} entries, the model {size}; take out '\[E1\]'"):
        minibert.load(tmp_path)


def test_a_run_s_own_task_in_any_spelling_has_the_run_s_own_data(
    run: minibert.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "fetch_task", Mock(side_effect=AssertionError("downloaded")))
    assert evaluate_run(run, task="MRPC") == evaluate_run(run, task="mrpc") == evaluate_run(run)


def test_a_file_s_labels_are_those_of_a_model_without_names(tmp_path: Path) -> None:
    named, plain = (make_checkpoint(tmp_path / a, (a, b)) for a, b in (("0", "1"), ("LABEL_0", "LABEL_1")))
    file = tmp_path / "dev.tsv"
    rows = [f"{a}\t{b}\t{i % 2}\n" for i, (a, b) in enumerate(PAIRS)]
    file.write_text("sentence1\tsentence2\tlabel\n" + "".join(rows))
    assert evaluate_run(plain, input_file=file) == evaluate_run(named, input_file=file)


def test_a_run_s_labels_may_be_called_as_transformers_calls_those_without_names(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.tsv"
    file.write_text("sentence\tlabel\n" + "".join(f"{a}\tLABEL_{i % 2}\n" for i, (a, _) in enumerate(PAIRS * 2)))
    usual = {"checkpoint": folder / "checkpoint", "epochs": 1, "batch_size": 8, "max_seq_length": 32}
    run = minibert.finetune("table", train=file, dev=file, output_dir=tmp_path / "run", **usual)
    assert evaluate_run(run)["loss"] == run.results["loss"]


def test_classes_are_no_numbers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predicts classes, and sts-b has numbers; choose another task"):
        evaluate_run(make_checkpoint(tmp_path / "m", ("0", "1")), task="sts-b", data_dir=folder / "glue")


@pytest.mark.parametrize(("gelu", "name"), [("erf", "gelu"), ("tanh", "gelu_new")])
def test_gelu_is_the_one_that_was_asked_for(folder: Path, tmp_path: Path, gelu: str, name: str) -> None:
    run = train(folder, tmp_path / "run", gelu=gelu, epochs=0.5)
    assert json.loads((run.path / "config.json").read_text())["hidden_act"] == name
    assert run.model.bert.config.hidden_act == name


def test_a_model_of_mnli_is_evaluated_on_the_diagnostic_set(tmp_path: Path) -> None:
    glue = Path(__file__).parent / "fixtures" / "glue"
    model = make_checkpoint(tmp_path, ("contradiction", "entailment", "neutral"))
    assert "matthews" in evaluate_run(model, task="ax", data_dir=glue / "AX")
