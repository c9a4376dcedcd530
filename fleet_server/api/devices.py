"""`/api/v1/devices`: enrolment, labels, what each device runs, and taking its identity away."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Row, Select, select, update

from fleet_protocol.messages import MAIN_ARM
from fleet_server.api.access import CallingDevice, Viewer
from fleet_server.api.meeting_point import certificate_view, meeting_point
from fleet_server.api.mutations import Mutation, Outcome, mutation
from fleet_server.api.names import DeviceInPath
from fleet_server.api.paging import PageOf
from fleet_server.api.rate_limits import limited
from fleet_server.api.services import Services, ServicesOf
from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import desired, device_clocks, devices
from fleet_server.errors import ConflictError, ForbiddenError, InvalidRequestError, NotFoundError
from fleet_server.identity import audit
from fleet_server.identity.api_keys import Role
from fleet_server.identity.certificates import newest_expiry_ns, renew
from fleet_server.identity.device_credentials import check_labels, enrol
from fleet_server.identity.revocation import (
    MAX_REASON_CHARS,
    Revocation,
    get_revocation,
    lift,
    read_revocations,
    revoke,
)
from fleet_server.identity.signing_requests import MAX_REQUEST_CHARS
from fleet_server.ingest.clocks import OFF_NS
from fleet_server.ingest.quarantine import counts_by_device

MAX_LABEL_FILTERS = 16
_USUAL_ARM = {"arm": MAIN_ARM, "shadow": False, "weight": 1.0}

router = APIRouter(prefix="/api/v1/devices", tags=["devices"])


class Enrolment(BaseModel):
    """`labels` replace those of a known device; left out, they stay."""

    model_config = ConfigDict(extra="forbid")
    labels: dict[str, str] | None = None


class LabelChanges(BaseModel):
    """Labels to set; null removes one; those not named stay."""

    model_config = ConfigDict(extra="forbid")
    labels: dict[str, str | None]


class Departure(BaseModel):
    """Why a device is let in no more; for the list and the audit log."""

    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=MAX_REASON_CHARS)


class Renewal(BaseModel):
    """`serial` names the certificate the device has, and `proof` (base64) is the signature of its key.

    It signs the bytes "edgefleet certificate renewal 1", NUL, the fleet, NUL, the device, NUL, and `csr` as sent.
    """

    model_config = ConfigDict(extra="forbid")
    csr: str = Field(max_length=MAX_REQUEST_CHARS)
    serial: str = Field(pattern="^[0-9a-f]{32}$")
    proof: Base64Bytes = Field(max_length=4096)


@router.get("")
def list_devices(
    services: ServicesOf,
    _: Viewer,
    page: PageOf,
    label: Annotated[list[str] | None, Query(description="KEY=VALUE, may be repeated: all must hold")] = None,
    online: bool | None = None,
) -> dict[str, Any]:
    """Devices by id."""
    query = _devices_of(services.fleet).where(devices.c.device > page.after)
    for key, value in parse_filters(label or []):
        query = query.where(devices.c.labels[key].as_string() == value)
    if online is not None:
        query = query.where(devices.c.online == online)
    with services.engine.connect() as connection:
        rows = connection.execute(query.order_by(devices.c.device).limit(page.limit + 1)).all()
        revoked = {each.device: each for each in read_revocations(connection, services.fleet, [r.device for r in rows])}
    return page.answer([_view(row, revoked.get(row.device)) for row in rows], lambda device: device["device"])


@router.get("/{device}")
def get_device(services: ServicesOf, _: Viewer, device: DeviceInPath) -> dict[str, Any]:
    """One device: desired, reported, labels, online, last seen; its clock, and what of its telemetry does not count."""
    with services.engine.connect() as connection:
        found = _get(connection, services.fleet, device)
        not_counted = counts_by_device(connection, services.fleet, [device]).get(device, {})
        found["certificate_expires_ns"] = newest_expiry_ns(connection, services.fleet, device)
        return {**found, "clock": _clock(connection, services.fleet, device), "not_counted": not_counted}


@router.post("/{device}/enrol", status_code=201)
def enrol_device(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))],
    device: DeviceInPath,
    body: Enrolment | None = None,
) -> Response:
    """Make a device known, or give a known one a new secret. The secret is in this answer and nowhere else."""

    def perform() -> Outcome:
        labels = body.labels if body else None
        with services.engine.begin() as connection:
            secret = enrol(connection, services.fleet, device, labels, now_ns=services.now_ns())
            lift(connection, services.fleet, device)
            change.audit(connection, "device.enrol", device, {"labels": labels})
        return 201, {"fleet": services.fleet, "device": device, "secret": secret, **meeting_point(services)}

    return change.run(perform, answers_secret=True)


@router.patch("/{device}")
def change_labels(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))],
    device: DeviceInPath,
    body: LabelChanges,
) -> Response:
    """Set and remove labels."""

    def perform() -> Outcome:
        with services.engine.begin() as connection:
            lock_for_write(connection, devices.name)
            labels = {**_get(connection, services.fleet, device)["labels"], **body.labels}
            kept = check_labels({key: value for key, value in labels.items() if value is not None})
            this = (devices.c.fleet == services.fleet) & (devices.c.device == device)
            connection.execute(update(devices).where(this).values(labels=kept))
            change.audit(connection, "device.labels", device, {"labels": body.labels})
            return 200, _get(connection, services.fleet, device)

    return change.run(perform)


@router.post("/{device}/revoke")
def revoke_device(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))],
    device: DeviceInPath,
    body: Departure | None = None,
) -> Response:
    """Refuse its secret and certificates from now on, and cut its connection. Enrolling it anew lets it in again."""
    return _part_with(services, change, device, body, decommission=False)


@router.post("/{device}/decommission")
def decommission_device(
    services: ServicesOf,
    change: Annotated[Mutation, Depends(mutation(Role.OPERATOR))],
    device: DeviceInPath,
    body: Departure | None = None,
) -> Response:
    """Revoke it, remove what it should run and its last report, and take it out of rollouts. Telemetry stays."""
    return _part_with(services, change, device, body, decommission=True)


@router.post("/{device}/certificate", status_code=201, dependencies=[Depends(limited("enrol"))])
def renew_certificate(
    services: ServicesOf, device: DeviceInPath, caller: CallingDevice, body: Renewal
) -> dict[str, Any]:
    """The device renews its certificate: with its secret, and with proof that it has the key of an earlier one."""
    if caller != device:
        raise ForbiddenError("a device renews its own certificate and no other's")
    if services.issuing is None:
        raise ConflictError("this server issues no certificates: set identity.ca_certificate and identity.ca_key")
    with services.engine.begin() as connection:
        issued = renew(
            connection,
            services.issuing,
            fleet=services.fleet,
            device=device,
            csr=body.csr,
            serial=body.serial,
            proof=body.proof,
            now_ns=services.now_ns(),
        )
        detail = {"serial": issued.serial, "renews": body.serial, "expires_ns": issued.expires_ns}
        audit.append(
            connection,
            actor=f"device:{device}",
            action="device.certificate",
            subject=device,
            detail=detail,
            at_ns=services.now_ns(),
        )
    return {"device": device, "certificate": certificate_view(services, issued)}


def _part_with(
    services: Services, change: Mutation, device: str, body: Departure | None, *, decommission: bool
) -> Response:
    def perform() -> Outcome:
        reason = body.reason if body else ""
        with services.engine.begin() as connection:
            revoke(
                connection,
                fleet=services.fleet,
                device=device,
                reason=reason,
                revoked_by=change.operator.actor,
                now_ns=services.now_ns(),
                decommission=decommission,
            )
            action = "device.decommission" if decommission else "device.revoke"
            change.audit(connection, action, device, {"reason": reason})
            return 200, _get(connection, services.fleet, device)

    return change.run(perform)


def _devices_of(fleet: str) -> Select[Any]:
    joined = devices.outerjoin(desired, (devices.c.fleet == desired.c.fleet) & (devices.c.device == desired.c.device))
    columns = (desired.c.generation, desired.c.published_generation, desired.c.assignments, desired.c.issued_at_ns)
    return select(devices, *columns).select_from(joined).where(devices.c.fleet == fleet)


def _get(connection: Connection, fleet: str, device: str) -> dict[str, Any]:
    row = connection.execute(_devices_of(fleet).where(devices.c.device == device)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no device {device!r} in the fleet {fleet!r}")
    return _view(row, get_revocation(connection, fleet, device))


def _clock(connection: Connection, fleet: str, device: str) -> dict[str, Any] | None:
    """How far a device's clock is off (ahead is positive) and how late its newest window came; None before any."""
    where = (device_clocks.c.fleet == fleet) & (device_clocks.c.device == device)
    row = connection.execute(select(device_clocks).where(where)).one_or_none()
    if row is None:
        return None
    return {
        "skew_s": row.skew_ns / 1e9,
        "is_off": abs(row.skew_ns) > OFF_NS,
        "late_s": row.late_ns / 1e9,
        "measured_ns": row.measured_ns,
    }


