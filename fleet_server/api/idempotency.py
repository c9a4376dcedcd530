"""Remembers what a request with an Idempotency-Key did, so that sending it again does nothing twice.

Invariants, per (actor, key):
1. the first request takes the key before it does anything; while it works, the same key is a conflict;
2. once done, the same request gets the same answer, and another request under the key is a conflict;
3. a request that failed gives the key back: nothing was done, it may be sent again;
4. a key left taken by a crash can be taken over after TAKE_OVER_AFTER_S; keys are forgotten after KEPT_FOR_S.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from fleet_server.database.tables import idempotency_keys as table
from fleet_server.errors import ConflictError

TAKE_OVER_AFTER_S = 300
KEPT_FOR_S = 24 * 3600
MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was answered the first time."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A key taken for one request."""

    actor: str
    key: str
    request_sha256: str
    claimed_ns: int


def claim(engine: Engine, wanted: Claim) -> Answer | None:
    """Take the key: None when the request is to be carried out now, else the answer it had. Raises ConflictError."""
    mine = (table.c.actor == wanted.actor) & (table.c.key == wanted.key)
    try:
        with engine.begin() as connection:
            connection.execute(delete(table).where(table.c.created_ns < wanted.claimed_ns - KEPT_FOR_S * 10**9))
            row = {"actor": wanted.actor, "key": wanted.key, "request_sha256": wanted.request_sha256}
            connection.execute(insert(table).values(created_ns=wanted.claimed_ns, **row))
            return None
    except IntegrityError:
        pass  # taken before: the row says by what
    with engine.begin() as connection:
        found = connection.execute(select(table).where(mine)).one_or_none()
        if found is not None and found.request_sha256 != wanted.request_sha256:
            raise ConflictError("this Idempotency-Key was used for another request: use a new one")
        if found is not None and found.status is not None:
            return Answer(status=found.status, body=found.response)
        abandoned_ns = wanted.claimed_ns - TAKE_OVER_AFTER_S * 10**9
        if found is not None and found.created_ns < abandoned_ns:
            still = mine & (table.c.created_ns == found.created_ns) & table.c.status.is_(None)
            if connection.execute(update(table).where(still).values(created_ns=wanted.claimed_ns)).rowcount == 1:
                return None
    raise ConflictError("the first request with this Idempotency-Key is still being carried out: ask again shortly")


def finish(engine: Engine, done: Claim, answer: Answer) -> None:
    """Keep the answer for requests sent again."""
    with engine.begin() as connection:
        connection.execute(update(table).where(_held(done)).values(status=answer.status, response=answer.body))


def give_back(engine: Engine, failed: Claim) -> None:
    """Let the key be used again, because its request did nothing."""
    with engine.begin() as connection:
        connection.execute(delete(table).where(_held(failed)))


def _held(held: Claim) -> ColumnElement[bool]:
    mine = (table.c.actor == held.actor) & (table.c.key == held.key)
    return mine & (table.c.created_ns == held.claimed_ns) & table.c.status.is_(None)
