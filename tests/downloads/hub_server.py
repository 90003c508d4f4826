"""A server on this machine that speaks the hub's protocol and cuts connections."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import re
import socket
import zipfile
from dataclasses import dataclass, field

from minibert.config import BertConfig

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


def zipped(members: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return memory.getvalue()
