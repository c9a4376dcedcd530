"""`/api/v1/events`: server-sent events of what happens on devices and to rollouts.

The stream reads the tables, so it tells the same whichever server process wrote them, and a client that comes
back with `Last-Event-ID` continues where it stopped. Event kinds: `device` and `rollout`; a comment line
keeps a quiet connection alive. Every stream ends when the server stops.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection, and_, func, or_, select

from fleet_server.api.access import Viewer
from fleet_server.api.services import Services, ServicesOf
from fleet_server.database.tables import device_events, rollouts
from fleet_server.errors import UnavailableError

MAX_STREAMS = 64
MAX_EVENTS_A_POLL = 500
POLL_S = 0.5
KEEP_ALIVE_S = 15.0

_ID = re.compile(r"(\d{1,18})-(\d{1,19})-([0-9A-Za-z_]{0,32})\Z")

router = APIRouter(prefix="/api/v1", tags=["events"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far a stream has told: the last device event, the last change of a rollout."""

    device_event_id: int
    rollout_updated_ns: int
    rollout_id: str

    def __str__(self) -> str:
        return f"{self.device_event_id}-{self.rollout_updated_ns}-{self.rollout_id}"


Told = tuple[str, Cursor, dict[str, Any]]
"""An event's kind, the cursor after it, and its content."""


def parse_cursor(last_event_id: str | None) -> Cursor | None:
    """The cursor in a Last-Event-ID; None for anything else, which starts with what happens next."""
    match = _ID.match(last_event_id or "")
    if match is None:
        return None
    return Cursor(device_event_id=int(match[1]), rollout_updated_ns=int(match[2]), rollout_id=match[3])


def current_cursor(connection: Connection, fleet: str) -> Cursor:
    """Everything up to now is told."""
    last_event = connection.execute(select(func.max(device_events.c.id))).scalar() or 0
    newest = select(rollouts.c.updated_ns, rollouts.c.id).where(rollouts.c.fleet == fleet)
    row = connection.execute(newest.order_by(rollouts.c.updated_ns.desc(), rollouts.c.id.desc()).limit(1)).one_or_none()
    return Cursor(
        device_event_id=last_event,
        rollout_updated_ns=row.updated_ns if row else 0,
        rollout_id=row.id if row else "",
    )


def events_after(connection: Connection, fleet: str, told: Cursor) -> tuple[list[Told], Cursor]:
    """What happened since, and the cursor after all of it."""
    found: list[Told] = []
    query = select(device_events).where((device_events.c.fleet == fleet) & (device_events.c.id > told.device_event_id))
    for row in connection.execute(query.order_by(device_events.c.id).limit(MAX_EVENTS_A_POLL)):
        told = Cursor(device_event_id=row.id, rollout_updated_ns=told.rollout_updated_ns, rollout_id=told.rollout_id)
        names = ("device", "at_ns", "kind", "model", "bundle", "phase", "detail")
        found.append(("device", told, {name: getattr(row, name) for name in names}))
    columns = rollouts.c
    same_time = and_(columns.updated_ns == told.rollout_updated_ns, columns.id > told.rollout_id)
    later = or_(columns.updated_ns > told.rollout_updated_ns, same_time)
    changed = select(columns.id, columns.model, columns.version, columns.state, columns.reason, columns.updated_ns)
    changed = changed.where((columns.fleet == fleet) & later).order_by(columns.updated_ns, columns.id)
    for row in connection.execute(changed.limit(MAX_EVENTS_A_POLL)):
        told = Cursor(device_event_id=told.device_event_id, rollout_updated_ns=row.updated_ns, rollout_id=row.id)
        found.append(("rollout", told, dict(row._mapping)))
    return found, told


@router.get("/events", response_class=StreamingResponse)
async def stream_events(request: Request, services: ServicesOf, _: Viewer) -> StreamingResponse:
    """Follow the fleet."""
    state = request.app.state
    if state.event_streams >= MAX_STREAMS:
        raise UnavailableError(f"{MAX_STREAMS} event streams are open, which is the limit: close one")
    told = parse_cursor(request.headers.get("last-event-id"))

    async def stream() -> AsyncIterator[bytes]:
        state.event_streams += 1
        try:
            async for part in _follow(services, told):
                yield part
        finally:
            state.event_streams -= 1

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _follow(services: Services, told: Cursor | None) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    cursor = told if told is not None else await run_in_threadpool(_start, services)
    yield b"retry: 2000\n: open\n\n"
    spoken_s = loop.time()
    while not services.stopping.is_set():
        found, cursor = await run_in_threadpool(_poll, services, cursor)
        for kind, after, content in found:
            yield f"id: {after}\nevent: {kind}\ndata: ".encode() + msgspec.json.encode(content) + b"\n\n"
            spoken_s = loop.time()
        if loop.time() - spoken_s > KEEP_ALIVE_S:
            yield b": still here\n\n"
            spoken_s = loop.time()
        if len(found) < MAX_EVENTS_A_POLL:
            await asyncio.sleep(POLL_S)


def _start(services: Services) -> Cursor:
    with services.engine.connect() as connection:
        return current_cursor(connection, services.fleet)


def _poll(services: Services, told: Cursor) -> tuple[list[Told], Cursor]:
    with services.engine.connect() as connection:
        return events_after(connection, services.fleet, told)
