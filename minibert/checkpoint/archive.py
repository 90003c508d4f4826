"""Google's zips as they are downloaded: a config, a vocabulary and a TensorFlow checkpoint, deflated.

    uncased_L-12_H-768_A-12/bert_model.ckpt.{index,meta,data-00000-of-00001}, bert_config.json, vocab.txt

A deflated file cannot be mapped, so the files that count are unpacked, into a temporary folder that goes with the
process, or by `minibert.google` into the cache for good. Only a file's own name is used, never its path in the zip.
The format is PKWARE's (APPNOTE.TXT); the standard library reads it, and this module guards what that leaves open.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from minibert import files, temporary, zips
from minibert.errors import CheckpointError

CONFIG = "bert_config.json"
MAGIC = b"PK\x03\x04"
_WANTED = re.compile(
    r"bert_config\.json|vocab\.txt|(?P<prefix>\w[\w.-]{0,99}\.ckpt(-\d{1,20})?)\.(?P<part>index|data-\d{5}-of-\d{5})",
    re.ASCII,
)
_MOST_FILES = 100  # to unpack; Google's zips have four
_MOST_TIMES = 10  # that they may grow: weights hardly do, and with moments that are all zero threefold
_HEADER = 30  # bytes, at the least, before each file's content
_DAMAGED = "the zip is damaged: get it again"
# What zipfile raises for bytes that are no zip, or of a kind that it does not know. RuntimeError: encrypted;
# ValueError and OSError: a name that is not UTF-8, a place that no file or no file of this system has.
_FAILURES = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)


def is_archive(path: Path) -> bool:
    """Whether a file is a zip that holds a TensorFlow checkpoint; PyTorch's files are zips of another kind."""
    with files.open_read(path, CheckpointError) as file, files.one_line(path, "read", CheckpointError):
        if file.read(len(MAGIC)) != MAGIC:
            return False
        try:
            members = _open(file, path).infolist()
        except CheckpointError:
            return False  # PyTorch's reader says what is wrong
        return any((match := _match(member)) and match["part"] == "index" for member in members)


def unpack(path: Path) -> Path:
    """A temporary folder, until the end of the process, with the archive's checkpoint, config and vocabulary."""
    with files.one_line(path, "read", CheckpointError):
        state = path.stat()
    return _unpack(path, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))


@functools.cache
def _unpack(path: Path, version: tuple[int, ...]) -> Path:
    """As `unpack`; a file that has been replaced is of another version."""
    cache = files.user_cache()
    with files.one_line(cache, "write", CheckpointError):
        cache.mkdir(parents=True, exist_ok=True)
        folder = temporary.folder("zip-", within=cache)
    unpack_to(path, folder)
    return folder


def unpack_to(path: Path, folder: Path) -> None:
    """Writes the archive's checkpoint, config and vocabulary into `folder`, which is removed where that fails.

    Raises CheckpointError for whatever is wrong with the archive, and MinibertError where the disk is full.
    """
    try:
        with files.open_read(path, CheckpointError) as file:
            archive = _open(file, path)
            _check_apart(archive, path)
            most = _MOST_TIMES * (file.seek(0, 2) + files.CHUNK)
            for name, member in _choose(archive, path, most).items():
                files.write_whole(folder / name, functools.partial(_copy, archive, member, path))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def config(path: Path) -> bytes:
    """The archive's bert_config.json. CheckpointError where it has none, or several."""
    with files.open_read(path, CheckpointError) as file:
        archive = _open(file, path)
        found = [member for member in archive.infolist() if (match := _match(member)) and match[0] == CONFIG]
        if len(found) != 1 or found[0].file_size > files.CHUNK:
            raise CheckpointError(f"{path}: holds not one {CONFIG} of at most a MiB: give Google's zip")
        return b"".join(_inflate(archive, found[0], f"{path}: {CONFIG}"))


def _choose(archive: zipfile.ZipFile, path: Path, most: int) -> dict[str, zipfile.ZipInfo]:
    """What to unpack, by its own name: one checkpoint, of at most `most` bytes."""
    wanted: dict[str, zipfile.ZipInfo] = {}
    prefixes = set()
    for member in archive.infolist():
        if match := _match(member):
            if match[0] in wanted:
                raise CheckpointError(f"{path}: holds {match[0]} twice: unpack it and give the path of one checkpoint")
            wanted[match[0]] = member
            prefixes |= {match["prefix"]} - {None}
    if len(prefixes) != 1:
        raise CheckpointError(f"{path}: holds {len(prefixes)} TensorFlow checkpoints, not one: give Google's zip")
    size = sum(member.file_size for member in wanted.values())
    if len(wanted) > _MOST_FILES or size > most:
        raise CheckpointError(f"{path}: would unpack to {len(wanted)} files of {size} bytes: no checkpoint does")
    return wanted


def _match(member: zipfile.ZipInfo) -> re.Match[str] | None:
    return _WANTED.fullmatch(member.filename.replace("\\", "/").rpartition("/")[2])


@contextlib.contextmanager
def _damage(where: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as reason:
        said = " ".join(str(reason).split())[:200] or type(reason).__name__
        raise CheckpointError(f"{where}: {said}: {_DAMAGED}") from None


def _open(file: BinaryIO, path: Path) -> zipfile.ZipFile:
    with _damage(str(path)):
        return zips.opened(file)


def _check_apart(archive: zipfile.ZipFile, path: Path) -> None:
    """Files that share bytes are how a small zip unpacks to a large one."""
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise CheckpointError(f"{path}: {member.filename[:200]!r} lies over another file: {_DAMAGED}")
        end = member.header_offset + _HEADER + member.compress_size


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, target: BinaryIO) -> None:
    """Inflates one file in pieces; its CRC-32 and its size are checked on the way."""
    for block in _inflate(archive, member, f"{path}: {member.filename[:200]!r}"):
        target.write(block)


def _inflate(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> Iterator[bytes]:
    left = member.file_size
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise CheckpointError(f"{where} is neither stored nor deflated: {_DAMAGED}")
    member = copy.copy(member)
    member.file_size += 1  # zipfile stops at the size it is told: whether more follows shows only so
    with _damage(where), archive.open(member) as stream:
        while block := stream.read(files.CHUNK):
            left -= len(block)
            yield block
    if left:
        raise CheckpointError(f"{where} is not of the size it says: {_DAMAGED}")
