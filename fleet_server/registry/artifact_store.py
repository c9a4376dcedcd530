"""Content-addressed files: the port, and a local folder.

Invariants every implementation keeps:
1. what `open` gives under a digest had that digest when it was stored;
2. a file is there whole or not at all, also after a power cut: temporary, fsync, rename, fsync of the folder;
3. a stored file never changes; storing it again is the same as storing it once;
4. no upload grows past its limit, and an upload that is not committed leaves nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Protocol
from uuid import uuid4

from fleet_protocol.errors import InvalidName
from fleet_protocol.manifest import MAX_ARTIFACT_BYTES
from fleet_protocol.names import check_name
from fleet_server.errors import InvalidRequestError, NotFoundError, UnavailableError, UntrustedBundleError

ABANDONED_AFTER_S = 24 * 3600
"""An upload that was not finished in this time was cut off by a crash; its file is removed at the next start."""


class ArtifactWriter(AbstractContextManager["ArtifactWriter"], Protocol):
    """An upload in progress; leaving the context without `commit` discards it."""

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises InvalidRequestError past the limit."""

    def commit(self) -> int:
        """Make the file durable and visible; returns its size in bytes.

        Raises UntrustedBundleError when the bytes do not have the promised digest.
        """


class ArtifactStore(Protocol):
    """A durable store of files named by their SHA-256. Safe to call from several threads."""

    def receive(self, sha256: str, *, max_bytes: int = MAX_ARTIFACT_BYTES) -> ArtifactWriter:
        """Start an upload of the file with that digest. Raises InvalidRequestError for a malformed digest."""

    def open(self, sha256: str) -> BufferedReader:
        """The file, for reading from its start; the caller closes it. Raises NotFoundError."""

    def size_bytes(self, sha256: str) -> int | None:
        """The file's size, None when it is not there."""

    def check(self) -> None:
        """Raise UnavailableError unless the store answers."""


def put(store: ArtifactStore, sha256: str, chunks: Iterable[bytes], *, max_bytes: int = MAX_ARTIFACT_BYTES) -> int:
    """Store a whole file; returns its size in bytes. Raises what the writer raises."""
    with store.receive(sha256, max_bytes=max_bytes) as writer:
        for chunk in chunks:
            writer.write(chunk)
        return writer.commit()


class LocalArtifactStore:
    """Files in a folder: `FOLDER/<first two digits>/<sha256>`, uploads in progress in `FOLDER/incoming`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
        except OSError as error:
            raise UnavailableError(f"cannot use the artifact folder {folder}: {error.strerror}") from None

    def receive(self, sha256: str, *, max_bytes: int = MAX_ARTIFACT_BYTES) -> ArtifactWriter:
        """Start an upload of the file with that digest. Raises InvalidRequestError for a malformed digest."""
        return _LocalWriter(final=self._path(sha256), temporary=self._incoming / uuid4().hex, max_bytes=max_bytes)

    def open(self, sha256: str) -> BufferedReader:
        """The file, for reading from its start; the caller closes it. Raises NotFoundError."""
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFoundError(f"there is no artifact {sha256}") from None
        except OSError as error:
            raise UnavailableError(f"cannot read the artifact {sha256}: {error.strerror}") from error

    def size_bytes(self, sha256: str) -> int | None:
        """The file's size, None when it is not there."""
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"cannot read the artifact {sha256}: {error.strerror}") from error

    def check(self) -> None:
        """Raise UnavailableError unless the folder can be written."""
        if not os.access(self._incoming, os.W_OK):
            raise UnavailableError(f"the artifact folder {self._folder} cannot be written")

    def _path(self, sha256: str) -> Path:
        try:
            check_name("sha256", sha256)
        except InvalidName as error:
            raise InvalidRequestError(str(error)) from None
        return self._folder / sha256[:2] / sha256

    def _remove_abandoned(self) -> None:
        for path in self._incoming.iterdir():
            if path.stat().st_mtime < time.time() - ABANDONED_AFTER_S:
                path.unlink(missing_ok=True)


class _LocalWriter:
    def __init__(self, *, final: Path, temporary: Path, max_bytes: int) -> None:
        self._final = final
        self._temporary = temporary
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._hash = hashlib.sha256()
        try:
            self._file = temporary.open("xb")
        except OSError as error:
            raise _unwritable(final, error) from error

    def __enter__(self) -> _LocalWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        self._size_bytes += len(chunk)
        if self._size_bytes > self._max_bytes:
            raise InvalidRequestError(f"the artifact {self._final.name} exceeds the limit of {self._max_bytes} bytes")
        self._hash.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _unwritable(self._final, error) from error

    def commit(self) -> int:
        found = self._hash.hexdigest()
        if found != self._final.name:
            raise UntrustedBundleError(
                f"the bytes sent for {self._final.name} have the digest {found}: nothing was stored"
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._final.parent.mkdir(exist_ok=True)
            self._temporary.replace(self._final)
            _fsync_folder(self._final.parent)
            _fsync_folder(self._final.parent.parent)
        except OSError as error:
            raise _unwritable(self._final, error) from error
        return self._size_bytes


def _unwritable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"the artifact {path.name} cannot be stored: {error.strerror}")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
