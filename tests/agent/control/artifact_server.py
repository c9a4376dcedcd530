"""A real HTTP server of one artifact, with Range, that can be told to misbehave request by request."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Fault = Callable[["_Handler", bytes, int], None]
"""Answers a request in place of the server: (handler, the whole content, the first byte asked for)."""


@dataclass
class ArtifactServer:
    """Serves `content` at every address. Each request takes the next of `faults`; without one it is answered well."""

    content: bytes
    certificate: Path | None = None
    """A PEM file with a certificate and its key: the server then speaks TLS."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, int, str]] = field(default_factory=list)
    """(path, first byte asked for, Authorization) of every request."""
    hang: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        owner: ArtifactServer = self

        class Handler(_Handler):
            artifacts = owner

        self._server = _Server(("127.0.0.1", 0), Handler)
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that leave: they are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    artifacts: ArtifactServer

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.artifacts.requests.append((self.path, first, self.headers.get("Authorization", "")))
        fault = self.artifacts.faults.pop(0) if self.artifacts.faults else well
        fault(self, self.artifacts.content, first)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the test looks at `requests`."""

    def head(self, status: int, length: int, **headers: str) -> None:
        """Send the status line and headers."""
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def drop(self) -> None:
        """End the connection now."""
        self.wfile.flush()
        self.close_connection = True


def well(handler: _Handler, content: bytes, first: int) -> None:
    """As RFC 9110 asks."""
    if first and first >= len(content):
        handler.head(416, 0, Content_Range=f"bytes */{len(content)}")
        return
    rest = content[first:]
    if first:
        handler.head(206, len(rest), Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
    else:
        handler.head(200, len(rest))
    handler.wfile.write(rest)


def cut_after(size: int) -> Fault:
    """Promise everything, send `size` bytes and end the connection."""

    def answer(handler: _Handler, content: bytes, first: int) -> None:
        rest = content[first:]
        if first:
            handler.head(206, len(rest), Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            handler.head(200, len(rest))
        handler.wfile.write(rest[:size])
        handler.drop()

    return answer


def status(code: int, **headers: str) -> Fault:
    """Answer with an error and a body that nobody reads."""

    def answer(handler: _Handler, content: bytes, first: int) -> None:
        handler.head(code, 10_000, **headers)
        handler.wfile.write(b"e" * 10_000)

    return answer


def no_range(handler: _Handler, content: bytes, first: int) -> None:
    """Ignore Range and send everything."""
    handler.head(200, len(content))
    handler.wfile.write(content)


def wrong_range(handler: _Handler, content: bytes, first: int) -> None:
    """Send another part than was asked for."""
    handler.head(206, len(content), Content_Range=f"bytes 0-{len(content) - 1}/{len(content)}")
    handler.wfile.write(content)


def unlimited(handler: _Handler, content: bytes, first: int) -> None:
    """Send without a length and without an end, until the client has had enough."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(content)
    except OSError:
        handler.close_connection = True


def short_without_length(handler: _Handler, content: bytes, first: int) -> None:
    """Half of the content, with nothing that says so."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.drop()


def gibberish(handler: _Handler, content: bytes, first: int) -> None:
    """Something that is not HTTP."""
    handler.wfile.write(b"\x00\xff not http at all\r\n\r\n")
    handler.drop()


def hang_after(size: int) -> Fault:
    """Send `size` bytes, then nothing, and keep the connection."""

    def answer(handler: _Handler, content: bytes, first: int) -> None:
        rest = content[first:]
        if first:
            handler.head(206, len(rest), Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            handler.head(200, len(rest))
        handler.wfile.write(rest[:size])
        handler.wfile.flush()
        handler.artifacts.hang.wait(60)
        handler.drop()

    return answer


def promise(size: int) -> Fault:
    """Say that the file has `size` bytes, and send nothing of it until the client has left."""

    def answer(handler: _Handler, content: bytes, first: int) -> None:
        handler.head(200, size)
        handler.wfile.flush()
        handler.artifacts.hang.wait(60)
        handler.drop()

    return answer


def drip(pause_s: float) -> Fault:
    """One byte, a pause, one byte: never silent for long, and never done."""

    def answer(handler: _Handler, content: bytes, first: int) -> None:
        handler.head(206 if first else 200, len(content) - first, Content_Range=_rest(content, first))
        _drip(handler, content[first:], pause_s)

    return answer


def drip_headers(pause_s: float) -> Fault:
    """A status line, and then one header that does not end."""

    def answer(handler: _Handler, content: bytes, first: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        _drip(handler, b"x" * 60_000, pause_s)

    return answer


def _drip(handler: _Handler, content: bytes, pause_s: float) -> None:
    with suppress(OSError):
        for place in range(len(content)):
            handler.wfile.write(content[place : place + 1])
            handler.wfile.flush()
            if handler.artifacts.hang.wait(pause_s):
                break
    handler.close_connection = True


def _rest(content: bytes, first: int) -> str:
    return f"bytes {first}-{len(content) - 1}/{len(content)}"
