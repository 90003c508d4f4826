"""What tests of downloads share: the server, in the place of several others, and what it serves."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hub_server import SMALL, Handler, Server
from minibert import checkpoint
from minibert.checkpoint import names


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


@pytest.fixture
def glue(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("MINIBERT_DATA_URL", server.url)
    return server
