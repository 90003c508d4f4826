"""gs://: read, written and published through a real emulator of the storage protocol, with faults injected."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from minibert import files, gcs, remote
from minibert.errors import ConfigError, MinibertError, RunError, StorageError
from storage import Storage

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
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(gcs, "PAUSE", 0.001)
    monkeypatch.setattr(gcs, "SILENCE", 0.5)
    monkeypatch.setattr(gcs, "CHUNK", 1 << 18)
    monkeypatch.setattr(gcsfs.retry, "asyncio", SimpleNamespace(sleep=soon))
    gcs._client.cache_clear()
    gcs._closed.clear()
    gcs._reached.clear()
    server.emulator.wipe(keep_buckets=True)
    server.faults.clear()
    server.requests.clear()
    return server


BIG = bytes(range(256)) * 4096 + b"end"  # four chunks and a bit


@pytest.mark.parametrize("how", [429, 503, "cut", "short", "silent"])
def test_reads_go_on_after_a_fault(storage: Storage, how: int | str) -> None:
    storage.put("data/file.bin", BIG)
    storage.fault(how, "GET", "file.bin", "alt=media", times=2)
    storage.fault(how, "GET", "file.bin")
    path = Path(remote.local("gs://bucket/data/file.bin"))
    assert path.read_bytes() == BIG and not storage.faults
    assert remote.name(path) == "gs://bucket/data/file.bin"
