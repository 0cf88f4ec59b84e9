"""A small stand-in for the Hugging Face hub on 127.0.0.1: files of a folder, with ranges, and faults on demand."""

import hashlib
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


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            wanted = self.headers.get("Range")
            hub.requests.append((self.command, self.path, wanted))
            name = self.path.strip("/").replace(f"/resolve/{COMMIT}", "").replace("/resolve/main", "")
            status = hub.status.get(name, 200 if name in hub.files else 404)
            if status != 200:
                self.send_response(status)
                code = {401: "RepoNotFound", 403: "GatedRepo", 404: "EntryNotFound"}.get(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = hub.files[name].read_bytes()
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
            if hub.cut_once_after is not None and start == 0:
                self.wfile.write(data[: hub.cut_once_after])
                hub.cut_once_after = None
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data[start:])

    return Handler


@contextmanager
def serving(files: dict[str, Path]) -> Iterator[Hub]:
    """Serve `files` until the block ends."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
