"""The part of the fleet API that a device fetches from, which can also lie: other bytes, held answers, no answer.

It speaks HTTP/1.1 with Range as the real API does and keeps a record of every request and every byte.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PATH = "/api/v1/artifacts/"
_PIECE_BYTES = 16 * 1024
_HOLD_LIMIT_S = 60.0


@dataclass(slots=True)
class Request:
    """One request for a file: where it began, and how many bytes went out."""

    sha256: str
    first_byte: int
    sent_bytes: int = 0


class ArtifactServer:
    """`with ArtifactServer() as server` starts and stops it."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._holds: dict[str, int] = {}
        self._released = threading.Event()
        self.requests: list[Request] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ArtifactServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, files: Mapping[str, bytes]) -> None:
        """Answer with these contents under these digests, true or not."""
        self._files |= files

    @contextmanager
    def held(self, sha256: str, after_bytes: int) -> Iterator[None]:
        """Within the context, answers with that file stand still after so many bytes of it."""
        self._released.clear()
        self._holds[sha256] = after_bytes
        try:
            yield
        finally:
            del self._holds[sha256]
            self._released.set()

    def requested(self, sha256: str) -> list[Request]:
        """Every request for one file, oldest first."""
        return [request for request in self.requests if request.sha256 == sha256]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        sha256 = handler.path.removeprefix(_PATH)
        content = self._files.get(sha256)
        if content is None:
            body = b'{"title": "no such artifact"}'
            self._head(handler, 404, len(body))
            handler.wfile.write(body)
            return
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        first = int(match[1]) if match else 0
        request = Request(sha256, first)
        self.requests.append(request)
        if match and first >= len(content):
            self._head(handler, 416, 0, f"bytes */{len(content)}")
            return
        content_range = f"bytes {first}-{len(content) - 1}/{len(content)}" if match else None
        self._head(handler, 206 if match else 200, len(content) - first, content_range)
        try:
            self._send(handler, content, request)
        except OSError:
            handler.close_connection = True  # the device went away in the middle

    def _send(self, handler: BaseHTTPRequestHandler, content: bytes, request: Request) -> None:
        at = request.first_byte
        while at < len(content):
            end = min(at + _PIECE_BYTES, len(content))
            hold = self._holds.get(request.sha256)
            if hold is not None and end > hold:
                end = max(at, hold)
                if end == at:
                    self._released.wait(_HOLD_LIMIT_S)
                    continue
            handler.wfile.write(content[at:end])
            request.sent_bytes += end - at
            at = end

    @staticmethod
    def _head(handler: BaseHTTPRequestHandler, status: int, length: int, content_range: str | None = None) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(length))
        if content_range is not None:
            handler.send_header("Content-Range", content_range)
        handler.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a device that was killed left its answer standing
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell everything but a device that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # passed on as it came
