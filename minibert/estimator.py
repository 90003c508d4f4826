"""Google's run_classifier.py on this engine: its flags, its files, and the rules of the Estimator that matter.

The output directory holds TensorFlow checkpoints, model.ckpt-N of the last five savings and `checkpoint`, which names
the newest. One that is there wins over --init_checkpoint: training goes on from it, with Adam's moments, and is skipped
where it has had all its steps. Source: google-research/bert, run_classifier.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert import checkpoint, files, latest, loop, planning, prediction, remote, tasks, training
from minibert.bert import Bert
from minibert.checkpoint import Checkpoint, names, sources, tensorflow
from minibert.checkpoint.tensors import Entry, of_array
from minibert.errors import CheckpointError, ConfigError, RunError
from minibert.evaluation import Split, evaluate, read_split
from minibert.kernels.devices import Device
from minibert.mirror import Mirror
from minibert.model import Model, check_vocabulary, column_order, open_device
from minibert.optim import Adam, Optimizer
from minibert.progress import Reporter
from minibert.runs import DESCRIPTION, METRICS, RunDirectory, own_directory, read_description
from minibert.settings import TrainConfig
from minibert.starting import fit, model_config, new_head
from minibert.tasks import Example, Task
from minibert.tokenizer import FILES, Tokenizer

KEPT = 5  # checkpoints, as the Estimator's keep_checkpoint_max
PREFIX = "model.ckpt-"
TEST_RESULTS = "test_results.tsv"
UNCASED = (
    "uncased_L-24_H-1024_A-16", "uncased_L-12_H-768_A-12", "multilingual_L-12_H-768_A-12", "chinese_L-12_H-768_A-12",
)  # fmt: skip
CASED = ("cased_L-12_H-768_A-12", "cased_L-24_H-1024_A-16", "multi_cased_L-12_H-768_A-12")
GONE_BY = (DESCRIPTION, "config.json", *FILES)
WRITTEN = (
    latest.NAME, METRICS, "eval_results.txt", TEST_RESULTS, "predictions.json", "nbest_predictions.json",
    "null_odds.json", *GONE_BY,
)  # fmt: skip
_NUMBERED = re.compile(rf"{re.escape(PREFIX)}([0-9]+)(?=\.(index|data-))")


@dataclass(frozen=True)
class Flags:
    """run_classifier.py's flags by their names, with its defaults."""

    task_name: str
    data_dir: Path
    bert_config_file: Path
    vocab_file: Path
    output_dir: Path
    init_checkpoint: str | None = None
    do_lower_case: bool = True
    max_seq_length: int = 128
    do_train: bool = False
    do_eval: bool = False
    do_predict: bool = False
    train_batch_size: int = 32
    eval_batch_size: int = 8
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    warmup_proportion: float = 0.1
    save_checkpoints_steps: int = 1000
    use_tpu: bool = False

    def __post_init__(self) -> None:
        if not (self.do_train or self.do_eval or self.do_predict):
            raise ConfigError("nothing to do: give at least one of --do_train=true, --do_eval=true, --do_predict=true")
        for name in ("eval_batch_size", "save_checkpoints_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name}={getattr(self, name)} is out of range: it must be at least 1")


