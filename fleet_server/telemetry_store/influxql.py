"""InfluxQL text from a slice, and windows, merged windows and points from its answer: pure.

Invariants: every value from outside stands in a quoted literal (`literal`, `identifier`), so none can become
part of a query; an answer is believed only when it is whole, and an error inside it is raised, never read as empty.
Syntax: docs.influxdata.com/influxdb/v1/query_language/spec.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from fleet_protocol.messages import Window
from fleet_server.errors import StoreUnavailableError
from fleet_server.telemetry_store._stored import unpack, unpack_merged
from fleet_server.telemetry_store.line_protocol import INFERENCE, MAX_TIME_NS, tag_text, time_range_ns
from fleet_server.telemetry_store.merged import MergedWindow
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
    conditions += _narrowed(where)
    return [
        f"SELECT {identifier('window')} FROM {identifier(INFERENCE)}"  # noqa: S608 - literals and identifiers are quoted
        f" WHERE {' AND '.join([*conditions, *devices])} ORDER BY time DESC"
        for devices in _device_conditions(where.devices)
    ]


def select_merged(where: Slice, measurement: str) -> str:
    """The query for merged windows of a measurement that start in [start_ns, end_ns), oldest first.

    More devices than DEVICES_PER_QUERY are not in it: filter by them.
    """
    conditions = [*_times(where.start_ns, where.end_ns), _equals("fleet", where.fleet), *_narrowed(where)]
    if where.cohort is not None:
        conditions.append(_equals("cohort", where.cohort))
    if where.devices is not None and len(where.devices) <= DEVICES_PER_QUERY:
        conditions += next(_device_conditions(where.devices))
    return (
        f"SELECT {identifier('merged')} FROM {identifier(measurement)}"  # noqa: S608 - as above
        f" WHERE {' AND '.join(conditions)} ORDER BY time ASC"
    )


def select_points(
    fleet: str, measurement: str, span_ns: tuple[int, int], tags: Mapping[str, str], *, limit: int
) -> str:
    """The query for points of a measurement in [start, end) with these tags, oldest first."""
    conditions = [*_times(*span_ns), _equals("fleet", fleet), *(_equals(name, value) for name, value in tags.items())]
    return (
        f"SELECT {identifier('point_tags')}, {identifier('point')} FROM {identifier(measurement)}"  # noqa: S608 - as above
        f" WHERE {' AND '.join(conditions)} ORDER BY time ASC LIMIT {limit}"
    )


def _times(start_ns: int, end_ns: int) -> list[str]:
    return [f"time >= {max(start_ns, 0)}", f"time < {min(max(end_ns, 0), MAX_TIME_NS)}"]


def _narrowed(where: Slice) -> list[str]:
    tags = (("model", where.model), ("version", where.version), ("variant", where.variant), ("arm", where.arm))
    return [_equals(tag, wanted) for tag, wanted in tags if wanted is not None]


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
    return unpack(_bytes_of(row[columns.index("window")]), where)


def merged_of(columns: Sequence[str], row: list[object], where: str) -> MergedWindow | None:
    """The merged window a row of `select_merged` holds, None where it was taken away. Raises StoreUnavailableError."""
    text = row[columns.index("merged")]
    return unpack_merged(_bytes_of(text), where) if text else None


def _bytes_of(text: object) -> bytes:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except binascii.Error:
        return b""


def means_nothing_there(error: str) -> bool:
    """Whether a server's error says that the database or measurement has not been written yet."""
    text = error.lower()
    return "not found" in text and any(what in text for what in ("database", "measurement", "table", "bucket"))
