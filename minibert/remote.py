"""What stands at gs:// addresses, as local copies: objects, folders, checkpoints.

They come into the user's cache, into a folder for each version of what stands at an address, so that nothing changes
under who reads it. A folder that minibert has published holds what its manifest says (minibert/mirror.py).
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibert import files, gcs, latest
from minibert.errors import StorageError
from minibert.gcs import Object, address, is_address

MANIFEST = "manifest.json"
OURS = "named"  # the token of what a manifest names
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
_OTHERS = ("model.safetensors", "pytorch_model.bin")  # which come before TensorFlow's
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", *_PREFIX)

Wanted = Callable[[str], bool]  # of a name in the folder, with slashes where it is in one below


def local(path: str | Path, wanted: Wanted | None = None, progress: files.Progress | None = None) -> str | Path:
    """`path` itself, or of a gs:// address the path of a copy: of an object, or of a folder's files.

    With `wanted` the folders below count, too. StorageError where nothing stands there.
    """
    return _local(address(path), wanted, progress, _object_or_folder) if is_address(path) else path


def checkpoint(path: str | Path, progress: files.Progress | None = None) -> str | Path:
    """As `local`, of a checkpoint: TensorFlow's prefix will do, and config and vocabulary come along."""
    return _local(address(path), _no_state, progress, _prefix_or_folder) if is_address(path) else path


def _no_state(name: str) -> bool:
    """What a run goes on from is large, and nobody else reads it."""
    return name != "state.safetensors"


def name(path: Path) -> str:
    """What people call a path: the gs:// address that it is the local copy of, else itself."""
    if not path.is_relative_to(_root()):
        return str(path)
    return "gs://" + "/".join(part for part in path.relative_to(_root()).parts if not part.startswith(MARK))


def _root() -> Path:
    return files.user_cache().resolve() / "gs"


def cache(url: str) -> Path:
    return _root().joinpath(*url.removeprefix("gs://").split("/"))


# What was found: the folder's address, its objects by the files' names, and the name that was asked for in it.
_Found = tuple[str, dict[str, Object], str]


def _local(
    url: str, wanted: Wanted | None, progress: files.Progress | None, find: Callable[[str, Wanted | None], _Found]
) -> Path:
    for attempt in range(TRIES):
        try:
            folder, found, name = find(url, wanted)
            return _copied(folder, found, progress) / name
        except gcs.Absent:  # or published anew since the manifest was read
            if attempt == TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


def _copied(url: str, found: Mapping[str, Object], progress: files.Progress | None) -> Path:
    """The cache's folder for these objects, which are downloaded where it lacks them."""
    version = hashlib.sha256(repr(sorted((name, each.generation) for name, each in found.items())).encode())
    folder = cache(url) / f"{MARK}{version.hexdigest()[:16]}"
    with files.one_line(folder, "write", StorageError), files.locked(folder / ".lock"):
        os.utime(folder)
        lacking = {folder / name: each for name, each in found.items() if not (folder / name).exists()}
        if lacking:
            _prune()
        for path, each in lacking.items():
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
    return url, _folder(url, wanted, deep=wanted is not None), ""


def _prefix_or_folder(url: str, wanted: Wanted | None) -> _Found:
    """A checkpoint's file or prefix with what else belongs to it, or a folder."""
    folder, _, name = url.rpartition("/")
    stem = _TENSORFLOW.sub("", name)
    if gcs.split(url)[1]:
        try:
            beside = state(folder).files
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
    return url, _newest(url, _folder(url, wanted, deep=False)), ""


def _newest(url: str, found: dict[str, Object]) -> dict[str, Object]:
    """Of a folder's TensorFlow checkpoints the one that its file `checkpoint` names, or none where there are other
    weights, which come before them; and whatever else is there.
    """
    if latest.NAME not in found:
        return found
    if any(name.startswith(_OTHERS) for name in found):
        return {name: each for name, each in found.items() if not (_TENSORFLOW.search(name) or name == latest.NAME)}
    newest = latest.newest(_copied(url, {latest.NAME: found[latest.NAME]}, None))
    return {name: each for name, each in found.items() if _TENSORFLOW.sub("", name) in (name, newest)}


def _folder(url: str, wanted: Wanted | None, deep: bool) -> dict[str, Object]:
    """The files of a folder: what its manifest names, or what stands there. StorageError where there is none."""
    try:
        found = state(url, deep).files
    except gcs.Refused:
        found = _probed(url, (*CONFIGS, *_WEIGHTS))
        if not found:
            raise
    found = {name: each for name, each in found.items() if wanted is None or wanted(name)}
    if not found:
        raise gcs.Absent(f"{url}: nothing stands there, or nothing that is looked for: check the address")
    return found


def _probed(url: str, names: Sequence[str]) -> dict[str, Object]:
    """Of these names those that are there: a public bucket may let its objects be read and not listed."""
    found = {}
    for name in names:
        with contextlib.suppress(gcs.Refused):
            if each := gcs.stat(f"{url}/{name}"):
                found[name] = each
    return found


class State(NamedTuple):
    """What is in a folder: its objects by the files' names; of its manifest the holder and the generation.

    Of what minibert has uploaded that counts which the manifest names; all that others have put there counts. Where
    there is no manifest everything does, and holder and generation are "" and 0.
    """

    files: dict[str, Object]
    holder: str
    generation: int


def state(url: str, deep: bool = False) -> State:
    start = len(gcs.split(url)[1]) + 1 if gcs.split(url)[1] else 0
    for _ in range(TRIES):
        manifest = gcs.stat(f"{url}/{MANIFEST}")
        try:
            listed = {each.key[start:]: each for each in gcs.listing(url, deep=deep)}
        except gcs.Refused:
            if manifest is None:
                raise
            listed = {}
        listed = {name: each for name, each in listed.items() if gcs.is_relative(name)}
        if manifest is None:
            if MANIFEST not in listed:
                return State(listed, "", 0)
        elif manifest.size > _LIMIT:
            raise StorageError(f"{url}/{MANIFEST}: {manifest.size} bytes are no manifest: give another address")
        else:
            with contextlib.suppress(gcs.Absent):  # replaced meanwhile
                content = gcs.read(gcs.split(url)[0], manifest, 0, manifest.size)
                named = _parsed(url, content, manifest.generation)
                others = {name: each for name, each in listed.items() if not each.token and name != MANIFEST}
                replaced = {
                    name for name, each in named.files.items() if name in others and others[name].key == each.key
                }
                return named._replace(
                    files=named.files | {n: others[n] for n in others.keys() - named.files | replaced}
                )
    raise StorageError(f"{url}/{MANIFEST}: changes all the time: try again")


def _parsed(url: str, content: bytes, generation: int) -> State:
    key = gcs.split(url)[1]
    manifest = files.parse_json(content, f"{url}/{MANIFEST}", StorageError)
    listed, holder = manifest.get("files"), manifest.get("holder")
    found = {}
    for name, entry in listed.items() if isinstance(listed, dict) and isinstance(holder, str) else [("", None)]:
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
        found[name] = Object(place, values["size"], values["crc32c"], values["generation"], OURS)
    return State(found, str(holder), generation)
