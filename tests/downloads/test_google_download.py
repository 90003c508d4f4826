"""Checkpoints from Google's bucket."""

from __future__ import annotations

import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from hub_server import Server, zipped
from minibert import checkpoint, google, hub
from minibert.checkpoint import conversion
from minibert.errors import CheckpointError, ConfigError, DownloadError


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MINIBERT_GOOGLE_URL", server.url + "/")
    return server


@pytest.fixture
def googles(small: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The files of Google's zip of the small checkpoint."""
    conversion.convert(tmp_path / "made", tmp_path / "google", "tensorflow")
    held = {path.name: path.read_bytes() for path in (tmp_path / "google").iterdir()}
    return {f"uncased_L-1_H-8_A-2/{name}": data for name, data in (held | {"vocab.txt": b"[PAD]\n[UNK]\n"}).items()}


TINY = "2020_02_20/uncased_L-2_H-128_A-2.zip"
BASE = "2018_10_18/uncased_L-12_H-768_A-12.zip"


def test_google_download_then_offline(bucket: Server, googles: dict[str, bytes], tmp_path: Path) -> None:
    bucket.files[TINY] = zipped(googles | {"uncased_L-1_H-8_A-2/bert_model.ckpt.meta": b"graph"})
    bucket.cut["/" + TINY] = 900
    seen: list[str] = []
    place = hub.resolve("google:tiny", progress=lambda name, done, total: seen.append(name))
    root = tmp_path / "cache" / "minibert" / "google"
    assert place == root / "L-2_H-128" and set(seen) == {"L-2_H-128.zip"}
    assert [span for _, _, span in bucket.asked] == [None, "bytes=899-"], "goes on where it was cut"
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        name.partition("/")[2]: data for name, data in googles.items()
    }
    assert sorted(path.name for path in root.iterdir()) == [".lock", "L-2_H-128", "checksums.json"]
    found = checkpoint.load(place)
    assert found.vocab == place / "vocab.txt"
    for name, array in checkpoint.load(tmp_path / "made").arrays.items():
        assert np.array_equal(found.arrays[name], array), name
    bucket.asked.clear()
    assert hub.download(["google:L-2_H-128"]) == {"google:L-2_H-128": place} and bucket.asked == []


