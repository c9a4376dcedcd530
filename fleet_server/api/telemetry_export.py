"""Rows of telemetry as a file: CSV or Parquet, the same columns as in JSON.

Invariants: columns are in a fixed order, whatever the first row holds; a file is sent in chunks of CHUNK_ROWS, never
whole from memory; a text that a spreadsheet would run as a formula is written behind an apostrophe in CSV. A nested
value (errors by kind) is one column of JSON text. Times are UTC nanoseconds.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import StreamingResponse

from fleet_server.errors import InvalidRequestError

CHUNK_ROWS = 500
CHUNK_BYTES = 256 * 1024
MAX_FILE_BYTES_IN_MEMORY = 8 * 1024 * 1024
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

Row = Mapping[str, Any]


class Format(StrEnum):
    """How rows are sent."""

    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class Kind(StrEnum):
    """What a column holds; any may be missing in a row."""

    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    TRUTH = "truth"


_MEDIA_TYPES = {Format.CSV: "text/csv; charset=utf-8", Format.PARQUET: "application/vnd.apache.parquet"}
Columns = Mapping[str, Kind]


def format_for(request: Request, asked: Format | None) -> Format:
    """The format of an answer: what `format` says, else the first that `Accept` names, else JSON."""
    if asked is not None:
        return asked
    for accepted in request.headers.get("accept", "").split(","):
        media_type = accepted.partition(";")[0].strip().lower()
        if media_type in ("application/json", "*/*"):
            return Format.JSON
        for kind, known in _MEDIA_TYPES.items():
            if media_type == known.partition(";")[0]:
                return kind
    return Format.JSON


def file_answer(kind: Format, name: str, columns: Columns, rows: Sequence[Row]) -> StreamingResponse:
    """Rows as a file called `name`. Raises InvalidRequestError where Parquet cannot be written here."""
    make = csv_chunks if kind is Format.CSV else parquet_chunks
    chunks = make(columns, rows)
    headers = {"Content-Disposition": f'attachment; filename="{name}.{kind.value}"'}
    return StreamingResponse(chunks, media_type=_MEDIA_TYPES[kind], headers=headers)


def csv_chunks(columns: Columns, rows: Sequence[Row]) -> Iterator[bytes]:
    """Lines of CSV (RFC 4180), headings first; nothing is an empty cell."""
    for start in range(0, len(rows) or 1, CHUNK_ROWS):
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        if start == 0:
            writer.writerow(columns)
        for row in rows[start : start + CHUNK_ROWS]:
            writer.writerow([_cell(row.get(name)) for name in columns])
        yield text.getvalue().encode()


def parquet_chunks(columns: Columns, rows: Sequence[Row]) -> Iterator[bytes]:
    """The bytes of a Parquet file, a row group for each chunk of rows. Raises InvalidRequestError without pyarrow."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types
        import pyarrow.parquet as pq  # type: ignore[import-untyped]  # as above
    except ModuleNotFoundError:
        raise InvalidRequestError(
            "this server cannot write Parquet: pip install 'edgefleet[batch]' there, or ask for format=csv"
        ) from None
    types = {
        Kind.INTEGER: pa.int64(), Kind.NUMBER: pa.float64(), Kind.TEXT: pa.string(), Kind.TRUTH: pa.bool_(),
    }  # fmt: skip  # one line of facts
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])

    def chunks() -> Iterator[bytes]:
        with tempfile.SpooledTemporaryFile(MAX_FILE_BYTES_IN_MEMORY) as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for start in range(0, len(rows), CHUNK_ROWS):
                    of_chunk = rows[start : start + CHUNK_ROWS]
                    arrays = {name: [_flat(row.get(name)) for row in of_chunk] for name in columns}
                    writer.write_table(pa.table(arrays, schema=schema))
            file.seek(0)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    return chunks()


def _flat(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    flat = _flat(value)
    return f"'{flat}" if isinstance(flat, str) and flat.startswith(_FORMULA_STARTS) else flat
