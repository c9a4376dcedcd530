"""Writes what one device should run: the next generation, merged per model, signed.

Invariants:
- a generation only grows: each write is a compare-and-set on the generation it read;
- changing one model's assignments keeps those of every other model;
- a version that was ever assigned to a device stays in `assigned_versions`, so that the ingest knows it months later;
- what is stored is the signed envelope itself. Publishing it is the publisher's job: it pushes every row whose
  `generation` is above its `published_generation`, which is left alone here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fleet_protocol.envelope import DESIRED_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Desired, Probation, encode
from fleet_server.database.tables import assigned_versions, desired
from fleet_server.errors import ConflictError, UnavailableError

MAX_ASSIGNMENTS = 256
"""Assignments of one device, all models together: the protocol's limit."""
MAX_ATTEMPTS = 5
"""Tries against other writers of the same device before the caller is asked to come back."""


def read_assignments(connection: Connection, *, fleet: str, device: str) -> list[Assignment]:
    """What the device should run now, every model; [] when nothing was ever assigned."""
    row = _row(connection, fleet, device)
    return msgspec.convert(row.assignments, list[Assignment]) if row is not None else []


def assign(
    connection: Connection,
    *,
    fleet: str,
    device: str,
    assignments: Mapping[str, Sequence[Assignment]],
    signer: PrivateKey,
    now_ns: int,
    probation: Probation,
    retry: Sequence[str] = (),
) -> int:
    """Replace the assignments of the models in `assignments` (model -> its assignments, [] for none).

    `retry` lists bundle digests the device may take out of quarantine. Part of the caller's transaction.
    Returns the new generation. Raises ConflictError for too many assignments, UnavailableError when other
    writers of this device won every time.
    """
    for _ in range(MAX_ATTEMPTS):
        row = _row(connection, fleet, device)
        current = [] if row is None else msgspec.convert(row.assignments, list[Assignment])
        merged = [assignment for assignment in current if assignment.model not in assignments]
        merged += [assignment for model in assignments.values() for assignment in model]
        if len(merged) > MAX_ASSIGNMENTS:
            raise ConflictError(f"device {device} would have {len(merged)} assignments, {MAX_ASSIGNMENTS} are allowed")
        generation = 1 if row is None else int(row.generation) + 1
        message = Desired(
            fleet=fleet,
            device=device,
            generation=generation,
            issued_at_ns=now_ns,
            assignments=merged,
            probation=probation,
            retry=sorted(set(retry)),
        )
        values = {
            "generation": generation,
            "assignments": msgspec.to_builtins(merged),
            "envelope": sign_envelope(DESIRED_TYPE, encode(message), [signer]),
            "issued_at_ns": now_ns,
        }
        if _write(connection, fleet, device, row, values):
            _remember(connection, fleet, device, assignments, now_ns)
            return generation
    raise UnavailableError(f"device {device}: {MAX_ATTEMPTS} other writers changed what it should run: try again")


def _remember(
    connection: Connection, fleet: str, device: str, assignments: Mapping[str, Sequence[Assignment]], now_ns: int
) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    named = sorted({(each.model, each.version) for of_model in assignments.values() for each in of_model})
    rows = [
        {"fleet": fleet, "device": device, "model": model, "version": version, "first_ns": now_ns}
        for model, version in named
    ]
    if rows:
        connection.execute(insert(assigned_versions).on_conflict_do_nothing(), rows)


def _row(connection: Connection, fleet: str, device: str) -> Any:
    where = (desired.c.fleet == fleet, desired.c.device == device)
    return connection.execute(select(desired.c.generation, desired.c.assignments).where(*where)).one_or_none()


def _write(connection: Connection, fleet: str, device: str, read: Any, values: dict[str, Any]) -> bool:
    if read is None:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        first = insert(desired).values(fleet=fleet, device=device, published_generation=0, **values)
        written = first.on_conflict_do_nothing().returning(desired.c.generation)
        return connection.execute(written).one_or_none() is not None
    compare_and_set = (
        update(desired)
        .where(desired.c.fleet == fleet, desired.c.device == device, desired.c.generation == read.generation)
        .values(**values)
    )
    return connection.execute(compare_and_set).rowcount == 1
