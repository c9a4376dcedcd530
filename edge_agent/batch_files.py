"""The files of batch scoring: chunks of rows in, scored rows out, never more than a chunk of input in memory.

Row numbers count data rows from 0, a header excluded. Outputs go to a temporary file beside their place and
are moved there whole by `finish`; a run that fails leaves nothing behind.
"""

from __future__ import annotations

import csv
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edge_agent.durable_files import move_into_place
from edge_agent.errors import InvalidInputError
from fleet_protocol.manifest import TensorSpec


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows: their numbers, their inputs with axis 0 = rows, and those that could not be read, with why."""

    rows: list[int]
    inputs: dict[str, NDArray[Any]]
    rejects: list[tuple[int, str]] = field(default_factory=list)


def read_npz(path: Path, specs: Sequence[TensorSpec], *, chunk_rows: int) -> Iterator[Chunk]:
    """The rows of an .npz whose arrays are named as the inputs. Raises InvalidInputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = {spec.name for spec in specs}
            found = {name.removesuffix(".npy") for name in archive.namelist()}
            if found != wanted:
                have, take = ", ".join(sorted(found)) or "none", ", ".join(sorted(wanted))
                raise InvalidInputError(f"{path} holds the arrays {have}, the model takes {take}")
            columns = {name: _Column(archive, name) for name in wanted}
            counts = {name: column.rows for name, column in columns.items()}
            if len(set(counts.values())) != 1:
                raise InvalidInputError(f"the arrays of {path} have different numbers of rows: {counts}")
            total = next(iter(counts.values()))
            for first in range(0, total, chunk_rows):
                count = min(chunk_rows, total - first)
                inputs = {name: column.take(count) for name, column in columns.items()}
                yield Chunk(rows=list(range(first, first + count)), inputs=inputs)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InvalidInputError(f"cannot read {path} as an .npz file: {error}") from None


class _Column:
    """One array of an .npz, read row by row without unpacking the rest."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._file = archive.open(f"{name}.npy")
        version = npy.read_magic(self._file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, self._dtype = read_header(self._file)
        if not shape or self._dtype.hasobject or (is_fortran and len(shape) > 1):
            raise ValueError(
                f"array {name} must have rows of plain numbers in C order: np.ascontiguousarray makes it so"
            )
        self.rows, self._row_shape = int(shape[0]), shape[1:]

    def take(self, count: int) -> NDArray[Any]:
        size = count * math.prod(self._row_shape) * self._dtype.itemsize
        content = self._file.read(size)
        if len(content) != size:
            raise EOFError("it is cut short")
        return np.frombuffer(content, dtype=self._dtype).reshape(count, *self._row_shape)


def read_csv(path: Path, specs: Sequence[TensorSpec], *, chunk_rows: int) -> Iterator[Chunk]:
    """The rows of a CSV, its columns flattened into the model's one input. A first line of names is skipped.

    A line of another width, or with something that is no finite number, is a reject. Raises InvalidInputError.
    """
    if len(specs) != 1 or specs[0].datatype == "BYTES" or -1 in specs[0].shape[1:]:
        raise InvalidInputError("a CSV feeds a model with one numeric input of fixed row shape: use an .npz file")
    name, row_shape = specs[0].name, specs[0].shape[1:]
    width = math.prod(row_shape)
    rows: list[int] = []
    values: list[list[float]] = []
    rejects: list[tuple[int, str]] = []

    def chunk() -> Chunk:
        array = np.array(values, dtype=np.float64).reshape(len(values), *row_shape)
        return Chunk(rows=rows, inputs={name: array}, rejects=rejects)

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (line for line in csv.reader(file) if line)
            for row, line in enumerate(_without_header(lines)):
                parsed = _numbers(line, width)
                if isinstance(parsed, str):
                    rejects.append((row, parsed))
                else:
                    rows.append(row)
                    values.append(parsed)
                if len(rows) + len(rejects) >= chunk_rows:
                    yield chunk()
                    rows, values, rejects = [], [], []
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read {path} as a CSV file: {error}") from None
    if rows or rejects:
        yield chunk()


def _without_header(lines: Iterator[list[str]]) -> Iterator[list[str]]:
    first = next(lines, None)
    if first is not None and any(_number(cell) is not None for cell in first):
        yield first
    yield from lines


def _numbers(line: list[str], width: int) -> list[float] | str:
    if len(line) != width:
        return f"it has {len(line)} columns, the model takes {width}"
    numbers = []
    for column, cell in enumerate(line):
        number = _number(cell)
        if number is None or not math.isfinite(number):
            return f"column {column} is no finite number: {cell[:40]!r}"
        numbers.append(number)
    return numbers


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


class _Durable:
    """A file that appears whole at `path` when `finish` is called, and not at all otherwise."""

    def __init__(self, path: Path, *, newline: str | None = "") -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._file: IO[Any] = (
            self._temporary.open("wb")
            if newline is None
            else self._temporary.open("w", encoding="utf-8", newline=newline)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def finish(self) -> None:
        """Put the file in its place, durably."""
        self._file.flush()
        os.fsync(self._file.fileno())
        move_into_place(self._temporary, self._path)


class CsvScores(_Durable):
    """Scores as CSV: row, class and label where there are labels, then every output flattened."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._width: int | None = None

    def add(self, rows: list[int], columns: dict[str, NDArray[Any]]) -> None:
        """Write scored rows; `columns` have axis 0 = rows."""
        flat = {name: array.reshape(len(rows), -1) for name, array in columns.items()}
        names = [
            name if array.shape[1] == 1 else f"{name}[{index}]"
            for name, array in flat.items()
            for index in range(array.shape[1])
        ]
        if self._width is None:
            self._writer.writerow(["row", *names])
            self._width = len(names)
        if self._width != len(names):
            raise InvalidInputError(
                "the model's outputs change their size from row to row: write an .npz file per size"
            )
        cells = zip(*(column for array in flat.values() for column in array.T.tolist()), strict=True)
        self._writer.writerows([row, *values] for row, values in zip(rows, cells, strict=True))


class NpzScores(_Durable):
    """Scores as .npz: `row`, and every output with axis 0 = rows. Outputs, unlike inputs, are kept until the end."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, newline=None)
        self._rows: list[int] = []
        self._columns: dict[str, list[NDArray[Any]]] = {}

    def add(self, rows: list[int], columns: dict[str, NDArray[Any]]) -> None:
        """Keep scored rows; `columns` have axis 0 = rows."""
        self._rows += rows
        for name, array in columns.items():
            self._columns.setdefault(name, []).append(array)

    def finish(self) -> None:
        """Write everything, and put the file in its place."""
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED) as archive:
            self._write(archive, "row", np.array(self._rows, dtype=np.int64))
            for name, parts in self._columns.items():
                try:
                    self._write(archive, name, np.concatenate(parts))
                except ValueError:
                    raise InvalidInputError(f"output {name} changes its shape from row to row") from None
        super().finish()

    @staticmethod
    def _write(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
        if array.dtype.hasobject:
            array = array.astype(np.str_)  # text, which np.load reads without pickle
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            npy.write_array(member, array, allow_pickle=False)


class Rejects(_Durable):
    """The rows that were not scored: row and reason."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.count = 0
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(["row", "reason"])

    def add(self, row: int, reason: str) -> None:
        """Note one row."""
        self.count += 1
        self._writer.writerow([row, reason])
