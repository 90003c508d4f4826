"""One fine-tuning with several seeds, summed up: how much of a result is luck."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from minibert import files, gcs, remote, tasks
from minibert.errors import RunError
from minibert.finetuning import RESULTS, as_planned, finetune, settings_of
from minibert.progress import Reporter
from minibert.runs import DESCRIPTION, EARLIER, INDIFFERENT, next_directory, read_description
from minibert.settings import TrainConfig, check_counts
from minibert.tasks import Task

SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}


def finetune_seeds(task: str | Task, count: int, **options: Any) -> dict[str, Any]:
    """Fine-tunes with `count` seeds, from `seed` on, and sums up; the options are those of `finetune`.

    Returns, and writes to seeds.json in the output directory: {runs: [{seed, metric: value, ...}], mean, deviation,
    majority: {metric: value}, failed: how many were not above the majority class}. Each run has a directory there,
    seed-1 and so on; with `resume` the finished ones are kept.
    """
    check_counts(count=count)
    task = task if isinstance(task, Task) else tasks.get(str(task), to_train=True)
    first = _settings(task, options).seed
    options.pop("seed", None)
    output, resume, overwrite = (options.pop(name, None) for name in ("output_dir", "resume", "overwrite"))
    if resume and not (output and any(name.startswith("seed-") for name in _names(output))):
        raise RunError(f"{output or 'no --output-dir'}: holds no seeds to resume; leave --resume out to start")
    folder = remote.address(output) if remote.is_address(output) else str(Path(output or next_directory(task.name)))
    if not (resume or overwrite) and _names(folder):
        raise RunError(f"{folder}: is not empty; choose another --output-dir or add --resume or --overwrite")
    report = options.get("report") or Reporter()
    runs = []
    for seed in range(first, first + count):
        path = f"{folder}/seed-{seed}"
        begun = _begun(path) if resume else None
        done = read_description(begun) if begun else None
        if begun and done and done["finished"]:
            _check_same(path, done, task, options | {"seed": seed})
            results = files.read_json(begun / RESULTS, RunError)
        else:
            report.say(f"seed {seed}, {seed - first + 1} of {count}")
            results = finetune(
                task, seed=seed, output_dir=path, resume=done is not None, overwrite=bool(overwrite), **options
            ).results
        runs.append(results | {"seed": seed})
    values = {name: np.array([run[name] for run in runs]) for name in (*task.metrics, "loss")}
    summary = {
        "path": folder,
        "runs": [
            {"seed": run["seed"], "beats_majority": run["beats_majority"], **{n: run[n] for n in values}}
            for run in runs
        ],
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "deviation": {name: float(v.std(ddof=1)) if count > 1 else 0.0 for name, v in values.items()},
        "majority": {name: runs[0]["majority"][name] for name in task.metrics},
        "failed": sum(not run["beats_majority"] for run in runs),
    }
    files.write_whole(f"{folder}/seeds.json", json.dumps(summary, indent=2).encode() + b"\n")
    return summary


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


def _settings(task: Task, options: dict[str, Any]) -> TrainConfig:
    """The settings among the options; ConfigError for a wrong one."""
    given = {name: options[name] for name in (SETTINGS - INDIFFERENT) & options.keys()}
    return settings_of(task, options.get("checkpoint"), options.get("sample", False), given)


def _check_same(path: str, done: dict[str, Any], task: Task, options: dict[str, Any]) -> None:
    """That a finished run had the settings that are given now, or by default, and the same checkpoint."""
    wanted = as_planned(_settings(task, options), "auto", done["settings"]).to_dict()
    was = EARLIER | done["settings"] | {"checkpoint": done["checkpoint"]["source"]}
    wanted |= {"checkpoint": str(options.get("checkpoint") or was["checkpoint"])}
    for name, value in wanted.items():
        if was.get(name) != value:
            raise RunError(f"{path}: was trained with {name} {was.get(name)}, not {value}; choose another --output-dir")
