"""A device's secret: its MQTT password, and its password for artifact downloads (HTTP Basic, user = device id).

Invariants:
- 256 random bits, shown once at enrolment; the server keeps only the SHA-256;
- enrolling a device again rotates its secret: the old one is refused from then on;
- a device that is not enrolled is refused in the same way as a wrong secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update

from fleet_protocol.errors import InvalidName
from fleet_protocol.messages import Labels
from fleet_protocol.names import check_name
from fleet_server.database.engine import lock_for_write
from fleet_server.database.tables import devices
from fleet_server.errors import InvalidRequestError

SECRET_BYTES = 32
MAX_SECRET_CHARS = 128
_NO_SECRET = "0" * 64


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """`labels` when every key and value is allowed. Raises InvalidRequestError."""
    try:
        return msgspec.convert(dict(labels), Labels)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"labels: {error}") from None


def enrol_device(
    engine: Engine, fleet: str, device: str, labels: Mapping[str, str] | None = None, *, now_ns: int
) -> str:
    """`enrol` in a transaction of its own."""
    with engine.begin() as connection:
        return enrol(connection, fleet, device, labels, now_ns=now_ns)


def enrol(
    connection: Connection, fleet: str, device: str, labels: Mapping[str, str] | None = None, *, now_ns: int
) -> str:
    """Make a device known, or give a known one a new secret; returns the secret, which is kept nowhere.

    `labels` replace those of a known device unless None. Raises InvalidRequestError.
    """
    try:
        check_name("fleet", fleet)
        check_name("device", device)
    except InvalidName as error:
        raise InvalidRequestError(str(error)) from None
    secret = secrets.token_urlsafe(SECRET_BYTES)
    values: dict[str, object] = {"secret_sha256": _sha256(secret)}
    if labels is not None:
        values["labels"] = check_labels(labels)
    lock_for_write(connection, devices.name)
    key = (devices.c.fleet == fleet) & (devices.c.device == device)
    if connection.execute(update(devices).where(key).values(values)).rowcount == 0:
        row = {"fleet": fleet, "device": device, "labels": {}, "created_ns": now_ns}
        connection.execute(insert(devices).values({**row, **values}))
    return secret


def verify_device(connection: Connection, fleet: str, device: str, secret: str) -> bool:
    """Whether `secret` is the current secret of `device`."""
    if len(secret) > MAX_SECRET_CHARS or len(device) > 64:
        return False
    key = (devices.c.fleet == fleet) & (devices.c.device == device)
    kept = connection.execute(select(devices.c.secret_sha256).where(key)).scalar()
    same = hmac.compare_digest(kept or _NO_SECRET, _sha256(secret))
    return same and kept is not None


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
