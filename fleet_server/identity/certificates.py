"""Certificates that devices were given: kept, looked up, and renewed.

Invariants:
- every certificate that was ever issued is kept by its serial number until it was revoked and expired for long;
- a device renews only with its secret and with proof that it holds the key of a certificate it was given and that
  is not revoked: neither alone is enough;
- a certificate that expired renews within the grace; later only an enrolment token helps, and the refusal says so;
- a device may hold MAX_ALIVE certificates at once: a renewal beyond that is refused, so that nobody fills the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Row, delete, func, insert, select

from fleet_server.database.identity_tables import device_certificates, revoked_devices
from fleet_server.errors import ConflictError, ForbiddenError
from fleet_server.identity.certificate_authority import CertificateAuthority, IssuedCertificate
from fleet_server.identity.signing_requests import key_sha256, proves_possession, read_request

MAX_ALIVE = 16
KEPT_AFTER_EXPIRY_S = 400 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuing:
    """How this server issues certificates. `broker_authority_pem` is what devices check the broker with."""

    authority: CertificateAuthority
    life: timedelta = timedelta(days=90)
    renewal_grace: timedelta = timedelta(days=30)
    broker_authority_pem: str = ""
    broker_takes_certificates: bool = True


def issue(
    connection: Connection,
    issuing: Issuing,
    *,
    fleet: str,
    device: str,
    csr: str,
    token_id: str | None = None,
    now_ns: int,
) -> IssuedCertificate:
    """Sign a device's request and keep the certificate. Raises InvalidRequestError, ConflictError."""
    key = read_request(csr)
    of = device_certificates.c
    mine = (of.fleet == fleet) & (of.device == device)
    connection.execute(delete(device_certificates).where(mine, of.expires_ns < now_ns - KEPT_AFTER_EXPIRY_S * 10**9))
    alive = select(func.count()).select_from(device_certificates)
    if connection.execute(alive.where(mine, of.expires_ns > now_ns, of.revoked_ns.is_(None))).scalar_one() >= MAX_ALIVE:
        raise ConflictError(f"the device {device!r} holds {MAX_ALIVE} certificates that are good: it renews too often")
    now = datetime.fromtimestamp(now_ns / 1e9, UTC)
    issued = issuing.authority.issue_to_device(key, fleet=fleet, device=device, now=now, life=issuing.life)
    connection.execute(
        insert(device_certificates).values(
            serial=issued.serial,
            fleet=fleet,
            device=device,
            key_sha256=key_sha256(key),
            pem=issued.pem,
            token_id=token_id,
            issued_ns=now_ns,
            expires_ns=issued.expires_ns,
        )
    )
    return issued


def renew(
    connection: Connection,
    issuing: Issuing,
    *,
    fleet: str,
    device: str,
    csr: str,
    serial: str,
    proof: bytes,
    now_ns: int,
) -> IssuedCertificate:
    """A new certificate for a device whose secret was checked. `proof` is by the key of its certificate `serial`.

    Raises ForbiddenError with what to do, InvalidRequestError, ConflictError.
    """
    row = find(connection, fleet, serial)
    if row is None or row.device != device:
        raise ForbiddenError("this certificate was not given to this device: enrol it again with a token")
    if row.revoked_ns is not None:
        raise ForbiddenError("this certificate was revoked: enrol the device again with a token of the operator's")
    if now_ns > row.expires_ns + issuing.renewal_grace.total_seconds() * 1e9:
        ended = datetime.fromtimestamp(row.expires_ns / 1e9, UTC)
        raise ForbiddenError(
            f"this certificate expired on {ended:%Y-%m-%d}, more than {issuing.renewal_grace.days} days ago: "
            "enrol the device again with a token of the operator's"
        )
    if not proves_possession(row.pem, proof, fleet=fleet, device=device, csr=csr):
        raise ForbiddenError("proof: it was not made by the key of the certificate that is to be renewed")
    return issue(connection, issuing, fleet=fleet, device=device, csr=csr, now_ns=now_ns)


def find(connection: Connection, fleet: str, serial: str) -> Row[tuple[object, ...]] | None:
    """The kept certificate of that serial number (32 hexadecimal digits)."""
    of = device_certificates.c
    query = select(device_certificates).where(of.fleet == fleet, of.serial == serial)
    return connection.execute(query).one_or_none()


def is_good(connection: Connection, fleet: str, device: str, serial: str) -> bool:
    """Whether the broker may let this certificate in: given to this device, and neither is revoked."""
    row = find(connection, fleet, serial)
    if row is None or row.device != device or row.revoked_ns is not None:
        return False
    of = revoked_devices.c
    query = select(of.device).where(of.fleet == fleet, of.device == device)
    return connection.execute(query).one_or_none() is None


def newest_expiry_ns(connection: Connection, fleet: str, device: str) -> int | None:
    """When the device's newest certificate that is not revoked ends; None when it has none."""
    of = device_certificates.c
    query = select(func.max(of.expires_ns)).where(of.fleet == fleet, of.device == device, of.revoked_ns.is_(None))
    return connection.execute(query).scalar()
