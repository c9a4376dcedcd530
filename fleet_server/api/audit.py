"""`/api/v1/audit`: read and check the audit log."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from fleet_server.api.access import Viewer
from fleet_server.api.paging import PageOf
from fleet_server.api.services import ServicesOf
from fleet_server.errors import InvalidRequestError
from fleet_server.identity import audit

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])


@router.get("")
def list_entries(services: ServicesOf, _: Viewer, page: PageOf) -> dict[str, Any]:
    """Entries, the newest first."""
    if page.after and not (page.after.isascii() and page.after.isdigit() and len(page.after) < 19):
        raise InvalidRequestError("the cursor is not one of this list: start again without it")
    with services.engine.connect() as connection:
        before = int(page.after) if page.after else None
        found = audit.list_entries(connection, limit=page.limit + 1, before=before)
    return page.answer(found, lambda entry: str(entry.id))


@router.get("/verify")
def verify_chain(services: ServicesOf, _: Viewer) -> dict[str, Any]:
    """Whether the chain holds, and the first entry at which it does not."""
    broken = audit.verify(services.engine)
    return {"holds": broken is None, "first_broken_id": broken}
