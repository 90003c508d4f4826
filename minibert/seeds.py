"""One fine-tuning with several seeds, summed up: how much of a result is luck."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from minibert import files, remote, tasks
from minibert.errors import ConfigError, RunError
from minibert.finetuning import as_planned, finetune, settings_of
from minibert.progress import Reporter
from minibert.runs import EARLIER, next_directory, read_description
from minibert.settings import TrainConfig
from minibert.tasks import Task

SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)}


def finetune_seeds(task: str | Task, count: int, **options: Any) -> dict[str, Any]:
    """Fine-tunes with `count` seeds, from `seed` on, and sums up; the options are those of `finetune`.

    Returns, and writes to seeds.json in the output directory: {runs: [{seed, metric: value, ...}], mean, deviation,
    majority: {metric: value}, failed: how many were not above the majority class}. Each run has a directory there,
    seed-1 and so on; with `resume` the finished ones are kept.
    """
    task = tasks.get(task) if isinstance(task, str) else task
    first = options.pop("seed", 1)
    output, resume, overwrite = (options.pop(name, None) for name in ("output_dir", "resume", "overwrite"))
    if remote.is_address(output):
        raise ConfigError(f"{output}: several seeds want a local --output-dir; give one, or train seed by seed")
    if resume and not (output and any(Path(output).glob("seed-*"))):
        raise RunError(f"{output or 'no --output-dir'}: holds no seeds to resume; leave --resume out to start")
    folder = Path(output or next_directory(task.name))
    if not (resume or overwrite) and folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder}: is not empty; choose another --output-dir or add --resume or --overwrite")
    report = options.get("report") or Reporter()
    runs = []
    for seed in range(first, first + count):
        path = folder / f"seed-{seed}"
        done = read_description(path) if resume else None
        if done and done["finished"]:
            _check_same(path, done, task, options | {"seed": seed})
            results = files.read_json(path / "eval_results.json", RunError)
        else:
            report.say(f"seed {seed}, {seed - first + 1} of {count}")
            results = finetune(
                task, seed=seed, output_dir=path, resume=done is not None, overwrite=bool(overwrite), **options
            ).results
        runs.append(results | {"seed": seed})
    values = {name: np.array([run[name] for run in runs]) for name in (*task.metrics, "loss")}
    summary = {
        "path": str(folder),
        "runs": [
            {"seed": run["seed"], "beats_majority": run["beats_majority"], **{n: run[n] for n in values}}
            for run in runs
        ],
        "mean": {name: float(v.mean()) for name, v in values.items()},
        "deviation": {name: float(v.std(ddof=1)) if count > 1 else 0.0 for name, v in values.items()},
        "majority": {name: runs[0]["majority"][name] for name in task.metrics},
        "failed": sum(not run["beats_majority"] for run in runs),
    }
    files.write_whole(folder / "seeds.json", json.dumps(summary, indent=2).encode() + b"\n")
    return summary


def _check_same(path: Path, done: dict[str, Any], task: Task, options: dict[str, Any]) -> None:
    """That a finished run had the settings that are given now, or by default, and the same checkpoint."""
    recompute = options.get("recompute", "auto")
    unplanned = SETTINGS - {"recompute"} if recompute == "auto" else SETTINGS
    given = {name: options[name] for name in unplanned & options.keys()}
    settings = settings_of(task, options.get("checkpoint"), options.get("sample", False), given)
    wanted = as_planned(settings, recompute, done["settings"]).to_dict()
    was = EARLIER | done["settings"] | {"checkpoint": done["checkpoint"]["source"]}
    wanted |= {"checkpoint": str(options.get("checkpoint") or was["checkpoint"])}
    for name, value in wanted.items():
        if was.get(name) != value:
            raise RunError(f"{path}: was trained with {name} {was.get(name)}, not {value}; choose another --output-dir")
