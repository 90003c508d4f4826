"""Run directories: who may write into one, what stands in it, and the state from which a run goes on.

run.json               settings, versions, checksums; "finished" is true when all the rest is there
metrics.jsonl          one line a step
state.safetensors      while the run lasts: weights, moments and the step they belong to
config.json ...        the model and tokenizer, as transformers loads them, when the run is finished
eval_results.txt/.json
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from types import NoneType
from typing import IO, Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from minibert import files, remote
from minibert.checkpoint import huggingface
from minibert.checkpoint.tensors import of_array
from minibert.errors import ConfigError, RunError
from minibert.mirror import Mirror
from minibert.optim import Optimizer

STATE, METRICS, DESCRIPTION, LOCK = "state.safetensors", "metrics.jsonl", "run.json", ".lock"
# What was settled before there was a setting for it, in older descriptions.
EARLIER = {"optimizer": "adam", "micro_tokens": None, "layerwise_update": False, "shard_parameters": False}
SHOWN = 8  # runs that are named
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
INDIFFERENT = {"recompute"}  # settings whose bits are the same
WRITTEN = (
    DESCRIPTION, METRICS, STATE, "config.json", "model.safetensors", "vocab.txt", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "eval_results.txt", "eval_results.json",
    "predictions.json", "nbest_predictions.json", "null_odds.json", "memory.json", "memory.png",
)  # fmt: skip


def next_directory(task: str, root: Path = Path("runs")) -> Path:
    """runs/mrpc-001, or the number after the highest that is there."""
    runs = _numbered(task, root)
    return root / f"{task}-{int(runs[-1].name.rpartition('-')[2]) + 1 if runs else 1:03d}"


def listed(root: Path = Path("runs")) -> str:
    """The newest runs in `root`, for who has mistyped one; "" where there is none."""
    found = sorted(root.glob(f"*/{DESCRIPTION}"), key=lambda path: path.stat().st_mtime, reverse=True)
    names = [str(path.parent) for path in found[:SHOWN]]
    return ", ".join(names + ["..."] * (len(found) > SHOWN))


def seeds_in(folder: Path) -> list[str]:
    """The names of the runs of --seeds in a folder, by their seeds."""
    found = [path.parent.name for path in folder.glob(f"seed-*/{DESCRIPTION}")]
    return sorted(found, key=lambda name: (len(name), name))


def newest_unfinished(task: str, root: Path = Path("runs")) -> Path:
    """The last of runs/mrpc-001, -002 ... that has not finished; RunError when there is none."""
    for path in reversed(_numbered(task, root)):
        if (description := read_description(path)) and not description["finished"]:
            return path
    raise RunError(f"{root}: no unfinished run of {task} to resume; leave --resume out to start one")


def make_directory(path: Path, numbered: bool) -> Path:
    """Makes a run's directory and returns it: of one that `next_directory` chose and that another process has made
    since then, the next one.
    """
    with files.one_line(path, "write", RunError):
        while True:
            try:
                path.mkdir(parents=True, exist_ok=not numbered)
                return path
            except FileExistsError:
                if not numbered:
                    raise
                path = next_directory(path.name.rpartition("-")[0], path.parent)


class Place(NamedTuple):
    """Where a run is written: its directory, of one in a bucket the local copy and what publishes it; what the run says
    that goes on there, None of a new one; and whether the directory is but the next free one (`make_directory`).
    """

    path: Path
    mirror: Mirror | None
    old: dict[str, Any] | None
    numbered: bool


def find_place(task: str, output_dir: str | Path | None, resume: bool, overwrite: bool) -> Place:
    """The place of a run of a task; RunError or ConfigError where something would be lost or there is no such run."""
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite removes it: give one of them")
    mirror = working_copy(output_dir, overwrite) if output_dir else None
    path = mirror.path if mirror else Path(output_dir or (newest_unfinished if resume else next_directory)(task))
    check_free(path, resume, overwrite)
    old = read_description(path) if resume else None
    if resume and old is None:
        raise RunError(f"{output_dir or path}: holds no run to resume; leave --resume out to start one")
    return Place(path, mirror, old, numbered=not (output_dir or resume))


def own_directory(path: Path, device: str) -> Path:
    """The directory that this process writes into: `path`, except that of several on TPUs only the first does."""
    if device != "tpu":
        return path
    from minibert.tpu import device as tpu

    return tpu.own_directory(path)


def _numbered(task: str, root: Path) -> list[Path]:
    """The runs of a task in the order of their numbers."""
    found = {int(m[1]): p for p in root.glob(f"{task}-*") if (m := re.fullmatch(rf"{re.escape(task)}-(\d+)", p.name))}
    return [found[number] for number in sorted(found)]


def working_copy(path: str | Path, overwrite: bool) -> Mirror | None:
    """Of a run's directory in a bucket the local one, as far as it has come; None of any other directory.

    RunError where something else stands there, StorageError where the bucket cannot be used.
    """
    if not remote.is_address(path):
        return None
    mirror = Mirror(path, WRITTEN.__contains__, fresh=overwrite)
    _check_own(mirror.url, mirror.state.files, overwrite)
    if not overwrite:
        mirror.pull()
    return mirror


def read_description(path: Path) -> dict[str, Any] | None:
    """What run.json says, or None where there is none."""
    if not (path / DESCRIPTION).is_file():
        return None
    description = files.read_json(path / DESCRIPTION, RunError)
    settings = description.get("settings")
    wanted = {"task": str, "max_seq_length": int}
    if not (
        isinstance(description.get("finished"), bool)
        and isinstance(settings, dict)
        and all(isinstance(settings.get(name), kind) for name, kind in wanted.items())
        and isinstance(description.get("data_dir"), (str, NoneType))
        and _are_columns(description.get("columns"))
    ):
        where = remote.name(path / DESCRIPTION)
        raise RunError(f"{where}: is no description of a run, or a damaged one; restore it or choose another folder")
    return description


def _are_columns(value: Any) -> bool:
    names = {"text_a", "text_b", "label", "id"}
    return value is None or (
        isinstance(value, dict)
        and value.keys() <= names
        and all(isinstance(column, (str, NoneType)) for column in value.values())
    )


class RunDirectory:
    """A directory that one process holds for one run, from `claim` until it is closed."""

    go_on = "add --resume to go on"  # what a user is told who stops it

    def __init__(self, path: Path, mirror: Mirror | None = None):
        """`mirror`: of which `path` is the local folder, where the run is in a bucket; of several processes on TPUs the
        others have another folder (`own_directory`), and publish nothing."""
        self.path, self.mirror = path, mirror if mirror and mirror.path == path else None
        self.description: dict[str, Any] = {}
        self.resumed = False  # whether an earlier process has begun the run

    @property
    def name(self) -> str:
        """What people call it: the path, or the gs:// address."""
        return remote.name(self.path)

    @classmethod
    @contextlib.contextmanager
    def claim(
        cls,
        path: Path,
        description: Mapping[str, Any],
        resume: bool,
        overwrite: bool,
        mirror: Mirror | None = None,
        numbered: bool = False,
    ) -> Iterator[RunDirectory]:
        """Opens `path` for the run that `description` tells of; RunError where that would lose something.

        A new or empty directory is taken. An unfinished run goes on with `resume` when its settings are the same.
        Anything else is refused without `overwrite`, which removes what a run writes and nothing else. `numbered`: as
        in `make_directory`.
        """
        path = make_directory(path, numbered)
        run = cls(path, mirror)
        with run.locked():
            check_free(path, resume, overwrite)
            if overwrite:
                with files.one_line(path, "remove what stands in it", RunError):
                    for name in reversed(WRITTEN):  # run.json at last, which says that the rest may go
                        (path / name).unlink(missing_ok=True)
            _check_same(path, description, resume)
            run.resumed = resume and read_description(path) is not None
            run.describe(**description, finished=False)
            run.publish()
            yield run

    def writes(self, name: str) -> bool:
        """Whether a file of that name is one of those that a run writes."""
        return name in WRITTEN

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps every other process out of the directory, which exists; removes what a killed one was writing."""
        lock = self._lock()
        if self.mirror:
            self.mirror.hold = True
        try:
            files.remove_temporary(self.path, self.writes)
            yield
        finally:
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()
            lock.close()

    def _lock(self) -> IO[str]:
        """The directory's lock, held until the file is closed; Windows and some file systems have none of this kind,
        and go without.
        """
        with files.one_line(self.path, "lock", RunError):
            lock = open(self.path / LOCK, "w")  # noqa: SIM115 - the caller closes it
            if fcntl is None:
                return lock
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.fstat(lock.fileno()).st_ino == os.stat(self.path / LOCK).st_ino
            except (BlockingIOError, FileNotFoundError):
                held = False  # taken, or removed by its last holder after we had opened it
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                held = True
            if not held:
                lock.close()
                raise RunError(f"{self.path}: another process is training into it; choose another --output-dir")
            return lock

    def describe(self, **entries: Any) -> None:
        """Adds to run.json."""
        self.description |= entries
        files.write_whole(self.path / DESCRIPTION, json.dumps(self.description, indent=2).encode() + b"\n")

    def publish(self, settle: bool = False) -> None:
        """Makes the bucket's directory what the local one is, where there is one (`Mirror.publish`)."""
        if self.mirror:
            self.mirror.publish(settle)

    def save_state(self, step: int, optimizer: Optimizer) -> None:
        """Writes weights and moments after `step` updates, whole; the state before it stays until then."""
        device = optimizer.groups[0].device
        entries = {name: of_array(name, device.numpy(array)) for name, array in _state_arrays(optimizer)}
        huggingface.write(self.path / STATE, entries, {"step": str(step)})
        self.publish()

    def load_state(self, optimizer: Optimizer) -> int:
        """Fills weights and moments from the saved state; the number of updates they have had, 0 without a state."""
        path = self.path / STATE
        if not path.is_file():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as state:
                for name, array in _state_arrays(optimizer):
                    saved = state.get_tensor(name)
                    if saved.shape != array.shape or saved.dtype != array.dtype:
                        raise ValueError(f"{name} is {saved.dtype} {saved.shape}, not {array.dtype} {array.shape}")
                    optimizer.groups[0].device.write(array, saved)
                for group in optimizer.groups:
                    group.changed()
                step = int(state.metadata()["step"])
                if step < 0:
                    raise ValueError(f"step {step}")
                return step
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{path}: not this run's saved state ({error}); start again with --overwrite") from None

    def remove_state(self) -> None:
        (self.path / STATE).unlink(missing_ok=True)

    @contextlib.contextmanager
    def metrics(self, step: int) -> Iterator[Metrics]:
        """metrics.jsonl, cut after the lines of the first `step` updates, open for more."""
        path = self.path / METRICS
        kept = []
        if step and path.is_file():
            lines = path.read_bytes().splitlines(True)
            kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
        files.write_whole(path, b"".join(kept))
        # Unbuffered: what a full disk refuses must not be tried again when the file is closed.
        with files.one_line(path, "write", RunError):
            file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed below
        with file:
            yield Metrics(file, path)


