"""What a run was begun with, as its run.json has it: a run that goes on need not be told again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minibert import remote
from minibert.errors import ConfigError, RunError
from minibert.runs import DESCRIPTION, EARLIER, INDIFFERENT, Place, other_settings
from minibert.settings import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)
UNDECIDED = (None, "auto")  # what gives no value


@dataclass(frozen=True)
class Begun:
    """The description of a run in the directory `path`, {} of a new one. RunError for a damaged part that is asked for;
    whoever gives that part does not ask.
    """

    said: Mapping[str, Any]
    path: Path

    @classmethod
    def at(cls, place: Place) -> Begun:
        return cls(place.old or {}, place.path)

    def settings(self, kind: type[Config], task: str, given: Mapping[str, Any]) -> Config:
        """Those that the run goes on with; RunError where one that is given is another."""
        if changed := [*self.differences(task, given)]:
            raise other_settings(self.path, changed)
        was = self.said["settings"]
        if unknown := was.keys() - {field.name for field in dataclasses.fields(kind)}:
            raise self._damaged(f"there is no setting {min(unknown)!r:.40}")
        try:
            config = kind(**was)
        except ConfigError as error:
            raise self._damaged(str(error)) from None
        return dataclasses.replace(config, **{name: given[name] for name in INDIFFERENT & given.keys()})

    def differences(self, task: str, given: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """Names of settings, what they were and what they are now."""
        was = EARLIER | self.said["settings"]
        for name, value in {**given, "task": task}.items():
            if name not in INDIFFERENT and value not in UNDECIDED and was.get(name) != value:
                yield name, was.get(name), value

    def sources(
        self, checkpoint: str | Path | None, data_dir: str | Path | None, sample: bool
    ) -> tuple[str | Path | None, str | Path | None, bool]:
        """The checkpoint, the data's folder and whether it is the sample: what is given, else what the run began with.
        The sample's own model is no checkpoint, and it needs no folder: its cache may be another's by now.
        """
        recorded = "sample" in self.said  # in older descriptions the sample's checkpoint and data are paths
        if not checkpoint and (recorded or not sample):
            checkpoint = self._path("checkpoint", "source")
        if not (sample or data_dir):
            data_dir, sample = self.data()
        return checkpoint, data_dir, sample

    def data(self) -> tuple[str | None, bool]:
        """The data's folder, and whether it is the sample's, which has no path."""
        sample = self._get(bool, "sample") or False
        return None if sample else self._path("data_dir"), sample

    def checksum(self) -> str | None:
        """SHA-256 of the checkpoint's file, where there was one."""
        found: str | None = self._get(str, "checkpoint", "sha256")
        return found

    def count(self, name: str) -> int | None:
        """A number of steps, from 1 on."""
        found = self._get(int, name)
        if found is not None and (isinstance(found, bool) or found < 1):
            raise self._damaged(f"{name} is {found!r:.40}")
        return found

    def table(self) -> dict[str, Any]:
        """The files, columns and labels of a run on one's own files, as tasks.table.table takes them."""
        found = {split: self._path("data", split, "path") for split in ("train", "dev")}
        labels = self._get(list, "labels") if self.said else []
        if not all(isinstance(label, str) for label in labels or ()):
            raise self._damaged("labels are no texts")
        return {
            **{split: path for split, path in found.items() if path},
            # Columns are checked whenever a description is read.
            **{name: column for name, column in (self.said.get("columns") or {}).items() if column},
            **({"regression": not labels, "labels": labels or None} if self.said else {}),
        }

    def stages(self) -> list[tuple[str, float]]:
        """The files that a run of SQuAD trains on, and their epochs."""
        found = []
        for stage in self._get(list, "stages") or []:
            file, epochs = (stage.get("file"), stage.get("epochs")) if isinstance(stage, dict) else (None, None)
            if not _is_path(file) or isinstance(epochs, bool) or not isinstance(epochs, (int, float)):
                raise self._damaged(f"there is a stage {stage!r:.40}")
            found.append((str(file), epochs))
        return found

    def dev_file(self) -> str | None:
        return self._path("data", "dev", "path")

    def _path(self, *keys: str) -> str | None:
        found = self._get(str, *keys)
        if found is not None and not _is_path(found):
            raise self._damaged(f"{' '.join(keys)} is {found!r:.40}")
        return found

    def _get(self, kind: type, *keys: str) -> Any:
        found: Any = self.said
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, (kind, type(None))):
            raise self._damaged(f"{' '.join(keys)} is {found!r:.40}")
        return found

    def _damaged(self, what: str) -> RunError:
        where = remote.name(self.path / DESCRIPTION)
        return RunError(f"{where}: {what}; restore the file or train anew")


def _is_path(value: object) -> bool:
    """Whether the system can be asked for a file of that name."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value) and value != ""
    except UnicodeEncodeError:
        return False
