"""gs://: read, written and published through a real emulator of the storage protocol, with faults injected."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from commands import (
    Done,
    assert_one_line,
    assert_stopped,
    command,
    contents,
    environment,
    make_checkpoint,
    minibert_in_process,
    write_mrpc,
)
from minibert import checkpoint, files, gcs, hub, latest, remote
from minibert.checkpoint import conversion
from minibert.errors import RunError, StorageError
from minibert.mirror import Mirror, output
from minibert.tasks import sample
from storage import LATE, Fault, Storage

pytest.importorskip("gcsfs", reason="gs:// needs the extra gcs")
pytest.importorskip("gcp_storage_emulator", reason="the storage emulator is not installed: pip install '.[test]'")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.stop()


@pytest.fixture
def storage(server: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """The emulator, empty; a cache of one's own; nobody waits long for anything."""
    import gcsfs.retry

    async def soon(seconds: float) -> None:
        await asyncio.sleep(seconds / 1000)

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    kernels = files.user_cache() / "kernels"
    (tmp_path / "cache" / "minibert").mkdir(parents=True)
    (tmp_path / "cache" / "minibert" / "kernels").symlink_to(kernels)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # nobody looks for a machine of Google's
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none"))
    monkeypatch.setattr(gcs, "PAUSE", 0.001)
    monkeypatch.setattr(gcs, "CHUNK", 1 << 18)
    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=soon))
    gcs._client.cache_clear()
    gcs._closed.clear()
    gcs._reached.clear()
    server.emulator.wipe(keep_buckets=True)
    server.faults.clear()
    server.requests.clear()
    return server