def _view(row: Row[Any], revocation: Revocation | None) -> dict[str, Any]:
    wanted = None
    if row.generation is not None:
        wanted = {
            "generation": row.generation,
            "published_generation": row.published_generation,
            "issued_at_ns": row.issued_at_ns,
            "assignments": row.assignments,
        }
    return {
        "device": row.device,
        "labels": row.labels,
        "online": row.online,
        "enrolled": row.secret_sha256 is not None,
        "last_seen_ns": row.last_seen_ns,
        "created_ns": row.created_ns,
        "reported": _reported(row.reported),
        "desired": wanted,
        "revoked": _revoked(revocation),
    }


def _revoked(revocation: Revocation | None) -> dict[str, Any] | None:
    if revocation is None:
        return None
    return {
        "reason": revocation.reason,
        "by": revocation.revoked_by,
        "revoked_ns": revocation.revoked_ns,
        "decommissioned": revocation.decommissioned,
        "cut_ns": revocation.cut_ns,
    }


def _reported(document: dict[str, Any] | None) -> dict[str, Any] | None:
    """The report with every arm spelt out: on the wire what is usual is left out."""
    if document is None:
        return None
    return {**document, "models": [{**_USUAL_ARM, **model} for model in document.get("models", [])]}


def parse_filters(filters: list[str]) -> list[tuple[str, str]]:
    """KEY=VALUE filters over labels as pairs. Raises InvalidRequestError."""
    if len(filters) > MAX_LABEL_FILTERS:
        raise InvalidRequestError(f"at most {MAX_LABEL_FILTERS} label filters")
    pairs = [(key, value) for key, _, value in (text.partition("=") for text in filters)]
    if any("=" not in text for text in filters):
        raise InvalidRequestError("a label filter is KEY=VALUE")
    for key, value in pairs:
        check_labels({key: value})
    return pairs
