"""The only opener of paths: atomic writes, checked JSON, checksums, and https downloads that resume.

Everything read here is untrusted and everything written is whole or not there: a new file gets a temporary
name in the same folder, is flushed to the disk and then takes its name in one step (os.replace). At gs:// a file is
written whole, too; what is read there comes through minibert/remote.py.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.client
import json
import os
import re
import secrets
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minibert import gcs, temporary
from minibert.errors import DataError, DownloadError, MinibertError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
OFFLINE_HELP = "try again, or name a local copy: of a checkpoint its directory or file, of data their folder"

# progress(name, bytes done, bytes in all or None where the server does not say)
Progress = Callable[[str, int, int | None], None]


def user_cache() -> Path:
    """The folder for what can be fetched again: $XDG_CACHE_HOME/minibert or ~/.cache/minibert.

    A user without a home, or whose home cannot be written, gets a temporary one, for this process.
    """
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "minibert"
    folder = Path(os.path.expanduser("~")) / ".cache" / "minibert"
    # os.path's questions: Path's raise where a folder above must not be entered, such as root's home after su.
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    usable = os.path.isdir(folder) or (os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK))
    return folder if folder.is_absolute() and usable else _temporary_cache()


@functools.cache
def _temporary_cache() -> Path:
    """A folder for this process alone, unless a run is left in it that could not be published."""
    return temporary.folder("minibert-", keep=lambda folder: any(folder.glob("unpublished-*")))


@contextlib.contextmanager
def one_line(path: Path | str, doing: str, error: type[MinibertError] = MinibertError) -> Iterator[None]:
    """Turns the operating system's refusal to read or write `path` into one line that says what to do."""
    try:
        yield
    except OSError as reason:
        if wrong := _wrong_kind(path, reason):
            raise error(f"{path}: cannot {doing}: {wrong}") from reason
        refused = "check its permissions" if doing == "read" else "check who owns it, or choose another place"
        advice = {
            errno.ENOSPC: "free some space or choose another place",
            errno.EDQUOT: "your quota is used up: free some space or choose another place",
            errno.EROFS: "choose a place that can be written",
            errno.EACCES: refused,
            errno.EPERM: refused,
            errno.ENOENT: "check the path",
        }.get(reason.errno or 0, "check the path and the disk")
        raise error(f"{path}: cannot {doing}: {reason.strerror or reason}; {advice}") from reason


def _wrong_kind(path: Path | str, reason: OSError) -> str:
    """What is a folder and should be a file, or the other way round, where that is the reason; else ""."""
    if reason.errno == errno.EISDIR:
        return "it is a folder; give the path of a file"
    if reason.errno in (errno.EEXIST, errno.ENOTDIR):
        for place in (Path(path), *Path(path).parents):
            if os.path.isfile(place):
                which = "it" if place == Path(path) else place
                return f"{which} is a file, not a folder; move it away or choose another path"
    return ""


def open_read(path: Path | str, error: type[MinibertError] = MinibertError) -> BinaryIO:
    """A local file opened for reading bytes."""
    with one_line(path, "read", error):
        return open(path, "rb")


def is_stream(path: Path | str) -> bool:
    """Whether it is a device or a pipe, or, as /dev/stdout, stands for what may be a file: nothing to be replaced."""
    path = Path(path)
    return path.exists() and not (path.is_file() and path.absolute().parts[1:2] not in (("dev",), ("proc",)))


def keep_apart(source: Path | str, target: Path | str) -> None:
    """DataError where writing `target` would replace `source`, which is read: one file, be it by a link or at gs://."""
    if _is_same(source, target) and not is_stream(target):
        raise DataError(f"{target}: is the input, {source}, which would be lost: choose another --output")


def _is_same(one: Path | str, other: Path | str) -> bool:
    if gcs.is_address(one) and gcs.is_address(other):
        return gcs.address(one) == gcs.address(other)
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def write_whole(path: Path | str, content: bytes | Callable[[BinaryIO], None]) -> None:
    """Writes a file whole, as below; `content` is the bytes, or a function that writes them into the open file."""
    with whole(path) as file:
        content(file) if callable(content) else file.write(content)


