"""Everything minibert raises on purpose: one line each, saying where, what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MinibertError(Exception):
    """The root; the command line prints these as one line and exits with 1."""


class ConfigError(MinibertError):
    """A setting or a model config that is unknown, out of range or contradicts another."""


class DataError(MinibertError):
    """A data file that is missing, empty, truncated or malformed; names the file and the line."""


class CheckpointError(MinibertError):
    """A checkpoint that is missing, malformed or does not fit the model; names the tensor."""


class BackendError(MinibertError):
    """A device, precision or kernel that this machine or this version does not have."""


class DownloadError(MinibertError):
    """A file that could not be fetched, or whose checksum is not the published one."""


class StorageError(MinibertError):
    """A bucket or an object that is missing, closed or out of reach, or that others have changed meanwhile."""


class Stopped(SystemExit):
    """A signal such as SIGTERM that asked for the end, after the state was saved: no error, so that nobody takes it for
    one. It ends a process with the status that shells give to that signal.
    """

    code: int

    def __init__(self, text: str, number: int):
        super().__init__(text)
        self.code = 128 + number


class RunError(MinibertError):
    """A run directory in use or unfit to resume, or training that went wrong (a loss that is not finite)."""


def counted(number: float, what: str) -> str:
    """1 step, 2,300 steps, 0.5 epochs."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {what}{'s' * (number != 1)}"


def did_you_mean(name: str, choice: Iterable[str]) -> str:
    """; did you mean ...? with the nearest of the choice, case, "-" and "_" not counting; "" where none is near."""
    known = {plain(one): one for one in choice}
    close = difflib.get_close_matches(plain(name), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def plain(name: str) -> str:
    """A name as it is compared: SST-2, sst_2 and sst2 are one."""
    return name.lower().replace("-", "").replace("_", "")