@pytest.fixture
def impatient(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is a fault after less than a busy machine may need for an answer."""
    monkeypatch.setattr(gcs, "SILENCE", LATE / 3)


BIG = bytes(range(256)) * 4096 + b"end"  # four chunks and a bit


def put_folder(storage: Storage, folder: Path, name: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())


def media(storage: Storage) -> list[str | None]:
    """The ranges that were asked for."""
    return [request.range for request in storage.requests if "alt=media" in request.path]


@pytest.mark.parametrize("how", [429, 503, "cut", "short", "silent"])
def test_reads_go_on_after_a_fault(storage: Storage, impatient: None, how: int | str) -> None:
    storage.put("data/file.bin", BIG)
    storage.fault(how, "GET", "file.bin", "alt=media", times=2)
    storage.fault(how, "GET", "file.bin")
    began = time.monotonic()
    path = Path(remote.local("gs://bucket/data/file.bin"))
    assert how != "silent" or time.monotonic() - began < 3 * LATE, "nobody waited until the server hung up"
    assert path.read_bytes() == BIG and not storage.faults
    assert remote.name(path) == "gs://bucket/data/file.bin"


def test_a_bucket_that_does_not_answer_is_told_meanwhile(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage.put("file", b"content")
    told = "gs://bucket: no answer yet, still trying; is there a network?"
    monkeypatch.setattr(gcs, "WAIT", LATE / 30)
    storage.fault("silent")
    assert Path(remote.local("gs://bucket/file")).read_bytes() == b"content"
    assert caplog.messages == [told]
    storage.fault("silent")  # of a bucket that has answered it is known that it is there
    assert gcs.stat("gs://bucket/file") and caplog.messages == [told]
    monkeypatch.setattr(gcs, "WAIT", LATE)
    gcs._reached.clear()
    assert gcs.stat("gs://bucket/file")
    time.sleep(LATE)
    assert caplog.messages == [told], "who answers in time is not told"


def test_what_has_come_is_not_fetched_again(storage: Storage) -> None:
    storage.put("file.bin", BIG)
    for _ in range(2):
        storage.fault(lambda: None, "GET", "file.bin", "alt=media", times=2)
        storage.fault(400, "GET", "file.bin", "alt=media")
        with pytest.raises(StorageError, match="gs://bucket/file.bin: the storage service cannot be used"):
            remote.local("gs://bucket/file.bin")
    assert Path(remote.local("gs://bucket/file.bin")).read_bytes() == BIG
    asked = media(storage)
    assert len(set(asked)) == 5 and len(asked) == 7, (
        "two requests failed, and no range that had come was asked for again"
    )
    assert Path(remote.local("gs://bucket/file.bin")).read_bytes() == BIG and media(storage) == asked


def test_bytes_that_are_not_the_objects_are_never_taken_for_it(storage: Storage, tmp_path: Path) -> None:
    storage.put("file.bin", BIG)
    storage.fault("wrong", "GET", "file.bin", "alt=media")
    assert Path(remote.local("gs://bucket/file.bin")).read_bytes() == BIG
    storage.put("file.bin", BIG[::-1])
    storage.fault("wrong", "GET", "file.bin", "alt=media", times=99)
    with pytest.raises(StorageError, match="does not have the object's checksum"):
        remote.local("gs://bucket/file.bin")
    storage.faults.clear()
    assert Path(remote.local("gs://bucket/file.bin")).read_bytes() == BIG[::-1], "another version, another copy"


def test_a_file_that_is_replaced_while_it_is_read_comes_whole(storage: Storage) -> None:
    storage.put("file.bin", BIG)
    storage.fault(lambda: None, "GET", "file.bin", "alt=media")
    storage.fault(lambda: storage.put("file.bin", BIG[::-1]), "GET", "file.bin", "alt=media")
    assert Path(remote.local("gs://bucket/file.bin")).read_bytes() == BIG[::-1]


@pytest.mark.parametrize("how", [429, 503, "lost", "cut", "short", "silent"])
def test_uploads_go_on_after_a_fault(storage: Storage, impatient: None, tmp_path: Path, how: int | str) -> None:
    (tmp_path / "file").write_bytes(BIG)
    storage.fault(how, "POST", "file.bin")
    storage.fault(how, "PUT", "file.bin", times=2)
    gcs.upload("gs://bucket/file.bin", tmp_path / "file", generation=0)
    assert storage.objects() == {"file.bin": BIG} and not storage.faults
    with pytest.raises(gcs.Changed):
        (tmp_path / "file").write_bytes(b"other")
        gcs.upload("gs://bucket/file.bin", tmp_path / "file", generation=0)
    assert storage.objects() == {"file.bin": BIG}


def test_one_line_says_what_is_missing(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: str | Path, words: str) -> None:
        assert_one_line(minibert_in_process(*arguments), 1, words)

    fails("inspect", "gs://bucket/nothing", words="gs://bucket/nothing: nothing stands there")
    fails("inspect", "gs://elsewhere/x", words="no such bucket")
    fails("inspect", "gs://Bucket/../x", words="is no address: write gs://BUCKET/NAME")
    train = ("finetune", "mrpc", "--checkpoint", make_checkpoint(tmp_path / "base"), "--data-dir", write_mrpc(tmp_path))
    fails(*train, "--output-dir", "gs://elsewhere/run", words="no such bucket")
    fails(*train, "--output-dir", "gs://bucket/run", "--resume", words="gs://bucket/run: holds no run to resume")
    fails(*train, "--output-dir", "gs://bucket/run", "--resume", "--seeds", "2", words="holds no seeds to resume")
    storage.put("run/notes.txt", b"mine")
    fails(*train, "--output-dir", "gs://bucket/run", words="gs://bucket/run: is not empty and holds no run")
    assert storage.objects() == {"run/notes.txt": b"mine"}
    storage.closed = {"bucket"}
    fails("inspect", "gs://bucket/run/x", words="access is denied: log in with `gcloud auth")
    storage.closed = set()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    gcs._reached.clear()
    fails("inspect", "gs://bucket/run/x", words="cannot be used (Cannot connect to host 127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    gcs._client.cache_clear()
    fails("inspect", "gs://bucket/run/x", words='gs:// needs the extra gcs: pip install ".[gcs]"')


def test_public_buckets_need_no_credentials_and_closed_ones_get_them(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.oauth2.credentials import Credentials

    real, asked = gcs._client, []

    def client(credentials: bool) -> Any:
        asked.append(credentials)
        fs = real(False)
        return type(fs)(token=Credentials("secret"), skip_instance_cache=True) if credentials else fs

    monkeypatch.setattr(gcs, "_client", client)
    storage.put("file.txt", b"words")
    assert Path(remote.local("gs://bucket/file.txt")).read_bytes() == b"words"
    assert not any(asked) and not any(request.authorization for request in storage.requests)
    storage.closed = {"bucket"}
    storage.put("file.txt", b"other")
    try:
        assert Path(remote.local("gs://bucket/file.txt")).read_bytes() == b"other"
        assert storage.requests[-1].authorization == "Bearer secret"
    finally:
        storage.closed = set()


def test_a_checkpoint_is_a_folder_a_prefix_or_a_file(storage: Storage, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf", labels=("no", "yes"))
    conversion.convert(tmp_path / "hf", tmp_path / "tf", "tensorflow")
    for folder in ("hf", "tf"):
        put_folder(storage, tmp_path / folder, folder)
    storage.put("tf/other.ckpt.index", b"of no interest")
    wanted = checkpoint.load(tmp_path / "hf").arrays
    for source in ("hf", "hf/model.safetensors", "tf/bert_model.ckpt", "tf/bert_model.ckpt.index"):
        found = checkpoint.load(hub.resolve(f"gs://bucket/{source}"))
        assert found.vocab is not None and found.arrays.keys() == wanted.keys(), source
        assert all(np.array_equal(found.arrays[name], wanted[name]) for name in wanted)
        assert found.path is not None and not (found.path / "other.ckpt.index").exists()


def test_of_a_folder_of_google_s_script_the_newest_checkpoint_alone_is_fetched(
    storage: Storage, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "hf", labels=("no", "yes"))
    conversion.convert(tmp_path / "hf", tmp_path / "tf", "tensorflow")
    latest.write(tmp_path / "tf", "bert_model.ckpt", ["model.ckpt-1", "bert_model.ckpt"])
    put_folder(storage, tmp_path / "tf", "tf")
    for name in ("model.ckpt-1.index", "model.ckpt-1.data-00000-of-00001"):
        storage.put(f"tf/{name}", b"another gigabyte")
    folder = hub.resolve("gs://bucket/tf")
    assert {path.name for path in folder.iterdir()} >= {"checkpoint", "vocab.txt", "bert_model.ckpt.index"}
    assert not list(folder.glob("model.ckpt-1.*"))
    wanted = checkpoint.load(tmp_path / "hf").arrays
    assert all(np.array_equal(array, wanted[name]) for name, array in checkpoint.load(folder).arrays.items())
    put_folder(storage, tmp_path / "hf", "tf")
    storage.put("tf/checkpoint", b"of no checkpoint")
    folder = hub.resolve("gs://bucket/tf")
    assert checkpoint.load(folder).arrays.keys() == wanted.keys() and not list(folder.glob("*.ckpt*"))


def test_what_cannot_be_listed_is_found_by_its_usual_names(storage: Storage, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "hf")
    conversion.convert(tmp_path / "hf", tmp_path / "tf", "tensorflow")
    put_folder(storage, tmp_path / "tf", "tf")
    for source in ("tf", "tf/bert_model.ckpt"):
        storage.faults = [Fault(lambda request: "/o?" in request.path or "manifest" in request.key, 403)] * 9
        found = checkpoint.load(hub.resolve(f"gs://bucket/{source}"))
        assert found.vocab is not None and found.arrays.keys() == checkpoint.load(tmp_path / "hf").arrays.keys()


class Folder:
    """What a published folder has to be able to do, in miniature: a state that changes, a model that comes late."""

    def __init__(self) -> None:
        self.mirror = Mirror("gs://bucket/run", lambda name: name.endswith((".bin", ".json")))
        self.mirror.hold = True

    def publish(self, settle: bool = False, **content: str | None) -> None:
        for name, text in content.items():
            path = self.mirror.path / f"{name}.bin"
            path.unlink(missing_ok=True) if text is None else path.write_text(text)
        self.mirror.publish(settle)


def published(name: str = "run") -> dict[str, str]:
    """What a reader gets of the folder."""
    try:
        folder = Path(remote.local(f"gs://bucket/{name}"))
    except StorageError as error:
        assert "nothing stands there" in str(error)
        return {}
    return {path.stem: path.read_text() for path in folder.glob("*.bin")}


def test_a_folder_is_published_and_comes_back(storage: Storage) -> None:
    storage.put("run/notes.txt", b"mine")
    first = Folder()
    first.publish(run="begun", state="1")
    first.publish(state="2")
    sent = [request.key for request in storage.requests if request.method == "PUT"]
    assert sum("run.bin" in key for key in sent) == 1, "what has not changed is not sent again"
    first.publish(state="3")
    assert published() == {"run": "begun", "state": "3"}
    second = Folder()
    second.mirror.pull()
    assert (second.mirror.path / "state.bin").read_text() == "3"
    second.publish(settle=True, run="finished", model="weights", state=None)
    assert published() == {"run": "finished", "model": "weights"}
    there = storage.objects("run/")
    assert there.pop("manifest.json") and there == {
        "run.bin": b"finished", "model.bin": b"weights", "notes.txt": b"mine",
    }, "every file has the object of its name, nothing is left over, and what is not ours is untouched"  # fmt: skip


@pytest.mark.parametrize("began", [False, True], ids=["new", "there"])
def test_wherever_publishing_breaks_off_the_folder_is_as_it_was(storage: Storage, began: bool) -> None:
    """Every request of a publication is the last one in turn; then another process resumes."""
    old = {"state": "1", "scratch": "x"} if began else {}
    new = {"state": "2", "model": "weights"}
    if began:
        Folder().publish(**old)
    before = storage.content()
    done, requests, seen = False, 0, []
    while not done:
        storage.restore(before)
        writer = Folder()
        writer.mirror.pull()
        storage.left = requests
        try:
            writer.publish(settle=True, scratch=None, **new)
            done = True
        except StorageError:
            requests += 1
        storage.left = None
        seen.append(published())
        assert seen[-1] in (old, new), requests
        second = Folder()
        second.mirror.pull()
        second.publish(settle=True, scratch=None, **new)
        assert published() == new
        assert set(storage.objects("run/")) == {"manifest.json", *(f"{name}.bin" for name in new)}, requests
    assert requests > 8 and seen[0] == old and seen[-1] == new
    assert seen == sorted(seen, key=[old, new].index), "once it is new it stays so"


def test_what_cannot_be_published_is_kept_whatever_fails(
    storage: Storage, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where others change the folder all the time, or it cannot be read after such a change."""
    real = remote.state

    def broken(url: str, deep: bool = False) -> remote.State:
        raise StorageError("out of reach")

    for state, said in ((broken, "out of reach"), (real, "changes all the time")):
        writer = Folder()
        monkeypatch.setattr(writer.mirror, "_publish", lambda settle: (_ for _ in ()).throw(gcs.Changed("other")))
        monkeypatch.setattr(remote, "state", state)
        with pytest.raises(StorageError, match=f"{said}.*; what could not be published is kept in (.*)") as caught:
            writer.publish(state="1")
        kept = Path(str(caught.value).rpartition(" kept in ")[2])
        assert (kept / "state.bin").read_text() == "1"
        monkeypatch.setattr(remote, "state", real)


def test_answers_that_get_lost_change_nothing(storage: Storage, impatient: None) -> None:
    Folder().publish(state="first")
    for how in ("lost", "cut", "short", 503, "silent"):
        for method in ("POST", "PUT", "DELETE"):
            storage.fault(how, method)
        storage.fault(how, "PUT", "manifest")
        storage.fault(how, "GET", "manifest", "alt=media")
        writer = Folder()
        writer.mirror.pull()
        writer.publish(state=str(how), **{f"new-{how}": "x"})
        assert published()["state"] == str(how) and not storage.faults


def test_of_two_writers_one_is_told_and_harms_nothing(storage: Storage) -> None:
    first = Folder()
    first.publish(run="first", state="1")
    second = Folder()
    second.mirror.pull()
    second.publish(state="2")  # it resumes: nobody can know that the first still lives
    with pytest.raises(RunError, match="gs://bucket/run: another process writes into it, and this one stops"):
        first.publish(state="3", run="first again")
    assert published() == {"run": "first", "state": "2"}
    # Both begin at once: the slower one's objects come between the faster one's.
    slow, fast = Folder(), Folder()
    storage.fault(lambda: fast.publish(state="fast", late="fast"), "PUT", "late")
    with pytest.raises(RunError, match="another process"):
        slow.publish(state="slow", late="slow")
    assert published() == {"run": "first", "state": "fast", "late": "fast"}


def test_who_adds_to_a_folder_disturbs_nobody(storage: Storage) -> None:
    trainer = Folder()
    trainer.publish(run="begun", state="1")
    evaluator = Folder()
    evaluator.mirror.hold = False
    evaluator.mirror.pull()
    with output("gs://bucket/run") as folder:
        (folder / "added.bin").write_text("too")
        trainer.publish(state="2", late="x")
    evaluator.publish(results="good")
    assert published() == {"run": "begun", "state": "2", "late": "x", "added": "too", "results": "good"}
    trainer.publish(state="3")
    assert published() == {"run": "begun", "state": "3", "late": "x", "added": "too", "results": "good"}


def test_what_is_uploaded_and_not_yet_published_is_not_there(storage: Storage, tmp_path: Path) -> None:
    Folder().publish(run="begun")
    (tmp_path / "file").write_bytes(b"half of a checkpoint")
    gcs.upload("gs://bucket/run/late.ckpt.index", tmp_path / "file")
    gcs.upload("gs://bucket/run/late.bin", tmp_path / "file")
    assert published() == {"run": "begun"}
    with pytest.raises(StorageError, match="nothing stands there"):
        remote.checkpoint("gs://bucket/run/late.ckpt")


def test_what_others_put_into_a_folder_counts_and_copies_are_as_good(storage: Storage) -> None:
    writer = Folder()
    writer.publish(run="begun", state="1")
    writer.publish(state="2")
    storage.put("run/other.bin", b"by hand")
    assert published() == {"run": "begun", "state": "2", "other": "by hand"}
    writer.publish(state="3")
    storage.put("run/other.bin", b"again")
    assert published() == {"run": "begun", "state": "3", "other": "again"}
    storage.put("run/run.bin", b"by hand, too")
    assert published()["run"] == "by hand, too"
    storage.copy("run/", "copy/")
    assert published("copy") == published()


def test_who_reads_while_it_is_published_gets_one_version(storage: Storage) -> None:
    writer = Folder()
    writer.publish(a="1", b="1")
    storage.fault(lambda: writer.publish(a="2", b="2"), "GET", "run/b.bin", "alt=media")
    assert published() == {"a": "2", "b": "2"}
    reader = Folder()
    storage.fault(lambda: writer.publish(a="3", b="3"), "GET", "run/b", "alt=media")
    reader.mirror.pull()
    assert {path.stem: path.read_text() for path in reader.mirror.path.glob("*.bin")} == {"a": "3", "b": "3"}


@pytest.mark.parametrize(
    "content",
    [
        b" ", b"[]", b"{}", b'{"holder": "", "files": []}', b'{"holder": 1, "files": {}}',
        b'{"holder": "", "files": {"a.bin": {}}}',
        b'{"holder": "", "files": {"../a.bin": {"object": "../a.bin", "size": 1, "crc32c": "x", "generation": 1}}}',
        b'{"holder": "", "files": {"a.bin": {"object": "/etc/passwd", "size": 1, "crc32c": "x", "generation": 1}}}',
        b'{"holder": "", "files": {"a.bin": {"object": "a.bin", "size": -1, "crc32c": "x", "generation": 1}}}',
        b'{"holder": "", "files": {"a.bin": {"object": "a.bin", "size": true, "crc32c": "x", "generation": 1}}}',
    ],
)  # fmt: skip
def test_a_manifest_is_not_trusted(storage: Storage, content: bytes) -> None:
    storage.put("run/a.bin", b"x")
    storage.put("run/manifest.json", content)
    with pytest.raises(StorageError, match="gs://bucket/run/manifest.json: "):
        remote.local("gs://bucket/run")


def test_a_run_is_killed_while_it_is_published_and_resumed(storage: Storage, tmp_path: Path) -> None:
    """The embedded sample, from a bucket and into it: the bits of an undisturbed run on the disk."""
    sample.write(tmp_path / "glue" / "MRPC")
    for path, lines in (("train.tsv", 129), ("dev.tsv", 41)):  # less of it, and the header
        whole = tmp_path / "glue" / "MRPC" / path
        whole.write_text("".join(whole.read_text().splitlines(keepends=True)[:lines]))
    put_folder(storage, tmp_path / "glue", "data/glue")
    put_folder(storage, sample.model_path(), "models/sample")
    storage.put("data/glue/QQP/train.tsv", b"another task's")
    settings = ["--epochs", "1.5", "--max-seq-length", "64", "--learning-rate", "1e-4", "--save-every", "2"]
    settings += ["--threads", "1"]  # here and in the process that is killed: the last bits follow their number
    near = ["--checkpoint", sample.model_path(), "--data-dir", tmp_path / "glue", "--output-dir", tmp_path / "run"]
    far = ["--checkpoint", "gs://bucket/models/sample", "--data-dir", "gs://bucket/data/glue", "--output-dir",
           "gs://bucket/runs/first"]  # fmt: skip
    done = minibert_in_process("finetune", "mrpc", *settings, *near)
    assert done.code == 0, done.err

    storage.fault(lambda: None, "PUT", "state.safetensors", times=3)  # of two chunks each
    storage.fault(lambda: process.kill(), "PUT", "state.safetensors")
    with subprocess.Popen(command("finetune", "mrpc", *settings, *far), env=environment({}), stderr=-1) as process:
        process.communicate()
    assert process.returncode == -signal.SIGKILL and not storage.faults
    assert set(storage.manifest("runs/first/")) == {"run.json", "metrics.jsonl", "state.safetensors"}
    assert any(remote.OTHER in name for name in storage.objects("runs/first/")), "it was in the middle of the second"
    assert_one_line(minibert_in_process("evaluate", "gs://bucket/runs/first"), 1, "the run is not finished")
    assert_one_line(minibert_in_process("finetune", "mrpc", *settings, *far), 1, "gs://bucket/runs/first: holds an unf")

    resumed = minibert_in_process("finetune", "mrpc", "--threads", "1", *far[-2:], "--resume")
    assert resumed.code == 0 and "going on after step 2" in resumed.err, resumed.err
    assert resumed.out.replace("gs://bucket/runs/first", "") == done.out.replace(str(tmp_path / "run"), "")
    there, here = storage.objects("runs/first/"), contents(tmp_path / "run")
    assert there.keys() == here.keys() | {"manifest.json"}
    assert all(there[name] == here[name] for name in here if name not in ("run.json", "metrics.jsonl"))
    assert json.loads(there["run.json"])["data_dir"] == "gs://bucket/data/glue"

    evaluated = minibert_in_process("evaluate", "gs://bucket/runs/first", "--json")
    assert json.loads(evaluated.out)["loss"] == json.loads(there["eval_results.json"])["loss"], evaluated.err
    storage.put("data/pairs.tsv", b"The mill closed .\tThe mill shut .\n")
    into = ("--output", "gs://bucket/answers.tsv")
    predicted = minibert_in_process("predict", "gs://bucket/runs/first", "--input", "gs://bucket/data/pairs.tsv", *into)
    assert predicted.code == 0 and storage.objects()["answers.tsv"].startswith(b"id\tprediction\t0\t1\n0\t")
    again = minibert_in_process("finetune", "mrpc", *settings, *far)
    assert_one_line(again, 1, "gs://bucket/runs/first: holds a finished run")


def test_an_outage_costs_nothing_that_was_computed(storage: Storage, tmp_path: Path) -> None:
    train = ("finetune", "mrpc", "--checkpoint", make_checkpoint(tmp_path / "base"), "--data-dir", write_mrpc(tmp_path),
             "--batch-size", "4", "--epochs", "2", "--save-every", "3", "--max-seq-length", "32")  # fmt: skip
    assert minibert_in_process(*train, "--output-dir", tmp_path / "run").code == 0

    def out() -> None:
        storage.left = 0

    storage.fault(lambda: None, "PUT", "state.safetensors")
    storage.fault(out, "PUT", "state.safetensors")
    done = minibert_in_process(*train, "--output-dir", "gs://bucket/run")
    storage.left = None
    line = assert_stopped(done, 1, "gs://bucket/run/manifest.json", "cannot be used (injected, 400)")
    kept = line.rpartition(" is kept in ")[2]
    resumed = minibert_in_process(*train, "--output-dir", kept, "--resume")
    assert resumed.code == 0 and "going on after step 6" in resumed.err, resumed.err
    resumed = minibert_in_process(*train, "--output-dir", "gs://bucket/run", "--resume")
    assert resumed.code == 0 and "going on after step 3" in resumed.err, resumed.err
    there, here = storage.objects("run/"), contents(tmp_path / "run")
    for name in ("model.safetensors", "eval_results.txt"):
        assert there[name] == here[name] == (Path(kept) / name).read_bytes()


def test_a_model_in_a_bucket_that_no_run_has_written_stays(storage: Storage) -> None:
    storage.put("run/model.safetensors", b"mine")
    for more in ((), ("--overwrite",)):
        done = minibert_in_process("finetune", "mrpc", "--sample", "--output-dir", "gs://bucket/run", *more)
        assert_one_line(done, 1, "gs://bucket/run: holds model.safetensors, and no run")
    assert storage.objects("run/") == {"model.safetensors": b"mine"}


def test_several_seeds_go_on_in_a_bucket(storage: Storage, tmp_path: Path) -> None:
    base, data = make_checkpoint(tmp_path / "base"), write_mrpc(tmp_path)
    train = ("finetune", "mrpc", "--checkpoint", base, "--data-dir", data, "--batch-size", "8", "--epochs", "1",
             "--max-seq-length", "32", "--output-dir", "gs://bucket/seeds")  # fmt: skip
    assert minibert_in_process(*train, "--seeds", "1").code == 0
    assert_one_line(minibert_in_process(*train, "--seeds", "2"), 1, "gs://bucket/seeds: is not empty")
    more = minibert_in_process("finetune", "mrpc", *train[-2:], "--seeds", "2", "--resume")
    assert more.code == 0 and "seed 2, 2 of 2" in more.err and "seed 1" not in more.err, more.err
    assert [run["seed"] for run in json.loads(storage.objects("seeds/")["seeds.json"])["runs"]] == [1, 2]


def test_run_classifier_with_googles_paths(storage: Storage, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "start")
    conversion.convert(tmp_path / "start", tmp_path / "bert", "tensorflow")
    write_mrpc(tmp_path / "glue", train=32, dev=11)
    (tmp_path / "glue/MRPC/test.tsv").write_text((tmp_path / "glue/MRPC/dev.tsv").read_text().replace("Quality", "x"))
    put_folder(storage, tmp_path / "bert", "bert")
    put_folder(storage, tmp_path / "glue", "glue")

    def classify(root: str, **more: object) -> Done:
        given = {
            "task_name": "MRPC", "data_dir": f"{root}/glue/MRPC", "vocab_file": f"{root}/bert/vocab.txt",
            "bert_config_file": f"{root}/bert/bert_config.json", "init_checkpoint": f"{root}/bert/bert_model.ckpt",
            "max_seq_length": 32, "train_batch_size": 8, "output_dir": f"{root}/out", **more,
        }  # fmt: skip
        done = minibert_in_process("run-classifier", *[f"--{name}={value}" for name, value in given.items()])
        assert done.code == 0, done.err
        return done

    every = {"do_train": True, "do_eval": True, "num_train_epochs": 1.5, "save_checkpoints_steps": 1}
    for root in (str(tmp_path), "gs://bucket"):
        classify(root, **every)
        more = classify(root, **every | {"num_train_epochs": 2, "do_predict": True})
        assert f"{root}/out/model.ckpt-6 is used, not --init_checkpoint" in more.err
        storage.requests.clear()
        classify(root, do_eval=True)
        assert not any("model.ckpt-7" in request.key for request in storage.requests if request.method == "GET")
        trained = classify(root, do_predict=True, init_checkpoint=f"{root}/out/model.ckpt-8", output_dir=f"{root}/said")
        assert "is used" not in trained.err
        assert trained.err.splitlines()[-1].endswith(f"rows: {root}/said/test_results.tsv")
        for same in (f"{root}/out", f"{root}/out/", f"{root}/out/model.ckpt-8"):
            assert "is used" not in classify(root, do_eval=True, init_checkpoint=same).err
    there = storage.objects("out/") | {f"../said/{name}": text for name, text in storage.objects("said/").items()}
    here = contents(tmp_path / "out") | {f"../said/{name}": text for name, text in contents(tmp_path / "said").items()}
    assert there.keys() == here.keys() | {"manifest.json", "../said/manifest.json"}
    described = [json.loads(text.pop("run.json")) for text in (here, there)]
    assert [one.pop("data_dir") for one in described] == [f"{tmp_path}/glue/MRPC", "gs://bucket/glue/MRPC"]
    assert described[0] == described[1] and all(there[name] == here[name] for name in here)


def test_a_conversion_treats_a_folder_in_a_bucket_as_a_local_one(storage: Storage, tmp_path: Path) -> None:
    """What stands there may be a checkpoint of before, in another format and with another tokenizer."""
    make_checkpoint(tmp_path / "new")
    conversion.convert(make_checkpoint(tmp_path / "old", seed=1), tmp_path / "before", "torch")
    (tmp_path / "before" / "added_tokens.json").write_text('{"[E1]": 9999}')
    (tmp_path / "before" / "optimizer.bin").write_bytes(b"of the old weights")
    put_folder(storage, tmp_path / "before", "there")
    for form, more in (("hf", ()), ("torch", ("--overwrite",)), ("hf", ("--overwrite",)), ("torch", ("--overwrite",))):
        here, there = (
            minibert_in_process("convert", tmp_path / "new", target, "--to", form, *more)
            for target in (tmp_path / "before", "gs://bucket/there")
        )
        said = here.err.replace(str(tmp_path / "before"), "gs://bucket/there")
        assert (there.code, there.err) == (here.code, said)
        found = storage.objects("there/")
        found.pop("manifest.json", None)
        assert found == contents(tmp_path / "before")
    assert "model.safetensors: would be read instead" in said
    assert not {"added_tokens.json", "optimizer.bin"} & found.keys()


def test_a_checkpoint_in_a_bucket_is_converted_where_it_stands(storage: Storage, tmp_path: Path) -> None:
    put_folder(storage, make_checkpoint(tmp_path / "one"), "one")
    storage.put("one/added_tokens.json", b"{}")
    for source in ("gs://bucket/one", "gs://bucket/one/model.safetensors"):
        done = minibert_in_process("convert", source, "gs://bucket/one", "--to", "torch", "--overwrite")
        assert done.code == 0, done.err
    assert {"model.safetensors", "pytorch_model.bin", *conversion.TOKENIZER} <= storage.objects("one/").keys()


def test_squad_and_conversions_with_paths_in_a_bucket(storage: Storage, tmp_path: Path) -> None:
    text = "In the city , on monday , anna sold 3 shares of the mill to the bank ."
    answer = {"text": "anna", "answer_start": text.index("anna")}
    questions = [{"id": f"q{i}", "question": "Who sold shares ?", "answers": [answer]} for i in range(8)]
    article = {"title": "one", "paragraphs": [{"context": text, "qas": questions}]}
    storage.put("squad/dev-v1.1.json", json.dumps({"version": "1.1", "data": [article]}).encode())
    storage.put("squad/train-v1.1.json", json.dumps({"version": "1.1", "data": [article]}).encode())
    storage.put("squad/article.txt", text.encode())
    make_checkpoint(tmp_path / "base")

    def succeeds(*arguments: str | Path) -> Done:
        done = minibert_in_process(*arguments)
        assert done.code == 0, done.err
        return done

    succeeds("convert", tmp_path / "base", "gs://bucket/tf", "--to", "tensorflow")
    assert_one_line(
        minibert_in_process("convert", tmp_path / "base", "gs://bucket/tf", "--to", "tensorflow"), 1,
        "gs://bucket/tf/bert_model.ckpt.data-00000-of-00001: is there already",
    )  # fmt: skip
    assert "format tensorflow" in succeeds("inspect", "gs://bucket/tf").out
    small = ["--batch-size", "4", "--max-seq-length", "32", "--doc-stride", "8", "--max-query-length", "8"]
    run = "gs://bucket/run"
    succeeds(
        "finetune", "squad", "--checkpoint", "gs://bucket/tf", "--data-dir", "gs://bucket", "--output-dir", run, *small
    )
    assert "exact_match" in succeeds("evaluate", run, "--output-dir", run).out
    succeeds("predict", run, "--input", "gs://bucket/squad/dev-v1.1.json", "--output", "gs://bucket/said")
    assert {"predictions.json", "nbest_predictions.json"} <= storage.objects("said/").keys()
    assert storage.objects("said/")["predictions.json"] == storage.objects("run/")["predictions.json"]
    assert succeeds("answer", run, "--context", "gs://bucket/squad/article.txt", "--question", "Who sold shares ?").out
    google = {
        "vocab_file": "gs://bucket/tf/vocab.txt", "bert_config_file": "gs://bucket/tf/bert_config.json",
        "init_checkpoint": "gs://bucket/tf/bert_model.ckpt", "do_train": True, "do_predict": True,
        "train_file": "gs://bucket/squad/train-v1.1.json", "predict_file": "gs://bucket/squad/dev-v1.1.json",
        "train_batch_size": 4, "num_train_epochs": 1, "max_seq_length": 32, "doc_stride": 8,
        "max_query_length": 8, "output_dir": "gs://bucket/out",
    }  # fmt: skip
    succeeds("run-squad", *[f"--{name}={value}" for name, value in google.items()])
    assert {"checkpoint", "model.ckpt-2.index", "predictions.json"} <= storage.objects("out/").keys()