class Metrics:
    """metrics.jsonl while it is open."""

    def __init__(self, file: RawIOBase, path: Path):
        self.file, self.path = file, path

    def write(self, step: int, **values: Any) -> None:
        with files.one_line(self.path, "write", RunError):
            line = json.dumps({"step": step, **values}).encode() + b"\n"
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _step_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise RunError(f"damaged line in {METRICS}: {line[:60]!r}; remove the file to go on without it") from None


def check_free(path: Path, resume: bool, overwrite: bool) -> None:
    """That nothing in `path` would be lost, as far as can be told before anything is loaded."""
    name = remote.name(path)
    old = None if overwrite else read_description(path)
    _check_own(name, set(os.listdir(path)) - {LOCK} if path.is_dir() else (), overwrite)
    if old is None:
        return
    if old["finished"] and resume:
        raise RunError(f"{name}: the run is finished: nothing is left to resume; add --overwrite to train again")
    if old["finished"]:
        raise RunError(f"{name}: holds a finished run; evaluate it, choose another --output-dir or add --overwrite")


def _check_own(name: str, there: Collection[str], overwrite: bool) -> None:
    """That a directory with these files is a run's or empty, or with `overwrite` has none that a run would replace."""
    if DESCRIPTION in there:
        return
    if found := [file for file in WRITTEN if file in there]:
        raise RunError(f"{name}: holds {found[0]}, and no run; move it away or choose another --output-dir")
    if there and not overwrite:
        raise RunError(f"{name}: is not empty and holds no run; choose another --output-dir or add --overwrite")


