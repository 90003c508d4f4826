"""Files and folders at gs:// addresses: copies to read, and folders that are worked in here and published there.

What is read comes into the user's cache, a folder for each version of what stands at an address, so that nothing
changes under who reads it. A folder is published file by file. As an object store renames nothing, a manifest is
written last:

manifest.json   {"writer": ..., "files": {NAME: {"object": ..., "size": ..., "crc32c": ..., "generation": ...}}}

It alone says what is in the folder, and no other object is ever overwritten: a file that changes is another object, and
the old one goes when no manifest names it. So whatever breaks off in between, the folder is as it was published last.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minibert import files, gcs
from minibert.errors import RunError, StorageError
from minibert.gcs import Object, address, is_address

MANIFEST = "manifest.json"
OTHER = "~"  # between a file's name and its writer, in the name of an object that could not have the file's own
MARK = ".@"  # begins the names of the cache's folders that are no parts of addresses
UNUSED = 30 * 86400  # seconds after which a copy goes
TRIES = 3  # to read a folder that is being published meanwhile
_LIMIT = 16 << 20  # bytes of a manifest
_TENSORFLOW = re.compile(r"\.(index|meta|data-[0-9]{5}-of-[0-9]{5})$")
# What belongs to a checkpoint that is one of these names, or that is tried where a bucket may be read but not listed.
CONFIGS = ("config.json", "bert_config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json")  # fmt: skip
_SHARDS = ("*-*-of-*.safetensors", "*-*-of-*.bin")
_PREFIX = ("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", *_PREFIX)

Wanted = Callable[[str], bool]  # of a name in the folder, with strokes where it is in one below


def local(path: str | Path, wanted: Wanted | None = None, progress: files.Progress | None = None) -> str | Path:
    """`path` itself, or of a gs:// address the path of a copy: of an object, or of a folder's files.

    With `wanted` the folders below count, too. StorageError where nothing stands there.
    """
    return _local(address(path), wanted, progress, _object_or_folder) if is_address(path) else path


def checkpoint(path: str | Path, progress: files.Progress | None = None) -> str | Path:
    """As `local`, of a checkpoint: TensorFlow's prefix will do, and config and vocabulary come along."""
    return _local(address(path), _no_state, progress, _prefix_or_folder) if is_address(path) else path


def _no_state(name: str) -> bool:
    return "/" not in name and name != "state.safetensors"


def name(path: Path) -> str:
    """What people call a path: the gs:// address that it is the local copy of, else itself."""
    if not path.is_relative_to(_root()):
        return str(path)
    return "gs://" + "/".join(part for part in path.relative_to(_root()).parts if not part.startswith(MARK))


def _root() -> Path:
    return files.user_cache() / "gs"


def _cache(url: str) -> Path:
    return _root().joinpath(*url.removeprefix("gs://").split("/"))


# What was found: the folder's address, its objects by the files' names, and the name that was asked for in it.
_Found = tuple[str, dict[str, Object], str]


def _local(
    url: str, wanted: Wanted | None, progress: files.Progress | None, find: Callable[[str, Wanted | None], _Found]
) -> Path:
    for attempt in range(TRIES):
        folder, found, name = find(url, wanted)
        try:
            return _copied(folder, found, progress) / name
        except gcs.Absent:  # published anew since the manifest was read
            if attempt == TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


def _copied(url: str, found: Mapping[str, Object], progress: files.Progress | None) -> Path:
    """The cache's folder for these objects, which are downloaded where it lacks them."""
    version = hashlib.sha256(repr(sorted((name, each.generation) for name, each in found.items())).encode())
    folder = _cache(url) / f"{MARK}{version.hexdigest()[:16]}"
    with files.one_line(folder, "write", StorageError), files.locked(folder / ".lock"):
        os.utime(folder)
        for name, each in found.items():
            path = folder / name
            if not path.exists():
                _prune()
                path.parent.mkdir(parents=True, exist_ok=True)
                gcs.download(gcs.split(url)[0], each, path, progress)
    return folder


def _prune() -> None:
    """Removes copies that nobody has used for long, and what killed processes left."""
    for old in _root().rglob(f"{MARK}*"):
        with contextlib.suppress(OSError):  # another process may be clearing up too
            if old.stat().st_mtime < time.time() - UNUSED:
                shutil.rmtree(old)