def run_classifier(flags: Flags, report: Reporter) -> dict[str, str]:
    """Trains, evaluates and predicts as the flags say; returns what eval_results.txt holds, or nothing.

    Raises a MinibertError that says what to do about it.
    """
    task = tasks.get(flags.task_name)
    flags, mirror = brought_here(flags, data_dir=task.wants)
    settings = TrainConfig(
        task=task.name, batch_size=flags.train_batch_size, epochs=flags.num_train_epochs,
        learning_rate=flags.learning_rate, warmup=flags.warmup_proportion, max_seq_length=flags.max_seq_length,
        device=device_of(flags),
    )  # fmt: skip
    flags = dataclasses.replace(flags, output_dir=own_directory(flags.output_dir, settings.device))
    tokenizer = tokenizer_of(flags, report)
    device = open_device(settings.device, None)
    limit = planning.budget(None, device)  # before weights are loaded
    wanted = {"train": flags.do_train, "dev": flags.do_eval}
    data = {  # read, as the rows to predict are, before anything takes long
        kind: read_split(task, _split(task, kind), flags.data_dir, tokenizer, flags.max_seq_length)
        for kind in wanted if wanted[kind]
    }  # fmt: skip
    rows = task.read(_split(task, "test"), flags.data_dir) if flags.do_predict else []
    if flags.do_train:
        training.count_steps(data["train"].count, settings.epochs, settings)
    bert = _build(flags, task, tokenizer, settings, device, report)
    directory = ModelDirectory(flags.output_dir, bert, mirror)
    step = directory.step() or 0
    if flags.do_train:
        step = train(flags, data.pop("train"), settings, directory, tokenizer, limit, report)
    results: dict[str, str] = {}
    if flags.do_eval:
        found = evaluate(bert, task, data["dev"], loss_batch=flags.eval_batch_size)
        if not found["beats_majority"]:
            always = "the mean" if task.regression else "the most frequent label"
            scores = ", ".join(f"{name} {value:.4f}" for name, value in found["majority"].items())
            report.say(f"no better than always predicting {always}, which gives {scores}")
        results = _write_results(flags.output_dir, found, step)
    if flags.do_predict:
        _predict(flags, rows, Model(bert, tokenizer, task.labels, flags.max_seq_length, task.pairs))
        report.say(f"predictions of {len(rows):,} rows: {remote.name(flags.output_dir / TEST_RESULTS)}")
    directory.publish(settle=True)
    return results


def brought_here(flags: Any, **wanted: Callable[[str], bool]) -> tuple[Any, Mirror | None]:
    """The flags with the paths of local copies in place of gs:// addresses, and what publishes the output directory.

    `wanted`: of a folder what is read in it.
    """
    mirror = None
    here: dict[str, Path] = {}
    for name, value in vars(flags).items():
        if name == "output_dir" and remote.is_address(value):
            mirror = _output_here(value, every=flags.do_train)
            here[name] = mirror.path
        elif name != "init_checkpoint" and remote.is_address(value):  # which is read only if nothing comes before it
            here[name] = Path(remote.local(value, wanted.get(name)))
    return dataclasses.replace(flags, **here), mirror


def _output_here(url: str | Path, every: bool) -> Mirror:
    """An output directory in a bucket: all of it, or for who does not train the newest checkpoint and run.json."""
    mirror = Mirror(url, _is_written)
    if every:
        mirror.pull()
    else:
        mirror.pull((latest.NAME, DESCRIPTION).__contains__)
        newest = latest.newest(mirror.path)
        mirror.pull(lambda name: name.startswith(f"{newest}."))
    return mirror


def _is_written(name: str) -> bool:
    """Whether a file of that name in an output directory is one of those that are written here."""
    return _NUMBERED.match(name) is not None or name in WRITTEN


def find_checkpoint(flags: Any, seed: int, tokenizer: Tokenizer, report: Reporter, spans: bool = False) -> Checkpoint:
    """The output directory's newest checkpoint, else --init_checkpoint, else, to be trained, random weights."""
    newest = latest.newest(flags.output_dir)
    source = str(flags.output_dir / newest) if newest else flags.init_checkpoint
    if newest and flags.init_checkpoint and not _is_same(flags.init_checkpoint, flags.output_dir / newest):
        used = remote.name(flags.output_dir / newest)
        report.say(f"{used} is used, not --init_checkpoint={flags.init_checkpoint}: it comes first")
    if source is None:
        if not flags.do_train:
            folder = remote.name(flags.output_dir)
            raise CheckpointError(f"{folder}: holds no checkpoint: give --init_checkpoint or --do_train=true")
        report.say("no --init_checkpoint: training begins from random weights")
        source = f"{checkpoint.RANDOM}{flags.bert_config_file}"
    place = remote.checkpoint(source)
    found = checkpoint.load(place, seed=seed, config_file=flags.bert_config_file, spans=spans)
    check_vocabulary(tokenizer, found.config, flags.vocab_file)
    if flags.max_seq_length > found.config.max_position_embeddings:
        raise ConfigError(
            f"--max_seq_length={flags.max_seq_length} is over the {found.config.max_position_embeddings} positions of "
            f"{flags.bert_config_file}; give at most that"
        )
    if found.missing_head and not flags.do_train:
        head = "head that marks answers" if spans else "classifier"
        raise CheckpointError(f"{source}: has no {head} yet; train one with --do_train=true")
    if found.unused:
        report.say(f"not used of {source}: {', '.join(found.unused)}")
    return found


