"""files.py: whole writes, errors in one line, JSON that is not trusted."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from minibert import files
from minibert.errors import ConfigError, DataError, MinibertError


def test_write_whole_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    files.write_whole(path, b"one")
    with open(path, "rb") as reader:
        files.write_whole(path, lambda file: file.write(b"two") and None)
        assert reader.read() == b"one", "who has the old file open or mapped keeps it"
    assert path.read_bytes() == b"two"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("number, advice", [(errno.ENOSPC, "free some space"), (errno.EACCES, "who owns it")])
def test_refused_write_leaves_the_old_file(tmp_path: Path, number: int, advice: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise OSError(number, os.strerror(number))

    with pytest.raises(MinibertError) as caught:
        files.write_whole(path, write)
    text = str(caught.value)
    assert str(path) in text and os.strerror(number) in text and advice in text and "\n" not in text
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "the temporary file was left behind"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda name, mode: real("/dev/full" if "x" in mode else name, mode[0].replace("x", "w") + "b"),
    )
    with pytest.raises(MinibertError, match="No space left on device; free some space"):
        files.write_whole(path, b"new")
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, write)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MinibertError, match="cannot write"):
        files.write_whole(tmp_path / "file" / "inside", b"x")


def test_sha256(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    with pytest.raises(MinibertError, match="gone: cannot read: No such file or directory; check the path"):
        files.sha256(tmp_path / "gone")


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b" " * 101_000, "is no config"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_is_not_trusted(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        files.read_json(path, ConfigError, limit=100_500)
    text = str(caught.value)
    assert said in text and text.startswith(str(path)) and "\n" not in text and len(text) < 400


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.user_cache() == tmp_path / "minibert"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.user_cache() == Path("/home/somebody/.cache/minibert")


def test_what_is_read_and_what_is_written_are_kept_apart(tmp_path: Path) -> None:
    for same in (("gs://bucket/a", "gs://bucket/a"), (Path("gs://bucket/a"), "gs://bucket/a/"), (__file__, __file__)):
        with pytest.raises(DataError, match="is the input"):
            files.keep_apart(*same)
    files.keep_apart("gs://bucket/a", "gs://bucket/b")
    files.keep_apart("gs://bucket/a", tmp_path / "new")
    files.keep_apart("/dev/null", "/dev/null")
    files.keep_apart(__file__, tmp_path / "new")


def test_streams_are_written_into_and_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_whole(tmp_path / "pipe", b"through")
    assert os.read(read, 100) == b"through" and (tmp_path / "pipe").is_fifo()
    os.close(read)
    for place, stream in (("/dev/stdout", True), ("/dev/null", True), (__file__, False), (tmp_path / "none", False)):
        assert files.is_stream(place) == stream


@pytest.mark.parametrize(
    ("doing", "advice"), [("read", "check its permissions"), ("write", "check who owns it, or choose another place")]
)
def test_what_may_not_be_used_is_told_with_advice_for_what_was_wanted(doing: str, advice: str) -> None:
    told = pytest.raises(MinibertError, match=f"run.json: cannot {doing}: Permission denied; {advice}$")
    with told, files.one_line("run.json", doing):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_folder_for_a_file_and_a_file_for_a_folder_are_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    for act in (files.open_read, lambda path: files.write_whole(path, b"new")):
        with pytest.raises(MinibertError, match="folder: cannot (read|write): it is a folder; give the path of a file"):
            act(tmp_path / "folder")
    for below in ("file/new", "file/new/newer"):
        with pytest.raises(
            MinibertError, match=rf"{below}: cannot write: {tmp_path}/file is a file, not a folder; move"
        ):
            files.write_whole(tmp_path / below, b"new")
    told = pytest.raises(MinibertError, match="file: cannot use: it is a file, not a folder; move")
    with told, files.one_line(tmp_path / "file", "use"):
        (tmp_path / "file").mkdir(exist_ok=True)
    told = pytest.raises(MinibertError, match="none: cannot use: File exists; check the path")
    with told, files.one_line(tmp_path / "none", "use"):
        raise FileExistsError(errno.EEXIST, "File exists")
    assert (tmp_path / "file").read_bytes() == b"content"
