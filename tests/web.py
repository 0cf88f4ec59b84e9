"""A web server on this machine that serves a folder in ranges, to those who know a user, a password and a query."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

MARK = "SECRETZq7"
"""Part of every secret."""
USER, PASSWORD, QUERY = f"u{MARK}", f"p{MARK}", f"sv=1&sig=a%2Fb{MARK}%3D"


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the files of a folder; yields `127.0.0.1:port`."""
    with spawned("tests.web", str(folder)) as address:
        yield address


@contextmanager
def spawned(module: str, *args: str) -> Iterator[str]:
    """Run a server's module, which prints its port, in a process of its own, as GDAL holds Python's lock at times."""
    command = [sys.executable, "-m", module, *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        url = urlsplit(self.path)
        path = Path(sys.argv[1]) / unquote(url.path).lstrip("/")
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}" or url.query != QUERY:
            self.send_error(403)
        elif not path.is_file():
            self.send_error(404)
        else:
            self._send(path.read_bytes(), body)

    def _send(self, data: bytes, body: bool) -> None:
        first, last = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if body:
            self.wfile.write(data[first : last + 1])

    def log_message(self, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
