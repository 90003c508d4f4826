"""Objects in Google Cloud Storage, at gs:// addresses: looked up, listed, read in ranges, written whole, removed.

gcsfs finds the credentials and carries the requests (https://cloud.google.com/storage/docs/json_api). A bucket is
spoken to without credentials until it refuses, so that a public one needs none. What comes is held to its length and to
the object's CRC-32C. STORAGE_EMULATOR_HOST means what it means to Google's own libraries.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar

from minibert.errors import ConfigError, MinibertError, StorageError

T = TypeVar("T")
CHUNK = 8 << 20  # bytes a request; uploads want a multiple of 256 KiB
TRIES = 3  # rounds; gcsfs makes six tries in each, half a minute in all
PAUSE = 5.0  # seconds after the first round, and four times as many after each other
WAIT = 3.0  # seconds after which it is said that a bucket has not answered yet
SILENCE = 60.0  # seconds without a byte after which a request is made again
_TOKEN = "minibert-upload"  # a key of an object's own metadata
_ADDRESS = re.compile(r"gs:/{1,2}(?=[^/])")  # pathlib makes one slash of two
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
LOGIN = "log in with `gcloud auth application-default login`, or have the bucket's owner give you access"

_CLOSED = (401, 403)

log = logging.getLogger(__name__)

_closed: set[str] = set()  # buckets that want credentials
_reached: set[str] = set()  # buckets that have answered


class Absent(StorageError):
    """There is no such object or bucket."""


class Refused(StorageError):
    """The bucket is closed to these credentials, or to having none."""


class Changed(StorageError):
    """Another object stands there than was to be replaced."""


class Object(NamedTuple):
    """One generation of an object: its name in the bucket, bytes, CRC-32C in base64, and the generation's number.

    token: which call of `upload` it comes from; "" for objects that others have put there.
    """

    key: str
    size: int
    crc32c: str
    generation: int
    token: str

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def sum(self) -> tuple[int, str]:
        """What `checksum` says of a file that holds the same."""
        return self.size, self.crc32c


def is_address(path: object) -> TypeGuard[str | Path]:
    return isinstance(path, (str, Path)) and _ADDRESS.match(os.fspath(path)) is not None


def address(path: str | os.PathLike[str]) -> str:
    """The gs:// address without a slash at the end. ConfigError where it cannot be one."""
    rest = _ADDRESS.sub("", os.fspath(path)).rstrip("/")
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or (key and not is_relative(key)):
        raise ConfigError(f"gs://{rest[:200]}: is no address: write gs://BUCKET/NAME")
    return f"gs://{rest}"


def is_relative(name: str) -> bool:
    """Whether a name's parts can be those of a path on any system, and lead nowhere else."""
    parts = name.split("/")
    return name.isprintable() and not any(part in ("", ".", "..") or "\\" in part or len(part) > 200 for part in parts)


def split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("gs://").partition("/")
    return bucket, key


def stat(url: str) -> Object | None:
    """The object at an address, None where there is none."""
    bucket, key = split(url)
    try:
        return _call(url, "GET", "b/{}/o/{}", bucket, key, understand=_object)[1]
    except Absent:
        return None


def listing(url: str, deep: bool = False) -> list[Object]:
    """The objects in gs://BUCKET/FOLDER, with `deep` those in its folders, too."""
    bucket, folder = split(url)
    found: list[Object] = []
    page: dict[str, str] = {}
    while True:
        options = {"prefix": f"{folder}/" if folder else "", **({} if deep else {"delimiter": "/"}), **page}
        _, (objects, following) = _call(url, "GET", "b/{}/o", bucket, understand=_page, **options)
        found += objects
        if not following:
            return [each for each in found if not each.key.endswith("/")]  # consoles mark empty folders with such names
        page = {"pageToken": following}


def read(bucket: str, found: Object, start: int, size: int) -> bytes:
    """`size` bytes of that generation, from byte `start`."""
    if not size:
        return b""
    url = f"gs://{bucket}/{found.key}"
    headers = {"Range": f"bytes={start}-{start + size - 1}"}
    options = {"alt": "media", "generation": str(found.generation), "headers": headers}

    def whole(body: bytes) -> bytes:
        if len(body) != size:
            raise ValueError(f"{len(body)} of {size} bytes came")
        return body

    return _call(url, "GET", "b/{}/o/{}", bucket, found.key, understand=whole, **options)[1]