def _check_same(path: Path, description: Mapping[str, Any], resume: bool) -> None:
    """That an unfinished run in `path` is the one that `description` tells of, and that it is to go on."""
    name, old = remote.name(path), read_description(path)
    if old is None:
        return
    if changed := [*differences(old, description)]:
        raise other_settings(path, changed)
    if not resume:
        raise RunError(f"{name}: holds an unfinished run of the same settings; add --resume to go on or --overwrite")


def other_settings(path: Path, changed: Iterable[tuple[str, Any, Any]]) -> RunError:
    """The error for a run that is not the unfinished one in `path`: names of settings, what they were and are now."""
    told = "; ".join(f"{setting} was {was!r}, now {now!r}" for setting, was, now in changed)
    return RunError(
        f"{remote.name(path)}: holds an unfinished run of other settings ({told}); "
        "--resume alone goes on with its own; else choose another --output-dir or add --overwrite"
    )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What decides a run's numbers and is not the same in two descriptions: its name, what it was and what it is."""
    was, now = _decisive(old), _decisive(new)
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)


def _decisive(description: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's numbers: its settings, and what stands in data and checkpoint, wherever they lie now."""
    settings, data, checkpoint = (_mapping(description.get(part)) for part in ("settings", "data", "checkpoint"))
    stages = description.get("stages")
    return {
        **EARLIER,
        **{name: value for name, value in settings.items() if name not in INDIFFERENT},
        **{f"{split} data": _mapping(file).get("sha256") for split, file in data.items()},
        "checkpoint": checkpoint.get("sha256") or checkpoint.get("source"),
        "labels": description.get("labels"),
        "columns": description.get("columns"),
        "unit": description.get("unit"),
        "epochs of stages": [_mapping(stage).get("epochs") for stage in stages] if isinstance(stages, list) else None,
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _state_arrays(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """The device's arrays that a saved state holds, by name."""
    for group in optimizer.groups:
        yield f"weights/{group.name}", group.weights
    yield from optimizer.state()
