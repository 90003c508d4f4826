"""Downloads against a server on this machine that speaks the hub's protocol and cuts connections."""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import io
import json
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from minibert import checkpoint, datasets, files, google, hub, models, tarball
from minibert.checkpoint import conversion, names, sources
from minibert.checkpoint.pytorch import write as write_pytorch
from minibert.config import BertConfig
from minibert.errors import CheckpointError, ConfigError, DataError, DownloadError
from minibert.progress import Progress, Reporter, Transfer

SMALL = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "somebody/small-bert"


@dataclass
class Server:
    """What is served, and what was asked for. `cut` closes a path's connection once after so many bytes."""

    files: dict[str, bytes] = field(default_factory=dict)  # plain paths
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    answer: dict[str, int] = field(default_factory=dict)  # path: an HTTP error
    ranges: bool = True
    lengths: bool = True  # told; without them the end of the connection is the file's
    always_partial: bool = False  # 206 for whole files
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    url: str = ""

    def find(self, path: str) -> bytes | None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        if found:
            return self.repositories.get(found[1], {}).get(found[2])
        return self.files.get(path.lstrip("/"))

    def api(self, path: str) -> bytes | None:
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/[^/]+|(/tree/[^/]+))?", path)
        if not found or found[1] not in self.repositories:
            return None
        held = self.repositories[found[1]]
        if found[2]:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in held.items()
            ]
            return json.dumps(tree).encode()
        siblings = [{"rfilename": name} for name in held]
        return json.dumps({"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": siblings}).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        span = self.headers.get("Range")
        self.state.asked.append((self.command, path, span))
        data = self.state.api(path) if path.startswith("/api/") else self.state.find(path)
        status = self.state.answer.get(path, 200 if data is not None else 404)
        if status != 200 or data is None:
            self.send_response(status)
            self.send_header("X-Error-Code", "RepoNotFound" if path.startswith("/api/") else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if span and self.state.ranges:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start or self.state.always_partial else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/json" if path.startswith("/api/") else "application/octet-stream")
        if self.state.lengths:
            self.send_header("Content-Length", str(len(data) - start))
        else:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        body = data[start:]
        if (after := self.state.cut.pop(path, None)) is not None:
            self.wfile.write(body[:after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()
    handler = type("Bound", (Handler,), {"state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's real caches, and no waiting between tries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def endpoint(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as the hub: HF_ENDPOINT is read once, when huggingface_hub is imported, so what it sets is set."""
    from huggingface_hub import constants

    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return server


@pytest.fixture
def small(tmp_path: Path) -> dict[str, bytes]:
    """The files of a small checkpoint with its vocabulary, and some that are not wanted."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in names.shapes(SMALL).items()}
    checkpoint.save(tmp_path / "made", SMALL, arrays)
    held = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    unwanted = {
        "README.md": b"#",
        "pytorch_model.bin": b"PK\x03\x04",
        "onnx/model.onnx": b"x",
        "1_Pooling/config.json": b"{}",
    }
    return held | {"vocab.txt": b"[PAD]\n[UNK]\n"} | unwanted


# --- checkpoints through huggingface_hub


def test_hub_download_then_offline(endpoint: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    endpoint.repositories[REPOSITORY] = small
    place = hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert sorted(path.name for path in place.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    found = checkpoint.load(place)
    assert found.vocab == place / "vocab.txt" and found.config.hidden_size == 8
    endpoint.asked.clear()
    assert hub.resolve(REPOSITORY, cache=tmp_path / "hub") == place
    assert endpoint.asked == [], "a complete copy needs no network"


def test_hub_sharded(endpoint: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    arrays = checkpoint.load(tmp_path / "made").arrays
    checkpoint.save(tmp_path / "shards", SMALL, arrays, max_shard_bytes=2000)
    held = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()} | {"vocab.txt": b"[PAD]\n"}
    assert len(held) > 4
    endpoint.repositories[REPOSITORY] = held
    place = hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert np.array_equal(checkpoint.load(place).arrays["pooler.dense.weight"], arrays["pooler.dense.weight"])
    # a shard that got lost is fetched again
    shard = next(place.glob("model-*"))
    shard.resolve().unlink()
    shard.unlink()
    assert hub.resolve(REPOSITORY, cache=tmp_path / "hub") == place and shard.exists()


def test_hub_interrupted_download_resumes(
    endpoint: Server, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 400)  # it keeps whole pieces, of 10 MB else
    endpoint.repositories[REPOSITORY] = small
    weights = f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"
    endpoint.cut[weights] = 1000
    place = hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert (place / "model.safetensors").read_bytes() == small["model.safetensors"]
    assert [span for method, path, span in endpoint.asked if method == "GET" and path == weights] == [
        None,
        "bytes=800-",
    ]


def test_hub_wrong_checksum_is_refused(
    endpoint: Server, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.repositories[REPOSITORY] = small
    good = {"model.safetensors": hashlib.sha256(small["model.safetensors"]).hexdigest()}
    monkeypatch.setitem(hub.ALIASES, "good", hub.Source(REPOSITORY, good))
    monkeypatch.setitem(hub.ALIASES, "bad", hub.Source(REPOSITORY, {"vocab.txt": "0" * 64}))
    assert hub.resolve("good", cache=tmp_path / "hub").is_dir()
    for _ in range(2):  # also when it is in the cache already
        with pytest.raises(
            DownloadError, match="vocab.txt: SHA-256 .* is not the published 0000.*: delete .*small-bert"
        ):
            hub.resolve("bad", cache=tmp_path / "hub")


def pytorch(tmp_path: Path, shards: int) -> dict[str, bytes]:
    """The small checkpoint as PyTorch's file, or as an index and several of them."""
    conversion.convert(tmp_path / "made", tmp_path / "torch", "torch")
    held = {path.name: path.read_bytes() for path in (tmp_path / "torch").iterdir()} | {"vocab.txt": b"[PAD]\n"}
    if shards == 1:
        return held
    entries = sources.find(tmp_path / "torch").stored.entries
    placed = {name: f"pytorch_model-{1 + i % shards:05d}-of-{shards:05d}.bin" for i, name in enumerate(entries)}
    for shard in set(placed.values()):
        write_pytorch(tmp_path / shard, {name: entries[name] for name in entries if placed[name] == shard})
        held[shard] = (tmp_path / shard).read_bytes()
    del held["pytorch_model.bin"]
    return held | {"pytorch_model.bin.index.json": json.dumps({"weight_map": placed}).encode()}


@pytest.mark.parametrize("shards", [1, 3])
def test_hub_without_safetensors(endpoint: Server, small: dict[str, bytes], tmp_path: Path, shards: int) -> None:
    """PyTorch's files are fetched where there are no others; a complete copy needs no network, a lost file returns."""
    endpoint.repositories[REPOSITORY] = held = pytorch(tmp_path, shards) | {"tf_model.h5": b"x", "other.bin": b"x"}
    place = hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert {path.name for path in place.iterdir()} == held.keys() - {"tf_model.h5", "other.bin"}
    found = checkpoint.load(place).arrays
    for name, array in checkpoint.load(tmp_path / "made").arrays.items():
        assert np.array_equal(found[name], array), name
    endpoint.asked.clear()
    assert hub.resolve(REPOSITORY, cache=tmp_path / "hub") == place
    assert endpoint.asked == []
    lost = sorted(place.glob("*.bin"))[-1]
    lost.resolve().unlink()
    lost.unlink()
    assert hub.resolve(REPOSITORY, cache=tmp_path / "hub") == place and lost.exists()


def test_hub_without_weights(endpoint: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    del small["model.safetensors"], small["pytorch_model.bin"]
    endpoint.repositories[REPOSITORY] = small
    with pytest.raises(CheckpointError, match="small-bert: has neither .*safetensors nor .*bin on the hub") as caught:
        hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight_map", [None, [], {"a": "x" * 300}, {"a": "\0"}, {"a": None}])
def test_hub_index_of_nonsense(
    endpoint: Server, small: dict[str, bytes], tmp_path: Path, weight_map: dict[str, object] | None
) -> None:
    """What it places nowhere is for the reader to refuse; here it only is not complete."""
    del small["model.safetensors"]
    small["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    endpoint.repositories[REPOSITORY] = small
    for _ in range(2):
        with pytest.raises(CheckpointError, match=COMMIT):
            checkpoint.load(hub.resolve(REPOSITORY, cache=tmp_path / "hub"))


def test_hub_unknown_id(endpoint: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DownloadError, match="nobody/nothing: no such repository on the hub") as caught:
        hub.resolve("nobody/nothing", cache=tmp_path / "hub")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="bert-huge: is no path, hub id .OWNER/NAME. or alias: .*base, large"):
        hub.resolve("bert-huge", cache=tmp_path / "hub")
    assert capfd.readouterr().err == ""


def test_hub_out_of_reach(tmp_path: Path, endpoint: Server, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    from huggingface_hub import constants

    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(DownloadError) as caught:
            hub.resolve("base", cache=tmp_path / "hub")
    text = str(caught.value)
    assert text.startswith("google-bert/bert-base-uncased: cannot reach the hub") and "\n" not in text
    assert all(option in text for option in ("--sample", "--checkpoint DIR", "--data-dir DIR"))
    assert capfd.readouterr().err == "", "the one line is the error's"


def test_hub_server_error(endpoint: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    endpoint.repositories[REPOSITORY] = small
    endpoint.answer[f"/{REPOSITORY}/resolve/{COMMIT}/model.safetensors"] = 403
    with pytest.raises(DownloadError) as caught:
        hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert "\n" not in str(caught.value) and "403" in str(caught.value)


def test_hub_broken_storage(endpoint: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hf_xet, which fetches large files, knows no kinds of errors."""
    import huggingface_hub

    def broken(*arguments: object, **options: object) -> str:
        raise RuntimeError("Data processing error: CAS service error :\n503 Service Unavailable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(DownloadError, match="somebody/small-bert: download failed .Data processing") as caught:
        hub.resolve(REPOSITORY, cache=tmp_path / "hub")
    assert "\n" not in str(caught.value)


def test_local_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert hub.resolve("mine") == Path("mine")
    assert str(hub.resolve("random:base")) == "random:base"
    (tmp_path / "model.ckpt.index").touch()
    assert hub.resolve("model.ckpt") == Path("model.ckpt"), "TensorFlow's prefix is no file itself"
    assert models.NAMES == ("base", "large", "tiny", "mini", "small", "medium", "minilm")


def test_aliases() -> None:
    sizes = [(layers, hidden) for layers in (2, 4, 6, 8, 10, 12) for hidden in (128, 256, 512, 768)]
    for layers, hidden in sizes:
        stem = f"uncased_L-{layers}_H-{hidden}_A-{hidden // 64}"
        assert hub.ALIASES[f"L-{layers}_H-{hidden}"].repository == f"google/bert_{stem}"
        assert google.ZIPS[f"L-{layers}_H-{hidden}"].url == f"2020_02_20/{stem}.zip"
    rest = "base large base-cased large-cased large-wwm large-cased-wwm multilingual chinese".split()
    nicknames = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512)}
    for name, (layers, hidden) in nicknames.items():
        assert hub.ALIASES[name] == hub.ALIASES[f"L-{layers}_H-{hidden}"]
        assert google.find(f"google:{name}") == f"L-{layers}_H-{hidden}"
    assert len(hub.ALIASES) == len(sizes) + len(rest) + len(nicknames) + 1, "and minilm"
    assert set(google.ZIPS) == {f"L-{layers}_H-{hidden}" for layers, hidden in sizes} | set(rest)
    assert len({zip.url for zip in google.ZIPS.values()}) == 32
    assert hub.ALIASES["large-cased-wwm"].repository == "google-bert/bert-large-cased-whole-word-masking"
    for source in (*hub.ALIASES.values(), *google.ZIPS.values()):
        assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in source.checksums.values())
    assert hub.ALIASES["chinese"].checksums.items() <= google.ZIPS["chinese"].checksums.items()


# --- checkpoints from Google


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
    bucket.files[TINY] = archive(googles | {"uncased_L-1_H-8_A-2/bert_model.ckpt.meta": b"graph"})
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
    bucket.files[BASE] = bucket.files[TINY] = archive(googles)
    with pytest.raises(DownloadError, match="L-12_H-768_A-12.zip: vocab.txt has SHA-256 .*, not 07eced375cec144d"):
        hub.resolve("google:base")
    assert [path.name for path in root.iterdir()] == [".lock"]
    sums = {name.partition("/")[2]: hashlib.sha256(data).hexdigest() for name, data in googles.items()}
    for wrong in ("vocab.txt", "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"):
        assert wrong in google.ZIPS["base"].checksums
        monkeypatch.setitem(google.ZIPS, "base", google.Zip(BASE, sums | {wrong: "0" * 64}))
        with pytest.raises(DownloadError, match=f"zip: {wrong} has SHA-256 {sums[wrong]}, not 00000"):
            hub.resolve("google:base")
    monkeypatch.setitem(google.ZIPS, "base", google.Zip(BASE, sums))
    base, tiny = hub.resolve("google:base"), hub.resolve("google:tiny")
    (tiny / "vocab.txt").unlink()
    assert hub.resolve("google:tiny") == tiny and (tiny / "vocab.txt").exists(), "what got lost is fetched again"
    (tiny / "vocab.txt").unlink()
    bucket.files[TINY] = archive(googles | {"uncased_L-1_H-8_A-2/bert_config.json": b"{}"})
    with pytest.raises(DownloadError, match="_A-2.zip: bert_config.json has SHA-256 44136fa355b3678a.*, not "):
        hub.resolve("google:tiny")
    assert sorted(path.name for path in root.iterdir()) == [".lock", "L-2_H-128", "base", "checksums.json"]
    assert hub.resolve("google:base") == base


def test_google_zips_of_the_same_name(bucket: Server, googles: dict[str, bytes], monkeypatch) -> None:
    """BERT-Base of 2018 and the largest miniature of 2020 are both called uncased_L-12_H-768_A-12.zip."""
    monkeypatch.setitem(google.ZIPS, "base", google.Zip(BASE, {}))
    other = googles | {"uncased_L-1_H-8_A-2/vocab.txt": b"other"}
    bucket.files = {BASE: archive(googles), BASE.replace("2018_10_18", "2020_02_20"): archive(other)}
    assert (hub.resolve("google:base") / "vocab.txt").read_bytes() == b"[PAD]\n[UNK]\n"
    assert (hub.resolve("google:L-12_H-768") / "vocab.txt").read_bytes() == b"other"


def test_google_damaged_zip(bucket: Server, googles: dict[str, bytes], tmp_path: Path) -> None:
    good, root = archive(googles), tmp_path / "cache" / "minibert" / "google"
    without = {name: data for name, data in googles.items() if not name.endswith("vocab.txt")}
    for bad, said in (
        (b"<html>", "L-2_H-128.zip: File is not a zip file: the zip is damaged"),
        (good[:-30], "the zip is damaged: get it again"),
        (good[:60] + b"\xff\xff\xff\xff" + good[64:], "the zip is damaged: get it again"),
        (archive(without), "A-2.zip: holds no vocab.txt: check the address"),
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
    bucket.files[TINY] = archive(googles)
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
    bucket.files[TINY] = archive(googles)
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
    assert "\n" not in str(caught.value) and "--checkpoint DIR" in str(caught.value)
    (tmp_path / "cache" / "minibert").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "minibert").write_bytes(b"a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot use: Not a directory"):
        hub.resolve("google:base")


# --- data


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
    with pytest.raises(DownloadError, match="--data-dir DIR"):
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


def archive(members: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return memory.getvalue()


@pytest.fixture
def glue(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MINIBERT_DATA_URL", server.url)
    return server


RTE = {f"RTE/{part}.tsv": f"index\tof {part}\n".encode() for part in ("train", "dev", "test")}


def test_task_is_unpacked_and_cached(glue: Server, tmp_path: Path) -> None:
    others = ("RTE/original/train.tsv", "__MACOSX/RTE/dev.tsv", "../../train.tsv", "/tmp/dev.tsv")
    glue.files["glue/data/RTE.zip"] = archive(dict.fromkeys(others, b"no") | RTE)
    assert datasets.cached("rte") is None
    folder = datasets.fetch_task("rte")
    assert folder == tmp_path / "cache" / "minibert" / "glue" / "RTE" == datasets.cached("RTE")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name.removeprefix("RTE/"): data for name, data in RTE.items()
    }
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "RTE", "checksums.json"]
    glue.asked.clear()
    assert datasets.fetch_task("RTE") == folder and glue.asked == []


def test_two_processes_want_the_same_task(glue: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl", reason="the locks of files are Unix's")
    glue.files["glue/data/RTE.zip"] = archive(RTE)
    real, inside, go = datasets.unpack, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        inside.set()
        assert go.wait(10)
        real(*arguments)

    monkeypatch.setattr(datasets, "unpack", slow)
    with ThreadPoolExecutor(2) as pool:  # the lock is one opening's of the file: threads wait as processes do
        first = pool.submit(datasets.fetch_task, "rte")
        assert inside.wait(10)
        second = pool.submit(datasets.fetch_task, "rte")
        with pytest.raises(TimeoutError):
            second.result(0.2)
        go.set()
        assert first.result(10) == second.result(10) == datasets.cached("rte")
    assert len(glue.asked) == 1


def test_task_that_changes_later_is_refused(glue: Server) -> None:
    glue.files["glue/data/RTE.zip"] = archive(RTE)
    folder = datasets.fetch_task("rte")
    (folder / "dev.tsv").unlink()
    datasets.fetch_task("rte")
    (folder / "dev.tsv").unlink()
    glue.files["glue/data/RTE.zip"] = archive(RTE | {"RTE/dev.tsv": b"other"})
    with pytest.raises(DownloadError, match="RTE.zip: SHA-256 .* of an earlier download: .* remove .*checksums.json"):
        datasets.fetch_task("rte")
    assert not (folder / "dev.tsv").exists()


def test_damaged_archives(glue: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    good = archive(RTE)
    at = good.index(b"RTE/train.tsv") + 20
    for bad, said in (
        (b"", "damaged zip"),
        (good[:-30], "damaged zip"),
        (good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :], "damaged zip"),
        (archive({"RTE/train.tsv": b"x"}), "holds no dev.tsv, test.tsv"),
    ):
        glue.files["glue/data/RTE.zip"] = bad
        with pytest.raises(DownloadError, match=said) as caught:
            datasets.fetch_task("rte")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(datasets, "_LIMIT", 1 << 16)
    glue.files["glue/data/RTE.zip"] = archive(RTE | {"RTE/test.tsv": b"\0" * (1 << 20)})  # a bomb of 1 kB
    with pytest.raises(DownloadError, match="unpacks to more than 65536 bytes"):
        datasets.fetch_task("rte")
    assert datasets.cached("rte") is None
    glue.files["glue/data/RTE.zip"] = good  # nothing bad was recorded as the right checksum
    assert datasets.fetch_task("rte").is_dir()


def test_two_archives_and_a_plain_file(glue: Server) -> None:
    glue.files["XNLI/XNLI-1.0.zip"] = archive({"XNLI-1.0/xnli.dev.tsv": b"dev", "XNLI-1.0/xnli.test.tsv": b"test"})
    glue.files["XNLI/XNLI-MT-1.0.zip"] = archive({"XNLI-MT-1.0/multinli/multinli.train.zh.tsv": b"train"})
    glue.files["glue/data/AX.tsv"] = b"index\n"
    assert (datasets.fetch_task("xnli") / "multinli" / "multinli.train.zh.tsv").read_bytes() == b"train"
    assert (datasets.fetch_task("ax") / "AX.tsv").read_bytes() == b"index\n"


def test_mrpc_is_assembled_as_glue_has_it(glue: Server, shared: Path) -> None:
    theirs = shared / "data" / "glue" / "MRPC"
    for part in ("train", "test"):
        name = f"msr_paraphrase_{part}.txt"
        glue.files[f"senteval/senteval_data/{name}"] = (theirs / name).read_bytes()
    glue.cut["/senteval/senteval_data/msr_paraphrase_train.txt"] = 500_000
    folder = datasets.fetch_task("mrpc")
    for part in ("train", "dev", "test"):
        assert (folder / f"{part}.tsv").read_bytes() == (theirs / f"{part}.tsv").read_bytes(), part


def test_mrpc_of_another_content_is_refused(glue: Server) -> None:
    glue.files["senteval/senteval_data/msr_paraphrase_train.txt"] = b"other"
    with pytest.raises(DownloadError, match="is not the published 60a9b09084528f06"):
        datasets.fetch_task("mrpc")


def test_mrpc_rows_that_are_short(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\n")
    with pytest.raises(DataError, match="train:2: not label, two ids"):
        datasets.assemble_mrpc(tmp_path / "train", tmp_path / "train", tmp_path / "out")


def test_data_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MINIBERT_DATA_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(DownloadError) as caught:
            datasets.fetch_task("mrpc")
    text = str(caught.value)
    assert "\n" not in text and all(o in text for o in ("--sample", "--checkpoint DIR", "--data-dir DIR"))


def test_a_cache_that_cannot_be_written(glue: Server, tmp_path: Path) -> None:
    glue.files["glue/data/RTE.zip"] = archive(RTE)
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot (write|use): Not a directory") as caught:
        datasets.fetch_task("rte")
    assert "\n" not in str(caught.value)


def test_download_takes_checkpoints_and_tasks(glue: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glue.files["glue/data/RTE.zip"] = archive(RTE)
    monkeypatch.setattr(hub, "resolve", lambda name, progress: tmp_path / name)
    places = hub.download(["rte", "base", "owner/name"])
    assert places == {
        "rte": datasets.cached("rte"), "base": tmp_path / "base", "owner/name": tmp_path / "owner/name",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="nonsense: is no checkpoint .*and no task .CoLA"):
        hub.download(["nonsense"])
    with pytest.raises(DataError, match="nonsense: there is no such task to download"):
        datasets.fetch_task("nonsense")


def test_squad_is_fetched_by_name(glue: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train-v1.1.json", "dev-v1.1.json", "dev-v2.0.json"):
        glue.files[name] = name.encode()
        monkeypatch.setitem(datasets.SQUAD_CHECKSUMS, name, hashlib.sha256(name.encode()).hexdigest())
    folder = tmp_path / "cache" / "minibert" / "squad"
    assert hub.download(["squad", "SQuAD"]) == {"squad": folder, "SQuAD": folder}
    assert (folder / "train-v1.1.json").read_bytes() == b"train-v1.1.json" and len(glue.asked) == 2
    with pytest.raises(DownloadError, match="train-v2.0.json: the server answered 404"):
        hub.download(["squad2"])


# --- TriviaQA

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


@pytest.mark.parametrize("spelling, task", [("sst2", "SST-2"), ("SST-2", "SST-2"), ("sts_b", "STS-B"), ("x", None)])
def test_spellings(spelling: str, task: str | None) -> None:
    assert datasets.find(spelling) == task


# --- what is seen of it


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its last entry, that progress goes by."""
    now = [100.0]
    monkeypatch.setattr("minibert.progress.time.perf_counter", lambda: now[-1])
    return now


def show_transfers(transfer: Transfer, clock: list[float]) -> None:
    with transfer as shown:
        for done in range(1, 4):
            clock.append(clock[-1] + 6)
            shown("QQP.zip", done * 10**6, 3 * 10**6)
        shown("RTE.zip", 10**6, None)


def test_transfers_on_a_terminal_are_one_line_a_file(clock: list[float]) -> None:
    show_transfers(Transfer(stream=(terminal := Terminal())), clock)
    steps = "\rQQP.zip  1.0 MB of 3.0\rQQP.zip  2.0 MB of 3.0\rQQP.zip  3.0 MB of 3.0\n"
    assert terminal.getvalue() == steps + "\rRTE.zip  1.0 MB\n"
    with Transfer(stream=(terminal := Terminal())):
        pass
    assert terminal.getvalue() == "", "nothing came, nothing is said"


def test_transfers_elsewhere_are_plain_lines_now_and_then(clock: list[float]) -> None:
    show_transfers(Transfer(stream=(pipe := io.StringIO())), clock)
    assert pipe.getvalue() == "QQP.zip  1.0 MB of 3.0\nQQP.zip  3.0 MB of 3.0\nRTE.zip  1.0 MB\n"


@pytest.mark.parametrize("quiet, said", [(True, ""), (False, "QQP.zip  1.0 MB of 3.0\n")])
def test_a_reporter_shows_transfers(
    quiet: bool, said: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    show_transfers(Reporter(quiet).transfer(), clock)
    err = capsys.readouterr().err
    assert err.startswith(said) and (err == "") == quiet


def test_what_is_counted_is_shown_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    def counted(quiet: bool) -> list[int]:
        found = []
        for item in Reporter(quiet).counted([100, 200, 300], "texts", size=int):
            clock.append(clock[-1] + 8)
            found.append(item)
        return found

    assert counted(quiet=False) == [100, 200, 300] == counted(quiet=True)
    assert capsys.readouterr().err == "300 texts, 19 a second\n"


def test_a_count_that_is_broken_off_ends_its_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    counted = Reporter(quiet=False).counted(["a", "b", "c"], "texts")
    next(counted)
    clock.append(clock[-1] + 2)
    next(counted)
    assert terminal.getvalue() == "\r1 texts, 0 a second"
    counted.close()
    assert terminal.getvalue() == "\r1 texts, 0 a second\n"


def test_a_quiet_count_needs_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert list(Reporter().counted([1, 2], "texts")) == [1, 2]


def test_a_shorter_line_covers_a_longer_one() -> None:
    transfer = Transfer(stream=(terminal := Terminal()))
    transfer("a", 10**7, None)
    transfer.show("a 1")
    assert terminal.getvalue() == "\ra  10.0 MB\ra 1       "


def test_the_first_step_which_compiles_is_not_counted(clock: list[float]) -> None:
    with Progress(total=14, done=10, stream=(pipe := io.StringIO())) as progress:
        for seconds, tokens in ((30, 100), (10, 200), (10, 400), (10, 600)):
            clock.append(clock[-1] + seconds)
            progress.step(0.5, 1e-5, tokens)
    assert pipe.getvalue().splitlines() == [
        "step 11/14  loss 0.5000  rate 1.00e-05",
        "step 12/14  loss 0.5000  rate 1.00e-05  20 tokens/s  0:20 left",
        "step 13/14  loss 0.5000  rate 1.00e-05  30 tokens/s  0:10 left",
        "step 14/14  loss 0.5000  rate 1.00e-05  40 tokens/s  0:00 left",
    ]
