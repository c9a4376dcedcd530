"""Fetches one content-addressed file over HTTP, resuming with Range where the last attempt ended.

Invariants: never more bytes than promised are written; progress survives a crash (the partial file is the
progress); the caller adopts the file only after its digest was checked; the bandwidth cap holds over every attempt
together; a server that sends too slowly is left as one that sends nothing; no redirect is followed, since the device's
secret goes to the server of its config alone.

Waits between attempts are full jitter over an exponential backoff (AWS Architecture Blog, "Exponential Backoff And
Jitter"), on top of what the server asks for in Retry-After (RFC 9110, 10.2.3), which is bounded.
"""

from __future__ import annotations

import base64
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from edge_agent.control.bandwidth import TokenBucket
from edge_agent.control.connecting import Connector
from edge_agent.errors import ArtifactCorruptError, DownloadError

_CHUNK_BYTES = 64 * 1024
_BACKOFF_FIRST_S = 0.5
_SILENCE_TIMEOUT_S = 30.0  # while connecting, and between two pieces
RETRY_AFTER_MAX_S = 600.0
"""The longest that a server may ask to be left alone."""
MIN_PROGRESS_BYTES = 1024
"""Less than this in the time of two silences, and the server is left: it would hold the device for ever."""
_MIN_RECEIVE_BUFFER_BYTES = 32 * 1024
"""Of the kernel, under a bandwidth cap: what it took in already is not held back by reading slowly."""


class DownloadStopped(Exception):
    """The caller asked to stop: a newer desired came, or the agent ends."""


class NotServedError(DownloadError):
    """The server answers, and says that it has no such file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server said to a small question."""

    status: int
    body: bytes
    retry_after_s: float = 0.0


