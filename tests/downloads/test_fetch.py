"""Files by their addresses: resumed, checked, refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hub_server import Server
from minibert import files
from minibert.errors import DownloadError


def fetch(server: Server, path: Path, **options: object) -> str:
    return files.fetch(f"{server.url}/file", path, **options)  # type: ignore[arg-type]


DATA = bytes(range(251)) * 20_000


def test_fetch_and_progress(server: Server, tmp_path: Path) -> None:
    server.files["file"] = DATA
    seen: list[tuple[str, int, int | None]] = []
    got = fetch(server, tmp_path / "new" / "out", progress=lambda *step: seen.append(step))
    assert got == hashlib.sha256(DATA).hexdigest() and (tmp_path / "new" / "out").read_bytes() == DATA
    assert seen[-1] == ("out", len(DATA), len(DATA)) and len(seen) > 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_fetch_resumes_a_cut_connection(server: Server, tmp_path: Path) -> None:
    server.files["file"] = DATA
    server.cut["/file"] = 1_234_567
    fetch(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert [span for _, _, span in server.asked] == [None, "bytes=1234566-"]


def test_fetch_resumes_in_a_later_run(server: Server, tmp_path: Path) -> None:
    server.files["file"] = DATA
    server.cut["/file"] = 1_000_000
    with pytest.raises(DownloadError, match=r"cannot be reached \(1000000 of 5020000 bytes came\)"):
        fetch(server, tmp_path / "out", tries=1)
    assert not (tmp_path / "out").exists()
    fetch(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA and server.asked[-1][2] == "bytes=999999-"


def test_fetch_takes_a_part_that_is_complete(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is left by a process that is killed just before the part gets its name."""
    server.files["file"] = DATA
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "sha256", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        fetch(server, tmp_path / "out")
    (part,) = tmp_path.iterdir()
    assert part.read_bytes() == DATA
    fetch(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert [span for _, _, span in server.asked] == [None, f"bytes={len(DATA) - 1}-"], "not fetched again"


@pytest.mark.parametrize("ranges", [True, False])
def test_fetch_begins_again_when_the_file_changed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.files["file"] = DATA
    server.cut["/file"] = 1_000_000
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "out", tries=1)
    server.files["file"] = DATA[::-1]
    server.ranges = ranges  # a server may also answer a Range with the whole file
    fetch(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA[::-1]
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_fetch_begins_again_after_a_part_that_is_too_long(server: Server, tmp_path: Path) -> None:
    server.files["file"] = b"short"
    (tmp_path / "out.00000000.part").write_bytes(DATA)
    fetch(server, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"short"
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_fetch_refuses(server: Server, tmp_path: Path) -> None:
    server.files["file"] = DATA
    with pytest.raises(DownloadError, match="is not the published abc"):
        fetch(server, tmp_path / "out", known_sha256="abc")
    with pytest.raises(DownloadError, match="5020000 bytes are more than the 1000 expected"):
        fetch(server, tmp_path / "out", limit=1000)
    with pytest.raises(DownloadError, match="the server answered 404"):
        files.fetch(f"{server.url}/gone", tmp_path / "out")
    server.answer["/file"] = 503
    server.asked.clear()
    with pytest.raises(DownloadError, match="name a local copy"):
        fetch(server, tmp_path / "out", tries=3)
    assert len(server.asked) == 3
    assert list(tmp_path.glob("out*")) == []


def test_fetch_of_unknown_length_needs_a_checksum(server: Server, tmp_path: Path) -> None:
    server.files["file"], server.lengths = DATA, False
    server.cut["/file"] = 30_000
    with pytest.raises(DownloadError, match="does not say how long the file is"):
        fetch(server, tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
    fetch(server, tmp_path / "out", known_sha256=hashlib.sha256(DATA).hexdigest())


def test_fetch_from_odd_servers_and_addresses(server: Server, tmp_path: Path) -> None:
    server.files["file"], server.always_partial = DATA, True
    with pytest.raises(DownloadError, match="changed during the download"):
        fetch(server, tmp_path / "out", tries=2)
    for url in ("mirror.local/data", "http://[bad", ""):
        with pytest.raises(DownloadError, match="is no address .*: begin it with https://"):
            files.fetch(url, tmp_path / "out")
