"""One fine-tuning with several seeds, summed up: how much of a result is luck."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minibert import checkpoint, files, gcs, hub, remote, starting
from minibert.begun import Begun
from minibert.errors import ConfigError, RunError
from minibert.finetuning import RESULTS, asked, finetune
from minibert.progress import Reporter
from minibert.runs import DESCRIPTION, INDIFFERENT, differences, make_directory, next_directory, read_description
from minibert.settings import TrainConfig, check_counts, check_paths
from minibert.tasks import Task
from minibert.tasks.table import OWN, TableTask, UnreadTable

SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}


def finetune_seeds(task: str | Task | UnreadTable, count: int, **options: Any) -> dict[str, Any]:
    """Fine-tunes with `count` seeds, from `seed` on, and sums up; the options are those of `finetune`.

    Returns, and writes to seeds.json in the output directory: {runs: [{seed, metric: value, ...}], mean, deviation,
    majority: {metric: value}, failed: how many did not beat the majority class}. Each run has a directory there,
    seed-1 and so on; with `resume` the finished ones are kept.
    """
    check_counts(count=count)
    check_paths(checkpoint=options.get("checkpoint"), output_dir=options.get("output_dir"))
    output, resume, overwrite = (options.pop(name, None) for name in ("output_dir", "resume", "overwrite"))
    task = asked(task, bool(resume), **{name: options.pop(name) for name in OWN if name in options})
    first = TrainConfig(task=task.name, seed=options.pop("seed", 1)).seed  # or ConfigError
    report = options.get("report") or Reporter()
    runs = []
    with _folder(task.name, output, resume, overwrite) as folder:
        new = (task, options)  # of a seed that is not begun yet
        if resume and (other := _any_begun(folder)):
            _check_same(other, task, options)
            new = _alike(task, options, other)
        for seed in range(first, first + count):
            path = f"{folder}/seed-{seed}"
            begun = _begun(path) if resume else None
            done = read_description(begun) if begun else None
            if begun and done and done["finished"]:
                _check_same(Begun(done, Path(path)), task, options | {"seed": seed})
                results = files.read_json(begun / RESULTS, RunError)
            else:
                report.say(f"seed {seed}, {seed - first + 1} of {count}")
                what, how = (task, options) if done else new
                results = finetune(
                    what, seed=seed, output_dir=path, resume=done is not None, overwrite=bool(overwrite), **how
                ).results
            runs.append(results | {"seed": seed})
    metrics = [*runs[0]["majority"]]
    values = {name: np.array([run[name] for run in runs]) for name in (*metrics, "loss")}
    summary = {
        "path": folder,
        "runs": [
            {"seed": run["seed"], "beats_majority": run["beats_majority"], **{n: run[n] for n in values}}
            for run in runs
        ],
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "deviation": {name: float(v.std(ddof=1)) if count > 1 else 0.0 for name, v in values.items()},
        "majority": {name: runs[0]["majority"][name] for name in metrics},
        "failed": sum(not run["beats_majority"] for run in runs),
    }
    files.write_whole(f"{folder}/seeds.json", json.dumps(summary, indent=2).encode() + b"\n")
    return summary


@contextlib.contextmanager
def _folder(task: str, output: str | Path | None, resume: bool, overwrite: bool) -> Iterator[str]:
    """The folder of the seeds' runs; the next free one is made at once, and goes again where no run is begun in it."""
    if not output:
        if resume:
            raise ConfigError("--resume with --seeds goes on in a folder of seeds: name it with --output-dir")
        made = make_directory(next_directory(task), numbered=True)
        try:
            yield str(made)
        finally:
            with contextlib.suppress(OSError):  # not empty, as it should be
                made.rmdir()
        return
    if resume and not any(name.startswith("seed-") for name in _names(output)):
        raise RunError(f"{output}: holds no seeds to resume; leave --resume out to start")
    folder = remote.address(output) if remote.is_address(output) else str(Path(output))
    if not (resume or overwrite) and _names(folder):
        raise RunError(f"{folder}: is not empty; choose another --output-dir or add --resume or --overwrite")
    yield folder


def _names(folder: str | Path) -> set[str]:
    """What stands in a folder, if there is one."""
    if remote.is_address(folder):
        return {name.partition("/")[0] for name in remote.state(remote.address(folder), deep=True).files}
    return {path.name for path in Path(folder).iterdir()} if Path(folder).is_dir() else set()


def _begun(path: str) -> Path | None:
    """Where a run's description and results can be read; None where at gs:// there are none."""
    try:
        return Path(remote.local(path, (DESCRIPTION, RESULTS).__contains__))
    except gcs.Absent:
        return None


def _any_begun(folder: str) -> Begun | None:
    """The first of the seeds that have begun, if it says with what."""
    for name in sorted(_names(folder)):
        if name.startswith("seed-") and (path := _begun(f"{folder}/{name}")) and (said := read_description(path)):
            return Begun(said, path)
    return None


def _alike(
    task: Task | UnreadTable, options: dict[str, Any], begun: Begun
) -> tuple[Task | UnreadTable, dict[str, Any]]:
    """The task and the options of another seed of what has begun: what is not given is as it was there."""
    if isinstance(task, UnreadTable):
        task = task.read(begun.table())
    plain = begun.settings(TrainConfig, task.name, {}).to_dict()
    settings = {name: value for name, value in plain.items() if name not in {"task", "seed", *INDIFFERENT}}
    every = {name: begun.count(name) for name in ("eval_every", "save_every")}
    checkpoint, data_dir, sample = begun.sources(
        options.get("checkpoint"), options.get("data_dir"), options.get("sample", False)
    )
    found = {"checkpoint": checkpoint, "data_dir": data_dir, "sample": sample}
    return task, {**settings, **every, **options, **found}


def _check_same(begun: Begun, task: Task | UnreadTable, options: dict[str, Any]) -> None:
    """That another seed had the settings, the checkpoint and the data that are given now."""
    differing = [*begun.differences(task.name, {name: options[name] for name in SETTINGS & options.keys()})]
    if (given := options.get("checkpoint")) and _is_other(begun, str(given)):
        differing.append(("checkpoint", begun.sources(None, None, False)[0], given))
    for name, was, value in [*differing, *_other_data(begun, task, options)]:
        raise RunError(f"{begun.path}: was trained with {name} {was}, not {value}; choose another --output-dir")


def _is_other(begun: Begun, name: str) -> bool:
    """Whether a checkpoint is not the one that another seed began with, wherever that lay."""
    source, names = str(begun.sources(None, None, False)[0]), (name, os.path.abspath(name), hub.from_anywhere(name))
    if source in names or hub.from_anywhere(source) in names:
        return False
    file = checkpoint.find(Path(name)).file if os.path.exists(name) else None
    return file is None or files.sha256(file) != begun.checksum()


def _other_data(begun: Begun, task: Task | UnreadTable, options: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """How data that are given now differ from another seed's."""
    folder, said = options.get("data_dir"), begun.said
    if options.get("sample") and said.get("sample") is False:
        yield "sample", False, True
    if isinstance(task, UnreadTable):
        if not task.given:
            return
        task = task.read(begun.table())
    elif not folder and not isinstance(task, TableTask):
        return
    place = Path(remote.local(folder, task.wants)) if folder else Path()
    paths = {name: task.path(name, place) for name in ("train", *task.dev_splits)}
    now = {"data": starting.describe_files(paths), "labels": list(task.labels)}
    if isinstance(task, TableTask):
        now["columns"] = task.columns
    yield from differences(said, {**said, **now})
