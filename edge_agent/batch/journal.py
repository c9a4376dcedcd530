"""The durable middle of a run: OUTPUT.partial/, from which a run that was cut off goes on.

What lies there: `job.json` (what is being scored, with what, how), one file per column of scores, `rejects.csv`, and
`progress.json` (how many bytes of each are valid, and where reading goes on).
Invariants and their order:
1. bytes are appended, and synced, before `progress.json` is replaced by one that counts them: whatever it counts is
   there, after a kill and after a power cut;
2. opening it again cuts off what it does not count: no row is there twice, none is missing;
3. it is opened again only for the same job, and by one process at a time.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.batch.archive import HEAD_ROOM_BYTES
from edge_agent.batch.rows import MAX_NAME_BYTES, Column
from edge_agent.durable_files import replace_file, sync_folder
from edge_agent.errors import ConfigError, InvalidInputError

_NO_TEXT = 0xFFFFFFFF
_REJECTS_HEADER = b"row,reason\n"


class StoredColumn(msgspec.Struct, kw_only=True):
    """A column and what of its file counts: `data_bytes` behind the head room, their CRC-32, its longest text."""

    column: Column
    data_bytes: int = 0
    crc: int = 0
    longest: int = 0


class Progress(msgspec.Struct, kw_only=True):
    """What counts so far. `columns` is None until the first row was scored and told what they are."""

    cursor: dict[str, Any] | None = None
    read: int = 0
    scored: int = 0
    rejected: int = 0
    rejects_bytes: int = len(_REJECTS_HEADER)
    columns: list[StoredColumn] | None = None


class Journal:
    """An open OUTPUT.partial/. What is added counts from the next `checkpoint` on."""

    def __init__(self, folder: Path, progress: Progress, lock: IO[bytes]) -> None:
        self.folder, self.progress, self._lock = folder, progress, lock
        if progress.columns is None and progress.cursor is None:
            self.rejects_path.write_bytes(_REJECTS_HEADER)
        self._rejects = _open_at(self.rejects_path, progress.rejects_bytes)
        self._files = [
            _open_at(self.column_path(index), HEAD_ROOM_BYTES + stored.data_bytes)
            for index, stored in enumerate(progress.columns or ())
        ]

    @classmethod
    def open(cls, folder: Path, job: Mapping[str, Any], *, resume: bool) -> Journal:
        """Begin, or with `resume` go on where `folder` ends. Raises ConfigError when that cannot be."""
        identity = folder / "job.json"
        fresh = not identity.is_file()
        if not fresh and not resume:
            raise ConfigError(f"{folder} holds an unfinished run: go on with --resume, or remove it to start over")
        folder.mkdir(exist_ok=True)
        lock = (folder / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fresh:
                for left in folder.iterdir():
                    if left.name != "lock":
                        left.unlink()
                replace_file(identity, msgspec.json.encode(job))
                return cls(folder, Progress(), lock)
            _check_same(folder, identity, job)
            return cls(folder, _read_progress(folder), lock)
        except BlockingIOError:
            lock.close()
            raise ConfigError(f"another process is writing {folder}: wait for it, or end it") from None
        except BaseException:
            lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (*self._files, self._rejects, self._lock):
            file.close()

    def column_path(self, index: int) -> Path:
        """The file of one column."""
        return self.folder / f"column-{index}.bin"

    @property
    def rejects_path(self) -> Path:
        """The file of the rows without scores."""
        return self.folder / "rejects.csv"

    @property
    def counts(self) -> bool:
        """Whether there was a checkpoint, in this run or before."""
        return (self.folder / "progress.json").exists()

    def add(self, columns: Mapping[str, NDArray[Any]], *, types: Sequence[Column]) -> None:
        """Append rows: of every column of `types` the same number. Raises InvalidInputError for changing shapes."""
        if self.progress.columns is None:
            self._begin(types)
        for stored, file in zip(self.progress.columns or (), self._files, strict=True):
            column, array = stored.column, columns[stored.column.name]
            if column.is_text:
                content: Any = _encode_text(array, stored)
            elif array.shape[1:] != column.row_shape:
                raise InvalidInputError(
                    f"output {column.name!r} changes its shape from row to row, from {list(column.row_shape)} to"
                    f" {list(array.shape[1:])}: such a model cannot be scored into one table"
                )
            else:
                plain = np.ascontiguousarray(array, dtype=column.dtype)
                content = plain.reshape(-1).view(np.uint8).data if plain.nbytes else b""
            _write(file, content)
            stored.crc = zlib.crc32(content, stored.crc)
            stored.data_bytes += len(content)

    def reject(self, row: int, reason: str) -> None:
        """Note a row that has no scores."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row, reason])
        content = text.getvalue().encode("utf-8", "replace")
        _write(self._rejects, content)
        self.progress.rejects_bytes += len(content)
        self.progress.rejected += 1

    def checkpoint(self) -> None:
        """Let everything added so far count, whatever happens next."""
        for file in (*self._files, self._rejects):
            os.fdatasync(file.fileno())
        replace_file(self.folder / "progress.json", msgspec.json.encode(self.progress))

    def begin_empty(self, types: Sequence[Column]) -> None:
        """Make the columns of a run in which no row was scored."""
        if self.progress.columns is None:
            self._begin(types)

    def remove(self) -> None:
        """Take everything away: the scores are in their place."""
        shutil.rmtree(self.folder)
        sync_folder(self.folder.parent)

    def _begin(self, types: Sequence[Column]) -> None:
        for column in types:
            if len(column.name.encode()) > MAX_NAME_BYTES:
                raise InvalidInputError(f"the column {column.name[:40]!r}… has a name of more than 512 bytes")
        self.progress.columns = [StoredColumn(column=column) for column in types]
        for index in range(len(types)):
            self.column_path(index).write_bytes(bytes(HEAD_ROOM_BYTES))
        self._files = [_open_at(self.column_path(index), HEAD_ROOM_BYTES) for index in range(len(types))]