def download(bucket: str, found: Object, path: Path, progress: Callable[[str, int, int | None], None] | None) -> None:
    """Writes that generation to `path`, whole; what has come is kept as NAME.part, from which a later try goes on.

    Another generation will do if it has the same bytes: a folder may have been copied with its manifest.
    """
    url, part = f"gs://{bucket}/{found.key}", path.with_name(f"{path.name}.part")
    for _ in range(TRIES):
        with open(part, "ab") as file:
            have = file.tell()
            while have < found.size:
                try:
                    block = read(bucket, found, have, min(CHUNK, found.size - have))
                except Absent:
                    there = stat(url)
                    if there is None or there.sum != found.sum or there.generation == found.generation:
                        raise
                    found = there
                    continue
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(path.name, have, found.size)
            file.flush()
            os.fsync(file.fileno())
        if checksum(part) == found.sum:
            os.replace(part, path)
            return
        part.unlink()
    raise StorageError(f"{url}: what comes does not have the object's checksum: try again, or upload the object anew")


def upload(url: str, path: Path, generation: int | None = None) -> Object:
    """Writes a local file as an object, which appears when it is whole; the server checks its checksum.

    `generation`: what must stand there now, 0 for nothing; Changed where something else does.
    """
    size, crc32c = checksum(path)
    token = secrets.token_hex(8)
    for attempt in range(TRIES):
        try:
            return _upload(url, path, size, crc32c, token, generation)
        except Changed:
            # The answer to an upload that had succeeded may have been lost on its way, and gcsfs have tried again.
            there = stat(url)
            if there is None or there.token != token:
                raise
            return there
        except _SessionLost:
            time.sleep(PAUSE * attempt)
    raise StorageError(f"{url}: the upload was cut off {TRIES} times: try again")


class _SessionLost(Exception):
    """An upload that the server knows nothing of any more."""


def _upload(url: str, path: Path, size: int, crc32c: str, token: str, generation: int | None) -> Object:
    """One resumable upload (https://cloud.google.com/storage/docs/performing-resumable-uploads)."""
    bucket, key = split(url)
    described = {"name": key, "crc32c": crc32c, "metadata": {_TOKEN: token}}
    options: dict[str, Any] = {"uploadType": "resumable", "name": key, "json": described}
    if generation is not None:
        options["ifGenerationMatch"] = str(generation)
    place = f"{_service()}/upload/storage/v1/b/{bucket}/o"
    headers, _ = _call(url, "POST", place, understand=bytes, **options)
    session, done, vain, failed = headers.get("Location"), 0, 0, False
    with open(path, "rb") as file:
        while session and vain < TRIES:
            file.seek(done)
            part = b"" if failed else file.read(CHUNK)  # after a failure the server is asked how far it has come
            span = f"bytes {done}-{done + len(part) - 1}/{size}" if part else f"bytes */{size}"
            try:
                content_range = {"Content-Range": span}
                headers, whole = _call(url, "PUT", session, understand=_uploaded, headers=content_range, data=part)
            except Absent:
                raise _SessionLost from None
            except (Changed, Refused):
                raise
            except StorageError:
                vain, failed = vain + 1, True
                continue
            if whole:
                return whole
            kept = re.fullmatch(r"bytes=0-([0-9]+)", headers.get("Range", ""))
            received = int(kept[1]) + 1 if kept else 0
            vain = 0 if received > done else vain + (not failed)
            done, failed = received, False
    raise _SessionLost


def remove(bucket: str, found: Object) -> None:
    """Removes that generation, if it is still there."""
    url, there = f"gs://{bucket}/{found.key}", str(found.generation)
    with contextlib.suppress(Absent, Changed):
        _call(url, "DELETE", "b/{}/o/{}", bucket, found.key, understand=bytes, ifGenerationMatch=there)


def checksum(path: Path) -> tuple[int, str]:
    """A local file's size and CRC-32C, in base64 as the service has it."""
    import google_crc32c  # here, so that all else runs where it is not installed

    size, crc = 0, 0
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            size, crc = size + len(block), google_crc32c.extend(crc, block)
    return size, base64.b64encode(crc.to_bytes(4, "big")).decode()


def _object(body: bytes) -> Object:
    return _described(json.loads(body))