def _object_or_folder(url: str, wanted: Wanted | None) -> _Found:
    if gcs.split(url)[1] and (found := gcs.stat(url)):
        folder, _, name = url.rpartition("/")
        return folder, {name: found}, name
    return url, _folder(url, wanted), ""


def _prefix_or_folder(url: str, wanted: Wanted | None) -> _Found:
    """A checkpoint's file or prefix with what else belongs to it, or a folder."""
    folder, _, name = url.rpartition("/")
    stem = _TENSORFLOW.sub("", name)
    if gcs.split(url)[1]:
        try:
            beside = {each.name: each for each in gcs.listing(folder)}
        except gcs.Refused:
            beside = _probed(folder, (name, f"{stem}.index", f"{stem}.data-00000-of-00001", *CONFIGS))
        if name in beside or f"{stem}.index" in beside:
            patterns = (*CONFIGS, *(_SHARDS if name.endswith(".index.json") else ()))
            found = {
                each: beside[each]
                for each in beside
                if each == name or each.startswith(f"{stem}.") or any(fnmatch.fnmatch(each, p) for p in patterns)
            }
            return folder, found, name
    return url, _folder(url, wanted), ""


def _folder(url: str, wanted: Wanted | None) -> dict[str, Object]:
    """The files of a folder: what its manifest names, or what stands there. StorageError where there is none."""
    try:
        found = _state(url, deep=wanted is not None)[0]
    except gcs.Refused:
        found = _probed(url, (*CONFIGS, *_WEIGHTS))
        if not found:
            raise
    found = {name: each for name, each in found.items() if wanted is None or wanted(name)}
    if not found:
        raise StorageError(f"{url}: nothing stands there, or nothing that is looked for: check the address")
    return found


def _probed(url: str, names: Sequence[str]) -> dict[str, Object]:
    """Of these names those that are there: a public bucket may let its objects be read and not listed."""
    found = {}
    for name in names:
        with contextlib.suppress(gcs.Refused):
            if each := gcs.stat(f"{url}/{name}"):
                found[name] = each
    return found


def _state(url: str, deep: bool = False) -> tuple[dict[str, Object], int]:
    """A folder's files, by its manifest, and that object's generation; where it has none, all objects, and 0."""
    for _ in range(TRIES):
        manifest = gcs.stat(f"{url}/{MANIFEST}")
        if manifest is None:
            start = len(gcs.split(url)[1]) + 1 if gcs.split(url)[1] else 0
            listed = {each.key[start:]: each for each in gcs.listing(url, deep=deep)}
            if MANIFEST not in listed:
                return {name: each for name, each in listed.items() if gcs.is_relative(name)}, 0
        elif manifest.size > _LIMIT:
            raise StorageError(f"{url}/{MANIFEST}: {manifest.size} bytes are no manifest: give another address")
        else:
            with contextlib.suppress(gcs.Absent):  # replaced meanwhile
                content = gcs.read(gcs.split(url)[0], manifest, 0, manifest.size)
                return _parsed(url, content), manifest.generation
    raise StorageError(f"{url}/{MANIFEST}: changes all the time: try again")


def _parsed(url: str, content: bytes) -> dict[str, Object]:
    key = gcs.split(url)[1]
    listed = files.parse_json(content, f"{url}/{MANIFEST}", StorageError).get("files")
    found = {}
    for name, entry in listed.items() if isinstance(listed, dict) else [("", None)]:
        values: Any = entry if isinstance(entry, dict) else {}
        stands = values.get("object")
        if not (
            gcs.is_relative(name) and "/" not in name
            and isinstance(stands, str) and (stands == name or stands.startswith(name + OTHER)) and "/" not in stands
            and all(type(values.get(number)) is int and values[number] >= 0 for number in ("size", "generation"))
            and isinstance(values.get("crc32c"), str)
        ):  # fmt: skip
            raise StorageError(f"{url}/{MANIFEST}: is no manifest of minibert's: give another address")
        place = f"{key}/{stands}" if key else stands
        found[name] = Object(place, values["size"], values["crc32c"], values["generation"])
    return found