def _write(file: IO[bytes], content: Any) -> None:
    rest = memoryview(content)
    while rest:  # an unbuffered file may take less than it was given
        rest = rest[file.write(rest) :]


def blocks(path: Path, stored: StoredColumn, *, rows: int, block_rows: int) -> Iterator[NDArray[Any]]:
    """A column read back, `block_rows` at a time: an array of its type, of objects (str or None) for text."""
    column = stored.column
    with path.open("rb") as file:
        file.seek(HEAD_ROOM_BYTES)
        for first in range(0, rows, block_rows):
            count = min(block_rows, rows - first)
            if column.is_text:
                yield np.array([_read_text(file) for _ in range(count)] + [None], dtype=object)[:-1]
            else:
                content = file.read(count * column.row_bytes)
                yield np.frombuffer(content, dtype=column.dtype).reshape(count, *column.row_shape)


def _encode_text(array: NDArray[Any], stored: StoredColumn) -> bytes:
    parts = []
    values = array.reshape(len(array), -1)
    for row in values.tolist():
        value = row[0] if len(row) == 1 else msgspec.json.encode(row).decode()  # several texts become a JSON list
        if value is None:
            parts.append(struct.pack("<I", _NO_TEXT))
        else:
            text = str(value)
            content = text.encode("utf-8", "surrogatepass")
            stored.longest = max(stored.longest, len(text))
            parts += (struct.pack("<I", len(content)), content)
    return b"".join(parts)


def _read_text(file: IO[bytes]) -> str | None:
    (size,) = struct.unpack("<I", file.read(4))
    return None if size == _NO_TEXT else file.read(size).decode("utf-8", "surrogatepass")


def _open_at(path: Path, valid_bytes: int) -> IO[bytes]:
    if not path.exists() or path.stat().st_size < valid_bytes:
        raise ConfigError(f"{path} is shorter than it was: remove {path.parent} to start over")
    file = path.open("r+b", buffering=0)
    file.truncate(valid_bytes)
    file.seek(valid_bytes)
    return file


def published(folder: Path) -> Progress | None:
    """What a run counted that ended between putting its scores in place and taking its journal away; else None.

    Only that takes a column's file out of a journal.
    """
    progress = _read_progress(folder)
    names = [folder / f"column-{index}.bin" for index in range(len(progress.columns or ()))]
    return progress if any(not path.exists() for path in names) else None


def _read_progress(folder: Path) -> Progress:
    path = folder / "progress.json"
    if not path.is_file():
        return Progress()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Progress)
    except msgspec.MsgspecError:
        raise ConfigError(f"{path} is not readable: remove {folder} to start over") from None


def _check_same(folder: Path, identity: Path, job: Mapping[str, Any]) -> None:
    try:
        before = msgspec.json.decode(identity.read_bytes(), type=dict)
    except msgspec.MsgspecError:
        raise ConfigError(f"{identity} is not readable: remove {folder} to start over") from None
    now = msgspec.json.decode(msgspec.json.encode(job))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{folder} was begun with another {name} ({before.get(name)}, now {now.get(name)}):"
                " use the same, or remove it to start over"
            )
