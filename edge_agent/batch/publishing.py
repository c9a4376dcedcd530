"""The finished columns of a journal become one .npz, .csv or .parquet file, in its place whole or not at all.

Rows are read back a block at a time. Repeating a publication that was cut off is harmless: until the last rename
the journal is complete, or for an .npz cut back to what counts when it is opened again.
"""

from __future__ import annotations

import base64
import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.batch.archive import ArchiveWriter
from edge_agent.batch.extras import library
from edge_agent.batch.journal import Journal, StoredColumn, blocks
from edge_agent.batch.rows import Column
from edge_agent.durable_files import move_into_place

_BLOCK_BYTES = 4 * 1024 * 1024
_MAX_BLOCK_ROWS = 65_536
_NPY_TEXT_BYTES = 4
"""numpy keeps text as UTF-32, every one as wide as the longest."""


def block_rows(stored: list[StoredColumn]) -> int:
    """How many rows of all columns together are held in memory."""
    row_bytes = sum(max(1, entry.column.row_bytes + 4 * entry.longest) for entry in stored)
    return max(1, min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))


def publish_npz(journal: Journal, output: Path) -> None:
    """The largest column's own file becomes the archive; the others are appended to it."""
    stored, rows = journal.progress.columns or [], journal.progress.scored
    fixed = [index for index, entry in enumerate(stored) if not entry.column.is_text]
    largest = max(fixed, key=lambda index: stored[index].data_bytes)
    column = stored[largest].column
    base = journal.column_path(largest)
    with base.open("r+b") as file:
        archive = ArchiveWriter(file)
        archive.adopt(
            column.name, dtype=column.dtype, shape=(rows, *column.row_shape), crc=stored[largest].crc,
            data_bytes=stored[largest].data_bytes,
        )  # fmt: skip
        for index, entry in enumerate(stored):
            if index == largest:
                continue
            dtype = f"<U{max(1, entry.longest)}" if entry.column.is_text else entry.column.dtype
            width = _NPY_TEXT_BYTES * max(1, entry.longest) if entry.column.is_text else max(1, entry.column.row_bytes)
            count = max(1, min(_MAX_BLOCK_ROWS, _BLOCK_BYTES // width))
            parts = blocks(journal.column_path(index), entry, rows=rows, block_rows=count)
            archive.append(
                entry.column.name,
                dtype=dtype,
                shape=(rows, *entry.column.row_shape),
                blocks=(_without_nulls(part).astype(dtype).tobytes() for part in parts),
            )
        archive.finish()
        file.flush()
        os.fsync(file.fileno())
    move_into_place(base, output)


def publish_csv(journal: Journal, output: Path) -> None:
    """A header, then a line per row: every column flattened, nothing for no text."""
    stored, temporary = journal.progress.columns or [], journal.folder / "output"
    with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([name for entry in stored for name in _names(entry.column)])
        for parts in _tables(journal):
            cells = (cells for part in parts for cells in part.reshape(len(part), -1).T.tolist())
            writer.writerows(zip(*cells, strict=True))
        file.flush()
        os.fsync(file.fileno())
    move_into_place(temporary, output)


def publish_parquet(journal: Journal, output: Path) -> None:
    """A row group per block; (nested) fixed-size lists where a row has several values."""
    pa, parquet = library("pyarrow"), library("pyarrow.parquet")
    stored, temporary = journal.progress.columns or [], journal.folder / "output"
    fields = [pa.field(entry.column.name, _arrow_type(pa, entry.column)) for entry in stored]
    single = [entry.column.name for entry in stored if not entry.column.row_shape]
    with temporary.open("wb") as file:
        with parquet.ParquetWriter(file, pa.schema(fields), use_dictionary=single) as writer:
            for parts in _tables(journal):
                arrays = [
                    _arrow_array(pa, entry.column, part, field.type)
                    for entry, part, field in zip(stored, parts, fields, strict=True)
                ]
                writer.write_batch(pa.record_batch(arrays, schema=pa.schema(fields)))
        file.flush()
        os.fsync(file.fileno())
    move_into_place(temporary, output)


PUBLISHERS: dict[str, Callable[[Journal, Path], None]] = {
    ".npz": publish_npz,
    ".csv": publish_csv,
    ".parquet": publish_parquet,
}


def _tables(journal: Journal) -> Iterator[tuple[NDArray[Any], ...]]:
    stored, rows = journal.progress.columns or [], journal.progress.scored
    count = block_rows(stored)
    columns = [
        blocks(journal.column_path(index), entry, rows=rows, block_rows=count) for index, entry in enumerate(stored)
    ]
    return zip(*columns, strict=True)


def _names(column: Column) -> list[str]:
    width = int(np.prod(column.row_shape, dtype=np.int64))
    return [column.name] if width == 1 else [f"{column.name}[{index}]" for index in range(width)]


def _without_nulls(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind != "O":
        return array
    return np.array([*("" if value is None else value for value in array), None], dtype=object)[:-1]


def _arrow_type(pa: Any, column: Column) -> Any:
    if column.arrow is not None:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(column.arrow))).field(0).type
    kind = pa.string() if column.is_text or np.dtype(column.dtype).kind == "U" else pa.from_numpy_dtype(column.dtype)
    for size in reversed(column.row_shape if int(np.prod(column.row_shape, dtype=np.int64)) != 1 else ()):
        kind = pa.list_(kind, size)
    return kind


def _arrow_array(pa: Any, column: Column, array: NDArray[Any], kind: Any) -> Any:
    if column.is_text:
        return pa.array(array.tolist(), type=pa.string()).cast(kind)
    flat = array.reshape(-1)
    built = pa.array(flat.tolist() if flat.dtype.kind == "U" else flat)
    for size in reversed(column.row_shape if int(np.prod(column.row_shape, dtype=np.int64)) != 1 else ()):
        built = pa.FixedSizeListArray.from_arrays(built, size)
    return built
