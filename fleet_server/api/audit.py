"""`/api/v1/audit`: read, check and export the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from sqlalchemy import Engine

from fleet_server.api.access import Viewer
from fleet_server.api.paging import PageOf
from fleet_server.api.services import ServicesOf
from fleet_server.errors import InvalidRequestError
from fleet_server.identity import audit
from fleet_server.identity.audit_chain import Head

MAX_PINNED = 32
EXPORT_CHUNK_BYTES = 64 * 1024

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])


@router.get("")
def list_entries(
    services: ServicesOf,
    _: Viewer,
    page: PageOf,
    actor: Annotated[str | None, Query(max_length=128, description="as listed, key:NAME or oidc:SUBJECT")] = None,
    action: Annotated[str | None, Query(max_length=64, description="as listed, or its beginning and a *")] = None,
    since_ns: Annotated[int | None, Query(ge=0, lt=2**63, description="UTC nanoseconds")] = None,
) -> dict[str, Any]:
    """Entries, the newest first."""
    if page.after and not (page.after.isascii() and page.after.isdigit() and len(page.after) < 19):
        raise InvalidRequestError("the cursor is not one of this list: start again without it")
    wanted = audit.Wanted(actor=actor, action=action, since_ns=since_ns)
    with services.engine.connect() as connection:
        before = int(page.after) if page.after else None
        found = audit.list_entries(connection, limit=page.limit + 1, before=before, wanted=wanted)
    return page.answer(found, lambda entry: str(entry.id))


@router.get("/head")
def chain_head(services: ServicesOf, _: Viewer) -> dict[str, Any]:
    """The newest entry, to pin elsewhere."""
    with services.engine.connect() as connection:
        head = audit.head(connection)
    return {"fleet": services.fleet, "id": head.id if head else 0, "head": str(head) if head else None}


@router.get("/verify")
def verify_chain(
    services: ServicesOf,
    _: Viewer,
    head: Annotated[list[str] | None, Query(max_length=MAX_PINNED, description="pinned heads, HASH:ID")] = None,
) -> dict[str, Any]:
    """Whether the chain holds and has the pinned heads, and the first entry at which it does not."""
    found = audit.check(services.engine, pinned=[Head.parse(text) for text in head or ()])
    return {
        "fleet": services.fleet,
        "holds": found.holds,
        "first_broken_id": found.first_broken_id,
        "reason": found.reason,
        "entries": found.entries,
        "head": str(found.head) if found.head else None,
    }


@router.get("/export", response_class=StreamingResponse)
def export(services: ServicesOf, _: Viewer) -> StreamingResponse:
    """Every entry with its hashes, oldest first, one JSON object a line: `fleet audit verify --file` checks it."""
    return StreamingResponse(_lines(services.engine), media_type="application/x-ndjson")


def _lines(engine: Engine) -> Iterator[bytes]:
    chunk = bytearray()
    for entry in audit.read_chain(engine):
        chunk += msgspec.json.encode(entry) + b"\n"
        if len(chunk) >= EXPORT_CHUNK_BYTES:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
