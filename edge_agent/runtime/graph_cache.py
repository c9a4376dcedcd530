"""Optimised graphs kept on disk, so that ONNX Runtime rewrites a model once and not on every start.

Invariants, in their order:
1. An entry's key names everything that its graph depends on: the model's digest (weights in further files
   included), the ONNX Runtime, the CPU and the settings that change the graph. Any other entry is never looked at.
2. A graph runs only when its bytes have the sha256 that its index entry holds, and those very bytes are run.
3. An entry that is torn, altered, or not loadable is deleted and the model is loaded from its own file: the cache
   is never the reason of an error.
4. A graph is kept only when loading it, its check included, was measured to be faster than loading the model: for
   a large model of few operators it is not. That verdict is kept too, so that it is found once.
5. The folder holds at most `max_bytes`: what was used longest ago goes first.
The folder is trusted as much as the agent's other data: sums find damage, not somebody who may write there.
Only graphs of the CPU provider are kept; others compile into forms that cannot be saved.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort
from msgspec import Struct
from msgspec.structs import replace

from edge_agent.durable_files import move_into_place, replace_file
from edge_agent.errors import ModelLoadError
from edge_agent.runtime.cpu import cpu_signature
from edge_agent.runtime.session import open_session
from edge_agent.runtime.session_settings import CPU_PROVIDER, Int8Kernels, Optimisation, SessionSettings

MAX_CACHE_BYTES = 512 * 1024 * 1024
"""All optimised graphs of one folder together."""
MAX_ENTRIES = 1024
"""Graphs and verdicts in one folder."""
LARGEST_SHARE = 0.9
"""A kept graph must load in this share of the time that the model's own file takes."""
STALE_PARTIAL_S = 3600.0
"""A graph half written for longer was left by a process that ended."""
_TIMED_LOADS = 2
_SCHEMA = 1
_MAX_INDEX_BYTES = 64 * 1024
_KEY_CHARS = 40
_GRAPH, _INDEX, _PARTIAL = ".onnx", ".json", ".partial"
# one process writes one entry at a time; two processes replace each other's whole entries
_WRITING = threading.Lock()


class IndexEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one graph. Without a `sha256` it is not kept, as loading the model's file is as fast.

    `int8_kernels` are those that it could be built with.
    """

    schema: int
    sha256: str | None
    size_bytes: int
    int8_kernels: Int8Kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedSession:
    """An ONNX Runtime session, the settings it was possible with, and whether its graph came from the cache."""

    session: Any
    settings: SessionSettings
    from_cache: bool


def cache_key(*, digest: str, settings: SessionSettings, signature: str, runtime_version: str) -> str:
    """The name of the entry for a model on a CPU."""
    text = "\n".join((str(_SCHEMA), digest, runtime_version, signature, settings.graph_key()))
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_CHARS]


class GraphCache:
    """The optimised graphs in one folder, which is made when the first is kept."""

    def __init__(self, *, folder: Path, max_bytes: int = MAX_CACHE_BYTES, largest_share: float = LARGEST_SHARE) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._largest_share = largest_share

    def open(self, path: Path, *, settings: SessionSettings, digest: str) -> OpenedSession:
        """A session of the model file `path`, whose digest is `digest`. Raises ModelLoadError as without a cache."""
        if settings.providers != (CPU_PROVIDER,) or settings.optimisation is Optimisation.NONE:
            return _from_file(path, settings)
        key = cache_key(
            digest=digest, settings=settings, signature=cpu_signature(), runtime_version=ort.get_version_string()
        )
        entry = self._entry(key)
        if entry is not None and entry.sha256 is None:
            return _from_file(path, settings)
        if entry is not None and (kept := self._from_cache(path, key, entry, settings)) is not None:
            return kept
        entry = self._make(path, key, settings)
        return self._faster(path, key, entry, settings) if entry is not None else _from_file(path, settings)

    def _from_cache(self, path: Path, key: str, entry: IndexEntry, settings: SessionSettings) -> OpenedSession | None:
        graph = self._graph(key, entry)
        if graph is None:
            return None
        # the kernels were chosen when the graph was rewritten: asking for them again could only fail
        kept = replace(settings, optimisation=Optimisation.NONE, int8_kernels=Int8Kernels.NATIVE)
        try:
            session, _ = open_session(path, settings=kept, graph=graph)
        except ModelLoadError:
            self._delete(key)
            return None
        return OpenedSession(
            session=session, settings=replace(settings, int8_kernels=entry.int8_kernels), from_cache=True
        )

    def _make(self, path: Path, key: str, settings: SessionSettings) -> IndexEntry | None:
        """Rewrite the model and keep the graph. None where that cannot be: a full disk, a graph past saving."""
        partial = self._folder / f"{key}-{os.getpid()}-{threading.get_ident()}{_PARTIAL}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _, used = open_session(path, settings=settings, save_graph=partial)
            return self._keep(key, partial, used)
        except (OSError, ModelLoadError):
            return None
        finally:
            _discard(partial)

    def _faster(self, path: Path, key: str, entry: IndexEntry, settings: SessionSettings) -> OpenedSession:
        """Load both ways by turns and keep what was faster; one session at a time, for the memory of small devices."""
        best_s = {True: float("inf"), False: float("inf")}
        opened: OpenedSession | None = None
        for _ in range(_TIMED_LOADS):
            for cached in (False, True):
                opened = None
                start = time.perf_counter()
                opened = self._from_cache(path, key, entry, settings) if cached else _from_file(path, settings)
                best_s[cached] = min(best_s[cached], time.perf_counter() - start)
                if opened is None:
                    return _from_file(path, settings)
        if opened is not None and best_s[True] <= self._largest_share * best_s[False]:
            return opened
        self._decline(key, entry)
        opened = None
        return _from_file(path, settings)

    def _entry(self, key: str) -> IndexEntry | None:
        index_file = self._files(key)[1]
        try:
            entry = msgspec.json.decode(_bounded(index_file, _MAX_INDEX_BYTES), type=IndexEntry)
            if entry.schema == _SCHEMA:
                os.utime(index_file)
                return entry
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, ValueError):
            pass
        self._delete(key)
        return None

    def _graph(self, key: str, entry: IndexEntry) -> bytes | None:
        try:
            graph = _bounded(self._files(key)[0], entry.size_bytes)
            if hashlib.sha256(graph).hexdigest() == entry.sha256:
                return graph
        except (OSError, ValueError):
            pass
        self._delete(key)
        return None

    def _decline(self, key: str, entry: IndexEntry) -> None:
        graph_file, index_file = self._files(key)
        _discard(graph_file)
        try:
            with _WRITING:
                replace_file(index_file, msgspec.json.encode(replace(entry, sha256=None, size_bytes=0)))
        except OSError:
            self._delete(key)

    def _keep(self, key: str, partial: Path, used: SessionSettings) -> IndexEntry | None:
        graph_file, index_file = self._files(key)
        try:
            with partial.open("rb+") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            size_bytes = partial.stat().st_size
            if size_bytes > self._max_bytes:
                return None
            entry = IndexEntry(
                schema=_SCHEMA, sha256=sha256, size_bytes=size_bytes, int8_kernels=used.int8_kernels
            )  # fmt: skip
            with _WRITING:
                move_into_place(partial, graph_file)
                replace_file(index_file, msgspec.json.encode(entry))
                self._make_room(keep=key)
        except OSError:
            self._delete(key)
            return None
        return entry

    def _make_room(self, *, keep: str) -> None:
        used_at: list[tuple[float, str]] = []
        total_bytes = 0
        for file in self._folder.iterdir():
            stat = file.stat()
            if file.suffix == _PARTIAL and time.time() - stat.st_mtime > STALE_PARTIAL_S:
                _discard(file)
            elif file.suffix == _GRAPH:
                total_bytes += stat.st_size
            elif file.suffix == _INDEX:
                used_at.append((stat.st_mtime, file.stem))
        excess = len(used_at) - MAX_ENTRIES
        for place, (_, key) in enumerate(sorted(used_at)):
            if place >= excess and total_bytes <= self._max_bytes:
                return
            if key != keep:
                graph_file = self._files(key)[0]
                total_bytes -= graph_file.stat().st_size if graph_file.exists() else 0
                self._delete(key)

    def _delete(self, key: str) -> None:
        for file in reversed(self._files(key)):
            _discard(file)

    def _files(self, key: str) -> tuple[Path, Path]:
        return self._folder / f"{key}{_GRAPH}", self._folder / f"{key}{_INDEX}"


def _from_file(path: Path, settings: SessionSettings) -> OpenedSession:
    session, used = open_session(path, settings=settings)
    return OpenedSession(session=session, settings=used, from_cache=False)


def _bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} is larger than {max_bytes} bytes")
    return content


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # what cannot be deleted is looked at, and refused, again
