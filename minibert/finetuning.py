"""From names to a finished run: checkpoint, data and settings in; a run directory with model and results out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from minibert import checkpoint, datasets, files, hub, loop, planning, remote, starting, tasks, training, units
from minibert.begun import Begun
from minibert.bert import Bert
from minibert.checkpoint import Checkpoint, Unread, names
from minibert.config import BertConfig
from minibert.errors import ConfigError, plain
from minibert.evaluation import Split, encode, evaluate, read_examples
from minibert.kernels.devices import Device
from minibert.loop import SAVE_EVERY
from minibert.model import Model, load, open_device, tokenizer_of
from minibert.progress import Reporter
from minibert.runs import RunDirectory, find_place, own_directory
from minibert.settings import TrainConfig, check_counts, check_names, check_paths
from minibert.tasks import Task
from minibert.tasks.table import TableTask, UnreadTable, labels_told
from minibert.tokenizer import Tokenizer
from minibert.training import Trainer
from minibert.units import Unit

RESULTS = "eval_results.json"
SAMPLE_NOTE = (
    "This is the embedded sample: made-up sentence pairs and a very small model. The real thing is\n"
    "minibert finetune mrpc, which downloads BERT-Base and MRPC, or takes --checkpoint DIR and --data-dir DIR."
)


@dataclass(frozen=True)
class _Data:
    """A task's data, read from `folder` and encoded; `train` has standard numbers for labels where there is a unit."""

    folder: Path
    tokenizer: Tokenizer
    train: Split
    devs: list[Split]
    unit: Unit | None

    @property
    def under_way(self) -> Split:
        """What is evaluated during training."""
        return self.unit.standard(self.devs[0]) if self.unit else self.devs[0]


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, or that one's gs:// address, and what eval_results.json there says."""

    path: Path | str
    results: dict[str, Any]

    @cached_property
    def model(self) -> Model:
        return load(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def predict(self, texts: Sequence[str | tuple[str, str | None]]) -> list[Any]:
        return self.model.predict(texts)


def finetune(
    task: str | Task | UnreadTable = "mrpc",
    *,
    checkpoint: str | Path | None = None,
    data_dir: str | Path | None = None,
    train: str | Path | None = None,
    dev: str | Path | None = None,
    text_a: str | None = None,
    text_b: str | None = None,
    label: str | None = None,
    regression: bool = False,
    output_dir: str | Path | None = None,
    sample: bool = False,
    eval_every: int | None = None,
    save_every: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    memory: str | None = None,
    recompute: str = "auto",
    report_memory: bool = False,
    report: Reporter | None = None,
    **settings: Any,
) -> Run:
    """Fine-tunes a checkpoint on a task and returns the finished run. Paths may be gs:// addresses.

    `settings` are those of minibert.settings.TrainConfig, which says more of them, here with their defaults: epochs 3,
    batch_size 32, micro_batch the whole batch, micro_tokens no limit, learning_rate 2e-5, max_seq_length 128, warmup
    0.1, recipe "google", schedule and bias_correction the recipe's, optimizer "adam", gelu the checkpoint's, precision
    "auto", device "auto", layerwise_update False, shard_parameters False and seed 1.

    Without a checkpoint `base` is used, without a data_dir the data are downloaded; `sample` takes the embedded sample
    and its model for both. The task "table" is made of one's own files: `train` and `dev`, each csv, tsv or jsonl, and
    the names of their columns where these are not found. The state is saved every 1,000 steps, or every `save_every`.
    With `resume` an unfinished run goes on as it was begun: what is not given is what its run.json says, the files of a
    "table" among it.
    `threads` is how many compute in this process from now on; at first there are as many as cores.
    `memory` ("12GB"; what is free, unless given) decides about micro-batches and recomputation where neither
    `micro_batch` nor `recompute` does; `report_memory` writes memory.json, and memory.png with the plot extra. Every
    MinibertError says what to do about it.
    """
    report = report or Reporter()
    check_names(settings, TrainConfig, finetune)
    eval_every, save_every, threads = check_counts(eval_every=eval_every, save_every=save_every, threads=threads)
    check_paths(checkpoint=checkpoint, data_dir=data_dir, train=train, dev=dev, output_dir=output_dir)
    own = {"train": train, "dev": dev, "text_a": text_a, "text_b": text_b, "label": label, "regression": regression}
    task = asked(task, resume, **own)
    output, mirror, old, numbered = place = find_place(task.name, output_dir, resume, overwrite)
    begun = Begun.at(place)
    task = task.read(begun.table()) if isinstance(task, UnreadTable) else task
    if "train" not in task.splits or not task.dev_splits:
        raise ConfigError(f"{task.name} cannot be trained on: it has no training or no dev file")
    checkpoint, data_dir, sample = begun.sources(checkpoint, data_dir, sample)
    eval_every = eval_every or begun.count("eval_every")
    save_every = save_every or begun.count("save_every") or SAVE_EVERY
    if recompute != "auto":
        settings["recompute"] = recompute
    config = (
        begun.settings(TrainConfig, task.name, settings) if old else settings_of(task, checkpoint, sample, settings)
    )
    output = own_directory(output, config.device)
    if sample and data_dir:
        raise ConfigError("--sample brings its own data: leave out --sample or --data-dir")
    if sample:
        report.say(SAMPLE_NOTE)
    starting.check_for_tpu(config, memory=memory, memory_report=report_memory)
    device = open_device(config.device, threads, config.precision)
    limit = planning.budget(memory, device)  # before anything is loaded that will be gone when training begins
    source = checkpoint or (_sample_model() if sample else "base")
    data, found = _read(task, config, source, data_dir, sample, output, report)
    model = starting.model_config(found.config, config, task.outputs, task.regression)
    stages = [(data.train, config.epochs)]
    config, told = starting.fit(config, model, stages, device, limit, old is not None, recompute)
    description = starting.describe(config, checkpoint if sample else source, found, device, old)
    description |= {"sample": sample, "eval_every": eval_every, "save_every": save_every}
    description |= _describe_data(task, data, bool(data_dir or sample))
    bert = _build(found.read(), model, config.seed, device, report, data.unit)
    del found  # which maps its file into memory
    trainer = training.trainer(bert, data.train, config)
    with RunDirectory.claim(output, description, resume, overwrite, mirror, numbered and output == place.path) as run:
        starting.say_start(report, trainer, task.name, source, run, told)
        observe = starting.observer(run, report) if report_memory else None
        measure = partial(evaluate, bert, task, data.under_way)
        loop.train(trainer, run, save_every, report, eval_every, measure, observe)
        if data.unit:
            data.unit.restore(bert)
        results = _finish(trainer, run, task, data)
    return Run(run.name if mirror else run.path, results)


def asked(task: str | Task | UnreadTable, resume: bool, **own: Any) -> Task | UnreadTable:
    """The task by its name. Of "table" `own` says what tasks.table.table takes; of a run that goes on it need not."""
    if not isinstance(task, (str, Task, UnreadTable)):
        raise ConfigError(f"task {task!r:.40} is no name of a task: minibert.finetune('mrpc')")
    own = {name: value for name, value in own.items() if value not in (None, False)}
    is_table = isinstance(task, str) and plain(task) == "table"
    if is_table and (resume or {"train", "dev"} <= own.keys()):
        return UnreadTable(own)
    if own and not is_table:
        name = task if isinstance(task, str) else task.name
        raise ConfigError(f"{', '.join(own)}: only the task table, of your own files, has such settings, not {name}")
    return tasks.get(task, to_train=True) if isinstance(task, str) else task


def _read(
    task: Task,
    config: TrainConfig,
    source: str | Path,
    data_dir: str | Path | None,
    sample: bool,
    output: Path,
    report: Reporter,
) -> tuple[_Data, Unread]:
    """The data and the checkpoint, fetched if need be: what is quickly told to be wrong before what takes long."""
    hub.check(str(source))
    folder = _data_folder(task, data_dir, sample, report)
    examples = {name: read_examples(task, name, folder) for name in ("train", *task.dev_splits)}
    if isinstance(task, TableTask):
        report.say("\n".join(labels_told(task, examples["train"])))
    unit = units.of_labels(task, examples["train"])
    training.count_steps(len(examples["train"]), config.epochs, config)
    if task.pairs and config.max_seq_length < 5:
        raise ConfigError(
            f"--max-seq-length {config.max_seq_length}: pairs need 5: [CLS], a word, [SEP], a word, [SEP]"
        )
    found = starting.find_checkpoint(source, config, output, report)
    tokenizer = tokenizer_of(found)
    train, *devs = (encode(task, name, part, tokenizer, config.max_seq_length) for name, part in examples.items())
    return _Data(folder, tokenizer, unit.standard(train) if unit else train, devs, unit), found


def _finish(trainer: Trainer, run: RunDirectory, task: Task, data: _Data) -> dict[str, Any]:
    """Writes the model, evaluates it and writes the results; the saved state goes last."""
    bert = trainer.bert
    trainer.rest()
    checkpoint.save(run.path, bert.config, bert.arrays())
    data.tokenizer.save(run.path, bert.config.max_position_embeddings)
    results = evaluate(bert, task, data.devs[0]) | {"global_step": trainer.total}
    for dev in data.devs[1:]:
        results[dev.name] = evaluate(bert, task, dev)
    write_results(run.path, results)
    run.describe(finished=True, steps=trainer.total, peak_bytes=dict(bert.device.peak))
    run.remove_state()
    run.publish(settle=True)
    return results


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """eval_results.json with everything, and eval_results.txt as Google's script writes it."""
    files.write_whole(folder / RESULTS, json.dumps(results, indent=2).encode() + b"\n")
    google: dict[str, Any] = {f"eval_{name}": value for name, value in results.items() if isinstance(value, float)}
    google["loss"] = google.pop("eval_batch_loss")
    google["global_step"] = results["global_step"]
    text = "".join(f"{name} = {google[name]}\n" for name in sorted(google))
    files.write_whole(folder / "eval_results.txt", text.encode())


def _data_folder(task: Task, data_dir: str | Path | None, use_sample: bool, report: Reporter) -> Path:
    """Where the task's data lie; they are written or downloaded first where need be."""
    if use_sample:
        from minibert.tasks import sample

        return sample.folder()
    if isinstance(task, TableTask):
        return Path()  # it knows its files
    if data_dir:
        return Path(remote.local(data_dir, task.wants))
    with report.transfer() as progress:
        return datasets.fetch_task(task.name, progress)


def _sample_model() -> Path:
    from minibert.tasks import sample

    return sample.model_path()


def settings_of(task: Task, checkpoint: str | Path | None, use_sample: bool, given: dict[str, Any]) -> TrainConfig:
    """The settings of a run; the embedded sample brings those that suit its model for what was not given."""
    if not use_sample:
        return TrainConfig(task=task.name, **given)
    from minibert.tasks import sample

    if task.name != "mrpc":
        raise ConfigError(f"--sample is made in the layout of mrpc, not {task.name}: minibert finetune mrpc --sample")
    return TrainConfig(task=task.name, **((sample.DEFAULTS if checkpoint is None else {}) | given))


def _build(
    found: Checkpoint, model: BertConfig, seed: int, device: Device, report: Reporter, unit: Unit | None = None
) -> Bert:
    """The model with the checkpoint's weights, and its head where that was trained for the same labels."""
    bert = Bert(model, len(model.id2label), device)
    arrays = dict(found.arrays)
    labels = found.config.id2label  # by their very names: what is called LABEL_0 may be anything
    if not found.missing_head and sorted(labels) == sorted(model.id2label):
        report.say("the checkpoint's classifier has these labels: going on with it")
        columns = [labels.index(label) for label in model.id2label]
        arrays |= {name: arrays[name][columns] for name in names.HEAD}
        if unit:
            arrays |= unit.standard_head(arrays)
    else:
        if not found.missing_head:
            report.say("the checkpoint's classifier was trained for other labels: a new one takes its place")
        arrays |= starting.new_head(model, seed, bert.outputs)
    bert.fill(arrays)
    for kind, unused in (("config keys", found.ignored), ("tensors", found.unused)):
        if unused:
            report.say(f"not used of the checkpoint's {kind}: {', '.join(unused)}")
    return bert


def _describe_data(task: Task, data: _Data, given: bool) -> dict[str, Any]:
    """What run.json says of a task's data; `given`: whether their folder was, or is the sample's."""
    paths = {name: task.path(name, data.folder) for name in ("train", *task.dev_splits)}
    columns = task.columns if isinstance(task, TableTask) else None
    return {
        "data": starting.describe_files(paths),
        # One's own files are named above, and downloads are found by the task.
        "data_dir": remote.name(data.folder.absolute()) if given and not columns else None,
        "labels": list(task.labels),
        "unit": dataclasses.asdict(data.unit) if data.unit else None,
        "columns": columns,
    }
