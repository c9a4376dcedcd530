"""Fetches one content-addressed file over HTTP, resuming with Range where the last attempt ended.

Invariants: never more bytes than promised are written; progress survives a crash (the partial file is the
progress); the caller adopts the file only after its digest was checked. Waits between attempts are full
jitter over an exponential backoff (AWS Architecture Blog, "Exponential Backoff And Jitter").
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.errors import ArtifactCorruptError, DownloadError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

_CHUNK_BYTES = 64 * 1024
_BACKOFF_FIRST_S = 0.5
_CONNECT_TIMEOUT_S = 10.0
_READ_TIMEOUT_S = 30.0


class DownloadStopped(Exception):
    """The caller asked to stop: a newer desired came, or the agent ends."""


class Downloader:
    """Downloads from one server. `wait(seconds)` sleeps and returns True when the download should stop."""

    def __init__(
        self,
        *,
        base_url: str,
        username: str,
        password: str,
        attempts: int,
        backoff_max_s: float,
        wait: Callable[[float], bool],
    ) -> None:
        self._url, self._auth = base_url.rstrip("/"), (username, password)
        self._attempts, self._backoff_max_s, self._wait = attempts, backoff_max_s, wait
        self._pool: PoolManager | None = None

    def fetch(self, sha256: str, partial: Path, *, max_bytes: int, exact_bytes: int | None = None) -> None:
        """Grow `partial` to the whole file `sha256`.

        Raises DownloadError after `attempts` without progress, ArtifactCorruptError when the server sends more
        or, where `exact_bytes` is given, less than promised, and DownloadStopped.
        """
        failures = 0
        while True:
            before = _size(partial)
            try:
                if before == exact_bytes or self._attempt(sha256, partial, max_bytes):
                    break
                problem = "the connection ended early"
            except OSError as error:
                raise DownloadError(f"cannot write {partial}: {error.strerror or error}") from None
            except _HttpProblem as error:
                problem = str(error)
            failures = 1 if _size(partial) > before else failures + 1
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
            raise ArtifactCorruptError(f"{sha256} has {found} bytes, its manifest promises {exact_bytes}: truncated")

    def _attempt(self, sha256: str, partial: Path, max_bytes: int) -> bool:
        """One request. True when the server says that the file is complete."""
        have = _size(partial)
        response = self._get(sha256, {"Range": f"bytes={have}-"} if have else {})
        try:
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
            response.release_conn()

    def _receive(self, response: BaseHTTPResponse, partial: Path, offset: int, max_bytes: int) -> bool:
        from urllib3.exceptions import HTTPError

        with partial.open("r+b" if partial.exists() else "wb") as file:
            file.seek(offset)
            file.truncate()
            try:
                for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                    if file.tell() + len(chunk) > max_bytes:
                        file.close()
                        partial.unlink(missing_ok=True)
                        raise ArtifactCorruptError(f"the server sent more than the {max_bytes} bytes promised")
                    file.write(chunk)
                    if self._wait(0):
                        raise DownloadStopped
            except HTTPError as error:
                raise _HttpProblem(str(error)) from None
        return True

    def _get(self, sha256: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        import urllib3

        if self._pool is None:
            auth = urllib3.make_headers(basic_auth=":".join(self._auth))
            timeout = urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S)
            self._pool = urllib3.PoolManager(headers=auth, timeout=timeout, retries=False)
        try:
            url = f"{self._url}/api/v1/artifacts/{sha256}"
            return self._pool.request("GET", url, headers={**self._pool.headers, **headers}, preload_content=False)
        except urllib3.exceptions.HTTPError as error:
            raise _HttpProblem(str(error)) from None


class _HttpProblem(Exception):
    """One attempt failed for a reason that may pass."""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
