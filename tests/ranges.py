"""A web server on this machine that serves a folder in ranges and writes down each; it can break off, or answer 503 at first.

    python -m tests.ranges FOLDER LOG MODE

MODE is `plain`, `busy:N` (503 to the first N requests for bytes of a TIFF), or `cut:N` (the first N such answers end half-way;
`cut:-1` all of them, after what is needed to open the file).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.web import spawned


@contextmanager
def served(folder: Path, log: Path, mode: str = "plain") -> Iterator[str]:
    """Serve a folder; yields `http://127.0.0.1:port`."""
    with spawned("tests.ranges", str(folder), str(log), mode) as address:
        yield f"http://{address}"


def asked(log: Path) -> dict[str, list[range]]:
    """Return the ranges of bytes that were asked for, by file."""
    found: dict[str, list[range]] = {}
    for line in log.read_text().splitlines():
        name, first, stop = line.rsplit(" ", 2)
        found.setdefault(name, []).append(range(int(first), int(stop)))
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    left = 0

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        url = urlsplit(self.path)
        path = Path(sys.argv[1]) / unquote(url.path).lstrip("/")
        if not path.is_file() or (url.query and url.query != "signed=yes"):
            self.send_error(404)
            return
        data = path.read_bytes()
        first, stop = 0, len(data)
        if found := self.headers.get("Range"):
            start, _, last = found.removeprefix("bytes=").partition("-")
            first, stop = int(start), min(int(last) + 1 if last else stop, stop)
        kind = sys.argv[3].partition(":")[0]
        if body and kind == "busy" and path.suffix == ".tif" and Handler.left:
            Handler.left -= 1
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - first))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        with Path(sys.argv[2]).open("a") as log:
            log.write(f"{path.name} {first} {stop}\n")
        if kind == "cut" and path.suffix == ".tif" and Handler.left and first > 40_000:
            Handler.left -= 1
            self.wfile.write(data[first : (first + stop) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[first:stop])

    def log_message(self, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    Handler.left = int(sys.argv[3].partition(":")[2] or 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()
