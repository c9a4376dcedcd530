"""Fetches one content-addressed file over HTTP, resuming with Range where the last attempt ended.

Invariants: never more bytes than promised are written; progress survives a crash (the partial file is the
progress); the caller adopts the file only after its digest was checked. Waits between attempts are full
jitter over an exponential backoff (AWS Architecture Blog, "Exponential Backoff And Jitter").
"""

from __future__ import annotations

import base64
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from edge_agent.errors import ArtifactCorruptError, DownloadError

_CHUNK_BYTES = 64 * 1024
_BACKOFF_FIRST_S = 0.5
_SILENCE_TIMEOUT_S = 30.0  # while connecting, and between two pieces


class DownloadStopped(Exception):
    """The caller asked to stop: a newer desired came, or the agent ends."""


class Downloader:
    """Downloads from one server. `wait(seconds)` sleeps and returns True when the download should stop.

    `received_bytes` counts the contents that came, also those that were thrown away.
    """

    def __init__(
        self,
        *,
        base_url: str,
        username: str,
        password: str,
        attempts: int,
        backoff_max_s: float,
        wait: Callable[[float], bool],
        silence_timeout_s: float = _SILENCE_TIMEOUT_S,
    ) -> None:
        self._url, self._parts = base_url, urlsplit(base_url)
        self._credentials = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        self._attempts, self._backoff_max_s, self._wait = attempts, backoff_max_s, wait
        self._silence_timeout_s = silence_timeout_s
        self.received_bytes = 0
        self._socket: socket.socket | None = None
        self._socket_lock = threading.Lock()

    def interrupt(self) -> None:
        """From any thread: a download in progress asks `wait` now, also where its connection stands still."""
        with self._socket_lock, suppress(OSError):  # it may just have ended by itself
            if self._socket is not None:
                # not SSLSocket's own shutdown, which takes the TLS state from under the thread that reads
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def fetch(self, sha256: str, partial: Path, *, max_bytes: int, exact_bytes: int | None = None) -> None:
        """Grow `partial` to the whole file `sha256`.

        Raises DownloadError after `attempts` without progress, ArtifactCorruptError when the server sends more
        or, where `exact_bytes` is given, less than promised, and DownloadStopped.
        """
        failures, furthest = 0, _size(partial)
        while True:
            try:
                if exact_bytes is not None and _size(partial) >= exact_bytes:
                    partial.touch()  # a file of no bytes needs no request, but it must be there
                    break
                if self._attempt(sha256, partial, max_bytes):
                    break
                problem = "the connection ended early"
            except OSError as error:
                raise DownloadError(f"cannot write {partial}: {error.strerror or error}") from None
            except _HttpProblem as error:
                problem = str(error)
            if self._wait(0):
                raise DownloadStopped
            # against the furthest ever: a server that starts over each time makes no progress
            failures = 1 if _size(partial) > furthest else failures + 1
            furthest = max(furthest, _size(partial))
            if failures >= self._attempts:
                raise DownloadError(
                    f"download of {sha256} from {self._url} gave up after {failures} attempts: {problem}"
                )
            backoff_s = min(self._backoff_max_s, _BACKOFF_FIRST_S * 2 ** min(failures, 16))
            if self._wait(random.uniform(0, backoff_s)):
                raise DownloadStopped
        if exact_bytes is not None and _size(partial) != exact_bytes:
            found = _size(partial)
            partial.unlink(missing_ok=True)
            raise ArtifactCorruptError(f"{sha256} has {found} bytes, its manifest promises {exact_bytes}")

    def _attempt(self, sha256: str, partial: Path, max_bytes: int) -> bool:
        """One request. True when the server says that the file is complete."""
        have = _size(partial)
        connection = self._connect()
        try:
            response = self._get(connection, sha256, have)
            if response.status == 416:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return True
                partial.unlink(missing_ok=True)
                return False
            if response.status not in (200, 206):
                raise _HttpProblem(f"the server answered {response.status}")
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise _HttpProblem("the server answered another range than asked for")
            return self._receive(response, partial, have if response.status == 206 else 0, max_bytes)
        finally:
            with self._socket_lock:
                self._socket = None
            connection.close()

    def _receive(self, response: HTTPResponse, partial: Path, offset: int, max_bytes: int) -> bool:
        with partial.open("r+b" if partial.exists() else "wb") as file:
            file.seek(offset)
            file.truncate()
            while chunk := _read(response):
                self.received_bytes += len(chunk)
                if file.tell() + len(chunk) > max_bytes:
                    file.close()
                    partial.unlink(missing_ok=True)
                    raise ArtifactCorruptError(f"the server sent more than the {max_bytes} bytes promised")
                file.write(chunk)
                if self._wait(0):
                    raise DownloadStopped
        return not response.length  # what Content-Length promised and never came

    def _connect(self) -> HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return kind(host, port, timeout=self._silence_timeout_s)

    def _get(self, connection: HTTPConnection, sha256: str, have: int) -> HTTPResponse:
        headers = {"Authorization": f"Basic {self._credentials}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            connection.connect()
            with self._socket_lock:
                self._socket = connection.sock
            if self._wait(0):  # while it connected there was nothing to interrupt
                raise DownloadStopped
            connection.request("GET", f"{self._parts.path.rstrip('/')}/api/v1/artifacts/{sha256}", headers=headers)
            return connection.getresponse()
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: a host name that is none
            raise _HttpProblem(str(error) or type(error).__name__) from None


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)  # what has come counts as progress, also when the rest never does
    except (OSError, HTTPException) as error:
        raise _HttpProblem(str(error) or type(error).__name__) from None


class _HttpProblem(Exception):
    """One attempt failed for a reason that may pass."""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
