"""Writes what devices should run: the next generation of each, merged per model, signed; many devices at a time.

Invariants:
- a generation only grows: each write is a compare-and-set on the generation it read;
- changing one model's assignments keeps those of every other model;
- a version that was ever assigned to a device stays in `assigned_versions`, so that the ingest knows it months later;
- what is stored is the signed envelope itself. Publishing it is the publisher's job: it pushes every row whose
  `generation` is above its `published_generation`;
- every signed word expires after FRESHNESS_S. `freshness` renews it before that: the same generation and content,
  issued later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field
from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fleet_protocol.envelope import DESIRED_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Desired, MaintenanceHours, Probation, encode
from fleet_server.database.tables import assigned_versions, desired
from fleet_server.errors import ConflictError, UnavailableError

MAX_ASSIGNMENTS = 256
"""Assignments of one device, all models together: the protocol's limit."""
MAX_ATTEMPTS = 5
"""Tries against other writers of the same device before the caller is asked to come back."""
FRESHNESS_S = 14 * 86_400
"""How long a signed desired state is good for: devices begin nothing new on an older word."""
_NAMES_A_QUERY = 500


class Terms(Struct, frozen=True, kw_only=True):
    """How devices carry a new desired state out; see `fleet_protocol.messages.Desired`."""

    probation: Probation = field(default_factory=Probation)
    jitter_s: float = 0.0
    deadline_ns: int = 0
    maintenance: MaintenanceHours | None = None
    freshness_s: float = FRESHNESS_S
    root_version: int = 0


def read_assignments(connection: Connection, *, fleet: str, device: str) -> list[Assignment]:
    """What the device should run now, every model; [] when nothing was ever assigned."""
    return read_desired_of(connection, fleet=fleet, devices=[device]).get(device, (0, []))[1]


def read_desired_of(
    connection: Connection, *, fleet: str, devices: Sequence[str], for_update: bool = False
) -> dict[str, tuple[int, list[Assignment]]]:
    """Each device's generation and what it should run now; one that was never assigned anything is left out.

    `for_update` keeps other writers of these devices waiting until the transaction ends, where the database can.
    """
    found: dict[str, tuple[int, list[Assignment]]] = {}
    for names in batched(devices):
        query = select(desired.c.device, desired.c.generation, desired.c.assignments).where(
            desired.c.fleet == fleet, desired.c.device.in_(names)
        )
        if for_update:  # in the order of names, so that two writers of the same devices do not wait for each other
            query = query.order_by(desired.c.device).with_for_update()
        for device, generation, current in connection.execute(query):
            found[device] = (generation, msgspec.convert(current, list[Assignment]))
    return found


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
    generations = assign_all(
        connection,
        fleet=fleet,
        assignments={device: assignments},
        signer=signer,
        now_ns=now_ns,
        terms=Terms(probation=probation),
        retry={device: retry},
    )
    return generations[device]


def assign_all(
    connection: Connection,
    *,
    fleet: str,
    assignments: Mapping[str, Mapping[str, Sequence[Assignment]]],
    signer: PrivateKey,
    now_ns: int,
    terms: Terms,
    retry: Mapping[str, Sequence[str]],
) -> dict[str, int]:
    """`assign` for many devices in the caller's transaction: device -> model -> its assignments, and `retry` by device.

    Returns each device's new generation. All or nothing: raises ConflictError for too many assignments of one device,
    UnavailableError when other writers of a device won every time.
    """
    generations: dict[str, int] = {}
    left = list(assignments)
    for _ in range(MAX_ATTEMPTS):
        read = read_desired_of(connection, fleet=fleet, devices=left, for_update=True)
        written = []
        for device in left:
            generation, current = read.get(device, (0, []))
            merged = _merged(device, current, assignments[device])
            message = Desired(
                fleet=fleet,
                device=device,
                generation=generation + 1,
                issued_at_ns=now_ns,
                assignments=merged,
                probation=terms.probation,
                retry=sorted(set(retry.get(device, ()))),
                jitter_s=terms.jitter_s,
                deadline_ns=terms.deadline_ns,
                maintenance=terms.maintenance,
                expires_ns=now_ns + int(terms.freshness_s * 1e9),
                root_version=terms.root_version,
            )
            written.append(
                {
                    "of_fleet": fleet,
                    "of_device": device,
                    "read_generation": generation,
                    "new_generation": generation + 1,
                    "new_assignments": msgspec.to_builtins(merged),
                    "new_envelope": sign_envelope(DESIRED_TYPE, encode(message), [signer]),
                    "now_ns": now_ns,
                }
            )
        lost = _write(connection, fleet, written)
        generations.update((row["of_device"], row["new_generation"]) for row in written)
        left = [device for device in left if device in lost]
        if not left:
            _remember(connection, fleet, assignments, now_ns)
            return generations
    raise UnavailableError(f"device {left[0]}: {MAX_ATTEMPTS} other writers changed what it should run: try again")


