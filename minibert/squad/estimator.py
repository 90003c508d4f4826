"""Google's run_squad.py on this engine: its flags, its files, and the Estimator's rules (minibert/estimator.py).

Source: google-research/bert, run_squad.py. Training examples are shuffled by this engine, epoch by epoch, not once by
Python's generator; windows are not padded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibert import estimator, files, planning, training
from minibert.checkpoint import Checkpoint, names, sources
from minibert.errors import ConfigError, RunError
from minibert.estimator import ModelDirectory
from minibert.evaluation import Split
from minibert.kernels.devices import Device
from minibert.model import open_device
from minibert.progress import Reporter
from minibert.random import initial_weights
from minibert.runs import own_directory
from minibert.squad import finetuning, reading
from minibert.squad.answering import Answerer
from minibert.squad.evaluation import say_written, write_all
from minibert.squad.reader import Reader
from minibert.squad.settings import SquadConfig
from minibert.starting import new_head


@dataclass(frozen=True)
class Flags:
    """run_squad.py's flags by their names, with its defaults."""

    bert_config_file: Path
    vocab_file: Path
    output_dir: Path
    train_file: Path | None = None
    predict_file: Path | None = None
    init_checkpoint: str | None = None
    do_lower_case: bool = True
    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    do_train: bool = False
    do_predict: bool = False
    train_batch_size: int = 32
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    warmup_proportion: float = 0.1
    save_checkpoints_steps: int = 1000
    n_best_size: int = 20
    max_answer_length: int = 30
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0
    verbose_logging: bool = False
    use_tpu: bool = False

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_predict):
            raise ConfigError("nothing to do: give at least one of --do_train=true, --do_predict=true")
        for wanted, file in (("do_train", "train_file"), ("do_predict", "predict_file")):
            if getattr(self, wanted) and getattr(self, file) is None:
                raise ConfigError(f"--{wanted}=true needs --{file}=FILE")
        if self.save_checkpoints_steps < 1:
            raise ConfigError(f"--save_checkpoints_steps={self.save_checkpoints_steps} must be at least 1")


def run_squad(flags: Flags, report: Reporter) -> None:
    """Trains and predicts as the flags say. Raises a MinibertError that says what to do about it."""
    settings = SquadConfig(
        task="squad2" if flags.version_2_with_negative else "squad",
        batch_size=flags.train_batch_size, epochs=flags.num_train_epochs, learning_rate=flags.learning_rate,
        warmup=flags.warmup_proportion, max_seq_length=flags.max_seq_length, doc_stride=flags.doc_stride,
        max_query_length=flags.max_query_length, n_best_size=flags.n_best_size,
        max_answer_length=flags.max_answer_length, null_score_diff_threshold=flags.null_score_diff_threshold,
        device=estimator.device_of(flags),
    )  # fmt: skip
    flags, mirror = estimator.brought_here(flags)
    flags = dataclasses.replace(flags, output_dir=own_directory(flags.output_dir, settings.device))
    parts = reading.parts(Path(flags.predict_file or "")) if flags.do_predict else []
    tokenizer = estimator.tokenizer_of(flags, report)
    device = open_device(settings.device, None)
    limit = planning.budget(None, device)  # before weights are loaded
    data: Split | None = None
    if flags.do_train:
        data = finetuning.split(Path(flags.train_file or ""), tokenizer, settings, report, flags.verbose_logging)
        training.count_steps(data.count, settings.epochs, settings)  # before weights are read
    found = estimator.find_checkpoint(flags, settings.seed, tokenizer, report, spans=True)
    reader = _build(found, settings, device)
    directory = ModelDirectory(flags.output_dir, reader, mirror)
    if flags.do_train:
        directory.beside = _pooler(found, settings.seed)
    del found
    if data is not None:
        estimator.train(flags, data, settings, directory, tokenizer, limit, report)
    if flags.do_predict:
        with files.one_line(flags.output_dir, "write", RunError):
            flags.output_dir.mkdir(parents=True, exist_ok=True)
        count = write_all(Answerer(reader, tokenizer, settings), parts, flags.output_dir, report)
        say_written(report, count, flags.output_dir)
        directory.answers_by(settings.task, flags.null_score_diff_threshold)
    directory.publish(settle=True)


def _pooler(found: Checkpoint, seed: int) -> dict[str, np.ndarray]:
    """A pooler as it was found, which a reader has no use for: Google's script restores one, since its graph has it."""
    wanted = {name: shape for name, shape in names.shapes(found.config).items() if name.startswith("pooler.")}
    have = sources.find(found.file).tensors if found.file else {}
    read = {name: have[name].read() for name, shape in wanted.items() if name in have and have[name].shape == shape}
    missing = {name: shape for name, shape in wanted.items() if name not in read}
    return read | initial_weights(missing, found.config.initializer_range, seed)


def _build(found: Checkpoint, settings: SquadConfig, device: Device) -> Reader:
    """The model with the weights that there are, and a new head where there is none."""
    arrays = dict(found.arrays)
    if found.missing_head:
        arrays |= new_head(found.config, settings.seed)
    config = dataclasses.replace(found.config, id2label=(), problem_type=None)
    reader = Reader(config, device)
    reader.fill(arrays)
    return reader