def test_google_checksums(
    bucket: Server, googles: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are published count from the first download, the others from the second."""
    root = tmp_path / "cache" / "minibert" / "google"
    bucket.files[BASE] = bucket.files[TINY] = zipped(googles)
    with pytest.raises(DownloadError, match="L-12_H-768_A-12.zip: vocab.txt has SHA-256 .*, not the 07eced375cec144d"):
        hub.resolve("google:base")
    assert [path.name for path in root.iterdir()] == [".lock"]
    sums = {name.partition("/")[2]: hashlib.sha256(data).hexdigest() for name, data in googles.items()}
    for wrong in ("vocab.txt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        assert wrong in google.ZIPS["base"].checksums
        monkeypatch.setitem(google.ZIPS, "base", google.Zip(BASE, sums | {wrong: "0" * 64}))
        with pytest.raises(DownloadError, match=f"{wrong} has SHA-256 {sums[wrong]}, not the 000.* published"):
            hub.resolve("google:base")
    monkeypatch.setitem(google.ZIPS, "base", google.Zip(BASE, sums))
    base, tiny = hub.resolve("google:base"), hub.resolve("google:tiny")
    (tiny / "vocab.txt").unlink()
    assert hub.resolve("google:tiny") == tiny and (tiny / "vocab.txt").exists(), "what got lost is fetched again"
    (tiny / "vocab.txt").unlink()
    bucket.files[TINY] = zipped(googles | {"uncased_L-1_H-8_A-2/bert_config.json": b"{}"})
    with pytest.raises(
        DownloadError,
        match="_A-2.zip: bert_config.json has SHA-256 44136fa355b3.*, not .* of an earlier .* remove .*checksums.json",
    ):
        hub.resolve("google:tiny")
    assert sorted(path.name for path in root.iterdir()) == [".lock", "L-2_H-128", "base", "checksums.json"]
    assert hub.resolve("google:base") == base
    (root / "checksums.json").write_text("{")
    bucket.asked.clear()
    with pytest.raises(DownloadError, match="checksums.json: not valid JSON"):
        hub.resolve("google:tiny")
    assert bucket.asked == [], "it is read before a gigabyte is fetched"


def test_google_zips_of_the_same_name(bucket: Server, googles: dict[str, bytes], monkeypatch) -> None:
    """BERT-Base of 2018 and the largest miniature of 2020 are both called uncased_L-12_H-768_A-12.zip."""
    monkeypatch.setitem(google.ZIPS, "base", google.Zip(BASE, {}))
    other = googles | {"uncased_L-1_H-8_A-2/vocab.txt": b"other"}
    bucket.files = {BASE: zipped(googles), BASE.replace("2018_10_18", "2020_02_20"): zipped(other)}
    assert (hub.resolve("google:base") / "vocab.txt").read_bytes() == b"[PAD]\n[UNK]\n"
    assert (hub.resolve("google:L-12_H-768") / "vocab.txt").read_bytes() == b"other"


def test_google_damaged_zip(bucket: Server, googles: dict[str, bytes], tmp_path: Path) -> None:
    good, root = zipped(googles), tmp_path / "cache" / "minibert" / "google"
    without = {name: data for name, data in googles.items() if not name.endswith("vocab.txt")}
    for bad, said in (
        (b"<html>", "L-2_H-128.zip: File is not a zip file: the zip is damaged"),
        (good[:-30], "the zip is damaged: get it again"),
        (good[:60] + b"\xff\xff\xff\xff" + good[64:], "the zip is damaged: get it again"),
        (zipped(without), "A-2.zip: holds no vocab.txt: check the address"),
    ):
        bucket.files[TINY] = bad
        with pytest.raises((CheckpointError, DownloadError), match=said) as caught:
            hub.resolve("google:tiny")
        assert "\n" not in str(caught.value)
        assert [path.name for path in root.iterdir()] == [".lock"], "nothing of it stays"
    bucket.files[TINY] = good
    assert hub.resolve("google:tiny").is_dir()


def test_google_interrupted_while_unpacking(
    bucket: Server, googles: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zip that has come is used by the next run; what a killed process had unpacked is thrown away."""
    root = tmp_path / "cache" / "minibert" / "google"
    bucket.files[TINY] = zipped(googles)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(google, "_check", Mock(side_effect=KeyboardInterrupt))
        hub.resolve("google:tiny")
    assert sorted(path.name for path in root.iterdir()) == [".lock", "L-2_H-128.zip"]
    (root / ".L-2_H-128.tmp").mkdir()
    (root / ".L-2_H-128.tmp" / "stale.ckpt.index").touch()
    place = hub.resolve("google:tiny")
    assert len(list(place.iterdir())) == 4 and len(bucket.asked) == 1
    assert sorted(path.name for path in root.iterdir()) == [".lock", "L-2_H-128", "checksums.json"]


def test_google_for_two_processes(bucket: Server, googles: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl", reason="the locks of files are Unix's")
    bucket.files[TINY] = zipped(googles)
    real, inside, go = google.archive.unpack_to, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        inside.set()
        assert go.wait(10)
        real(*arguments)

    monkeypatch.setattr(google.archive, "unpack_to", slow)
    with ThreadPoolExecutor(2) as pool:  # as for tasks: threads wait as processes do
        first = pool.submit(hub.resolve, "google:tiny")
        assert inside.wait(10)
        second = pool.submit(hub.resolve, "google:tiny")
        with pytest.raises(TimeoutError):
            second.result(0.2)
        go.set()
        assert first.result(10) == second.result(10)
    assert len(bucket.asked) == 1


def test_google_names(bucket: Server, tmp_path: Path) -> None:
    for name in ("google:huge", "google:", "google:minilm", "google:../x", "google:BASE", "google:google:base"):
        with pytest.raises(CheckpointError, match=f"{name}: Google has published no such .* base, large, .*L-.2,4"):
            hub.resolve(name)
        with pytest.raises(ConfigError, match=f"{name}: is no checkpoint"):
            hub.download(["base", name])
    assert google.find("base") is None
    assert bucket.asked == [] and not (tmp_path / "cache").exists()
    with pytest.raises(DownloadError, match="the server answered 404"):
        hub.resolve("google:base")


def test_google_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MINIBERT_GOOGLE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(DownloadError) as caught:
            hub.resolve("google:base")
    assert "\n" not in str(caught.value) and "name a local copy" in str(caught.value)
    (tmp_path / "cache" / "minibert").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "minibert").write_bytes(b"a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot use: .*minibert is a file, not a folder; move it away"):
        hub.resolve("google:base")
