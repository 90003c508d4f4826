"""From files of questions to a reader that answers them: windows, training in one or more stages, a run directory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from minibert import checkpoint, datasets, files, loop, planning, remote, starting, training
from minibert.begun import Begun
from minibert.checkpoint import Checkpoint, Unread
from minibert.config import BertConfig
from minibert.errors import ConfigError
from minibert.evaluation import Split
from minibert.kernels.devices import Device
from minibert.loop import SAVE_EVERY
from minibert.model import open_device, tokenizer_of
from minibert.progress import Reporter
from minibert.runs import RunDirectory, find_place, own_directory
from minibert.settings import check_counts, check_names, check_paths
from minibert.squad import reading, windows
from minibert.squad.answering import Answerer, load_squad
from minibert.squad.evaluation import again, check_answers, evaluate
from minibert.squad.reader import Reader
from minibert.squad.reading import Questions
from minibert.squad.settings import TASKS, SquadConfig
from minibert.squad.spans import Answer
from minibert.squad.windows import Windows
from minibert.tasks.rows import check_file
from minibert.tokenizer import Tokenizer
from minibert.training import Trainer

SHOWN = 5  # questions without their answer that are named


class Stage(NamedTuple):
    """A file of questions and how many epochs a run trains on it."""

    file: Path
    epochs: float


@dataclass(frozen=True)
class _Data:
    """What a run trains on, by stages with their epochs, and the questions that it is evaluated on."""

    tokenizer: Tokenizer
    train: list[tuple[Split, float]]
    dev: Questions


@dataclass(frozen=True)
class SquadRun:
    """A finished run: its directory, or that one's gs:// address, and what eval_results.json there says."""

    path: Path | str
    results: dict[str, Any]

    @cached_property
    def model(self) -> Answerer:
        return load_squad(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def answer(self, question: str, context: str, n: int = 3) -> list[Answer]:
        return self.model.answer(question, context, n)


def finetune_squad(
    task: str = "squad",
    *,
    checkpoint: str | Path | None = None,
    data_dir: str | Path | None = None,
    stages: Sequence[tuple[str | Path, float]] = (),
    dev_file: str | Path | None = None,
    output_dir: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: str | None = None,
    recompute: str = "auto",
    report_memory: bool = False,
    report: Reporter | None = None,
    verbose: bool = False,
    **settings: Any,
) -> SquadRun:
    """Fine-tunes a checkpoint on SQuAD 1.1 ("squad") or 2.0 ("squad2") and returns the finished run; gs:// as any path.

    `stages` are files and their epochs, trained on one after the other, each with its own warm-up, decay and fresh
    moments; without them it is the task's training file for `epochs`. With `resume` an unfinished run goes on as it was
    begun: what is not given is what its run.json says. `verbose` names the questions whose answer is not in their text.

    `settings` are those of minibert.finetune, with other defaults: epochs 2, batch_size 12, learning_rate 3e-5 and
    max_seq_length 384; and of minibert.squad.settings.SquadConfig: doc_stride 128, max_query_length 64, n_best_size 20,
    max_answer_length 30, and for "squad2" null_score_diff_threshold, the best on the development set.
    """
    report = report or Reporter()
    if task not in TASKS:
        raise ConfigError(f"finetune_squad trains {' or '.join(TASKS)}, not {task!r:.40}: minibert.finetune the others")
    check_names(settings, SquadConfig, finetune_squad)
    save_every, threads = check_counts(save_every=save_every, threads=threads)
    check_paths(checkpoint=checkpoint, data_dir=data_dir, dev_file=dev_file, output_dir=output_dir)
    if recompute != "auto":
        settings["recompute"] = recompute
    if task == "squad" and settings.get("null_score_diff_threshold") is not None:
        raise ConfigError("null_score_diff_threshold belongs to squad2, where there may be no answer: leave it out")
    if stages and "epochs" in settings:
        raise ConfigError("epochs belong to the stages: give FILE:EPOCHS, and leave --epochs out")
    output, mirror, old, numbered = place = find_place(task, output_dir, resume, overwrite)
    begun = Begun.at(place)
    config = begun.settings(SquadConfig, task, settings) if old else SquadConfig(task=task, **settings)
    output = own_directory(output, config.device)
    checkpoint = begun.sources(checkpoint, data_dir, False)[0] or "base"
    save_every = save_every or begun.count("save_every") or SAVE_EVERY
    if old and not data_dir:
        stages = stages or [(again(task, file, report) or file, epochs) for file, epochs in begun.stages()]
        dev_file = dev_file or again(task, begun.dev_file(), report)
    parts, dev = _files(config, data_dir, stages, dev_file, report)
    config = dataclasses.replace(config, epochs=parts[0].epochs)
    starting.check_for_tpu(config, memory=memory, memory_report=report_memory)
    device = open_device(config.device, threads, config.precision)
    limit = planning.budget(memory, device)  # before anything is loaded that will be gone when training begins
    data, found = _read(config, checkpoint, parts, dev, output, report, verbose)
    model = starting.model_config(found.config, config)
    config, told = starting.fit(config, model, data.train, device, limit, old is not None, recompute, spans=True)
    description = starting.describe(config, checkpoint, found, device, old) | {
        "stages": [{"file": remote.name(part.file.absolute()), "epochs": part.epochs} for part in parts],
        "data": starting.describe_files({f"stage {i}": part.file for i, part in enumerate(parts, 1)} | {"dev": dev}),
        "data_dir": None,
        "save_every": save_every,
        "labels": [],
        "columns": None,
    }
    reader = _build(found.read(), model, config.seed, device)
    del found  # which maps its file into memory
    trainer = training.trainer(reader, data.train[0][0], config, data.train[1:])
    with RunDirectory.claim(output, description, resume, overwrite, mirror, numbered and output == place.path) as run:
        starting.say_start(report, trainer, task, checkpoint, run, told)
        observe = starting.observer(run, report) if report_memory else None
        loop.train(trainer, run, save_every, report, observe=observe)
        results = _finish(trainer, run, config, data, report)
    return SquadRun(run.name if mirror else run.path, results)


def _read(
    config: SquadConfig,
    source: str | Path,
    parts: Sequence[Stage],
    dev: Path,
    output: Path,
    report: Reporter,
    verbose: bool,
) -> tuple[_Data, Unread]:
    """The data and the checkpoint, fetched if need be, but not its weights, which take longest."""
    found = starting.find_checkpoint(source, config, output, report, spans=True)
    tokenizer = tokenizer_of(found)
    train = [(split(part.file, tokenizer, config, report, verbose), part.epochs) for part in parts]
    for made, epochs in train:
        training.count_steps(made.count, epochs, config)
    questions = reading.read(dev)
    if not config.negative:
        check_answers(questions)
    return _Data(tokenizer, train, questions), found


def _files(
    config: SquadConfig,
    data_dir: str | Path | None,
    stages: Sequence[tuple[str | Path, float]],
    dev_file: str | Path | None,
    report: Reporter,
) -> tuple[list[Stage], Path]:
    """What to train on and what to evaluate on."""
    for file, epochs in stages:
        check_paths(stage=file)
        if isinstance(epochs, bool) or not isinstance(epochs, (int, float)) or not 0 < epochs < 2**31:
            raise ConfigError(f"{file}: {epochs} epochs: a stage needs more than 0, and a number of them")
    parts = [Stage(Path(remote.local(file)), epochs) for file, epochs in stages]
    for path in [part.file for part in parts] + ([Path(remote.local(dev_file))] if dev_file else []):
        check_file(path, "check the path")  # before anything is downloaded
    if parts and dev_file:
        return parts, Path(remote.local(dev_file))
    with report.transfer() as progress:
        folder = data_dir and _folder(config.task, data_dir)
        train, dev = datasets.squad_files(config.task, folder, progress, dev_only=bool(parts))
    return parts or [Stage(train, config.epochs)], Path(remote.local(dev_file)) if dev_file else dev


def _folder(task: str, data_dir: str | Path) -> str | Path:
    return remote.local(data_dir, lambda name: name.removeprefix("squad/") in datasets.SQUAD[task])


def split(path: Path, tokenizer: Tokenizer, config: SquadConfig, report: Reporter, verbose: bool) -> Split:
    """The windows of a training file, with their answers."""
    questions = reading.read(path)
    report.say(f"{path}: {len(questions):,} questions on {len(questions.paragraphs):,} texts")
    made = windows.prepare(questions, tokenizer, config.lengths, config.negative)
    _say_dropped(questions, made, report, verbose)
    return Split(str(path), made.features, made.labels, len(questions) - len(made.dropped))


def _say_dropped(questions: Questions, made: Windows, report: Reporter, verbose: bool) -> None:
    """Questions whose answer is not in their text: left out, as Google's code does."""
    if count := len(made.dropped):
        ids = [questions.questions[i].id for i in (made.dropped if verbose else made.dropped[:SHOWN])]
        more = ", ..." if len(ids) < count else ""
        report.say(f"{count} questions are left out, their answers not being in their texts: {', '.join(ids)}{more}")


def _build(found: Checkpoint, model: BertConfig, seed: int, device: Device) -> Reader:
    """The model with the checkpoint's weights, and a new head where it has none."""
    reader = Reader(model, device)
    arrays = dict(found.arrays)
    if found.missing_head:
        arrays |= starting.new_head(model, seed)
    reader.fill(arrays)
    return reader


def _finish(trainer: Trainer, run: RunDirectory, config: SquadConfig, data: _Data, report: Reporter) -> dict[str, Any]:
    """Writes the model, answers the development set and writes the results; the saved state goes last."""
    reader = trainer.bert
    assert isinstance(reader, Reader)
    trainer.rest()
    checkpoint.save(run.path, reader.config, reader.arrays())
    data.tokenizer.save(run.path, reader.config.max_position_embeddings)
    results = evaluate(Answerer(reader, data.tokenizer, config), [data.dev], run.path, report)
    results |= {"global_step": trainer.total}
    files.write_whole(run.path / "eval_results.json", json.dumps(results, indent=2).encode() + b"\n")
    threshold = {"null_score_diff_threshold": results["threshold"]} if config.negative else {}
    run.describe(finished=True, steps=trainer.total, peak_bytes=dict(reader.device.peak), **threshold)
    run.remove_state()
    run.publish(settle=True)
    return results
