"""A store of objects on this machine: moto's S3, and what stands before it and breaks connections."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Proxy:
    """Passes connections on to a server. At the `cut_at`th upload of a product it breaks them, and takes no more until `mend`."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server, self.cut_at, self.uploads, self.without_checksum, self.down = server, 0, 0, 0, False
        self._lock, self._open = threading.Lock(), set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def mend(self) -> None:
        self.cut_at, self.down = 0, False

    def close(self) -> None:
        self._break()
        self._listener.close()

    def _break(self) -> None:
        with self._lock:
            self.down = True
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.down:
                    client.close()
                    continue
                server = socket.create_connection(self.server)
                with self._lock:
                    self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(*pair, pair[0] is client), daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                found = re.search(rb"PUT /\S+\.tif\b", data) if asks else None
                self.uploads += found is not None
                self.without_checksum += found is not None and b"x-amz-checksum-sha256: " not in data
                if found and self.uploads == self.cut_at:
                    to.sendall(data[: len(data) // 2])
                    self._break()
                to.sendall(data)
        for one in (source, to):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Bucket:
    """A bucket of a server, seen past the proxy."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        client.create_bucket(Bucket=name)

    def listed(self) -> list[str]:
        return [one["Key"] for one in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)


@contextmanager
def serving() -> Iterator[tuple[str, int]]:
    """Run a server of S3 in this process; gives its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()
