"""The event stream, over TCP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import msgspec
from sqlalchemy import insert, update

from fleet_server.api.events import parse_cursor
from fleet_server.database.tables import device_events, models, rollouts, versions
from tests.server.api.running import Server


class _Stream:
    """The events of an open response, as (id, kind, content)."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> tuple[str, str, dict[str, object]]:
        found: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                found[name] = value
            if not line and "data" in found:
                return found["id"], found["event"], msgspec.json.decode(found["data"], type=dict[str, object])
        raise AssertionError("the stream ended")

    def until_open(self) -> None:
        assert any(line == ": open" for line in self._lines)


@contextmanager
def _follow(server: Server, last_event_id: str | None = None) -> Iterator[_Stream]:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with server.client("viewer") as client, client.stream("GET", "/api/v1/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = _Stream(response)
        stream.until_open()
        yield stream


def _happen(server: Server, sequence: int, *, fleet: str = "demo", detail: str = "") -> None:
    row = {"fleet": fleet, "device": "pi-1", "boot_id": "b", "sequence": sequence, "at_ns": 1, "kind": "phase_changed"}
    with server.engine.begin() as connection:
        connection.execute(insert(device_events).values(**row, phase="HEALTHY", detail=detail))


def test_what_happens_on_devices_is_told_as_it_happens_and_not_what_was_before(server: Server) -> None:
    _happen(server, 1)
    with _follow(server) as stream:
        _happen(server, 2, fleet="other")
        _happen(server, 3, detail="line\nbreak\n\ndata: forged")
        _, kind, content = stream.next()
    assert kind == "device"
    assert (content["device"], content["phase"]) == ("pi-1", "HEALTHY")
    assert content["detail"] == "line\nbreak\n\ndata: forged"


def test_a_client_that_comes_back_misses_nothing(server: Server) -> None:
    with _follow(server) as stream:
        _happen(server, 1)
        last_id, _, _ = stream.next()
    for sequence in (2, 3, 4):
        _happen(server, sequence, detail=str(sequence))
    with _follow(server, last_id) as stream:
        assert [stream.next()[2]["detail"] for _ in range(3)] == ["2", "3", "4"]


def test_a_rollouts_changes_are_told(server: Server) -> None:
    with server.engine.begin() as connection:
        connection.execute(insert(models).values(model="m", created_ns=1))
        version = {"model": "m", "version": "1.0.0", "bundle": "0" * 64, "manifest": {}, "published_by": "x"}
        connection.execute(insert(versions).values(**version, published_ns=1))
    with _follow(server) as stream:
        with server.engine.begin() as connection:
            row = {"id": "r1", "fleet": "demo", "model": "m", "version": "1.0.0", "bundle": "0" * 64, "policy": {}}
            row |= {"state": "ACTIVE", "progress": {}, "created_by": "x", "created_ns": 5, "updated_ns": 5}
            connection.execute(insert(rollouts).values(row))
        _, kind, content = stream.next()
        assert (kind, content["id"], content["state"]) == ("rollout", "r1", "ACTIVE")
        with server.engine.begin() as connection:
            connection.execute(update(rollouts).values(state="PAUSED", reason="no evidence", updated_ns=6))
        _, _, content = stream.next()
        assert (content["state"], content["reason"]) == ("PAUSED", "no evidence")


def test_streams_end_by_themselves_when_the_server_stops(server: Server) -> None:
    with server.client("viewer") as client, client.stream("GET", "/api/v1/events") as response:
        server.services.stopping.set()
        began = time.monotonic()
        for _ in response.iter_raw():
            pass
        assert time.monotonic() - began < 10


def test_a_last_event_id_of_nobody_starts_with_what_happens_next() -> None:
    for text in (None, "", "x", "1-2", "-1-2-", "9" * 40 + "-1-a", "1-1-" + "a" * 40):
        assert parse_cursor(text) is None
    cursor = parse_cursor("7-99-abc")
    assert cursor is not None
    assert str(cursor) == "7-99-abc"
