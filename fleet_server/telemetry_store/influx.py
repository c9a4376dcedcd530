"""The telemetry store on InfluxDB 1.8+, 2.x and 3.x: writes to /api/v2/write, reads InfluxQL from /query.

Invariants:
1. `write` returns after the server said that every line is durable. A batch that fails leaves earlier ones
   written; writing all of them again changes nothing, because a window always is the same point (line_protocol).
2. Reads decide by the window inside the point (`aggregation.holds`), never by the point's own time.
3. A database that is not there reads as empty; every other refusal, and silence, is StoreUnavailableError.
4. Bounded: lines and bytes per write, devices per query, rows per answer chunk, bytes per answer line.

A point is not a row with a key: a device that reused an identity for other contents would overwrite the first.
The ledger in front of the store drops such repeats before they come here.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from urllib.parse import urlencode

import urllib3
from influxdb_client import BucketRetentionRules, InfluxDBClient
from influxdb_client.client.exceptions import InfluxDBError
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException

from fleet_protocol.messages import Window
from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store.aggregation import WindowSums, holds, is_empty, sum_by_device, sum_by_step, sums_of
from fleet_server.telemetry_store.influxql import (
    QueryRefusedError,
    create_database,
    identifier,
    means_nothing_there,
    read_answer,
    select_windows,
    window_of,
)
from fleet_server.telemetry_store.line_protocol import INFERENCE, SLOT_NS, lines_of, point_time_ns
from fleet_server.telemetry_store.port import DeviceTotals, SeriesPoint, Slice

MAX_LINES_PER_WRITE = 5_000
MAX_BYTES_PER_WRITE = 8 * 1024 * 1024
ROWS_PER_ANSWER_CHUNK = 1_000
MAX_ANSWER_LINE_BYTES = 256 * 1024 * 1024
MIN_RETENTION_S = 3_600
"""InfluxDB keeps data for at least an hour."""

_WINDOWS_PER_FORMATTING = 1_000
_READ_BYTES = 256 * 1024
_MAX_ERROR_CHARS = 500
_LOG = logging.getLogger(__name__)


class InfluxStore:
    """A TelemetryStore in the bucket (1.x: database) `bucket` of the server at `url`.

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
        self._bucket = bucket
        self._org = org
        self._closed = False
        self._headers = {"Authorization": f"Token {token}"} if token else {}
        self._pool = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s), maxsize=8, ca_certs=ca_file
        )
        self._client = InfluxDBClient(
            url=self._url, token=token or None, org=org or "-", timeout=int(timeout_s * 1_000), enable_gzip=True,
            ssl_ca_cert=ca_file,
        )  # fmt: skip  # as one call reads
        self._writes = self._client.write_api(write_options=SYNCHRONOUS)

    def __repr__(self) -> str:
        return f"InfluxStore(url={self._url!r}, bucket={self._bucket!r}, token=***)"

    def set_up(self, *, raw_retention_s: int) -> None:
        """Create the database or bucket and its retention. Raises InvalidRequestError below MIN_RETENTION_S."""
        if raw_retention_s < MIN_RETENTION_S:
            raise InvalidRequestError(
                f"raw_retention_s is {raw_retention_s}: InfluxDB keeps data for at least {MIN_RETENTION_S} s"
            )
        if self._server_version().startswith("1."):
            for statement in create_database(self._bucket, raw_retention_s):
                for _ in self._rows(statement):
                    pass
        else:
            self._set_up_bucket(raw_retention_s)

    def check(self) -> None:
        """Raise StoreUnavailableError unless the server answers for this database with this token."""
        query = f"SELECT {identifier('count')} FROM {identifier(INFERENCE)} WHERE time >= 0 AND time < 1 LIMIT 1"  # noqa: S608 - two constants
        for _ in self._rows(query):
            pass

    def write(self, fleet: str, windows: Sequence[Window]) -> None:
        """Store windows; returns when InfluxDB has all of them. Repeats change nothing."""
        for body in _batches(fleet, windows):
            self._write_batch(body)

    def windows(self, where: Slice, *, limit: int = 1000) -> list[Window]:
        """The latest `limit` windows of a slice, oldest first, as they were written."""
        if is_empty(where) or limit < 1:
            return []
        found = [window for query in select_windows(where) for window in self._latest(query, where, limit)]
        return sorted(heapq.nlargest(limit, found, key=_order), key=_order)

    def totals_by_device(self, where: Slice) -> list[DeviceTotals]:
        """Sums of a slice per (device, model, version, arm), sorted by these."""
        return sum_by_device(self._sums(where))

    def series(self, where: Slice, *, step_ns: int) -> list[SeriesPoint]:
        """Sums of a slice per step, oldest first; empty steps are left out."""
        return sum_by_step(self._sums(where), step_ns)

    def close(self) -> None:
        """Close the connections; later calls raise StoreUnavailableError. Idempotent."""
        if not self._closed:
            self._closed = True
            self._client.close()
            self._pool.clear()

    def _sums(self, where: Slice) -> Iterator[WindowSums]:
        if is_empty(where):
            return
        for query in select_windows(where):
            for window in self._windows(query, where):
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
        try:
            with closing(self._rows(query)) as rows:
                for columns, row in rows:
                    window = window_of(columns, row, self._url)
                    if holds(where, window):
                        yield window
        except QueryRefusedError as error:
            if not means_nothing_there(str(error)):
                raise

    def _rows(self, query: str) -> Generator[tuple[Sequence[str], list[object]], None, None]:
        self._check_open()
        options = {"db": self._bucket, "epoch": "ns", "chunked": "true", "chunk_size": str(ROWS_PER_ANSWER_CHUNK)}
        try:
            response = self._pool.request(
                "POST",
                f"{self._url}/query?{urlencode(options)}",
                body=urlencode({"q": query}),
                headers={**self._headers, "Content-Type": "application/x-www-form-urlencoded"},
                preload_content=False,
            )
            try:
                if response.status != 200:
                    self._refuse(response.status, response.read(_READ_BYTES).decode("utf-8", "replace"))
                yield from read_answer(_lines(response))
                response.release_conn()
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unavailable(f"cannot be reached ({error})") from error
        except QueryRefusedError as error:
            raise QueryRefusedError(f"InfluxDB at {self._url} refused a query: {error}") from None

    def _write_batch(self, body: bytes) -> None:
        self._check_open()
        try:
            self._writes.write(bucket=self._bucket, org=self._org or "-", record=body, write_precision="ns")
        except ApiException as error:
            told = _message(str(error.body or error.reason or error))
            if error.status in (400, 422) and "beyond retention policy" in told:
                # such windows would have expired already; the server has stored the others of the batch
                _LOG.warning("InfluxDB at %s left out windows older than its retention: %s", self._url, told)
                return
            self._refuse(int(error.status or 0), told)
        except (urllib3.exceptions.HTTPError, InfluxDBError, OSError) as error:
            raise self._unavailable(f"cannot be reached ({error})") from error

    def _refuse(self, status: int, body: str) -> None:
        told = _message(body)
        if status == 404 and means_nothing_there(told):
            raise QueryRefusedError(f"{told}: create it with `fleet db init`")
        if status in (401, 403):
            raise self._unavailable(f"refused the token ({status} {told})")
        raise self._unavailable(f"answered {status} {told}")

    def _unavailable(self, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"InfluxDB at {self._url}, bucket {self._bucket!r}, {what}: check that it runs and that URL, token,"
            " org and bucket in the settings are right"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"telemetry store {self._url} is closed: open it again")

    def _server_version(self) -> str:
        self._check_open()
        try:
            response = self._pool.request("GET", f"{self._url}/ping", headers=self._headers)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unavailable(f"cannot be reached ({error})") from error
        if response.status >= 400:
            self._refuse(response.status, response.data.decode("utf-8", "replace"))
        return str(response.headers.get("X-Influxdb-Version", "")).removeprefix("v")

    def _set_up_bucket(self, retention_s: int) -> None:
        rule = BucketRetentionRules(type="expire", every_seconds=retention_s)
        try:
            buckets = self._client.buckets_api()
            try:
                bucket = buckets.find_bucket_by_name(self._bucket)
            except ApiException as error:
                if error.status != 404 or "not found" not in _message(str(error.body)).lower():
                    raise
                bucket = None  # some releases answer 404 for a name that is not there
            if bucket is None:
                buckets.create_bucket(bucket_name=self._bucket, retention_rules=rule, org=self._org)
            else:
                bucket.retention_rules = [rule]
                buckets.update_bucket(bucket)
        except ApiException as error:
            if error.status in (404, 405, 501):
                _LOG.info("InfluxDB at %s has no buckets API: it makes its database with the first write", self._url)
                return
            self._refuse(int(error.status or 0), str(error.body or error.reason))
        except (urllib3.exceptions.HTTPError, InfluxDBError, OSError) as error:
            raise self._unavailable(f"cannot be reached ({error})") from error