@contextlib.contextmanager
def whole(path: Path | str) -> Iterator[BinaryIO]:
    """A file to be written whole: on any failure the old file, or none, is what stands there. A stream gets it all."""
    if gcs.is_address(path):
        with tempfile.TemporaryDirectory() as folder:
            with whole(Path(folder) / "file") as file:
                yield file
            gcs.upload(gcs.address(path), Path(folder) / "file")
        return
    path = Path(path)
    with one_line(path, "write"):
        if is_stream(path):
            with open(path, "wb") as file:
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(beside, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise


def remove_temporary(folder: Path, named: Callable[[str], bool]) -> None:
    """Removes what processes that were killed have left of writing files of such names whole."""
    with one_line(folder, "remove what stands in it"):
        for path in list(folder.glob(".*.tmp")):
            if (m := re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", path.name)) and named(m[1]):
                path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until nobody else holds the lock `path`, an empty file that stays; a process that dies lets go of it.

    Where the system or the file system has no such locks, nobody waits. Raises OSError where it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sha256(path: Path | str) -> str:
    """The file's SHA-256 in hexadecimal, read in pieces."""
    with one_line(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path | str, error: type[MinibertError], limit: int = 32 << 20) -> dict[str, Any]:
    """The JSON object in a file; raises `error` where the file is too large, malformed or not an object."""
    with one_line(path, "read", error), open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise error(f"{path}: over {limit} bytes is no config: give a correct file")
    return parse_json(data, str(path), error)


def json_decoder() -> json.JSONDecoder:
    """What parses JSON that is not trusted: a key that stands twice is a ValueError, as are NaN and Infinity."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in pairs:
            if name in result:
                raise ValueError(f"key {name[:200]!r} stands twice")
            result[name] = value
        return result

    def no_constant(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    return json.JSONDecoder(object_pairs_hook=once, parse_constant=no_constant)


def parse_json(data: bytes, where: str, error: type[MinibertError]) -> dict[str, Any]:
    """The JSON object in `data`; a key that stands twice is an error, as are NaN and Infinity."""
    try:
        value = json_decoder().decode(data.decode("utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as reason:  # ValueError: bad UTF-8, bad JSON, a number of thousands of digits
        raise error(f"{where}: not valid JSON ({reason}): get the file again") from None
    if not isinstance(value, dict):
        raise error(f"{where}: not a JSON object: get the file again")
    return value


def fetch(
    url: str,
    path: Path,
    *,
    known_sha256: str | None = None,
    recorded_in: Path | None = None,
    limit: int = 4 << 30,
    progress: Progress | None = None,
    tries: int = 5,
    timeout: float = 30.0,
) -> str:
    """Downloads `url` to `path` and returns its SHA-256; an interrupted download goes on where it stopped.

    What has arrived is kept beside `path` as NAME.VERSION.part, VERSION naming the server's ETag: only the
    same version of the file continues it. Raises DownloadError: not found, out of reach, over `limit` bytes,
    cut short `tries` times without one new byte, without length and checksum by which to see that, or another checksum
    than `known_sha256`, which is the published one or stands in the file `recorded_in`.
    """
    attempt, before = 0, -1
    while True:
        try:
            part, complete = _fetch_once(url, path, limit, progress, timeout)
            break
        except (OSError, http.client.HTTPException) as reason:
            if isinstance(reason, urllib.error.HTTPError) and reason.code < 500 and reason.code not in (408, 429):
                raise DownloadError(
                    f"{url}: the server answered {reason.code} {reason.reason}: {OFFLINE_HELP}"
                ) from None
            if not isinstance(reason, urllib.error.URLError) and getattr(reason, "errno", None) in _DISK:
                with one_line(path, "write", DownloadError):
                    raise
            have = max((old.stat().st_size for old in _parts(path)), default=0)
            attempt = 1 if have > before >= 0 else attempt + 1
            before = have
            if attempt >= tries or _hopeless(reason):
                cause = getattr(reason, "reason", reason)
                raise DownloadError(f"{url}: cannot be reached ({cause}): {OFFLINE_HELP}") from None
            time.sleep(min(0.2 * 2**attempt, 5.0))
    got = sha256(part)
    if known_sha256 is None and not complete:
        part.unlink()
        raise DownloadError(f"{url}: the server does not say how long the file is: whether all of it came is not known")
    if known_sha256 is not None and got != known_sha256:
        part.unlink()
        wanted = f"published {known_sha256}: try again"
        if recorded_in:
            wanted = f"{known_sha256} of an earlier download: if it was meant to change, remove {recorded_in}"
        raise DownloadError(f"{url}: SHA-256 {got} (thrown away) is not the {wanted}")
    with one_line(path, "write", DownloadError):
        os.replace(part, path)
    return got


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)


def _hopeless(reason: Exception) -> bool:
    """No name service or a refusing host will not get better within seconds."""
    cause = getattr(reason, "reason", None)
    return (
        isinstance(reason, urllib.error.URLError) and isinstance(cause, OSError) and not isinstance(cause, TimeoutError)
    )


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.*.part"))


def _fetch_once(url: str, path: Path, limit: int, progress: Progress | None, timeout: float) -> tuple[Path, bool]:
    """One request; returns the part, and whether it is known to be complete. Or it raises, and leaves what came for the
    next to continue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = next(iter(_parts(path)), None)
    # The last byte is asked for again, so that a complete part is answered with its version, not with an error.
    have = max(0, old.stat().st_size - 1) if old else 0
    headers = {"User-Agent": "minibert", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)  # noqa: S310
    except ValueError as reason:
        raise DownloadError(f"{url}: is no address ({reason}): begin it with https://") from None
    except urllib.error.HTTPError as reason:
        reason.close()  # it is the answer, too
        if reason.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and old is not None:
            old.unlink()  # the part is longer than the file: begin again
            raise ConnectionError("the partial file does not fit the server's") from None
        raise
    with response:
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        part = path.with_name(f"{path.name}.{hashlib.sha256(version.encode()).hexdigest()[:8]}.part")
        if response.status == http.client.PARTIAL_CONTENT:
            if part != old or not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
                if old is not None:
                    old.unlink()  # the file has changed on the server since: begin again
                raise ConnectionError("the file changed during the download")
        else:
            have = 0
            for stale in _parts(path):
                stale.unlink()
        length = response.headers.get("Content-Length") or ""
        total = have + int(length) if length.isascii() and length.isdigit() else None
        if (total or 0) > limit:
            raise DownloadError(f"{url}: {total} bytes are more than the {limit} expected: check the address")
        with open(part, "r+b" if have else "wb") as file:
            file.seek(have)
            while block := response.read(CHUNK):
                have += len(block)
                if have > limit:
                    raise DownloadError(f"{url}: more than the {limit} bytes expected: check the address")
                file.write(block)
                if progress is not None:
                    progress(path.name, have, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise ConnectionError(f"{have} of {total} bytes came")
    return part, total is not None or getattr(response, "chunked", False)  # of which the end is seen
