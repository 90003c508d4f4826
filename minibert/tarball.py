"""Unpacks folders of a tar.gz that somebody else has made, in pieces and under names that cannot lead elsewhere.

Only plain files are written: links, devices and whatever lies outside of the wanted folders are left out. The format is
POSIX's (pax), which the standard library reads; this module guards what that leaves open.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from minibert import files
from minibert.errors import DownloadError

_DEEPEST, _LONGEST, _LONGEST_IN_ALL = 32, 255, 1024  # parts of a name, bytes of each and of all; TriviaQA's are 4 deep
_MOST_HEADERS = 1 << 20  # bytes between two files' contents; a longest name needs a few thousand
# What tarfile and gzip raise for bytes that are no archive. ValueError: numbers and names that are none.
_FAILURES = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError)


def unpack(
    path: Path, folder: Path, wanted: Collection[str], limit: int, progress: files.Progress | None = None
) -> None:
    """Writes the plain files of the `wanted` folders, which stand at the archive's top or in its only folder there.

    Raises DownloadError where the archive is damaged, leads out of the folder, or unpacks to more than `limit` bytes;
    what was written until then stays.
    """
    done = shown = 0
    with _damage(path), files.open_read(path, DownloadError) as packed, gzip.open(packed) as unpacked:
        total = os.fstat(packed.fileno()).st_size
        for name, content in _contents(unpacked, path):
            place = _place(name, wanted, path)
            with _created(folder / place) if place else contextlib.nullcontext() as target:
                for block in content:
                    done += len(block)
                    if done > limit:
                        raise DownloadError(f"{path}: unpacks to more than {limit} bytes: not used")
                    if target:
                        target.write(block)
            if progress is not None and packed.tell() > shown:  # it is read in blocks, of many small files each
                shown = packed.tell()
                progress(f"unpacking {path.name}", shown, total)
    if hasattr(os, "sync"):
        os.sync()  # once, for TriviaQA has hundreds of thousands of files


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _FAILURES as reason:
        said = " ".join(str(reason).split())[:200] or type(reason).__name__
        raise DownloadError(f"{path}: a damaged tar.gz ({said}): fetch it again") from None


def _place(name: str, wanted: Collection[str], path: Path) -> Path | None:
    """Where a member goes, below the folder; None for what is not wanted."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    kept = parts if parts and parts[0] in wanted else parts[1:]
    if len(kept) < 2 or kept[0] not in wanted:
        return None
    sizes = [len(os.fsencode(part)) for part in parts]
    if len(parts) > _DEEPEST or max(sizes) > _LONGEST or sum(sizes) > _LONGEST_IN_ALL:
        raise DownloadError(f"{path}: holds {name[:200]!r}, a name too long or too deep: not used")
    for part in parts:
        if part == ".." or "\0" in part or part != os.path.basename(part) or os.path.splitdrive(part)[0]:
            raise DownloadError(f"{path}: holds {name[:200]!r}, which leads out of its folder: not used")
    return Path(*kept)


@contextlib.contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    with files.one_line(path, "write", DownloadError), contextlib.ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(open(path, "wb"))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise DownloadError(
                f"{path}: a file is in the way of a folder, or a folder of a file: remove what is there; if nothing "
                "was, the archive has a file and a folder of one name"
            ) from None
        yield file


def _contents(unpacked: gzip.GzipFile, path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The names of the archive's plain files and their contents, each of which is to be read before the next."""
    source = _Metered(unpacked, path)
    with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members = []  # else it keeps them all
            if member.isreg():
                yield member.name, _blocks(archive, member, source, path)
    while unpacked.read(files.CHUNK):  # to the end, where the checksum is
        pass


def _blocks(archive: tarfile.TarFile, member: tarfile.TarInfo, source: _Metered, path: Path) -> Iterator[bytes]:
    with _damage(path):  # here too, since what writes the blocks takes an OSError, as gzip's is, for its own
        content = archive.extractfile(member)
        assert content is not None  # a plain file
        while block := content.read(files.CHUNK):
            source.refill()
            yield block


class _Metered:
    """What tarfile reads from: it takes headers into memory whole, however long they say they are."""

    def __init__(self, file: gzip.GzipFile, path: Path):
        self.file, self.path = file, path
        self.refill()

    def refill(self) -> None:
        self.left = _MOST_HEADERS + files.CHUNK

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise DownloadError(f"{self.path}: its headers are longer than {_MOST_HEADERS} bytes: not used")
        return block