def _is_same(given: str, newest: Path) -> bool:
    """Whether what is given names the output directory's newest checkpoint, or that directory."""
    if remote.is_address(given):
        return remote.address(given) in (remote.name(newest), remote.name(newest.parent))
    return Path(given.removesuffix(".index")).resolve() in (newest.resolve(), newest.parent.resolve())


def tokenizer_of(flags: Any, report: Reporter) -> Tokenizer:
    """The tokenizer of --vocab_file and --do_lower_case.

    ConfigError where Google's script has one (validate_case_matches_checkpoint): the checkpoint bears the name of one
    of its models, and that is cased and the text would not be, or the other way round.
    """
    tokenizer = Tokenizer.from_vocab(flags.vocab_file, flags.do_lower_case, google=True)
    lower, model = flags.do_lower_case, Path(flags.init_checkpoint or "").parent.name
    if model in (CASED if lower else UNCASED):
        kind = "cased" if lower else "uncased"
        raise ConfigError(f"--init_checkpoint={flags.init_checkpoint} is {kind}: give --do_lower_case={not lower}")
    if lower and tokenizer.cased:
        report.say(f"{flags.vocab_file} has capitals, and --do_lower_case=True removes them from the text: a mistake?")
    return tokenizer


def _build(
    flags: Flags, task: Task, tokenizer: Tokenizer, settings: TrainConfig, device: Device, report: Reporter
) -> Bert:
    """The model with the weights that there are, and a new classifier where there is none."""
    found = find_checkpoint(flags, settings.seed, tokenizer, report)
    arrays = dict(found.arrays)
    if found.missing_head:
        arrays |= new_head(found.config, settings.seed, task.num_outputs)
    elif len(arrays["classifier.bias"]) != task.num_outputs:
        raise CheckpointError(
            f"{found.file}: its classifier has {len(arrays['classifier.bias'])} outputs, {task.name} needs "
            f"{task.num_outputs}"
        )
    elif (labels := found.config.id2label) and not _is_trained(found):
        if (columns := column_order(labels, task.outputs)) is None:
            raise CheckpointError(
                f"{flags.bert_config_file}: calls its labels {', '.join(labels)}, but {task.name} has "
                f"{', '.join(task.labels)}; if these are its labels by other names, name them so in its id2label"
            )
        arrays |= {name: arrays[name][columns] for name in names.HEAD}
    labelled = model_config(found.config, settings, task.outputs, task.regression)
    bert = Bert(labelled, task.num_outputs, device)
    bert.fill(arrays)
    return bert


def _is_trained(found: Checkpoint) -> bool:
    """Whether it is such a script's own, with the script's order of labels whatever the config names: those of
    TensorFlow that a training has left have a global_step.
    """
    return (
        found.file is not None and found.file.suffix == ".index" and names.GLOBAL_STEP in sources.find(found.file).slots
    )


def device_of(flags: Any) -> str:
    return "tpu" if flags.use_tpu else "auto"