def _batches(fleet: str, windows: Sequence[Window]) -> Iterator[bytes]:
    lines: list[bytes] = []
    size_bytes = 0
    for start in range(0, len(windows), _WINDOWS_PER_FORMATTING):
        for text in lines_of(fleet, windows[start : start + _WINDOWS_PER_FORMATTING]):
            line = text.encode()
            if lines and (len(lines) == MAX_LINES_PER_WRITE or size_bytes + len(line) > MAX_BYTES_PER_WRITE):
                yield b"\n".join(lines)
                lines, size_bytes = [], 0
            lines.append(line)
            size_bytes += len(line) + 1
    if lines:
        yield b"\n".join(lines)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    parts: list[bytes] = []
    size_bytes = 0
    for part in response.stream(_READ_BYTES):
        first, *others = part.split(b"\n")
        parts.append(first)
        size_bytes += len(first)
        if size_bytes > MAX_ANSWER_LINE_BYTES:
            raise StoreUnavailableError(
                f"InfluxDB's answer has a line above {MAX_ANSWER_LINE_BYTES} bytes: narrow the slice"
            )
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts, size_bytes = [others[-1]], len(others[-1])
    yield b"".join(parts)


def _order(window: Window) -> tuple[int, str, str, int]:
    return window.end_ns, window.device, window.boot_id, window.sequence


def _slot(window: Window) -> int:
    return point_time_ns(window) // SLOT_NS


def _message(body: str) -> str:
    """What a server's error body says, in one line."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        body = str(answer.get("error") or answer.get("message") or body)
    return " ".join(body.split())[:_MAX_ERROR_CHARS]
