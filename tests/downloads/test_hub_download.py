"""Checkpoints from the hub, through huggingface_hub."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest

from hub_server import COMMIT, REPOSITORY, SMALL, Server
from minibert import checkpoint, google, hub, models
from minibert.checkpoint import conversion, sources
from minibert.checkpoint.pytorch import write as write_pytorch
from minibert.errors import CheckpointError, DownloadError


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
    assert "name a local copy" in text and "--" not in text, "not every command has such options"
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
