"""One InfluxDB server: its databases (2.x: buckets) made, written and asked. 1.8+, 2.x and 3.x.

Invariants: a write returns after the server said that every line is durable; an answer that is torn, or holds an error,
is raised, never read as a shorter one; an answer's line is bounded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Sequence
from urllib.parse import urlencode

import urllib3
from influxdb_client import BucketRetentionRules, InfluxDBClient
from influxdb_client.client.exceptions import InfluxDBError
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException

from fleet_server.errors import StoreUnavailableError
from fleet_server.telemetry_store.influxql import (
    QueryRefusedError,
    create_database,
    means_nothing_there,
    read_answer,
)

ROWS_PER_ANSWER_CHUNK = 1_000
MAX_ANSWER_LINE_BYTES = 256 * 1024 * 1024

_READ_BYTES = 256 * 1024
_MAX_ERROR_CHARS = 500
_LOG = logging.getLogger(__name__)


class InfluxServer:
    """The server at `url`. Opens no connection before the first call."""

    def __init__(self, *, url: str, token: str, org: str, timeout_s: float, ca_file: str | None) -> None:
        self.url = url
        self._org = org
        self._closed = False
        self._headers = {"Authorization": f"Token {token}"} if token else {}
        self._pool = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s), maxsize=8, ca_certs=ca_file
        )
        self._client = InfluxDBClient(
            url=url, token=token or None, org=org or "-", timeout=int(timeout_s * 1_000), enable_gzip=True,
            ssl_ca_cert=ca_file,
        )  # fmt: skip  # as one call reads
        self._writes = self._client.write_api(write_options=SYNCHRONOUS)

    def set_up(self, database: str, retention_s: int) -> None:
        """Create a database or bucket and its retention."""
        if self._version(database).startswith("1."):
            for statement in create_database(database, retention_s):
                for _ in self.rows(database, statement):
                    pass
        else:
            self._set_up_bucket(database, retention_s)

    def close(self) -> None:
        """Close the connections; later calls raise StoreUnavailableError. Idempotent."""
        if not self._closed:
            self._closed = True
            self._client.close()
            self._pool.clear()

    def rows(self, database: str, query: str) -> Generator[tuple[Sequence[str], list[object]], None, None]:
        """Columns and values of every row that a query in InfluxQL answers."""
        self._check_open()
        options = {"db": database, "epoch": "ns", "chunked": "true", "chunk_size": str(ROWS_PER_ANSWER_CHUNK)}
        try:
            response = self._pool.request(
                "POST",
                f"{self.url}/query?{urlencode(options)}",
                body=urlencode({"q": query}),
                headers={**self._headers, "Content-Type": "application/x-www-form-urlencoded"},
                preload_content=False,
            )
            try:
                if response.status != 200:
                    self._refuse(database, response.status, response.read(_READ_BYTES).decode("utf-8", "replace"))
                yield from read_answer(_lines(response))
                response.release_conn()
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unavailable(database, f"cannot be reached ({error})") from error
        except QueryRefusedError as error:
            raise QueryRefusedError(f"InfluxDB at {self.url} refused a query: {error}") from None

    def write(self, database: str, body: bytes) -> None:
        """Write lines; returns when they are durable."""
        self._check_open()
        try:
            self._writes.write(bucket=database, org=self._org or "-", record=body, write_precision="ns")
        except ApiException as error:
            told = _message(str(error.body or error.reason or error))
            if error.status in (400, 422) and "beyond retention policy" in told:
                # what they hold would have expired already; the server has stored the others of the batch
                _LOG.warning("InfluxDB at %s left out points older than its retention: %s", self.url, told)
                return
            self._refuse(database, int(error.status or 0), told)
        except (urllib3.exceptions.HTTPError, InfluxDBError, OSError) as error:
            raise self._unavailable(database, f"cannot be reached ({error})") from error

    def _refuse(self, database: str, status: int, body: str) -> None:
        told = _message(body)
        if status == 404 and means_nothing_there(told):
            raise QueryRefusedError(f"{told}: create it with `fleet db init`")
        if status in (401, 403):
            raise self._unavailable(database, f"refused the token ({status} {told})")
        raise self._unavailable(database, f"answered {status} {told}")

    def _unavailable(self, database: str, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"InfluxDB at {self.url}, bucket {database!r}, {what}: check that it runs and that URL, token,"
            " org and bucket in the settings are right"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailableError(f"telemetry store {self.url} is closed: open it again")

    def _version(self, database: str) -> str:
        self._check_open()
        try:
            response = self._pool.request("GET", f"{self.url}/ping", headers=self._headers)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unavailable(database, f"cannot be reached ({error})") from error
        if response.status >= 400:
            self._refuse(database, response.status, response.data.decode("utf-8", "replace"))
        return str(response.headers.get("X-Influxdb-Version", "")).removeprefix("v")

    def _set_up_bucket(self, database: str, retention_s: int) -> None:
        rule = BucketRetentionRules(type="expire", every_seconds=retention_s)
        try:
            buckets = self._client.buckets_api()
            try:
                bucket = buckets.find_bucket_by_name(database)
            except ApiException as error:
                if error.status != 404 or "not found" not in _message(str(error.body)).lower():
                    raise
                bucket = None  # some releases answer 404 for a name that is not there
            if bucket is None:
                buckets.create_bucket(bucket_name=database, retention_rules=rule, org=self._org)
            else:
                bucket.retention_rules = [rule]
                buckets.update_bucket(bucket)
        except ApiException as error:
            if error.status in (404, 405, 501):
                _LOG.info("InfluxDB at %s has no buckets API: it makes its database with the first write", self.url)
                return
            self._refuse(database, int(error.status or 0), str(error.body or error.reason))
        except (urllib3.exceptions.HTTPError, InfluxDBError, OSError) as error:
            raise self._unavailable(database, f"cannot be reached ({error})") from error


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


def _message(body: str) -> str:
    """What a server's error body says, in one line."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        body = str(answer.get("error") or answer.get("message") or body)
    return " ".join(body.split())[:_MAX_ERROR_CHARS]