class Mirror:
    """A folder at a gs:// address and `path`, the local one that is worked in for it until the object goes.

    `wanted` says which names are this folder's own; others stay as they are. Whoever publishes first keeps the address:
    the other's next `publish` raises RunError and changes nothing.
    """

    def __init__(self, path: str | Path, wanted: Wanted):
        self.url, self.wanted = address(path), wanted
        self.bucket = gcs.split(self.url)[0]
        self.found, self.generation = _state(self.url)
        self.writer = secrets.token_hex(4)
        self.swept = False
        self._own = {name for name in self.found if wanted(name)}  # those that are not here are to go
        with files.one_line(_cache(self.url), "write", StorageError):
            _cache(self.url).mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=f"{MARK}work-", dir=_cache(self.url)))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def pull(self) -> None:
        """Brings the folder's own files here, of one and the same publication."""
        for attempt in range(TRIES):
            try:
                for name in sorted(self._own):
                    with files.one_line(self.path, "write", StorageError):
                        gcs.download(self.bucket, self.found[name], self.path / name, None)
                return
            except gcs.Absent:
                if attempt == TRIES - 1:
                    raise
                self.found, self.generation = _state(self.url)
                self._own = {name for name in self.found if self.wanted(name)}
                for path in self.path.iterdir():
                    path.unlink()

    def publish(self, settle: bool = False) -> None:
        """Makes the folder there what it is here. With `settle` every file gets the object of its own name."""
        if not self.generation:
            self._commit(self.found)  # from now on what is on its way does not count as there
        paths = {p.name: p for p in sorted(self.path.iterdir()) if p.is_file() and not p.name.startswith(".")}
        found = {name: each for name, each in self.found.items() if name not in self._own}
        for name, path in paths.items():
            there = self.found.get(name)
            same = there is not None and (there.size, there.crc32c) == gcs.checksum(path)
            found[name] = there if there is not None and same else self._upload(name, path)
        self._own |= paths.keys()
        self._commit(found)
        if settle and (moved := [name for name in paths if found[name].name != name]):
            self._commit(found | {name: self._upload(name, paths[name]) for name in moved})

    def _upload(self, name: str, path: Path) -> Object:
        """A file as an object of its own name, or where something stands under that of a name that nobody has."""
        there = self.found.get(name)
        if there is None or there.name != name:
            with contextlib.suppress(gcs.Changed):
                return gcs.upload(f"{self.url}/{name}", path, generation=0)
        other = f"{name}{OTHER}{self.writer}-{secrets.token_hex(4)}"
        return gcs.upload(f"{self.url}/{other}", path, generation=0)

    def _commit(self, found: Mapping[str, Object]) -> None:
        """Writes the manifest, if it is still the one that is known here; removes what it does not name any more."""
        entries = {
            name: {"object": each.name, "size": each.size, "crc32c": each.crc32c, "generation": each.generation}
            for name, each in found.items()
        }
        # Two manifests are never equal, so that an upload whose answer was lost can be told from another writer's.
        text = json.dumps({"writer": f"{self.writer}-{secrets.token_hex(4)}", "files": entries}, indent=2)
        with tempfile.NamedTemporaryFile(dir=self.path, prefix=".manifest") as file:
            file.write(text.encode())
            file.flush()
            try:
                there = gcs.upload(f"{self.url}/{MANIFEST}", Path(file.name), self.generation)
            except gcs.Changed:
                raise RunError(
                    f"{self.url}: another process writes into it, and this one stops; choose another --output-dir"
                ) from None
        old = [*self.found.values(), *([] if self.swept else self._leftovers())]
        self.found, self.generation, self.swept = dict(found), there.generation, True
        named = {each.key for each in found.values()}
        for each in old:
            if each.key not in named:
                gcs.remove(self.bucket, each)

    def _leftovers(self) -> list[Object]:
        """The folder's own objects, among them those that a writer put there and was killed before it named them."""
        there = gcs.listing(self.url)
        return [each for each in there if each.name != MANIFEST and self.wanted(each.name.partition(OTHER)[0])]


@contextlib.contextmanager
def output(path: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """A folder to write into: `path`, or for a gs:// address a local one, published when all has gone well.

    Files of other names stay there. StorageError where one would be replaced without `overwrite`.
    """
    if not is_address(path):
        yield Path(path)
        return
    mirror = Mirror(path, lambda name: False)
    yield mirror.path
    if not overwrite and (twice := [p.name for p in sorted(mirror.path.iterdir()) if p.name in mirror.found]):
        raise StorageError(f"{mirror.url}/{twice[0]}: is there already: choose another place or add --overwrite")
    mirror.publish(settle=True)
