"""A device enrols with a token: token, labels, secret and certificate in one transaction, so that all happen or none.

Order: the request's key and signature, the token's use, the device's row and new secret, its certificate. A token
for exactly this device replaces the identity it had: earlier certificates and a revocation end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from fleet_server.identity import audit
from fleet_server.identity.certificate_authority import IssuedCertificate
from fleet_server.identity.certificates import Issuing, issue
from fleet_server.identity.device_credentials import check_labels, enrol
from fleet_server.identity.enrolment_tokens import redeem
from fleet_server.identity.revocation import lift, revoke_certificates
from fleet_server.identity.signing_requests import key_sha256, read_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What the device gets. `certificate` is None where this server issues none."""

    secret: str
    labels: dict[str, str]
    certificate: IssuedCertificate | None


def enrol_with_token(
    connection: Connection,
    issuing: Issuing | None,
    *,
    token: str,
    fleet: str,
    device: str,
    csr: str,
    labels: Mapping[str, str],
    now_ns: int,
) -> Enrolled:
    """Let a device in. The token's labels win over its own. Raises what `redeem`, `enrol` and `issue` raise."""
    wanted = check_labels(labels)
    key = key_sha256(read_request(csr))
    redeemed = redeem(connection, token, fleet=fleet, device=device, key_sha256=key, now_ns=now_ns)
    if not redeemed.is_repeat:
        revoke_certificates(connection, fleet, device, now_ns=now_ns)
        lift(connection, fleet, device)
    given = check_labels({**wanted, **redeemed.labels})
    secret = enrol(connection, fleet, device, given, now_ns=now_ns)
    certificate = None
    if issuing is not None:
        certificate = issue(
            connection, issuing, fleet=fleet, device=device, csr=csr, token_id=redeemed.token_id, now_ns=now_ns
        )
    detail = {"token": redeemed.token_id, "labels": given, "serial": certificate.serial if certificate else None}
    audit.append(
        connection, actor=f"device:{device}", action="device.enrol", subject=device, detail=detail, at_ns=now_ns
    )
    return Enrolled(secret=secret, labels=given, certificate=certificate)
