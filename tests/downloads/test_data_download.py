"""GLUE's and SQuAD's data, by name."""

from __future__ import annotations

import hashlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from hub_server import Server, zipped
from minibert import datasets, hub
from minibert.errors import ConfigError, DataError, DownloadError, MinibertError

RTE = {f"RTE/{part}.tsv": f"index\tof {part}\n".encode() for part in ("train", "dev", "test")}


def test_task_is_unpacked_and_cached(glue: Server, tmp_path: Path) -> None:
    others = ("RTE/original/train.tsv", "__MACOSX/RTE/dev.tsv", "../../train.tsv", "/tmp/dev.tsv")
    glue.files["glue/data/RTE.zip"] = zipped(dict.fromkeys(others, b"no") | RTE)
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
    glue.files["glue/data/RTE.zip"] = zipped(RTE)
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
    glue.files["glue/data/RTE.zip"] = zipped(RTE)
    folder = datasets.fetch_task("rte")
    (folder / "dev.tsv").unlink()
    datasets.fetch_task("rte")
    (folder / "dev.tsv").unlink()
    glue.files["glue/data/RTE.zip"] = zipped(RTE | {"RTE/dev.tsv": b"other"})
    with pytest.raises(DownloadError, match="RTE.zip: SHA-256 .* of an earlier download: .* remove .*checksums.json"):
        datasets.fetch_task("rte")
    assert not (folder / "dev.tsv").exists()


def test_damaged_archives(glue: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    good = zipped(RTE)
    at = good.index(b"RTE/train.tsv") + 20
    for bad, said in (
        (b"", "damaged zip"),
        (good[:-30], "damaged zip"),
        (good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :], "damaged zip"),
        (zipped({"RTE/train.tsv": b"x"}), "holds no dev.tsv, test.tsv"),
    ):
        glue.files["glue/data/RTE.zip"] = bad
        with pytest.raises(DownloadError, match=said) as caught:
            datasets.fetch_task("rte")
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(datasets, "_LIMIT", 1 << 16)
    glue.files["glue/data/RTE.zip"] = zipped(RTE | {"RTE/test.tsv": b"\0" * (1 << 20)})  # a bomb of 1 kB
    with pytest.raises(DownloadError, match="unpacks to more than 65536 bytes"):
        datasets.fetch_task("rte")
    assert datasets.cached("rte") is None
    glue.files["glue/data/RTE.zip"] = good  # nothing bad was recorded as the right checksum
    assert datasets.fetch_task("rte").is_dir()


def test_two_archives_and_a_plain_file(glue: Server) -> None:
    glue.files["XNLI/XNLI-1.0.zip"] = zipped({"XNLI-1.0/xnli.dev.tsv": b"dev", "XNLI-1.0/xnli.test.tsv": b"test"})
    glue.files["XNLI/XNLI-MT-1.0.zip"] = zipped({"XNLI-MT-1.0/multinli/multinli.train.zh.tsv": b"train"})
    glue.files["glue/data/AX.tsv"] = b"index\n"
    assert (datasets.fetch_task("xnli") / "multinli" / "multinli.train.zh.tsv").read_bytes() == b"train"
    assert (datasets.fetch_task("ax") / "AX.tsv").read_bytes() == b"index\n"


def test_what_has_come_whole_is_not_fetched_again(glue: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "XNLI/XNLI-1.0.zip", "XNLI/XNLI-MT-1.0.zip"
    glue.files[names[0]] = zipped({"XNLI-1.0/xnli.dev.tsv": b"dev", "XNLI-1.0/xnli.test.tsv": b"test"})
    with pytest.raises(DownloadError, match="XNLI-MT-1.0.zip"):
        datasets.fetch_task("xnli")
    glue.files[names[1]] = zipped({"XNLI-MT-1.0/multinli/multinli.train.zh.tsv": b"train"})
    real = datasets.unpack
    monkeypatch.setattr(datasets, "unpack", lambda *_: (_ for _ in ()).throw(MinibertError("no space left")))
    with pytest.raises(MinibertError, match="no space left"):
        datasets.fetch_task("xnli")
    monkeypatch.setattr(datasets, "unpack", real)
    folder = datasets.fetch_task("xnli")
    assert [sum(name in path for _, path, _ in glue.asked) for name in names] == [1, 2]  # 2: it was not there once
    (folder / "xnli.dev.tsv").unlink()
    (folder.parent / "XNLI-1.0.zip").write_bytes(zipped({"XNLI-1.0/xnli.dev.tsv": b"of somebody else"}))
    assert (datasets.fetch_task("xnli") / "xnli.dev.tsv").read_bytes() == b"dev", "of others it is no download"
    assert sorted(path.name for path in folder.parent.iterdir()) == [".lock", "XNLI", "checksums.json"]


def test_a_bad_archive_that_was_left_counts_for_nothing(glue: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = datasets.unpack
    glue.files["glue/data/RTE.zip"] = zipped(RTE)[:-30]
    monkeypatch.setattr(datasets, "unpack", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        datasets.fetch_task("rte")
    monkeypatch.setattr(datasets, "unpack", real)
    with pytest.raises(DownloadError, match="damaged zip"):
        datasets.fetch_task("rte")
    glue.files["glue/data/RTE.zip"] = zipped(RTE)
    assert datasets.fetch_task("rte").is_dir()


def test_a_zip_s_directory_is_not_taken_into_memory(glue: Server) -> None:
    glue.files["glue/data/RTE.zip"] = zipped(RTE | {f"RTE/{i:0200}": b"" for i in range(5000)})
    with pytest.raises(DownloadError, match="damaged zip .its directory says it has"):
        datasets.fetch_task("rte")


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
    assert "\n" not in text and "name a local copy" in text


def test_a_cache_that_cannot_be_written(glue: Server, tmp_path: Path) -> None:
    glue.files["glue/data/RTE.zip"] = zipped(RTE)
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(
        DownloadError, match="cannot (write|use): .*cache is a file, not a folder; move it away"
    ) as caught:
        datasets.fetch_task("rte")
    assert "\n" not in str(caught.value)


def test_download_takes_checkpoints_and_tasks(glue: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glue.files["glue/data/RTE.zip"] = zipped(RTE)
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


@pytest.mark.parametrize("spelling, task", [("sst2", "SST-2"), ("SST-2", "SST-2"), ("sts_b", "STS-B"), ("x", None)])
def test_spellings(spelling: str, task: str | None) -> None:
    assert datasets.find(spelling) == task