def _uploaded(body: bytes) -> Object | None:
    """What an upload has made; None while it lasts."""
    return _object(body) if body else None


def _page(body: bytes) -> tuple[list[Object], str | None]:
    answer = json.loads(body)
    return [_described(item) for item in answer.get("items", [])], answer.get("nextPageToken")


def _described(item: Mapping[str, Any]) -> Object:
    token = (item.get("metadata") or {}).get(_TOKEN, "")
    return Object(item["name"], int(item["size"]), item["crc32c"], int(item["generation"]), str(token))


def _service() -> str:
    return _client(False).base.removesuffix("/storage/v1/")


def _call(url: str, *request: str, understand: Callable[[bytes], T], **options: Any) -> tuple[Mapping[str, str], T]:
    """The headers that answer a request about `url`, and what `understand` makes of the body, which may be cut short.

    gcsfs tries again where the server is busy or fails or the line breaks; rounds of that, time that runs out and a
    body that is not understood are this function's. A StorageError says in a line what was in vain.
    """
    bucket = split(url)[0]
    pause = PAUSE
    for last in (*[False] * (TRIES - 1), True):
        try:
            with _waiting(bucket):
                headers, body = _speak(bucket, *request, **options)
            _reached.add(bucket)
            try:
                return headers, understand(body)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason: Exception = error
        except MinibertError:  # such as that the extra is missing
            raise
        except Exception as error:  # of gcsfs, aiohttp, requests and google.auth, which share no class
            status = _status(error)
            if status:
                _reached.add(bucket)
            if status == 404:
                raise Absent(f"{url}: there is no such object, or no such bucket: check the address") from None
            if status == 412:
                raise Changed(f"{url}: another object stands there by now") from None
            if status in _CLOSED:
                raise Refused(f"{url}: access is denied: {LOGIN}") from None
            reason = error
            hopeless = type(error).__name__.startswith("ClientConnector") and bucket not in _reached
            if hopeless or not _passes(error):
                last = True
        if last:
            raise StorageError(f"{url}: the storage service cannot be used ({_line(reason)}): try again") from None
        time.sleep(pause)
        pause *= 4
    raise AssertionError("the last round returns or raises")


@contextlib.contextmanager
def _waiting(bucket: str) -> Iterator[None]:
    """Says so where a bucket that has not answered yet takes long: gcsfs tries for half a minute and says nothing."""
    told = threading.Timer(WAIT, log.warning, ("gs://%s: no answer yet, still trying; is there a network?", bucket))
    told.daemon = True
    if bucket not in _reached:
        told.start()
    try:
        yield
    finally:
        told.cancel()


def _speak(bucket: str, *request: str, **options: Any) -> tuple[Mapping[str, str], bytes]:
    """A request without credentials, and where the bucket refuses that, from then on with them."""
    if bucket not in _closed:
        try:
            return _client(False).call(*request, **options)
        except Exception as error:
            if _status(error) not in _CLOSED:
                raise
            _closed.add(bucket)
    return _client(True).call(*request, **options)


def _status(error: Exception) -> int | None:
    """The answer's status as far as gcsfs tells it, which changed from version to version."""
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return 403
    if isinstance(error, (FileNotFoundError, FileExistsError)):
        return 404 if isinstance(error, FileNotFoundError) else 412
    code = str(getattr(error, "code", ""))
    return int(code) if code.isdigit() else None


def _passes(error: Exception) -> bool:
    """Whether what gcsfs has given up may go better later."""
    from gcsfs.retry import is_retriable

    return isinstance(error, asyncio.TimeoutError) or is_retriable(error)


def _line(reason: Exception) -> str:
    return " ".join(str(reason).split())[:200] or type(reason).__name__


@functools.cache
def _client(credentials: bool) -> Any:
    """gcsfs's file system, of which `call` is used: its open files have no preconditions and check nothing."""
    try:
        import aiohttp
        import gcsfs
    except ImportError:
        raise ConfigError('gs:// needs the extra gcs: pip install ".[gcs]" in the checkout') from None
    logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it logs tracebacks of what is told in a line here
    return gcsfs.GCSFileSystem(
        token=None if credentials else "anon",
        requests_timeout=aiohttp.ClientTimeout(sock_connect=SILENCE, sock_read=SILENCE),
        skip_instance_cache=True,
    )
