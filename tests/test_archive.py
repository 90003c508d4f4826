"""Google's zips, and what somebody may put in their place: unpacked, or refused in one line and nothing left behind."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from minibert.checkpoint import archive
from minibert.errors import CheckpointError, MinibertError

INDEX, DATA = "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"
WEIGHTS = random.Random(0).randbytes(5000)
FILES = {INDEX: b"index" * 50, DATA: WEIGHTS, "bert_config.json": b'{"hidden_size": 8}', "vocab.txt": b"[PAD]\n[UNK]\n"}


@dataclass
class Member:
    """A file of a zip with everything that its two headers say of it; by default they say what is so."""

    name: bytes
    content: bytes = b"x"
    method: int = 8
    flags: int = 0
    size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    offset: int | None = None
    local_name: bytes | None = None
    extra: bytes = b""
    attributes: int = 0


def pack(content: bytes, method: int) -> bytes:
    if method != 8:
        return content
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(content) + deflate.flush()


def build(*members: Member, count: int | None = None, directory: int | None = None) -> bytes:
    """A zip as its members say, with these numbers at its end."""
    out, headers = bytearray(), bytearray()
    for member in members:
        packed = pack(member.content, member.method)
        sizes = (
            zlib.crc32(member.content) if member.crc is None else member.crc,
            len(packed) if member.packed_size is None else member.packed_size,
            len(member.content) if member.size is None else member.size,
        )
        local = member.name if member.local_name is None else member.local_name
        common = (20, member.flags, member.method, 0, 33, *sizes)
        headers += struct.pack(
            "<4sH5H3I5H2I", b"PK\1\2", 0x0314, *common, len(member.name), len(member.extra), 0, 0, 0,
            member.attributes, len(out) if member.offset is None else member.offset,
        ) + member.name + member.extra  # fmt: skip
        out += struct.pack("<4s5H3I2H", b"PK\3\4", *common, len(local), 0) + local + packed
    count = len(members) & 0xFFFF if count is None else count
    directory = len(headers) if directory is None else directory
    return bytes(out + headers) + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, directory, len(out), 0)


def members(folder: str = "uncased_L-1_H-8_A-2/", **changed: object) -> list[Member]:
    """Google's files, the weights changed as said."""
    made = [Member(f"{folder}{name}".encode(), content) for name, content in FILES.items()]
    return [replace(member, **changed) if member.name.endswith(DATA.encode()) else member for member in made]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's place; nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minibert"


@pytest.fixture
def unpack(tmp_path: Path) -> Callable[[bytes], dict[str, bytes]]:
    """What is unpacked of a zip; also sees that nothing is written elsewhere, and after a failure nothing at all."""

    def run(data: bytes) -> dict[str, bytes]:
        path, folder = tmp_path / "some.zip", tmp_path / "inner" / "unpacked"
        folder.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        try:
            archive.unpack_to(path, folder)
            return contents(folder)
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error) and len(str(error)) < 700
            assert not folder.exists()
            raise
        finally:
            assert {entry.name for entry in tmp_path.iterdir()} == {"some.zip", "inner"}

    return run


def test_googles_zip(tmp_path: Path, unpack: Callable[[bytes], dict[str, bytes]]) -> None:
    """As `zip` makes it, with the folder's own entry and the graph, which is not wanted."""
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("uncased_L-1_H-8_A-2")
        file.writestr("uncased_L-1_H-8_A-2/bert_model.ckpt.meta", b"graph")
        for name, content in FILES.items():
            file.writestr(f"uncased_L-1_H-8_A-2/{name}", content)
    assert archive.is_archive(path)
    assert unpack(path.read_bytes()) == FILES
    assert unpack(build(*members(folder=""))) == FILES, "without a folder"
    assert unpack(build(*(replace(member, method=0) for member in members()))) == FILES, "stored"


