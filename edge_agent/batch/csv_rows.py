"""The rows of a CSV file, their columns flattened into the model's one numeric input.

A first line in which nothing is a number is a header. A line of another width, or with something that is no finite
number, is a reject. Empty lines do not count as rows.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.batch.rows import TEXT, Chunk, Column
from edge_agent.errors import ConfigError, InvalidInputError
from fleet_protocol.manifest import TensorSpec


class CsvSource:
    """A CSV for a model with one numeric input. Columns to keep are found by the header, and are text."""

    total_rows: int | None = None

    def __init__(self, path: Path, specs: Sequence[TensorSpec], *, keep: Sequence[str] = ()) -> None:
        if len(specs) != 1 or specs[0].datatype == "BYTES" or -1 in specs[0].shape[1:]:
            raise InvalidInputError(
                "a CSV feeds a model with one numeric input of fixed row shape: use an .npz or .parquet file"
            )
        self._path, self._name, self._row_shape = path, specs[0].name, specs[0].shape[1:]
        self.row_bytes = 8 * math.prod(self._row_shape)
        self.kept = tuple(Column(name, TEXT) for name in keep)
        with self._open() as file:
            try:
                first = next((line for line in csv.reader(file) if line), None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise self._unreadable(error) from None
        self._has_header = first is not None and not any(_number(cell) is not None for cell in first)
        header = first if first is not None and self._has_header else []
        for name in keep:
            if name not in header:
                raise ConfigError(
                    f"--keep {name}: {path} has no such column: {', '.join(header) or 'it has no header'}"
                )
        self._kept_at = [header.index(name) for name in keep]

    def _open(self) -> Any:
        try:
            return self._path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InvalidInputError:
        return InvalidInputError(f"cannot read {self._path} as a CSV file: {error}")

    def chunks(self, cursor: Mapping[str, Any] | None, chunk_rows: Callable[[], int]) -> Iterator[Chunk]:
        """The rows from `cursor` on: those before it are passed over without a look at their numbers."""
        first = int(cursor["row"]) if cursor else 0
        with self._open() as file:
            try:
                size_bytes = max(1, self._path.stat().st_size)
                lines = (line for line in csv.reader(file) if line)
                rest = itertools.islice(lines, first + self._has_header, None)
                while block := list(itertools.islice(rest, chunk_rows())):
                    yield self._chunk(first, block, min(1.0, file.buffer.tell() / size_bytes))
                    first += len(block)
            except (OSError, csv.Error, UnicodeDecodeError) as error:
                raise self._unreadable(error) from None

    def _chunk(self, first: int, block: list[list[str]], read_fraction: float) -> Chunk:
        width = math.prod(self._row_shape)
        kept_at = frozenset(self._kept_at)
        whole = [line for line in block if len(line) == width + len(kept_at)]
        cells = [[cell for at, cell in enumerate(line) if at not in kept_at] for line in whole] if kept_at else whole
        numbers = _all_numbers(cells) if len(whole) == len(block) else None
        rejects: list[tuple[int, str]] = []
        if numbers is None:
            numbers, good = self._one_by_one(first, block, rejects)
        else:
            good = list(range(len(block)))
        return Chunk(
            rows=np.array(good, dtype=np.int64) + first,
            inputs={self._name: numbers.reshape(len(good), *self._row_shape)},
            kept={
                column.name: np.array([block[index][at] for index in good], dtype=object)
                for column, at in zip(self.kept, self._kept_at, strict=True)
            },
            rejects=rejects,
            cursor={"row": first + len(block)},
            read_fraction=read_fraction,
        )

    def _one_by_one(
        self, first: int, block: list[list[str]], rejects: list[tuple[int, str]]
    ) -> tuple[NDArray[np.float64], list[int]]:
        good, values = [], []
        for index, line in enumerate(block):
            parsed = self._numbers(line)
            if isinstance(parsed, str):
                rejects.append((first + index, parsed))
            else:
                good.append(index)
                values.append(parsed)
        return np.array(values, dtype=np.float64), good

    def _numbers(self, line: list[str]) -> list[float] | str:
        width = math.prod(self._row_shape) + len(self._kept_at)
        if len(line) != width:
            beside = f" and {len(self._kept_at)} are kept" if self._kept_at else ""
            return f"it has {len(line)} columns, the model takes {width - len(self._kept_at)}{beside}"
        numbers = []
        for column, cell in enumerate(line):
            if column in self._kept_at:
                continue
            number = _number(cell)
            if number is None or not math.isfinite(number):
                return f"column {column} is no finite number: {cell[:40]!r}"
            numbers.append(number)
        return numbers


def _all_numbers(cells: list[list[str]]) -> NDArray[np.float64] | None:
    """All cells at once; None when some are no finite numbers, which a slower look finds."""
    try:
        numbers = np.array(cells, dtype=np.float64)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
