"""What every run begins with, whatever its task: checkpoint, fitted settings, what it tells and what run.json says."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from minibert import checkpoint, files, hub, memory_report, planning, remote
from minibert.checkpoint import Unread, names
from minibert.config import BertConfig
from minibert.errors import ConfigError, RunError, counted
from minibert.evaluation import Split
from minibert.kernels.devices import Device, cpu
from minibert.planning import Config
from minibert.progress import Reporter
from minibert.random import initial_weights
from minibert.runs import RunDirectory
from minibert.settings import TrainConfig
from minibert.training import Step, Trainer


def check_for_tpu(config: TrainConfig, **given: object) -> None:
    """ConfigError for options of the command that only the CPU's memory has a use for."""
    for name, value in given.items():
        if value and config.device == "tpu":
            raise ConfigError(f"--{name.replace('_', '-')} is about the memory of this machine: not with --device tpu")


def find_checkpoint(
    source: str | Path, config: TrainConfig, output: Path, report: Reporter, spans: bool = False
) -> Unread:
    """The checkpoint that a run starts from, downloaded if need be; `spans` as in checkpoint.find.

    RunError where it stands in `output`, into which the run writes.
    """
    with report.transfer() as progress:
        path = hub.resolve(str(source), progress=progress)
    found = checkpoint.find(path, seed=config.seed, spans=spans)
    if config.max_seq_length > found.config.max_position_embeddings:
        raise ConfigError(
            f"--max-seq-length {config.max_seq_length} is over the {found.config.max_position_embeddings} positions "
            f"of {source}; give at most that"
        )
    if found.path and remote.name(found.path.resolve()) == remote.name(output.resolve()):
        raise RunError(
            f"{remote.name(output)}: is the checkpoint that training starts from; choose another --output-dir"
        )
    return found


def model_config(
    of_checkpoint: BertConfig, settings: TrainConfig, labels: tuple[str, ...] = (), regression: bool = False
) -> BertConfig:
    """The config of the model that is trained; without labels it is a reader's."""
    kind = "regression" if regression else "single_label_classification" if labels else None
    gelu = {"erf": "gelu", "tanh": "gelu_new", None: of_checkpoint.hidden_act}[settings.gelu]
    return dataclasses.replace(of_checkpoint, hidden_act=gelu, id2label=labels, problem_type=kind)


def new_head(config: BertConfig, seed: int, num_outputs: int | None = None) -> dict[str, np.ndarray]:
    """The first weights of a classifier with so many outputs, without them of the head that marks answers."""
    spans = num_outputs is None
    shapes = names.shapes(config, num_outputs, spans)
    wanted = {name: shapes[name] for name in (names.SPANS if spans else names.HEAD)}
    return initial_weights(wanted, config.initializer_range, seed)


def fit(
    config: Config,
    model: BertConfig,
    data: Sequence[tuple[Split, float]],
    device: Device,
    limit: int | None,
    begun: bool,
    recompute: str,
    spans: bool = False,
) -> tuple[Config, str]:
    """The settings, fitted into `limit` bytes, and a line about it; a run that has begun goes on with those it has."""
    if device.backend == "tpu":
        from minibert.tpu import planning as tpu

        return (config, "") if begun else tpu.fitted(config, model, data, device, recompute, spans)
    policy = None if recompute == "auto" else recompute
    return planning.fitted(config, model, data, device, limit, policy, spans, begun)


def say_start(
    report: Reporter, trainer: Trainer, task: str, source: str | Path, run: RunDirectory, memory: str
) -> None:
    s, size = trainer.settings, sum(group.weights.size for group in trainer.bert.groups)
    where = trainer.bert.device.description
    parts = [stage.data for stage in trainer.stages]
    count, windows = sum(part.count for part in parts), sum(len(part.features) for part in parts)
    cut = f" in {counted(windows, 'window')}" if windows != count else ""
    report.say(
        f"{task}: {counted(count, 'example')}{cut}, {counted(trainer.total, 'step')} of {s.batch_size}; "
        f"{source} with {size / 1e6:.1f} M parameters, {s.precision} on {where}, {s.optimizer}; output {run.name}"
    )
    threads, began = trainer.bert.device.threads, run.description.get("threads")
    if threads != began and s.precision == "fp32" and not cpu.in_fp32():  # BLAS's sums depend on it, ours do not
        report.say(f"the run began with --threads {began}: with another number the last bits may differ")
    if memory:
        report.say(memory)


def observer(run: RunDirectory, report: Reporter) -> Callable[[Trainer, int], Callable[[], Step]]:
    """Begins a training step and reports where its memory went."""

    def observe(trainer: Trainer, step: int) -> Callable[[], Step]:
        begun, found = memory_report.observed(trainer, step)
        report.say("\n".join([*memory_report.lines(found), memory_report.write(run.path, found)]))
        return begun

    return observe


def describe(
    config: TrainConfig, source: str | Path | None, found: Unread, device: Device, old: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What run.json says of every run; `old` is what it said before a resumed one went on. `source`: None of the
    sample's own model.
    """
    return {
        "settings": config.to_dict(),
        "checkpoint": {
            "source": source and hub.from_anywhere(str(source)),
            "sha256": files.sha256(found.file) if found.file else None,
        },
        "seed": config.seed,
        "versions": versions(config.device),
        "threads": (old or {}).get("threads", device.threads),
    }


def describe_files(paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """What run.json says of files, by what they are for."""
    return {name: {"path": remote.name(path.absolute()), "sha256": files.sha256(path)} for name, path in paths.items()}


def versions(device: str) -> dict[str, str]:
    """Of what computes on a device."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("minibert", "numpy", "jax" if device == "tpu" else "numba", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a checkout that is not installed
            found[name] = "unknown"
    return found