def train(
    flags: Any, data: Split, settings: TrainConfig, directory: ModelDirectory, tokenizer: Tokenizer, limit: int | None,
    report: Reporter,
) -> int:  # fmt: skip
    """Trains from the step that the output directory has reached to the last, within `limit` bytes; returns that."""
    done, bert, spans = directory.step() or 0, directory.bert, data.labels.ndim == 2
    total, _ = training.count_steps(data.count, settings.epochs, settings)
    if done >= total:
        report.say(
            f"TRAINING IS SKIPPED: {directory.name} holds a checkpoint after step {done}, and these flags ask for "
            f"{total} steps. Choose another --output_dir to train anew."
        )
        return done
    if (old := directory.described()) and not old.get("script"):
        raise RunError(f"{directory.name}: holds a run of minibert finetune; choose another --output_dir")
    settings, told = fit(settings, bert.config, [(data, settings.epochs)], bert.device, limit, False, "auto", spans)
    trainer = training.trainer(bert, data, settings)
    report.say(
        f"***** Running training *****\n{_counts(data)}"
        f"  Batch size = {settings.batch_size}\n  Num steps = {total}\n"
        f"  {settings.precision} on {bert.device.description}\n  {told}".rstrip()
    )
    with files.one_line(flags.output_dir, "write", RunError):
        flags.output_dir.mkdir(parents=True, exist_ok=True)
    with directory.locked():
        directory.complete(tokenizer, settings, None if spans else flags.data_dir, report)
        directory.publish()
        loop.train(trainer, directory, flags.save_checkpoints_steps, report)
    trainer.rest()
    return total


def _counts(data: Split) -> str:
    """How many examples are trained on, as Google's two scripts tell it."""
    if data.examples is None:
        return f"  Num examples = {data.count}\n"
    return f"  Num orig examples = {data.count}\n  Num split examples = {len(data.features)}\n"


def _split(task: Task, kind: str) -> str:
    """The task's first split of that kind, which is the one that Google's script reads."""
    found = next((split for split in task.splits if split.startswith(kind)), None)
    if found is None:
        raise ConfigError(f"{task.name} has no {kind} file: it has {', '.join(task.splits)}")
    return found


def _write_results(folder: Path, found: dict[str, Any], step: int) -> dict[str, str]:
    """eval_results.txt with Google's keys, and its numbers' form: those of a float32."""
    if "confusion" in found:  # Google's script has the accuracy of every task, CoLA's too
        measured = {"eval_accuracy": np.trace(found["confusion"]) / np.sum(found["confusion"])}
    else:
        measured = {f"eval_{name}": found[name] for name in found["majority"]}
    measured |= {"eval_loss": found["loss"], "loss": found["batch_loss"]}
    results = {name: str(np.float32(value)) for name, value in measured.items()} | {"global_step": str(step)}
    text = "".join(f"{name} = {results[name]}\n" for name in sorted(results))
    files.write_whole(folder / "eval_results.txt", text.encode())
    return results


def _predict(flags: Flags, examples: Sequence[Example], model: Model) -> None:
    """test_results.tsv: a line of probabilities for each row of the test file."""
    answers = model.predict([(e.text_a, e.text_b) for e in examples])
    lines = (prediction.google_row(e, p) for e, p in zip(examples, answers, strict=True))
    files.write_whole(flags.output_dir / TEST_RESULTS, "".join(lines).encode())


