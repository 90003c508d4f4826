"""TriviaQA's archive, which is unpacked and may hold anything."""

from __future__ import annotations

import errno
import gzip
import io
import tarfile
from pathlib import Path
from unittest.mock import Mock

import pytest

from hub_server import Server
from minibert import datasets, hub, tarball
from minibert.errors import DownloadError

TRIVIAQA = {
    "qa/wikipedia-train.json": b'{"Data": []}',
    "evidence/wikipedia/\u00c9mile_(book).txt": b"one " * 999,
    "evidence/web/10/10_99.txt": b"",
}
Members = dict[str, bytes | tarfile.TarInfo]


def tarred(members: Members, mode: str = "w:gz") -> bytes:
    """A tar of these members, in which a TarInfo stands for itself; "#" and what follows it are no part of a name."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as out:  # type: ignore[call-overload]
        for name, data in members.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name.partition("#")[0])
            content = b"" if isinstance(data, tarfile.TarInfo) else data
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def unpacked(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("top", ["", "./", "triviaqa-rc/"])
def test_triviaqa_is_unpacked_and_cached(glue: Server, tmp_path: Path, top: str) -> None:
    members: Members = {f"{top}qa": special(f"{top}qa", tarfile.DIRTYPE), f"{top}README": b"read", "qa": b"no folder"}
    glue.files["triviaqa-rc.tar.gz"] = tarred(members | {top + name: data for name, data in TRIVIAQA.items()})
    glue.cut["/triviaqa-rc.tar.gz"] = 200
    seen: list[str] = []
    folder = datasets.fetch("TriviaQA", lambda name, done, total: seen.append(name))
    assert folder == tmp_path / "cache" / "minibert" / "triviaqa" / "rc" and unpacked(folder) == TRIVIAQA
    assert [span for _, _, span in glue.asked] == [None, "bytes=199-"], "goes on where it was cut"
    assert set(seen) == {"triviaqa-rc.tar.gz", "unpacking triviaqa-rc.tar.gz"}
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "checksums.json", "rc"]
    glue.asked.clear()
    assert hub.download(["triviaqa"]) == {"triviaqa": folder} and glue.asked == []


@pytest.mark.parametrize(
    "name",
    ["qa/../../../escaped", "../qa/escaped", "qa/..", "evidence/web/../../../../escaped"],
)
def test_triviaqa_leads_nowhere_else(glue: Server, tmp_path: Path, name: str) -> None:
    glue.files["triviaqa-rc.tar.gz"] = tarred(TRIVIAQA | {name: b"bad"})
    with pytest.raises(DownloadError, match=r"triviaqa-rc.tar.gz: holds '.*', which leads out of its folder"):
        datasets.fetch_triviaqa()
    assert not list(tmp_path.rglob("escaped"))
    assert [path.name for path in (tmp_path / "cache" / "minibert" / "triviaqa").iterdir()] == [".lock"]


def test_triviaqa_takes_plain_files_only(glue: Server, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    odd = [
        special("evidence/web/link", tarfile.SYMTYPE, str(tmp_path / "secret")),
        special("evidence/web/hard", tarfile.LNKTYPE, "/etc/passwd"),
        special("qa/pipe", tarfile.FIFOTYPE),
        special("qa/device", tarfile.CHRTYPE),
    ]
    members: Members = {info.name: info for info in odd} | {
        "evidence/web/link/a.txt": b"through the link",
        "/qa/absolute.json": b"inside all the same",
        "etc/passwd": b"not wanted",
    }
    glue.files["triviaqa-rc.tar.gz"] = tarred(TRIVIAQA | members)
    found = unpacked(datasets.fetch_triviaqa())
    more = {"evidence/web/link/a.txt": b"through the link", "qa/absolute.json": b"inside all the same"}
    assert found == TRIVIAQA | more and not list((tmp_path / "secret").iterdir())


def test_triviaqa_damaged(glue: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, root = tarred(TRIVIAQA), tmp_path / "cache" / "minibert" / "triviaqa"
    long = special("qa/x", tarfile.REGTYPE)
    long.pax_headers = {"comment": "x" * (3 << 20)}
    for bad, said in (
        (b"<html>", "a damaged tar.gz .*: fetch it again"),
        (b"", "holds no qa: check the address|a damaged tar.gz"),
        (good[:-12], "a damaged tar.gz"),
        (good[:-8] + b"\0\0\0\0" + good[-4:], "a damaged tar.gz .CRC"),
        (gzip.compress(tarred(TRIVIAQA, "w")[:2600]), "a damaged tar.gz .unexpected end of data"),
        (gzip.compress(b"no tar" * 999), "a damaged tar.gz"),
        (tarred({"qa/a.json": b"{}"}), "holds no evidence: check the address"),
        (tarred(TRIVIAQA | {"qa/x": long}), "headers are longer than"),
        (tarred(TRIVIAQA | {"qa": b"", "qa/wikipedia-train.json/b": b""}), "a file and a folder of one name"),
        (tarred(TRIVIAQA | {"qa/b/c": b"", "qa/b": b""}), "a file and a folder of one name"),
        (tarred(TRIVIAQA | {f"qa/{'a/' * 1600}x": b""}), "a name too long or too deep"),
        (tarred(TRIVIAQA | {f"qa/{'a' * 300}": b""}), "a name too long or too deep"),
        (tarred(TRIVIAQA | {"qa/" + "/".join(["a" * 250] * 5): b""}), "a name too long or too deep"),
    ):
        glue.files["triviaqa-rc.tar.gz"] = bad
        with pytest.raises(DownloadError, match=said) as caught:
            datasets.fetch_triviaqa()
        assert "\n" not in str(caught.value) and not (root / "rc").exists()
        assert [path.name for path in root.iterdir()] == [".lock"], said
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_TRIVIAQA_LIMITS", (1 << 20, 4000))
        glue.files["triviaqa-rc.tar.gz"] = tarred(TRIVIAQA | {"outside": b"\0" * 5000})
        with pytest.raises(DownloadError, match="unpacks to more than 4000 bytes"):
            datasets.fetch_triviaqa()
    glue.files["triviaqa-rc.tar.gz"] = good  # nothing bad was recorded as the right checksum
    assert datasets.fetch_triviaqa() == root / "rc"
    (root / "rc").rename(tmp_path / "elsewhere")
    glue.files["triviaqa-rc.tar.gz"] = tarred(TRIVIAQA | {"qa/other": b""})
    with pytest.raises(DownloadError, match="SHA-256 .* of an earlier download"):
        datasets.fetch_triviaqa()


def test_triviaqa_interrupted_while_unpacking(glue: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive that has come is used by the next run; what a killed process had unpacked is thrown away."""
    root = tmp_path / "cache" / "minibert" / "triviaqa"
    glue.files["triviaqa-rc.tar.gz"] = tarred(TRIVIAQA)
    for reason in (KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")):
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, DownloadError)):
            patch.setattr(tarball, "_created", Mock(side_effect=reason))
            datasets.fetch_triviaqa()
        assert sorted(path.name for path in root.iterdir()) == [".lock", "triviaqa-rc.tar.gz"]
    (root / ".rc.tmp" / "qa").mkdir(parents=True)
    (root / ".rc.tmp" / "qa" / "stale").touch()
    assert unpacked(datasets.fetch_triviaqa()) == TRIVIAQA and len(glue.asked) == 1
    assert sorted(path.name for path in root.iterdir()) == [".lock", "checksums.json", "rc"]
