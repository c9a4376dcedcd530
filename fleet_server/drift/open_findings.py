"""The findings that the monitor keeps: open while they are seen, and for a day after.

Invariants:
- one signal of one version has at most one open finding: whoever may look (`watching`) holds the only right to write;
- a finding that is seen again keeps its beginning and its acknowledgement, and takes the latest numbers;
- it closes when it was not seen for CLOSE_AFTER_NS, so that one quiet look neither closes nor opens it anew.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, Engine, Row, insert, select, update

from fleet_server.database.tables import drift_findings
from fleet_server.drift.findings import SignalFinding
from fleet_server.errors import NotFoundError

CLOSE_AFTER_NS = 86_400 * 10**9
"""As long as the span of a look: what was in the last one has left it by then."""
MAX_LISTED = 500


class OpenFinding(Struct, frozen=True, kw_only=True):
    """A finding of the monitor. `opened_ns` and `found_ns` are the first and the latest look that saw it."""

    id: str
    model: str
    version: str
    signal: str
    opened_ns: int
    found_ns: int
    finding: SignalFinding
    closed_ns: int | None = None
    acknowledged_by: str | None = None
    acknowledged_ns: int | None = None


def keep_findings(
    connection: Connection, *, fleet: str, model: str, version: str, found: Sequence[SignalFinding], look_ns: int
) -> list[str]:
    """Open, renew and close the findings of one version after a look; returns the signals that are newly open."""
    rows = drift_findings.c
    is_open = (rows.fleet == fleet) & (rows.model == model) & (rows.version == version) & rows.closed_ns.is_(None)
    open_now = {row.signal: row for row in connection.execute(select(drift_findings).where(is_open))}
    newly = []
    for finding in found:
        document = msgspec.to_builtins(msgspec.structs.replace(finding, distribution=None, timeline=[]))
        row = open_now.get(finding.signal)
        if row is not None:
            changed = {"finding": document, "found_ns": look_ns}
            connection.execute(update(drift_findings).where(rows.id == row.id).values(changed))
            continue
        newly.append(finding.signal)
        connection.execute(
            insert(drift_findings).values(
                id=uuid.uuid4().hex,
                fleet=fleet,
                model=model,
                version=version,
                signal=finding.signal,
                finding=document,
                opened_ns=look_ns,
                found_ns=look_ns,
            )
        )
    long_gone = is_open & (rows.found_ns <= look_ns - CLOSE_AFTER_NS)
    connection.execute(update(drift_findings).where(long_gone).values(closed_ns=look_ns))
    return newly


def list_findings(engine: Engine, *, fleet: str, model: str = "", closed: bool = False) -> list[OpenFinding]:
    """Findings, the latest opened first, at most MAX_LISTED; of one model where it is named."""
    rows = drift_findings.c
    query = select(drift_findings).where(rows.fleet == fleet)
    if model:
        query = query.where(rows.model == model)
    if not closed:
        query = query.where(rows.closed_ns.is_(None))
    with engine.connect() as connection:
        found = connection.execute(query.order_by(rows.opened_ns.desc(), rows.id).limit(MAX_LISTED)).all()
    return [_finding(row) for row in found]


def acknowledge(connection: Connection, finding_id: str, *, fleet: str, actor: str, now_ns: int) -> OpenFinding:
    """Take note of a finding; the first who did stays. Raises NotFoundError."""
    rows = drift_findings.c
    key = (rows.id == finding_id) & (rows.fleet == fleet)
    first = key & rows.acknowledged_ns.is_(None)
    connection.execute(update(drift_findings).where(first).values(acknowledged_by=actor, acknowledged_ns=now_ns))
    row = connection.execute(select(drift_findings).where(key)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no drift finding {finding_id!r}")
    return _finding(row)


def _finding(row: Row[Any]) -> OpenFinding:
    return OpenFinding(
        id=row.id,
        model=row.model,
        version=row.version,
        signal=row.signal,
        opened_ns=row.opened_ns,
        found_ns=row.found_ns,
        finding=msgspec.convert(row.finding, SignalFinding),
        closed_ns=row.closed_ns,
        acknowledged_by=row.acknowledged_by,
        acknowledged_ns=row.acknowledged_ns,
    )
