"""A real HTTP server of several files by path, with Range, for what asks for more than one."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class FilesServer:
    """Serves `answers`: path (below /api/v1/artifacts/) → (status, body). What is not there is 404."""

    def __init__(self, answers: dict[str, tuple[int, bytes]] | None = None) -> None:
        self.answers = answers or {}
        self.requests: list[str] = []
        self.cut_once_after: dict[str, int] = {}
        """Path → bytes after which the connection is ended, once."""

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.removeprefix("/api/v1/artifacts/")
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                first = int(asked[1]) if asked else 0
                owner.requests.append(path)
                status, body = owner.answers.get(path, (404, b""))
                self.send_response(206 if first and status == 200 else status)
                self.send_header("Content-Length", str(len(body) - first))
                self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                self.end_headers()
                cut = owner.cut_once_after.pop(path, None)
                self.wfile.write(body[first:] if cut is None else body[first : first + cut])
                self.close_connection = cut is not None

            def log_message(self, *_: Any) -> None:
                """Say nothing: the test looks at `requests`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"
