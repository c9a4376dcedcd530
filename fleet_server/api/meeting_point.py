"""Where a device finds the fleet and whom it trusts there: part of every answer that gives it an identity."""

from __future__ import annotations

from typing import Any

from fleet_server.api.services import Services
from fleet_server.identity.certificate_authority import IssuedCertificate


def meeting_point(services: Services) -> dict[str, Any]:
    """Addresses, the authority behind the broker's certificate ("" for the system's), and the keys to trust."""
    keys, threshold = services.release_rule()
    return {
        "server_url": services.public_url,
        "mqtt_url": services.mqtt_url,
        "mqtt_authority": services.mqtt_authority,
        "release_keys": [key.pem().decode() for key in keys],
        "release_threshold": threshold,
        "director_key": services.director_key.pem().decode(),
        "trust_root": _newest_root(services),
    }


def _newest_root(services: Services) -> str | None:
    """The signed trust root that a new device pins, None where plain keys are listed."""
    if services.roots is None:
        return None
    envelope = services.roots.envelope(services.roots.newest().version)
    return envelope.decode() if envelope is not None else None


def certificate_view(services: Services, issued: IssuedCertificate | None) -> dict[str, Any] | None:
    """A certificate as a device is answered it: what to sign in with, and until when."""
    if issued is None or services.issuing is None:
        return None
    return {
        "pem": issued.pem,
        "chain": [services.issuing.authority.pem],
        "serial": issued.serial,
        "expires_ns": issued.expires_ns,
        "signs_in": services.issuing.broker_takes_certificates,
    }