def _merged(
    device: str, current: Sequence[Assignment], changed: Mapping[str, Sequence[Assignment]]
) -> list[Assignment]:
    merged = [assignment for assignment in current if assignment.model not in changed]
    merged += [assignment for of_model in changed.values() for assignment in of_model]
    if len(merged) > MAX_ASSIGNMENTS:
        raise ConflictError(f"device {device} would have {len(merged)} assignments, {MAX_ASSIGNMENTS} are allowed")
    return merged


def _remember(
    connection: Connection,
    fleet: str,
    assignments: Mapping[str, Mapping[str, Sequence[Assignment]]],
    now_ns: int,
) -> None:
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    named = sorted(
        {
            (device, each.model, each.version)
            for device, models in assignments.items()
            for of_model in models.values()
            for each in of_model
        }
    )
    rows = [
        {"fleet": fleet, "device": device, "model": model, "version": version, "first_ns": now_ns}
        for device, model, version in named
    ]
    if rows:
        connection.execute(insert(assigned_versions).on_conflict_do_nothing(), rows)


def batched(names: Sequence[str]) -> Iterable[Sequence[str]]:
    """The names in parts that one query can take."""
    return (names[start : start + _NAMES_A_QUERY] for start in range(0, len(names), _NAMES_A_QUERY))


_UPDATE = (
    update(desired)
    .where(
        desired.c.fleet == bindparam("of_fleet"),
        desired.c.device == bindparam("of_device"),
        desired.c.generation == bindparam("read_generation"),
    )
    .values(
        generation=bindparam("new_generation"),
        assignments=bindparam("new_assignments"),
        envelope=bindparam("new_envelope"),
        issued_at_ns=bindparam("now_ns"),
    )
)


def _write(connection: Connection, fleet: str, rows: Sequence[dict[str, Any]]) -> set[str]:
    """Write each row whose generation is still the one that was read; the devices for which it is not."""
    known = [row for row in rows if row["read_generation"]]
    new = [row for row in rows if not row["read_generation"]]
    is_whole = True
    if known:
        is_whole = connection.execute(_UPDATE, known).rowcount == len(known)
    if new:
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        first = insert(desired).values(
            fleet=bindparam("of_fleet"),
            device=bindparam("of_device"),
            generation=bindparam("new_generation"),
            assignments=bindparam("new_assignments"),
            envelope=bindparam("new_envelope"),
            issued_at_ns=bindparam("now_ns"),
            published_generation=0,
        )
        is_whole = connection.execute(first.on_conflict_do_nothing(), new).rowcount == len(new) and is_whole
    if is_whole:
        return set()
    ours = {row["of_device"]: row["new_envelope"] for row in rows}
    lost = set(ours)
    for names in batched(list(ours)):
        query = select(desired.c.device, desired.c.envelope).where(
            desired.c.fleet == fleet, desired.c.device.in_(names)
        )
        lost -= {device for device, envelope in connection.execute(query) if envelope == ours[device]}
    return lost
