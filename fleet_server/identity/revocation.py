"""Taking a device's identity away: for good until the operator enrols it again.

Invariants:
- from the transaction on, the device's secret and every certificate it was given are refused;
- what the broker still has to be told (its list of revoked certificates, the open connection) is the work of
  `expulsion`, which reads it from here until it is done;
- decommissioning also removes what the device should run and its last report, which takes it out of every rollout;
  its telemetry stays. Its generation goes on counting, should it ever come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from fleet_server.database.engine import lock_for_write
from fleet_server.database.identity_tables import device_certificates, revoked_devices
from fleet_server.database.tables import desired, devices, rollout_devices, rollouts
from fleet_server.errors import NotFoundError

MAX_REASON_CHARS = 200
_OVER = ("COMPLETED", "ROLLED_BACK", "CANCELED")
_of = revoked_devices.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A device that must not be let in. `cut_ns` is when its connection was last cut, None while that is still due."""

    device: str
    reason: str
    revoked_by: str
    revoked_ns: int
    decommissioned: bool
    cut_ns: int | None


def revoke(
    connection: Connection,
    *,
    fleet: str,
    device: str,
    reason: str,
    revoked_by: str,
    now_ns: int,
    decommission: bool = False,
) -> Revocation:
    """Refuse the device from now on; doing it again keeps the first time and reason. Raises NotFoundError."""
    lock_for_write(connection, devices.name)
    this = (devices.c.fleet == fleet) & (devices.c.device == device)
    changed = connection.execute(update(devices).where(this).values(secret_sha256=None))
    if changed.rowcount == 0:
        raise NotFoundError(f"there is no device {device!r} in the fleet {fleet!r}")
    revoke_certificates(connection, fleet, device, now_ns=now_ns)
    earlier = get_revocation(connection, fleet, device)
    if earlier is None:
        connection.execute(
            insert(revoked_devices).values(
                fleet=fleet,
                device=device,
                reason=reason[:MAX_REASON_CHARS],
                revoked_by=revoked_by[:128],
                revoked_ns=now_ns,
                decommissioned=decommission,
            )
        )
    elif decommission and not earlier.decommissioned:
        row = (_of.fleet == fleet) & (_of.device == device)
        connection.execute(update(revoked_devices).where(row).values(decommissioned=True, cut_ns=None))
    if decommission:
        _take_out(connection, fleet, device, now_ns)
    found = get_revocation(connection, fleet, device)
    assert found is not None  # noqa: S101 - it was just written
    return found


def revoke_certificates(connection: Connection, fleet: str, device: str, *, now_ns: int) -> None:
    """Refuse every certificate the device has, because it is about to get another identity."""
    its = (device_certificates.c.fleet == fleet) & (device_certificates.c.device == device)
    alive = its & device_certificates.c.revoked_ns.is_(None)
    connection.execute(update(device_certificates).where(alive).values(revoked_ns=now_ns))


def lift(connection: Connection, fleet: str, device: str) -> None:
    """Let a device in again, because the operator had it enrolled anew. Its old certificates stay revoked."""
    connection.execute(delete(revoked_devices).where(_of.fleet == fleet, _of.device == device))


def get_revocation(connection: Connection, fleet: str, device: str) -> Revocation | None:
    """The device's revocation, None for a device that is let in."""
    found = read_revocations(connection, fleet, [device])
    return found[0] if found else None


def read_revocations(connection: Connection, fleet: str, names: Sequence[str]) -> list[Revocation]:
    """The revocations among these devices."""
    query = select(revoked_devices).where(_of.fleet == fleet, _of.device.in_(names))
    fields = Revocation.__dataclass_fields__
    return [Revocation(**{name: getattr(row, name) for name in fields}) for row in connection.execute(query)]


def not_revoked() -> ColumnElement[bool]:
    """For queries over `devices`: only those that are let in."""
    same = and_(_of.fleet == devices.c.fleet, _of.device == devices.c.device)
    return ~select(_of.device).where(same).exists()


def revoked_serials(connection: Connection, fleet: str, *, now_ns: int) -> list[tuple[str, int]]:
    """(serial, when it was revoked) of every revoked certificate that has not expired, by serial."""
    of = device_certificates.c
    query = select(of.serial, of.revoked_ns).where(
        of.fleet == fleet, of.revoked_ns.is_not(None), of.expires_ns > now_ns
    )
    return [(row.serial, row.revoked_ns) for row in connection.execute(query.order_by(of.serial))]


def due_for_cutting(connection: Connection, fleet: str, *, limit: int) -> list[Revocation]:
    """Revoked devices whose connection was not cut yet, or that are online all the same."""
    online = select(devices.c.device).where(
        devices.c.fleet == _of.fleet, devices.c.device == _of.device, devices.c.online.is_(True)
    )
    query = select(revoked_devices).where(_of.fleet == fleet, _of.cut_ns.is_(None) | online.exists())
    rows = connection.execute(query.order_by(_of.revoked_ns, _of.device).limit(limit))
    fields = Revocation.__dataclass_fields__
    return [Revocation(**{name: getattr(row, name) for name in fields}) for row in rows]


def note_cut(connection: Connection, fleet: str, device: str, *, now_ns: int) -> None:
    """The device's connection was cut. Its presence is what the broker says of it from now on: nothing."""
    row = (_of.fleet == fleet) & (_of.device == device)
    connection.execute(update(revoked_devices).where(row).values(cut_ns=now_ns))


def _take_out(connection: Connection, fleet: str, device: str, now_ns: int) -> None:
    this = (devices.c.fleet == fleet) & (devices.c.device == device)
    connection.execute(update(devices).where(this).values(reported=None, boot_id=None, reported_sequence=0))
    wanted = (desired.c.fleet == fleet) & (desired.c.device == device)
    # no bytes: what the publisher then sends clears the retained message, now and after every loss of the broker's
    values = {"assignments": [], "envelope": b"", "generation": desired.c.generation + 1, "issued_at_ns": now_ns}
    connection.execute(update(desired).where(wanted).values(values))
    over = select(rollouts.c.id).where(rollouts.c.state.in_(_OVER))
    its = (rollout_devices.c.fleet == fleet) & (rollout_devices.c.device == device)
    connection.execute(delete(rollout_devices).where(its, rollout_devices.c.rollout_id.not_in(over)))
