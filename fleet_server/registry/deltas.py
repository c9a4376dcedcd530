"""Deltas between artifacts: computed once for every pair that devices ask for, kept on disk within a bound.

```
FOLDER/files/<sha256>           a delta, named by its own digest: devices fetch it as they fetch an artifact
FOLDER/pairs/<new>-<base>.json  what is known of a pair: the offer, or null where the whole file is not much larger
```
Invariants: one delta is computed at a time, by one thread that gives way to everything else; nobody waits for it in a
request; a delta larger than MAX_SHARE of its file is never offered; a file is there whole or not at all, and more than
the bound is removed, the longest unused first. All of it can be computed anew: the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import queue
import threading
import time
from contextlib import suppress
from enum import Enum
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

import msgspec

from fleet_protocol.delta import DELTA_FORMAT, DeltaOffer, decode_offer
from fleet_protocol.errors import InvalidName, ProtocolError
from fleet_protocol.names import check_name
from fleet_server.errors import InvalidRequestError, NotFoundError, UnavailableError
from fleet_server.registry.artifact_store import ArtifactStore
from fleet_server.registry.delta_encoding import TooLargeError, write_delta

_LOG = logging.getLogger(__name__)
MAX_SHARE = 0.8
"""Of the whole file: a larger delta saves too little for a device to rebuild anything."""
MAX_FILE_BYTES = 256 * 1024 * 1024
"""A larger file, or base, is sent whole: the delta would take minutes to compute."""
MAX_PAIRS = 10_000
MAX_WAITING = 64
"""Pairs in the queue; devices that ask for one more are sent the whole file."""
RETRY_AFTER_S = 1
_NICENESS = 10
_NONE = b"null"


class Pending(Enum):
    """The answer to a pair whose delta is being computed."""

    PENDING = "pending"


class DeltaStore:
    """Deltas of the files in `artifacts`, at most `max_bytes` of them in `folder`. Safe to call from several threads.

    `close` it: its thread ends within a piece of a file.
    """

    def __init__(self, folder: Path, artifacts: ArtifactStore, *, max_bytes: int) -> None:
        self._files, self._pairs = folder / f"{DELTA_FORMAT}" / "files", folder / f"{DELTA_FORMAT}" / "pairs"
        self._artifacts, self._max_bytes = artifacts, max_bytes
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            self._pairs.mkdir(exist_ok=True)
            for unfinished in self._files.glob("*.tmp"):
                unfinished.unlink()
        except OSError as error:
            raise UnavailableError(f"cannot use the folder of deltas {folder}: {error.strerror}") from None
        self._waiting: queue.Queue[tuple[str, str] | None] = queue.Queue()
        self._pending: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._made = self._refused = 0

    def offer(self, sha256: str, base: str) -> DeltaOffer | Pending | None:
        """The delta that makes `sha256` of `base`; PENDING while it is computed, None when there is none to be had.

        Raises InvalidRequestError for a malformed digest and NotFoundError when either file is not here.
        """
        pair = _checked(sha256), _checked(base)
        known = self._known(pair)
        if known is not Pending.PENDING:
            return known
        for digest in pair:
            size_bytes = self._artifacts.size_bytes(digest)
            if size_bytes is None:
                raise NotFoundError(f"there is no artifact {digest}")
            if not 0 < size_bytes <= MAX_FILE_BYTES:
                return None
        return self._enqueue(pair)

    def size_bytes(self, delta: str) -> int | None:
        """The size of a delta's file, None when it is not (or no more) here."""
        try:
            return (self._files / _checked(delta)).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, delta: str) -> BufferedReader:
        """A delta's file for reading; the caller closes it. Raises NotFoundError."""
        try:
            return (self._files / _checked(delta)).open("rb")
        except FileNotFoundError:
            raise NotFoundError(f"there is no delta {delta}") from None

    def counters(self) -> dict[str, float]:
        """For /metrics: deltas that were computed, and those that were not worth it."""
        return {"edgefleet_deltas_made_total": self._made, "edgefleet_deltas_not_worth_it_total": self._refused}

    def close(self) -> None:
        """End the thread; what it was computing is given up."""
        self._stopping.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _known(self, pair: tuple[str, str]) -> DeltaOffer | Pending | None:
        try:
            content = self._pair_file(pair).read_bytes()
            if content == _NONE:
                return None
            offer = decode_offer(content)
            os.utime(self._files / offer.delta)  # it is used: others are removed before it
        except (FileNotFoundError, ProtocolError):
            return Pending.PENDING
        return offer

    def _enqueue(self, pair: tuple[str, str]) -> Pending | None:
        with self._lock:
            if self._stopping.is_set():
                return None
            if pair in self._pending:
                return Pending.PENDING
            if len(self._pending) >= MAX_WAITING:
                return None
            self._pending.add(pair)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="deltas", daemon=True)
                self._thread.start()
        self._waiting.put(pair)
        return Pending.PENDING

    def _run(self) -> None:
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread alone, on Linux
        while (pair := self._waiting.get()) is not None and not self._stopping.is_set():
            try:
                self._compute(pair)
            except _Stopped:
                return
            except Exception:  # noqa: BLE001 - one pair that fails must not end deltas for all
                _LOG.exception("no delta from %s to %s", pair[1], pair[0])
                self._note(pair, _NONE)
            finally:
                with self._lock:
                    self._pending.discard(pair)

    def _compute(self, pair: tuple[str, str]) -> None:
        started = time.monotonic()
        temporary = self._files / f"{uuid4().hex}.tmp"
        try:
            with self._artifacts.open(pair[0]) as new, self._artifacts.open(pair[1]) as base:
                size_bytes, digest = self._write(_mapped(base), _mapped(new), temporary)
            temporary.replace(self._files / digest)
        except TooLargeError:
            self._refused += 1
            self._note(pair, _NONE)
            return
        finally:
            temporary.unlink(missing_ok=True)
        self._note(pair, msgspec.json.encode(DeltaOffer(delta=digest, size_bytes=size_bytes)))
        self._made += 1
        self._remove_longest_unused(but=digest)
        _LOG.info("delta to %s of %d bytes in %.1f s", pair[0][:16], size_bytes, time.monotonic() - started)

    def _write(self, base: memoryview, new: memoryview, path: Path) -> tuple[int, str]:
        digest = hashlib.sha256()
        with path.open("xb") as file:

            def write(piece: bytes) -> None:
                if self._stopping.is_set():
                    raise _Stopped
                digest.update(piece)
                file.write(piece)

            size_bytes = write_delta(base, new, max_bytes=int(len(new) * MAX_SHARE), write=write)
            file.flush()
            os.fsync(file.fileno())
        return size_bytes, digest.hexdigest()

    def _note(self, pair: tuple[str, str], content: bytes) -> None:
        temporary = self._pairs / f"{uuid4().hex}.tmp"
        temporary.write_bytes(content)
        temporary.replace(self._pair_file(pair))

    def _pair_file(self, pair: tuple[str, str]) -> Path:
        return self._pairs / f"{pair[0]}-{pair[1]}.json"

    def _remove_longest_unused(self, *, but: str) -> None:
        """Keep the files within the bound, and the notes within theirs; the newest file stays in any case."""
        files = sorted(((path.stat(), path) for path in self._files.iterdir()), key=lambda entry: entry[0].st_mtime_ns)
        total_bytes = sum(status.st_size for status, _ in files)
        for status, path in files:
            if total_bytes <= self._max_bytes:
                break
            if path.name != but:
                path.unlink(missing_ok=True)
                total_bytes -= status.st_size
        notes = sorted(self._pairs.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for path in notes[: max(0, len(notes) - MAX_PAIRS)]:
            path.unlink(missing_ok=True)


def _mapped(file: BufferedReader) -> memoryview:
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _checked(sha256: str) -> str:
    try:
        return check_name("sha256", sha256)
    except InvalidName as error:
        raise InvalidRequestError(str(error)) from None


class _Stopped(Exception):
    """The store is being closed."""
