"""A proxy before the fleet server that counts the bytes of every artifact that devices receive.

It forwards GET alone, with the headers that downloads need, and counts what it passes on, also of a download that
breaks off. A device is told by the user name of its credentials.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

_FORWARDED = ("Authorization", "Range", "If-Range", "Accept")
_ANSWERED = ("Content-Type", "Content-Length", "Content-Range", "ETag", "Accept-Ranges")
_CHUNK_BYTES = 64 * 1024
_TIMEOUT_S = 30.0


class ArtifactCounter:
    """Counts by device and by digest. Use it in a `with`; `url` is what devices are given as their server."""

    def __init__(self, server_url: str) -> None:
        self._address = urlsplit(server_url).netloc
        self._lock = threading.Lock()
        self._received: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="artifact-counter", daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ArtifactCounter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def received(self, device: str) -> dict[str, int]:
        """The bytes that a device received, by digest."""
        with self._lock:
            return dict(self._received[device])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        counter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                counter._forward(self)

            def log_message(self, *_: Any) -> None:
                """Nothing: the counts are what is kept."""

        return Handler

    def _forward(self, request: BaseHTTPRequestHandler) -> None:
        digest, device = request.path.rpartition("/")[2], _user_of(request.headers.get("Authorization", ""))
        upstream = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_S)
        try:
            headers = {name: value for name in _FORWARDED if (value := request.headers.get(name))}
            upstream.request("GET", request.path, headers=headers)
            answer = upstream.getresponse()
            request.send_response(answer.status)
            for name in _ANSWERED:
                if value := answer.headers.get(name):
                    request.send_header(name, value)
            request.send_header("Connection", "close")
            request.end_headers()
            while chunk := answer.read(_CHUNK_BYTES):
                if answer.status in (http.client.OK, http.client.PARTIAL_CONTENT):
                    with self._lock:  # first, so that whoever has received a file finds it counted
                        self._received[device][digest] += len(chunk)
                request.wfile.write(chunk)
        finally:
            upstream.close()


def _user_of(authorization: str) -> str:
    try:
        return base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""