def test_what_is_no_archive_of_googles(tmp_path: Path) -> None:
    path = tmp_path / "some"
    for data in (
        b"",
        b"PK",
        b"plain text, and quite some of it",
        build(*members())[:-1],
        build(Member(b"archive/data.pkl"), Member(b"archive/version"), Member(b"archive/vocab.txt")),
        build(),
    ):
        path.write_bytes(data)
        assert not archive.is_archive(path)
    with pytest.raises(CheckpointError, match="nothing: cannot read"):
        archive.is_archive(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name",
    [
        "../../x/vocab.txt", "../../../../../../tmp/vocab.txt", "/etc/vocab.txt", "C:/x/vocab.txt", "C:\\x\\vocab.txt",
        "..\\..\\vocab.txt", "//server/share/vocab.txt", "a/../vocab.txt", "./vocab.txt", "\n/vocab.txt",
        "vocab.txt\0/../../x",
    ],
)  # fmt: skip
def test_a_path_leads_nowhere(name: str, unpack: Callable[[bytes], dict[str, bytes]]) -> None:
    """Only the last part of a name counts, and only where it is one of those that are wanted."""
    others = [member for member in members() if not member.name.endswith(b"vocab.txt")]
    assert unpack(build(*others, Member(name.encode(), FILES["vocab.txt"]))) == FILES


@pytest.mark.parametrize(
    "name",
    [
        "C:vocab.txt", "vocab.txt/", "vocab.txt ", "VOCAB.TXT", "vocab.txt\n", "vocab.txt/..", "..", "/", "",
        "__MACOSX/._bert_model.ckpt.index", "../.ckpt.index", "evil.py", "checkpoint", "x.ckpt.index/x",
        "x\0.ckpt.index", "a" * 60_000, "a" * 60_000 + ".ckpt.index", "a/" * 30_000, ".ckpt" * 12_000,
        "x.ckpt-" + "1" * 60_000,
    ],
    ids=lambda name: repr(name[:30]),
)  # fmt: skip
def test_other_names_are_left_alone(name: str, unpack: Callable[[bytes], dict[str, bytes]]) -> None:
    assert unpack(build(*members(), Member(name.encode(), b"no"))) == FILES


def test_a_link_is_a_plain_file(tmp_path: Path, unpack: Callable[[bytes], dict[str, bytes]]) -> None:
    """What Unix's `unzip` would make a symbolic link becomes a file that holds the link's text."""
    others = [member for member in members() if not member.name.endswith(b"vocab.txt")]
    link = Member(b"x/vocab.txt", b"/etc/passwd", attributes=0o120777 << 16)
    assert unpack(build(*others, link)) == FILES | {"vocab.txt": b"/etc/passwd"}
    assert not (tmp_path / "inner" / "unpacked" / "vocab.txt").is_symlink()


def extra64(*numbers: int) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def lying_directory(size: int) -> bytes:
    """A zip of 64 bits that gives its directory this size."""
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size, 0)
    at = len(build(*members())) - 22
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)
    last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return build(*members())[:-22] + end + locator + last


