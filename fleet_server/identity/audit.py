"""The audit log: who did what to what, in a chain of hashes.

Each entry's hash covers its own content and the hash of the entry before, so changing, removing or
reordering entries breaks the chain from there on. What a chain cannot show is that its newest entries
were cut off: keep the last hash elsewhere (`fleet audit list --json`) where that matters.

Invariants: entries are only added; an entry is added in the transaction of the change it tells of, so
neither is there without the other; writers take turns, so the chain never forks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Row, insert, select

from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import audit_log

FIRST_HASH = "0" * 64
MAX_SUBJECT_CHARS = 256
VERIFY_BATCH_ENTRIES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One entry, as it is listed."""

    id: int
    at_ns: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    hash: str


def append(
    connection: Connection,
    *,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
    at_ns: int,
) -> int:
    """Add an entry in the caller's transaction; returns its id. `detail` is plain JSON without secrets."""
    lock_for_write(connection, audit_log.name)
    latest = select(audit_log.c.id, audit_log.c.hash).order_by(audit_log.c.id.desc()).limit(1)
    last = connection.execute(latest).one_or_none()
    entry_id, previous = (last.id + 1, last.hash) if last is not None else (1, FIRST_HASH)
    content = {
        "id": entry_id,
        "at_ns": at_ns,
        "actor": actor,
        "action": action,
        "subject": subject[:MAX_SUBJECT_CHARS],
        "detail": dict(detail or {}),
    }
    connection.execute(insert(audit_log).values(**content, previous_hash=previous, hash=_hash(previous, content)))
    return entry_id


def verify(engine: Engine) -> int | None:
    """The id of the first entry at which the chain is broken; None when it holds."""
    previous, expected_id = FIRST_HASH, 1
    while True:
        page = select(audit_log).where(audit_log.c.id >= expected_id).order_by(audit_log.c.id)
        with engine.connect() as connection:
            rows = connection.execute(page.limit(VERIFY_BATCH_ENTRIES)).all()
        if not rows:
            return None
        for row in rows:
            intact = (
                row.id == expected_id and row.previous_hash == previous and row.hash == _hash(previous, _content(row))
            )
            if not intact:
                return int(row.id)
            previous, expected_id = row.hash, row.id + 1


def list_entries(connection: Connection, *, limit: int, before: int | None = None) -> list[AuditEntry]:
    """The newest entries first, those older than the id `before`."""
    page = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
    if before is not None:
        page = page.where(audit_log.c.id < before)
    return [AuditEntry(**_content(row), hash=row.hash) for row in connection.execute(page)]


def _content(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("id", "at_ns", "actor", "action", "subject", "detail")}


def _hash(previous: str, content: Mapping[str, Any]) -> str:
    return hashlib.sha256(previous.encode() + msgspec.json.encode(content, order="deterministic")).hexdigest()
