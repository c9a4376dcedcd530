"""The telemetry store on InfluxDB 1.8+, 2.x and 3.x: writes to /api/v2/write, reads InfluxQL from /query.

Invariants:
1. `write` returns after the server said that every line is durable. A batch that fails leaves earlier ones
   written; writing all of them again changes nothing, because a window always is the same point (line_protocol),
   and so is a merged window (merged_lines).
2. Reads of windows decide by the window inside the point (`aggregation.holds`), never by the point's own time.
3. A database that is not there reads as empty; every other refusal, and silence, is StoreUnavailableError.
4. Bounded: lines and bytes per write, devices per query, rows per answer chunk, bytes per answer line.

What is kept for the merged retention lies in a database (2.x and 3.x: bucket) of its own, `BUCKET_merged`: one way for
all releases, of which only 1.x has retention policies.

A point is not a row with a key: a device that reused an identity for other contents would overwrite the first.
The ledger in front of the store drops such repeats before they come here.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby

from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store.aggregation import WindowSums, holds, is_empty, sum_by_device, sum_by_step, sums_of
from fleet_server.telemetry_store.influx_server import InfluxServer
from fleet_server.telemetry_store.influxql import (
    QueryRefusedError,
    identifier,
    means_nothing_there,
    merged_of,
    select_merged,
    select_points,
    select_windows,
    window_of,
)
from fleet_server.telemetry_store.line_protocol import INFERENCE, SLOT_NS, lines_of, point_time_ns
from fleet_server.telemetry_store.merge import order
from fleet_server.telemetry_store.merged import Grain, MergedWindow
from fleet_server.telemetry_store.merged_lines import measurement_of, merged_lines, point_lines
from fleet_server.telemetry_store.points import MAX_POINTS, check_measurement, check_points, pack_tags, unpack_point
from fleet_server.telemetry_store.port import (
    MERGED_RETENTION_S,
    DeviceTotals,
    Point,
    SeriesPoint,
    Slice,
    check_merged_slice,
    check_window_slice,
)

MAX_LINES_PER_WRITE = 5_000
MAX_BYTES_PER_WRITE = 8 * 1024 * 1024
MIN_RETENTION_S = 3_600
"""InfluxDB keeps data for at least an hour."""

_FORMATTED_TOGETHER = 1_000


class InfluxStore:
    """A TelemetryStore in the bucket (1.x: database) `bucket` of the server at `url`, and in `BUCKET_merged` beside it.

    `token` is empty where the server asks for none; `org` is needed by 2.x only; `ca_file` is a PEM file to
    trust for https beside the system's. Opens no connection before the first call.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str = "",
        org: str = "",
        bucket: str,
        timeout_s: float = 10.0,
        ca_file: str | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._bucket, self._merged_bucket = bucket, f"{bucket}_merged"
        self._server = InfluxServer(url=self._url, token=token, org=org, timeout_s=timeout_s, ca_file=ca_file)

    def __repr__(self) -> str:
        return f"InfluxStore(url={self._url!r}, bucket={self._bucket!r}, token=***)"

    def set_up(self, *, raw_retention_s: int, merged_retention_s: int | None = None) -> None:
        """Create both databases or buckets and their retentions. Raises InvalidRequestError below MIN_RETENTION_S."""
        merged_s = MERGED_RETENTION_S if merged_retention_s is None else merged_retention_s
        for name, value in (("raw_retention_s", raw_retention_s), ("merged_retention_s", merged_s)):
            if value < MIN_RETENTION_S:
                raise InvalidRequestError(f"{name} is {value}: InfluxDB keeps data for at least {MIN_RETENTION_S} s")
        self._server.set_up(self._bucket, raw_retention_s)
        self._server.set_up(self._merged_bucket, merged_s)

    def check(self) -> None:
        """Raise StoreUnavailableError unless the server answers for this database with this token."""
        query = f"SELECT {identifier('count')} FROM {identifier(INFERENCE)} WHERE time >= 0 AND time < 1 LIMIT 1"  # noqa: S608 - two constants
        for _ in self._rows(query):
            pass

    def write(self, fleet: str, windows: Sequence[Window]) -> None:
        """Store windows; returns when InfluxDB has all of them. Repeats change nothing."""
        for body in _batches(fleet, windows):
            self._server.write(self._bucket, body)

    def windows(self, where: Slice, *, limit: int = 1000) -> list[Window]:
        """The latest `limit` windows of a slice, oldest first, as they were written."""
        check_window_slice(where)
        if is_empty(where) or limit < 1:
            return []
        found = [window for query in select_windows(where) for window in self._latest(query, where, limit)]
        return sorted(heapq.nlargest(limit, found, key=_order), key=_order)

    def each_window(self, where: Slice) -> Generator[Window, None, None]:
        """Every window of a slice, in no order. Keeps a connection until it ends or is closed."""
        check_window_slice(where)
        if is_empty(where):
            return
        for query in select_windows(where):
            yield from self._windows(query, where)

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        """Sums of a slice per (device, model, version, arm), sorted by these."""
        return sum_by_device(self._sums(where))

    def series(self, where: Slice, *, step_ns: int) -> list[SeriesPoint]:
        """Sums of a slice per step, oldest first; empty steps are left out."""
        return sum_by_step(self._sums(where), step_ns)

    def write_merged(self, fleet: str, grain: Grain, merged: Sequence[MergedWindow]) -> None:
        """Put merged windows in their places; those without windows take theirs away."""
        for start in range(0, len(merged), _FORMATTED_TOGETHER):
            for body in _bodies(merged_lines(fleet, grain, merged[start : start + _FORMATTED_TOGETHER])):
                self._server.write(self._bucket_of(grain), body)

    def merged(self, where: Slice, grain: Grain) -> Iterator[MergedWindow]:
        """Merged windows whose span starts in [start_ns, end_ns) of the slice, by start, then key."""
        check_merged_slice(where, grain)
        return iter(()) if is_empty(where) else self._merged(where, grain)

    def write_points(self, fleet: str, points: Sequence[Point]) -> None:
        """Store points in the place of those that are there."""
        check_points(points)
        for body in _bodies(point_lines(fleet, points)):
            self._server.write(self._merged_bucket, body)

    def points(
        self, fleet: str, measurement: str, *, start_ns: int, end_ns: int, tags: Mapping[str, str]
    ) -> list[Point]:
        """The points of a measurement in [start_ns, end_ns) that have these tags, oldest first."""
        check_measurement(measurement)
        query = select_points(fleet, measurement, (start_ns, end_ns), tags, limit=MAX_POINTS + 1)
        found = []
        for columns, row in self._present(self._merged_bucket, query):
            at_ns, of_tags, fields = (row[columns.index(name)] for name in ("time", "point_tags", "point"))
            if isinstance(at_ns, int):
                found.append(unpack_point(measurement, at_ns, str(of_tags), str(fields), self._url))
        if len(found) > MAX_POINTS:
            raise InvalidRequestError(f"more than {MAX_POINTS} points of {measurement}: ask for a shorter time")
        return sorted(found, key=lambda point: (point.at_ns, pack_tags(point.tags)))

    def close(self) -> None:
        """Close the connections; later calls raise StoreUnavailableError. Idempotent."""
        self._server.close()

    def _bucket_of(self, grain: Grain) -> str:
        return self._merged_bucket if grain is Grain.FLEET_HOUR else self._bucket

    def _merged(self, where: Slice, grain: Grain) -> Iterator[MergedWindow]:
        """InfluxDB orders by time alone; what is of one time is put in order here."""
        query = select_merged(where, measurement_of(grain))
        with closing(self._present(self._bucket_of(grain), query)) as rows:
            found = (merged_of(columns, row, self._url) for columns, row in rows)
            there = (one for one in found if one is not None and _is_of(where, one))
            for _, of_start in groupby(there, key=lambda one: one.start_ns):
                yield from sorted(of_start, key=order)

    def _sums(self, where: Slice) -> Iterator[WindowSums]:
        with closing(self.each_window(where)) as windows:
            for window in windows:
                yield sums_of(window)

    def _latest(self, query: str, where: Slice, limit: int) -> list[Window]:
        """The latest `limit` of one query and some more: within a point's slot the order is not the windows'."""
        found: list[Window] = []
        with closing(self._windows(query, where)) as windows:
            for window in windows:
                if len(found) >= limit and _slot(window) < _slot(found[limit - 1]):
                    break
                found.append(window)
        return found

    def _windows(self, query: str, where: Slice) -> Generator[Window, None, None]:
        with closing(self._present(self._bucket, query)) as rows:
            for columns, row in rows:
                window = window_of(columns, row, self._url)
                if holds(where, window):
                    yield window

    def _present(self, bucket: str, query: str) -> Generator[tuple[Sequence[str], list[object]], None, None]:
        """The rows of an answer; none where nothing has been written yet."""
        try:
            with closing(self._server.rows(bucket, query)) as rows:
                yield from rows
        except QueryRefusedError as error:
            if not means_nothing_there(str(error)):
                raise

    def _rows(self, query: str) -> Generator[tuple[Sequence[str], list[object]], None, None]:
        return self._server.rows(self._bucket, query)


def _batches(fleet: str, windows: Sequence[Window]) -> Iterator[bytes]:
    def lines() -> Iterator[str]:
        for start in range(0, len(windows), _FORMATTED_TOGETHER):
            yield from lines_of(fleet, windows[start : start + _FORMATTED_TOGETHER])

    return _bodies(lines())


def _bodies(texts: Iterable[str]) -> Iterator[bytes]:
    lines: list[bytes] = []
    size_bytes = 0
    for text in texts:
        line = text.encode()
        if lines and (len(lines) == MAX_LINES_PER_WRITE or size_bytes + len(line) > MAX_BYTES_PER_WRITE):
            yield b"\n".join(lines)
            lines, size_bytes = [], 0
        lines.append(line)
        size_bytes += len(line) + 1
    if lines:
        yield b"\n".join(lines)


def _is_of(where: Slice, one: MergedWindow) -> bool:
    return where.devices is None or one.key.device in where.devices


def _order(window: Window) -> tuple[int, str, str, int]:
    return window.end_ns, window.device, window.boot_id, window.sequence


def _slot(window: Window) -> int:
    return point_time_ns(window) // SLOT_NS