GOOD = build(*members())
OVER = "lies over another file"
SIZE = "is not of the size it says"
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a zip"),
    "twice": (build(*members(), Member(b"other/vocab.txt")), "holds vocab.txt twice: unpack it"),
    "twice by case of slashes": (build(*members(), Member(b"x\\vocab.txt")), "holds vocab.txt twice"),
    "two checkpoints": (build(*members(), Member(b"other.ckpt.index")), "holds 2 TensorFlow checkpoints, not one"),
    "no checkpoint": (build(Member(b"vocab.txt")), "holds 0 TensorFlow checkpoints, not one"),
    "no files": (build(), "holds 0 TensorFlow checkpoints"),
    "encrypted": (build(*members(flags=1)), "encrypted"),
    "strongly encrypted": (build(*members(flags=65)), "strong encryption"),
    "patched": (build(*members(flags=32)), "patched"),
    "bzip2": (build(*members(method=12)), "neither stored nor deflated"),
    "lzma": (build(*members(method=14)), "neither stored nor deflated"),
    "deflate64": (build(*members(method=9)), "neither stored nor deflated"),
    "method unknown": (build(*members(method=99)), "neither stored nor deflated"),
    "wrong CRC": (build(*members(crc=1)), "Bad CRC-32"),
    "wrong CRC, stored": (build(*members(crc=1, method=0)), "Bad CRC-32"),
    "smaller than said": (build(*members(size=5001)), SIZE),
    "smaller than said, stored": (build(*members(size=5001, method=0)), SIZE),
    "larger than said": (build(*members(size=4000, crc=zlib.crc32(WEIGHTS[:4000]))), "Bad CRC-32"),
    "larger than said, by CRC too": (build(*members(size=4000, crc=zlib.crc32(WEIGHTS[:4001]))), SIZE),
    "larger than said, stored": (build(*members(size=4000, crc=zlib.crc32(WEIGHTS[:4001]), method=0)), SIZE),
    "nothing, it says": (build(*members(size=0, crc=0)), "Bad CRC-32"),
    "packed smaller than it is": (build(*members(packed_size=4000)), "Bad CRC-32|is not of the size"),
    "packed beyond the end": (build(Member(b"x.ckpt.index", WEIGHTS, 0, packed_size=1 << 30, size=10**6)), "damaged"),
    "packed, says a 32-bit number": (build(*members(packed_size=0xFFFFFFF0)), OVER),
    "not deflated at all": (build(*members(content=b"\xff" * 100, method=0, size=100)).replace(
        b"\0\0\0\0\x21", b"\x08\0\0\0\x21"), "Error -3 while decompressing"),
    "other name before the content": (build(*members(local_name=b"other")), "differ"),
    "no file at the offset": (build(*members(offset=1)), OVER + "|Bad magic number"),
    "offset beyond the end": (build(*members(offset=1 << 31)), "Truncated file header"),
    "offset beyond ext4's files": (build(*members(offset=0xFFFFFFFF, extra=extra64(2**62))), "the zip is damaged"),
    "offset beyond any file": (build(*members(offset=0xFFFFFFFF, extra=extra64(2**63 + 5))), "the zip is damaged"),
    "offset beyond 64 bits": (build(*members(offset=0xFFFFFFFF, extra=extra64(2**64 - 1))), "the zip is damaged"),
    "offset before the file": (GOOD[20:], OVER),
    "size of 2**64 - 1": (build(*members(size=0xFFFFFFFF, extra=extra64(2**64 - 1))), "would unpack to 4 files of"),
    "size of 64 bits is missing": (build(*members(size=0xFFFFFFFF, extra=b"\1\0\0\0")), "Corrupt zip64 extra"),
    "extra cut": (build(*members(extra=b"\1\0\xff\0")), "Corrupt extra field"),
    "name that is not UTF-8": (build(*members(), Member(b"\xff\xfe", flags=0x800)), "utf-8"),
    "local name that is not UTF-8": (build(*members(flags=0x800, local_name=b"\xff")), "utf-8"),
    "version to come": (GOOD.replace(b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff"), "zip file version 25.5"),
    "magic of the directory": (GOOD.replace(b"PK\1\2", b"PK\1\3"), "Bad magic number for central directory"),
    "magic of a file": (GOOD.replace(b"PK\3\4", b"PK\3\5"), "Bad magic number for file header"),
    "directory too small": (build(*members(), directory=30), "central directory"),
    "directory before the file": (build(*members(), directory=1 << 20), "Bad offset for central directory"),
    "directory of 4 GB": (build(*members(), directory=0xFFFFFFF0), "the zip is damaged"),
    "directory of 2**63": (lying_directory(2**63), "the zip is damaged"),
    "directory of 2**64 - 1": (lying_directory(2**64 - 1), "the zip is damaged"),
    "directory of -1": (lying_directory(2**32 - 1), "the zip is damaged"),
    "bomb": (build(Member(b"a.ckpt.index", bytes(20 << 20))), "would unpack to 1 files of 20971520 bytes"),
    "bomb, stored": (build(Member(b"a.ckpt.index", bytes(1000), 0, size=1 << 30)), "would unpack to 1 files"),
    "bomb of a low size": (build(Member(b"a.ckpt.index", bytes(20 << 20), size=50, crc=zlib.crc32(bytes(51)))), SIZE),
    "bomb of many files": (build(*(Member(b"a.ckpt.data-%05d-of-00200" % i) for i in range(200))), "200 files"),
    "100 files that share their bytes": (
        build(*members(), *(Member(b"b/a.ckpt.data-%05d-of-00200" % i, offset=0) for i in range(100))), OVER),
    "two entries for one place": (build(*members(), Member(INDEX.encode(), offset=0)), OVER),
    "100,000 members": (build(*members(), *[Member(b"", b"", 0)] * 100_000), "its directory says it has 46003.. bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_archives(kind: str, unpack: Callable[[bytes], dict[str, bytes]]) -> None:
    data, said = BAD[kind]
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=said):
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < (8 << 20), "reads a mebibyte at a time"
    finally:
        tracemalloc.stop()


def test_cut_anywhere(unpack: Callable[[bytes], dict[str, bytes]]) -> None:
    for size in range(0, len(GOOD), 50):
        with pytest.raises(CheckpointError):
            unpack(GOOD[:size])
        with pytest.raises(CheckpointError):
            unpack(GOOD[-size or len(GOOD) :])


def test_random_damage(tmp_path: Path) -> None:
    """Whatever bytes change, what comes is files whose CRC-32 is right, or CheckpointError."""
    rng, path, folder = random.Random(0), tmp_path / "some.zip", tmp_path / "unpacked"
    refused = 0
    for _ in range(500):
        data = bytearray(GOOD)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.choice((rng.randrange(len(data)), rng.randrange(len(data) - 500, len(data))))] = rng.randrange(256)
        path.write_bytes(data)
        assert archive.is_archive(path) in (True, False)
        try:
            archive.unpack_to(path, folder)
            shutil.rmtree(folder)
        except CheckpointError as error:
            assert "\n" not in str(error) and not folder.exists()
            refused += 1
    assert 250 < refused < 500


def test_unpacked_once(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(GOOD)
    folder = archive.unpack(path)
    assert folder.parent == cache and contents(folder) == FILES
    assert archive.unpack(path) == folder
    path.unlink()
    path.write_bytes(build(*members(content=b"other weights")))
    assert contents(archive.unpack(path))[DATA] == b"other weights", "another file of the same name"
    with pytest.raises(CheckpointError, match="nothing: cannot read"):
        archive.unpack(tmp_path / "nothing")


def test_a_failed_unpack_leaves_nothing(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(BAD["wrong CRC"][0])
    with pytest.raises(CheckpointError):
        archive.unpack(path)
    assert list(cache.iterdir()) == []
    path.write_bytes(GOOD)
    # A full disk is told as such, not as a damaged zip.
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for reason, told in ((KeyboardInterrupt(), None), (full, "cannot write: No space left on device; free some space")):
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, MinibertError), match=told):
            patch.setattr(os, "fsync", Mock(side_effect=reason))
            archive.unpack(path)
        assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "some.zip").write_bytes(GOOD)
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(CheckpointError, match="cannot write: .*cache is a file, not a folder"):
        archive.unpack(tmp_path / "some.zip")


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "1 / 0", "raise KeyboardInterrupt"])
def test_the_folder_goes_with_the_process(end: str, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "some.zip").write_bytes(GOOD)
    code = (
        "import pathlib, sys; from minibert.checkpoint import archive\n"
        "print(len(list(archive.unpack(pathlib.Path(sys.argv[1])).iterdir())), flush=True)\n" + end
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "some.zip")], capture_output=True, text=True)
    assert done.stdout == "4\n", done.stderr
    assert list(cache.iterdir()) == []
