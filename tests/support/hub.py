"""A model hub of one repository on loopback: metadata, HEAD, ranges, a token, cut connections."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What the hub serves, and what it was asked."""

    folder: Path
    token: str | None = None
    cut_after: int | None = None
    """Drop the connection of the first GET of weights after so many bytes."""
    address: str = ""
    ranges: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def metadata(self) -> bytes:
        paths = sorted(self.folder.iterdir())
        files = [{"rfilename": p.name, "size": p.stat().st_size} for p in paths]
        facts = {"id": "owner/big", "sha": COMMIT, "siblings": files, "tags": []}
        return json.dumps(facts).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing: the tests read what was asked."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.hub
        hub.asked.append(f"{self.command} {self.path}")
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials"})
        elif self.path.startswith("/api/models/owner/big/revision/"):
            self._send(200, hub.metadata(), {"Content-Type": "application/json"})
        elif self.path.startswith(f"/owner/big/resolve/{COMMIT}/"):
            self._file(hub.folder / self.path.rpartition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), headers)
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, path: Path) -> None:
        data, hub = path.read_bytes(), self.hub
        headers = {"ETag": f'"{sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted:
            hub.ranges.append(wanted)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        weights = self.command == "GET" and path.suffix == ".safetensors"
        if weights and hub.cut_after is not None:
            cut, hub.cut_after = hub.cut_after, None
            self._head(200, len(data), headers)
            self.wfile.write(data[:cut])
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._send(206 if wanted else 200, data[start:], headers)


@contextmanager
def hub_of(
    folder: Path, *, token: str | None = None, cut_after: int | None = None
) -> Iterator[Hub]:
    """Serve a folder as the repository owner/big."""
    hub = Hub(folder, token, cut_after)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