class ModelDirectory(RunDirectory):
    """The output directory as the Estimator keeps it: TensorFlow checkpoints with Adam's moments."""

    go_on = "the same command goes on"

    def __init__(self, path: Path, bert: Bert, mirror: Mirror | None = None):
        super().__init__(path, mirror)
        self.bert = bert
        self.beside: dict[str, np.ndarray] = {}  # what checkpoints hold that this model has not

    def writes(self, name: str) -> bool:
        return _is_written(name)

    def described(self) -> dict[str, Any] | None:
        """What a run.json says that is a run's."""
        with contextlib.suppress(RunError):
            return read_description(self.path)
        return None

    def answers_by(self, task: str, threshold: float) -> None:
        """Records the threshold of later answers, which as a rule only predicting is told; 0 is nobody's word."""
        old = self.described()
        if threshold and old and old.get("script") and old["settings"]["task"] == task:
            self.describe(**{**old, "settings": old["settings"] | {"null_score_diff_threshold": threshold}})

    def complete(self, tokenizer: Tokenizer, settings: TrainConfig, data_dir: Path | None, report: Reporter) -> None:
        """Puts beside the checkpoints what predict, evaluate, answer and convert go by: run.json, config, vocabulary.

        Nothing where somebody else's stand already, which is told.
        """
        old = self.described()
        found = [name for name in GONE_BY if (self.path / name).exists()]
        if found and not (old and old.get("script")):
            return report.say(f"{self.name} has {found[0]} already: config and vocabulary are not written beside it")
        config = self.bert.config
        spans, regression = not config.id2label, config.problem_type == "regression"
        self.describe(
            script="run_squad.py" if spans else "run_classifier.py", settings=settings.to_dict(), finished=True,
            data_dir=data_dir and remote.name(data_dir.absolute()), columns=None,
            labels=[] if regression else list(config.id2label),
        )  # fmt: skip
        checkpoint.save_config(self.path, config, spans)
        tokenizer.save(self.path, settings.max_seq_length)

    def step(self) -> int | None:
        """The number of updates of the newest checkpoint; None where there is none."""
        newest = latest.newest(self.path)
        return None if newest is None else self._step(sources.find(self.path / newest).slots)

    def save_state(self, step: int, optimizer: Optimizer) -> None:
        """Writes model.ckpt-STEP and names it the newest; of those that were named before the last four stay.

        Others are somebody else's, such as what training started from.
        """
        newest = f"{PREFIX}{step}"
        entries: dict[str, Entry] = {}
        for name, view in {**self._state(optimizer), **self.beside}.items():
            array = view if name in self.beside else self.bert.device.numpy(view)
            variable, slot = names.split_slot(name)
            theirs, transposed = names.to_tensorflow(variable)
            entries[theirs + slot] = of_array(name, array.T if transposed else array)
        entries[names.GLOBAL_STEP] = of_array(names.GLOBAL_STEP, np.array(step, np.int64))
        tensorflow.write(self.path / newest, entries)
        before = [name for name in latest.kept(self.path) if name != newest]
        kept = [*before, newest][-KEPT:]
        latest.write(self.path, newest, kept)
        for path in list(self.path.iterdir()):
            if (m := _NUMBERED.match(path.name)) and m[0] in before and m[0] not in kept:
                path.unlink()
        self.publish()

    def load_state(self, optimizer: Optimizer) -> int:
        """Fills weights and moments from the newest checkpoint; its number of updates, 0 where there is none."""
        newest = latest.newest(self.path)
        if newest is None:
            return 0
        found = sources.find(self.path / newest)
        for name, array in self._state(optimizer).items():
            entry = found.slots.get(name) or found.tensors.get(name)
            if entry is None or entry.shape != array.shape:
                raise CheckpointError(
                    f"{found.path}: {name} is missing or has another shape: training cannot go on from it; "
                    "choose another --output_dir"
                )
            self.bert.device.write(array, entry.read())
        for group in self.bert.groups:
            group.changed()
        return self._step(found.slots)

    def _state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The device's views of weights and moments by our names, NAME/adam_m and NAME/adam_v."""
        assert isinstance(optimizer, Adam)  # Google's flags know no other
        state = self.bert.views([group.weights for group in self.bert.groups])
        for slot, buffers in zip(names.SLOTS, (optimizer.m, optimizer.v), strict=True):
            state |= {f"{name}/{slot}": view for name, view in self.bert.views(buffers).items()}
        return state

    def _step(self, slots: dict[str, Entry]) -> int:
        entry = slots.get(names.GLOBAL_STEP)
        if entry is None or entry.shape != () or entry.dtype not in ("int64", "int32"):
            raise CheckpointError(f"{self.path}: its newest checkpoint has no global_step: choose another --output_dir")
        return int(entry.stored())
