"""Google's storage emulator with a proxy before it that injects faults, and that keeps the promises which the emulator
lacks: preconditions on generations (it ignores ifGenerationMatch), and reading one generation and no other."""

from __future__ import annotations

import copy
import http.client
import json
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

LATE = 1.5  # seconds for which a silent server says nothing


class Request(NamedTuple):
    """What came: the method, the path and the query as sent, the object's name, the bytes, and two headers."""

    method: str
    path: str
    key: str
    body: bytes
    authorization: str | None = None
    range: str | None = None


class Fault(NamedTuple):
    """`how`: a status, "cut" (the line breaks after half of the body), "short" (half of it, as if that were all),
    "wrong" (a byte is changed), "lost" (done, but the answer breaks off), "silent", or a function that is called first.
    """

    matches: Callable[[Request], bool]
    how: int | str | Callable[[], None]


class Storage:
    """A running emulator behind its proxy, with the bucket `bucket`; buckets in `closed` want credentials."""

    def __init__(self) -> None:
        from gcp_storage_emulator.server import create_server

        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.closed: set[str] = set()
        self.left: int | None = None  # requests until all of them fail
        self.conditions: dict[str, tuple[str, str, str]] = {}  # by upload: bucket, key and the generation that must be
        self.lock = threading.Lock()
        self.proxy = _Proxy(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": self}))
        # The emulator has no way to be given a free port: it shares the number with a probe that is closed again.
        probe = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        self.behind = probe.server_port
        probe.server_close()
        self.emulator = create_server("127.0.0.1", self.behind, in_memory=True, default_bucket="bucket")
        self.emulator.start()
        threading.Thread(target=self.proxy.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.proxy.server_port}"

    def stop(self) -> None:
        self.proxy.shutdown()
        self.proxy.server_close()
        self.emulator.stop()

    def fault(
        self, how: int | str | Callable[[], None], method: str = "", name: str = "", where: str = "", times: int = 1
    ) -> None:
        """The next requests of that method about an object of such a name, and with `where` in the path, meet it."""

        def matches(request: Request) -> bool:
            return method in request.method and name in request.key and where in request.path

        self.faults += [Fault(matches, how)] * times

    def forward(self, request: Request, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind)
        connection.request(request.method, request.path, request.body, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    def generation(self, bucket: str, key: str) -> str:
        """The number of the object that stands there, "0" for none."""
        there = self.emulator._storage.objects.get(bucket, {}).get(key)
        return there["generation"] if there else "0"

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """What stands in the bucket, by name below `prefix`."""
        storage = self.emulator._storage
        keys = [key for key in storage.objects.get("bucket", {}) if key.startswith(prefix)]
        return {key[len(prefix) :]: storage.get_file("bucket", key) for key in sorted(keys)}

    def content(self) -> tuple[dict[str, bytes], dict[str, dict[str, object]]]:
        """Everything, for `restore`."""
        storage = self.emulator._storage
        return dict(storage._store._files), copy.deepcopy(storage.objects)

    def restore(self, content: tuple[dict[str, bytes], dict[str, dict[str, object]]]) -> None:
        storage = self.emulator._storage
        storage._store._files, storage.objects = dict(content[0]), copy.deepcopy(content[1])

    def put(self, key: str, content: bytes) -> None:
        path = f"/upload/storage/v1/b/bucket/o?uploadType=media&name={urllib.parse.quote(key, safe='')}"
        assert self.forward(Request("POST", path, key, content), {"Content-Type": "x/y"})[0] == 200

    def copy(self, source: str, target: str) -> None:
        """As `gcloud storage cp -r` does it: the same bytes and metadata, new generations."""
        for key in self.objects(source):
            old, new = (urllib.parse.quote(prefix + key, safe="") for prefix in (source, target))
            path = f"/storage/v1/b/bucket/o/{old}/copyTo/b/bucket/o/{new}"
            assert self.forward(Request("POST", path, key, b""), {})[0] == 200

    def manifest(self, prefix: str) -> dict[str, dict[str, object]]:
        return json.loads(self.objects(prefix)["manifest.json"])["files"]


class _Proxy(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that were killed or have lost patience."""


class _Handler(BaseHTTPRequestHandler):
    storage: Storage

    def log_message(self, *args: object) -> None:
        pass

    def _do(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = {name: values[0] for name, values in urllib.parse.parse_qs(parts.query).items()}
        _, _, rest = parts.path.partition("/b/")
        bucket, _, key = rest.partition("/o/")
        key = urllib.parse.unquote(key) or query.get("name") or query.get("prefix") or ""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            self.command, self.path, key, body, self.headers.get("Authorization"), self.headers.get("Range")
        )
        self.storage.requests.append(request)
        if self.storage.left is not None and self.storage.left <= 0:
            return self._fail(400)
        self.storage.left = None if self.storage.left is None else self.storage.left - 1
        fault = next((fault for fault in self.storage.faults if fault.matches(request)), None)
        how = fault.how if fault else None
        if fault:
            self.storage.faults.remove(fault)
        if callable(how):
            how()
        if how == "silent":
            threading.Event().wait(LATE)
            self.close_connection = True
        elif isinstance(how, int):
            self._fail(how)
        elif bucket.partition("/")[0] in self.storage.closed and not request.authorization:
            self._fail(401)
        else:
            with self.storage.lock:
                status, headers, content = self._served(request, query, bucket.partition("/")[0])
            self._answer(status, headers, content, how)

    do_GET = do_PUT = do_POST = do_DELETE = _do

    def _served(self, request: Request, query: dict[str, str], bucket: str) -> tuple[int, dict[str, str], bytes]:
        """The emulator's answer, or that of a condition which does not hold."""
        wanted = query.get("ifGenerationMatch") or query.get("generation")
        there = self.storage.generation(bucket, request.key)
        if "upload_id" in query and query["upload_id"] in self.storage.conditions:
            bucket, key, wanted = self.storage.conditions[query["upload_id"]]
            there = self.storage.generation(bucket, key)
        if wanted is not None and wanted != there:
            return (404 if "generation" in query else 412), {}, b""
        kept = {name: value for name, value in self.headers.items() if name.lower() not in ("content-length", "host")}
        status, headers, body = self.storage.forward(request, kept | {"Host": self.headers["Host"]})
        if "Location" in headers and wanted is not None:
            session = urllib.parse.parse_qs(urllib.parse.urlsplit(headers["Location"]).query)["upload_id"][0]
            self.storage.conditions[session] = bucket, request.key, wanted
        return status, headers, body

    def _fail(self, status: int) -> None:
        self._answer(status, {}, json.dumps({"error": {"code": status, "message": "injected"}}).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes, how: object = None) -> None:
        length = len(body)
        if how == "short":
            body = body[: length // 2]
            length = len(body)
        elif how == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        elif how in ("cut", "lost"):
            body = body[: length // 2]
        if how == "lost":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)
