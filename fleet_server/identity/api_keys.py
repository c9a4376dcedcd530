"""Operators' API keys: 256 random bits, of which the server keeps only the SHA-256.

A plain hash is right here and a slow one is not: there is nothing to guess in 256 random bits.

Invariants:
- a key is shown once, when it is made, and can be read from nowhere afterwards;
- roles are ordered, viewer < operator < approver < admin, and a higher one may do all a lower one may;
- a revoked key is refused from the next request on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from fleet_server.database.tables import api_keys
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError

PREFIX = "ef_"
KEY_BYTES = 32
MAX_KEY_CHARS = 128
MAX_NAME_CHARS = 120


class Role(IntEnum):
    """What an operator may do; each includes those below it."""

    VIEWER = 1
    """Read everything."""
    OPERATOR = 2
    """Enrol devices, publish versions, create, pause, resume, abort and roll back rollouts."""
    APPROVER = 3
    """Approve rollouts."""
    ADMIN = 4
    """Make and revoke API keys."""

    @classmethod
    def parse(cls, name: str) -> Role:
        """The role of that lower-case name. Raises InvalidRequestError."""
        for role in cls:
            if role.name.lower() == name:
                return role
        allowed = ", ".join(role.name.lower() for role in cls)
        raise InvalidRequestError(f"there is no role {name[:40]!r}: use one of {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who makes a request."""

    key_id: str
    name: str
    role: Role

    @property
    def actor(self) -> str:
        """How the audit log names the operator."""
        return f"key:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyEntry:
    """A key as it is listed."""

    key_id: str
    name: str
    role: Role
    created_ns: int
    revoked_ns: int | None


def create_api_key(connection: Connection, *, name: str, role: Role, now_ns: int) -> tuple[str, str]:
    """Make a key; returns (key id, the key itself, which is kept nowhere). Raises ConflictError for a taken name."""
    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequestError(f"an API key's name has 1 to {MAX_NAME_CHARS} printable characters")
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    key_id = secrets.token_hex(8)
    row = {"id": key_id, "name": name, "sha256": _sha256(key), "role": role.name.lower(), "created_ns": now_ns}
    try:
        connection.execute(insert(api_keys).values(row))
    except IntegrityError:
        raise ConflictError(
            f"there is an API key named {name!r} already: names stay taken, for the audit log"
        ) from None
    return key_id, key


def authenticate(connection: Connection, key: str) -> Operator:
    """The operator who holds `key`. Raises UnauthorizedError."""
    refused = UnauthorizedError("the API key is unknown or revoked")
    if not key.startswith(PREFIX) or len(key) > MAX_KEY_CHARS or not key.isascii():
        raise refused
    digest = _sha256(key)
    row = connection.execute(select(api_keys).where(api_keys.c.sha256 == digest)).one_or_none()
    if row is None or not hmac.compare_digest(row.sha256, digest) or row.revoked_ns is not None:
        raise refused
    return Operator(key_id=row.id, name=row.name, role=Role.parse(row.role))


def revoke_api_key(connection: Connection, key_id: str, *, now_ns: int) -> ApiKeyEntry:
    """Refuse a key from now on; revoking it again keeps the first time. Raises NotFoundError."""
    alive = (api_keys.c.id == key_id) & api_keys.c.revoked_ns.is_(None)
    connection.execute(update(api_keys).where(alive).values(revoked_ns=now_ns))
    entries = [entry for entry in list_api_keys(connection) if entry.key_id == key_id]
    if not entries:
        raise NotFoundError(f"there is no API key {key_id[:40]!r}")
    return entries[0]


def list_api_keys(connection: Connection) -> list[ApiKeyEntry]:
    """Every key that was ever made, oldest first."""
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created_ns, api_keys.c.id))
    return [
        ApiKeyEntry(
            key_id=row.id,
            name=row.name,
            role=Role.parse(row.role),
            created_ns=row.created_ns,
            revoked_ns=row.revoked_ns,
        )
        for row in rows
    ]


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
