"""The audit log: who did what to what, in a chain of hashes.

Each entry's hash covers its own content and the hash of the entry before, so changing, removing, inserting or
reordering entries breaks the chain from there on; `audit_chain` finds where. What a chain cannot show by itself is
that its newest entries were cut off, or that all of it was written anew: pin its head elsewhere (`fleet audit head`),
or seal it (`fleet audit seal`).

Invariants: entries are only added; an entry is added in the transaction of the change it tells of, so
neither is there without the other; writers take turns, so the chain never forks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select

from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import audit_log
from fleet_server.identity.audit_chain import FIRST_HASH, ChainCheck, ChainEntry, Head, check_chain, hash_of

__all__ = [
    "FIRST_HASH",
    "MAX_SUBJECT_CHARS",
    "AuditEntry",
    "Wanted",
    "append",
    "check",
    "head",
    "list_entries",
    "read_chain",
    "verify",
]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which entries to list; an `action` that ends with `*` stands for all that begin so."""

    actor: str | None = None
    action: str | None = None
    since_ns: int | None = None


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
    last = head(connection)
    entry_id, previous = (last.id + 1, last.hash) if last is not None else (1, FIRST_HASH)
    content = {
        "id": entry_id,
        "at_ns": at_ns,
        "actor": actor,
        "action": action,
        "subject": subject[:MAX_SUBJECT_CHARS],
        "detail": dict(detail or {}),
    }
    connection.execute(insert(audit_log).values(**content, previous_hash=previous, hash=hash_of(previous, content)))
    return entry_id


def head(connection: Connection) -> Head | None:
    """The newest entry's id and hash; None for an empty log."""
    latest = select(audit_log.c.id, audit_log.c.hash).order_by(audit_log.c.id.desc()).limit(1)
    last = connection.execute(latest).one_or_none()
    return None if last is None else Head(id=last.id, hash=last.hash)


def read_chain(engine: Engine) -> Iterator[ChainEntry]:
    """Every entry, oldest first, in pages: no transaction stays open between them."""
    after: int | None = None
    while True:
        page = select(audit_log).order_by(audit_log.c.id).limit(VERIFY_BATCH_ENTRIES)
        if after is not None:
            page = page.where(audit_log.c.id > after)
        with engine.connect() as connection:
            rows = connection.execute(page).all()
        if not rows:
            return
        for row in rows:
            yield ChainEntry(**_content(row), previous_hash=row.previous_hash, hash=row.hash)
        after = rows[-1].id


def check(engine: Engine, *, pinned: Sequence[Head] = ()) -> ChainCheck:
    """Whether the log's chain holds, and reaches every pinned head."""
    return check_chain(read_chain(engine), pinned=pinned)


def verify(engine: Engine) -> int | None:
    """The id of the first entry at which the chain is broken; None when it holds."""
    return check(engine).first_broken_id


def list_entries(
    connection: Connection, *, limit: int, before: int | None = None, wanted: Wanted | None = None
) -> list[AuditEntry]:
    """The newest entries first, those older than the id `before`."""
    wanted = wanted or Wanted()
    page = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
    if before is not None:
        page = page.where(audit_log.c.id < before)
    if wanted.actor is not None:
        page = page.where(audit_log.c.actor == wanted.actor)
    if wanted.since_ns is not None:
        page = page.where(audit_log.c.at_ns >= wanted.since_ns)
    if wanted.action is not None and wanted.action.endswith("*"):
        page = page.where(audit_log.c.action.startswith(wanted.action[:-1], autoescape=True))
    elif wanted.action is not None:
        page = page.where(audit_log.c.action == wanted.action)
    return [AuditEntry(**_content(row), hash=row.hash) for row in connection.execute(page)]


def _content(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("id", "at_ns", "actor", "action", "subject", "detail")}
