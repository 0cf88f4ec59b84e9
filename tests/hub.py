"""A small stand-in for the Hugging Face hub on 127.0.0.1: files of a folder, with ranges, and faults on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server serves and what it saw. `files` maps `organisation/name/file` to a path."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.files = files
        self.status: dict[str, int] = {}
        self.cut_once_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""


def _listing(hub: Hub, asked: str) -> bytes:
    """Return what files a repository has, as huggingface_hub asks for them; nothing of an unknown one."""
    repo = "/".join(asked.split("/")[:2])
    names = [name.removeprefix(f"{repo}/") for name in hub.files if name.startswith(f"{repo}/")]
    if not names:
        return b""
    if "/tree/" in asked:
        return json.dumps([{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]).encode()
    return json.dumps({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        wanted = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, wanted))
        if self.path.startswith("/api/models/"):
            self._list(self.path.removeprefix("/api/models/"))
            return
        name = self.path.strip("/").replace(f"/resolve/{COMMIT}", "").replace("/resolve/main", "")
        status = self.hub.status.get(name, 200 if name in self.hub.files else 404)
        if status != 200:
            self.send_response(status)
            code = {401: "RepoNotFound", 403: "GatedRepo", 404: "EntryNotFound"}.get(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.hub.files[name].read_bytes()
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        if self.hub.cut_once_after is not None and start == 0:
            self.wfile.write(data[: self.hub.cut_once_after])
            self.hub.cut_once_after = None
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(data[start:])

    def _list(self, asked: str) -> None:
        body = _listing(self.hub, asked)
        self.send_response(200 if body else 404)
        if not body:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(files: dict[str, Path]) -> Iterator[Hub]:
    """Serve `files` until the block ends."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