class Downloader:
    """Downloads from one server. `wait(seconds)` sleeps and returns True when the download should stop.

    `received_bytes` counts the contents that came, also those that were thrown away. `max_bytes_per_s` None is no cap.
    `deltas` says whether the server is asked for deltas at all.
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
        max_bytes_per_s: int | None = None,
        ca_file: Path | None = None,
        deltas: bool = True,
    ) -> None:
        self.deltas = deltas
        self._connector = Connector(base_url, ca_file=ca_file)
        self._credentials = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        self._attempts, self._backoff_max_s, self._wait = attempts, backoff_max_s, wait
        self._silence_timeout_s = silence_timeout_s
        self._bucket = TokenBucket(max_bytes_per_s)
        self.received_bytes = 0
        self._socket: socket.socket | None = None
        self._socket_lock = threading.Lock()

    def interrupt(self) -> None:
        """From any thread: a download in progress asks `wait` now, also where its connection stands still."""
        with self._socket_lock, suppress(OSError):  # it may just have ended by itself
            if self._socket is not None:
                # not SSLSocket's own shutdown, which takes the TLS state from under the thread that reads
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def wait(self, seconds: float) -> None:
        """Wait. Raises DownloadStopped."""
        if self._wait(seconds):
            raise DownloadStopped

    def fetch(
        self, sha256: str, partial: Path, *, max_bytes: int, exact_bytes: int | None = None, may_be_gone: bool = False
    ) -> None:
        """Grow `partial` to the whole file `sha256`.

        Raises DownloadError after `attempts` without progress, ArtifactCorruptError when the server sends more
        or, where `exact_bytes` is given, less than promised, and DownloadStopped. With `may_be_gone` a server that
        does not have the file is believed at once: NotServedError.
        """
        failures, furthest = 0, _size(partial)
        while True:
            retry_after_s, too_slow = 0.0, False
            try:
                if exact_bytes is not None and _size(partial) >= exact_bytes:
                    partial.touch()  # a file of no bytes needs no request, but it must be there
                    break
                if self._attempt(sha256, partial, max_bytes, exact_bytes):
                    break
                problem = "the connection ended early"
            except OSError as error:
                raise DownloadError(f"cannot write {partial}: {error.strerror or error}") from None
            except _HttpProblem as error:
                if may_be_gone and error.status in (404, 410):
                    raise NotServedError(f"{self._connector.url} does not have {sha256}") from None
                problem, retry_after_s, too_slow = str(error), error.retry_after_s, error.too_slow
            self.wait(0)
            # against the furthest ever: a server that starts over each time makes no progress
            has_grown = _size(partial) > furthest and not too_slow
            failures = 1 if has_grown else failures + 1
            furthest = max(furthest, _size(partial))
            self._back_off(failures, retry_after_s, f"download of {sha256}", problem)
        if exact_bytes is not None and _size(partial) != exact_bytes:
            found = _size(partial)
            partial.unlink(missing_ok=True)
            raise ArtifactCorruptError(f"{sha256} has {found} bytes, its manifest promises {exact_bytes}")

    def ask(self, path: str, *, max_bytes: int) -> Answer:
        """What the server answers to GET /api/v1/`path`, whatever its status; at most `max_bytes` of it are read.

        Raises DownloadError when no answer came after `attempts`, and DownloadStopped.
        """
        failures = 0
        while True:
            try:
                with self._response(path, have=0) as response:
                    body = self._read(response, max_bytes)
                    return Answer(status=response.status, body=body, retry_after_s=_retry_after_s(response))
            except _HttpProblem as error:
                problem = str(error)
            self.wait(0)
            failures += 1
            self._back_off(failures, 0.0, f"question for {path}", problem)

    def _back_off(self, failures: int, retry_after_s: float, doing: str, problem: str) -> None:
        if failures >= self._attempts:
            raise DownloadError(f"{doing} from {self._connector.url} gave up after {failures} attempts: {problem}")
        backoff_s = min(self._backoff_max_s, _BACKOFF_FIRST_S * 2 ** min(failures, 16))
        self.wait(retry_after_s + random.uniform(0, backoff_s))

    def _attempt(self, sha256: str, partial: Path, max_bytes: int, exact_bytes: int | None) -> bool:
        """One request. True when the server says that the file is complete."""
        have = _size(partial)
        with self._response(f"artifacts/{sha256}", have=have) as response:
            if response.status == 416:
                if response.headers.get("Content-Range") == f"bytes */{have}":
                    return True
                partial.unlink(missing_ok=True)
                return False
            if response.status not in (200, 206):
                raise _refusal(response)
            if response.status == 206 and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                raise _HttpProblem("the server answered another range than asked for")
            offset = have if response.status == 206 else 0
            if response.length is not None and offset + response.length > max_bytes:
                partial.unlink(missing_ok=True)
                raise ArtifactCorruptError(
                    f"the server has {offset + response.length} bytes, more than the {max_bytes} bytes promised"
                )
            return self._receive(response, partial, offset, max_bytes)

    def _receive(self, response: HTTPResponse, partial: Path, offset: int, max_bytes: int) -> bool:
        with partial.open("r+b" if partial.exists() else "wb") as file:
            file.seek(offset)
            file.truncate()
            while chunk := self._next(response):
                if file.tell() + len(chunk) > max_bytes:
                    file.close()
                    partial.unlink(missing_ok=True)
                    raise ArtifactCorruptError(f"the server sent more than the {max_bytes} bytes promised")
                file.write(chunk)
                self.wait(0)
        return not response.length  # what Content-Length promised and never came

    def _read(self, response: HTTPResponse, max_bytes: int) -> bytes:
        body = bytearray()
        while len(body) < max_bytes and (chunk := self._next(response)):
            body += chunk[: max_bytes - len(body)]
        return bytes(body)

    def _next(self, response: HTTPResponse) -> bytes:
        """The next piece, as soon as the cap lets it pass; what has come counts, also when the rest never does."""
        if (pause_s := self._bucket.wait_s()) > 0:
            self.wait(pause_s)
        try:
            chunk = response.read1(self._bucket.allowed(_CHUNK_BYTES))
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk's length that is no number
            raise _HttpProblem(str(error) or type(error).__name__) from None
        self._bucket.took(len(chunk))
        self.received_bytes += len(chunk)
        return chunk

    @contextmanager
    def _response(self, path: str, *, have: int) -> Iterator[HTTPResponse]:
        """The answer to one GET, watched for progress. Raises _HttpProblem, also for what is raised inside."""
        connection, before, headers = self._connector.connection(timeout_s=self._silence_timeout_s)
        headers |= {"Authorization": f"Basic {self._credentials}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        target = f"{before}{self._connector.parts.path.rstrip('/')}/api/v1/{path}"
        watch = _ProgressWatch(self._silence_timeout_s * 2, lambda: self.received_bytes, self.interrupt)
        try:
            try:
                connection.connect()
                with self._socket_lock:
                    self._socket = connection.sock
                if self._bucket.burst_bytes is not None:
                    buffer_bytes = max(_MIN_RECEIVE_BUFFER_BYTES, self._bucket.burst_bytes)
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
                self.wait(0)  # while it connected there was nothing to interrupt
                watch.start()
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
            except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: a host name that is none
                raise _HttpProblem(str(error) or type(error).__name__) from None
            yield response
        except _HttpProblem:
            watch.check()
            raise
        else:
            watch.check()
        finally:
            watch.stop()
            with self._socket_lock:
                self._socket = None
            connection.close()


class _ProgressWatch:
    """Calls `leave` once less than MIN_PROGRESS_BYTES came within `span_s`, headers and trailers not counted."""

    def __init__(self, span_s: float, received: Callable[[], int], leave: Callable[[], None]) -> None:
        self._too_slow = False
        self._span_s, self._received, self._leave = span_s, received, leave
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="download-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Raise _HttpProblem once the server was left."""
        if self._too_slow:
            message = f"the server sent less than {MIN_PROGRESS_BYTES} bytes in {self._span_s:g} s"
            raise _HttpProblem(message, too_slow=True) from None

    def _run(self) -> None:
        before = self._received()
        while not self._ended.wait(self._span_s):
            if self._received() - before < MIN_PROGRESS_BYTES:
                self._too_slow = True
                self._leave()
                return
            before = self._received()


class _HttpProblem(Exception):
    """One attempt failed for a reason that may pass."""

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float = 0.0, too_slow: bool = False) -> None:
        super().__init__(message)
        self.status, self.retry_after_s, self.too_slow = status, retry_after_s, too_slow


def _refusal(response: HTTPResponse) -> _HttpProblem:
    message = f"the server answered {response.status}"
    if 300 <= response.status < 400:
        where = response.headers.get("Location", "")[:200]
        message += f", a redirect to {where!r}, which is not followed: set server.url to where the files are"
    return _HttpProblem(message, status=response.status, retry_after_s=_retry_after_s(response))


def _retry_after_s(response: HTTPResponse) -> float:
    """What Retry-After says, in seconds, at most RETRY_AFTER_MAX_S; 0 for none, and for what is none."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), RETRY_AFTER_MAX_S)
    if not value:
        return 0.0
    from email.utils import parsedate_to_datetime

    try:
        seconds = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
