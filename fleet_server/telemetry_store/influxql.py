"""InfluxQL text from a slice, and windows from its answer: pure.

Invariants: every value from outside stands in a quoted literal (`literal`, `identifier`), so none can become
part of a query; an answer is believed only when it is whole, and an error inside it is raised, never read as empty.
Syntax: docs.influxdata.com/influxdb/v1/query_language/spec.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import Struct, field

from fleet_protocol.messages import Window
from fleet_server.errors import StoreUnavailableError
from fleet_server.telemetry_store._stored import unpack
from fleet_server.telemetry_store.line_protocol import INFERENCE, tag_text, time_range_ns
from fleet_server.telemetry_store.port import Slice

DEVICES_PER_QUERY = 500


def literal(value: str) -> str:
    """A string literal."""
    return "'" + _escape(value, "'") + "'"


def identifier(name: str) -> str:
    """A quoted identifier."""
    return '"' + _escape(name, '"') + '"'


def _escape(text: str, quote: str) -> str:
    return text.replace("\\", "\\\\").replace(quote, "\\" + quote).replace("\n", "\\n")


def select_windows(where: Slice) -> list[str]:
    """The queries whose answers together hold every window of a slice, each latest first.

    One query per DEVICES_PER_QUERY devices. They hold up to a millisecond more at both ends: filter by
    `aggregation.holds`.
    """
    first, last = time_range_ns(where.start_ns, where.end_ns)
    conditions = [f"time >= {first}", f"time <= {last}", _equals("fleet", where.fleet)]
    for tag, wanted in (("model", where.model), ("version", where.version), ("arm", where.arm)):
        if wanted is not None:
            conditions.append(_equals(tag, wanted))
    return [
        f"SELECT {identifier('window')} FROM {identifier(INFERENCE)}"  # noqa: S608 - literals and identifiers are quoted
        f" WHERE {' AND '.join([*conditions, *devices])} ORDER BY time DESC"
        for devices in _device_conditions(where.devices)
    ]


def _device_conditions(devices: frozenset[str] | None) -> Iterator[list[str]]:
    if devices is None:
        yield []
        return
    names = sorted(devices)
    for start in range(0, len(names), DEVICES_PER_QUERY):
        some = names[start : start + DEVICES_PER_QUERY]
        yield ["(" + " OR ".join(_equals("device", name) for name in some) + ")"]


def _equals(tag: str, value: str) -> str:
    return f"{identifier(tag)} = {literal(tag_text(value))}"


def create_database(name: str, retention_s: int) -> list[str]:
    """The statements that make a 1.x database and its retention; safe to repeat."""
    shard_s = 3_600 if retention_s < 2 * 86_400 else 86_400
    return [
        f"CREATE DATABASE {identifier(name)}",
        f"ALTER RETENTION POLICY {identifier('autogen')} ON {identifier(name)}"
        f" DURATION {retention_s}s REPLICATION 1 SHARD DURATION {shard_s}s DEFAULT",
    ]


class _Series(Struct, frozen=True):
    columns: list[str] = field(default_factory=list)
    values: list[list[object]] = field(default_factory=list)
    partial: bool = False


class _Result(Struct, frozen=True):
    series: list[_Series] = field(default_factory=list)
    error: str = ""
    partial: bool = False


class _Answer(Struct, frozen=True):
    results: list[_Result] = field(default_factory=list)
    error: str = ""


_ANSWERS = msgspec.json.Decoder(_Answer)


class QueryRefusedError(StoreUnavailableError):
    """The server answered a query with an error; the text is the server's."""


def read_answer(lines: Iterable[bytes]) -> Iterator[tuple[Sequence[str], list[object]]]:
    """Columns and values of every row of an answer, one JSON document per line.

    Raises QueryRefusedError for an error in the answer and StoreUnavailableError when it ends early or is no answer.
    """
    more = True
    for line in lines:
        if not line.strip():
            continue
        try:
            answer = _ANSWERS.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreUnavailableError(f"what answered is not InfluxDB's /query ({error}): check the URL") from None
        if answer.error:
            raise QueryRefusedError(answer.error)
        more = False
        for result in answer.results:
            if result.error:
                raise QueryRefusedError(result.error)
            more = more or result.partial or any(series.partial for series in result.series)
            for series in result.series:
                for row in series.values:
                    yield series.columns, row
    if more:
        raise StoreUnavailableError("InfluxDB's answer ended before it was whole: try again")


def window_of(columns: Sequence[str], row: list[object], where: str) -> Window:
    """The window a row of `select_windows` holds. Raises StoreUnavailableError."""
    text = row[columns.index("window")]
    try:
        blob = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        blob = b""
    return unpack(blob, where)


def means_nothing_there(error: str) -> bool:
    """Whether a server's error says that the database or measurement has not been written yet."""
    text = error.lower()
    return "not found" in text and any(what in text for what in ("database", "measurement", "table", "bucket"))
