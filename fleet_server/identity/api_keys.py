"""Operators' API keys: 256 random bits, of which the server keeps only the SHA-256.

A plain hash is right here and a slow one is not: there is nothing to guess in 256 random bits.

Invariants:
- a key is shown once, when it is made or rotated, and can be read from nowhere afterwards;
- a revoked or expired key, and one whose owner's access was ended, is refused from the next request on, with the
  words of a key that never was;
- a rotated key keeps its id, name, role, owner and end; the secret before it is refused once its overlap is over;
- a key's use is written at most once in USED_EVERY_S: a request does not cost a write.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from fleet_server.database.identity_tables import operators
from fleet_server.database.tables import api_keys
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError
from fleet_server.identity.operators import Operator, Role, check_operator_name, find_person

__all__ = [
    "MAX_DAYS",
    "MAX_KEY_CHARS",
    "MAX_NAME_CHARS",
    "MAX_OVERLAP_S",
    "PREFIX",
    "ApiKeyEntry",
    "Operator",
    "Role",
    "assign_api_key",
    "authenticate",
    "create_api_key",
    "list_api_keys",
    "note_use",
    "revoke_api_key",
    "rotate_api_key",
]

PREFIX = "ef_"
KEY_BYTES = 32
MAX_KEY_CHARS = 128
MAX_NAME_CHARS = 120
MAX_DAYS = 3_650
MAX_OVERLAP_S = 7 * 86_400
"""How long the secret before a rotation may go on."""
USED_EVERY_S = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyEntry:
    """A key as it is listed; `last_used_ns` is up to USED_EVERY_S behind."""

    key_id: str
    name: str
    role: Role
    created_ns: int
    revoked_ns: int | None
    expires_ns: int | None = None
    last_used_ns: int | None = None
    rotated_ns: int | None = None
    owner: str | None = None
    owner_name: str | None = None


def create_api_key(
    connection: Connection,
    *,
    name: str,
    role: Role,
    now_ns: int,
    expires_ns: int | None = None,
    owner: str | None = None,
) -> tuple[str, str]:
    """Make a key; returns (key id, the key itself, which is kept nowhere).

    `owner` is the id of the person it belongs to. Raises InvalidRequestError, NotFoundError, or ConflictError for a
    taken name.
    """
    check_operator_name(name, "an API key's name")
    if owner is not None:
        find_person(connection, owner)
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    key_id = secrets.token_hex(8)
    row = {"id": key_id, "name": name, "sha256": _sha256(key), "role": role.name.lower(), "created_ns": now_ns}
    try:
        connection.execute(insert(api_keys).values(row | {"expires_ns": expires_ns, "owner": owner}))
    except IntegrityError:
        raise ConflictError(
            f"there is an API key named {name!r} already: names stay taken, for the audit log"
        ) from None
    return key_id, key


def authenticate(connection: Connection, key: str, *, now_ns: int) -> Operator:
    """The operator who holds `key`. Raises UnauthorizedError."""
    return _operator(_holder(connection, key, now_ns))


def note_use(engine: Engine, key: str, *, now_ns: int) -> Operator:
    """`authenticate`, and write when it was, where that was not written for USED_EVERY_S. Raises UnauthorizedError."""
    with engine.connect() as connection:
        row = _holder(connection, key, now_ns)
    if now_ns - (row.last_used_ns or 0) > USED_EVERY_S * 10**9:
        with engine.begin() as connection:
            connection.execute(update(api_keys).where(api_keys.c.id == row.id).values(last_used_ns=now_ns))
    return _operator(row)


def rotate_api_key(connection: Connection, key_id: str, *, overlap_s: int, now_ns: int) -> tuple[ApiKeyEntry, str]:
    """Give a key a new secret; the old one goes on for `overlap_s` seconds. Returns (entry, the new secret).

    Raises NotFoundError, ConflictError for a key that is revoked or has expired, or InvalidRequestError.
    """
    if not 0 <= overlap_s <= MAX_OVERLAP_S:
        raise InvalidRequestError(f"overlap_s is 0 to {MAX_OVERLAP_S} seconds")
    entry = _entry(connection, key_id)
    key = PREFIX + secrets.token_urlsafe(KEY_BYTES)
    alive = (
        (api_keys.c.id == key_id)
        & api_keys.c.revoked_ns.is_(None)
        & (api_keys.c.expires_ns.is_(None) | (api_keys.c.expires_ns > now_ns))
    )
    values = {
        "sha256": _sha256(key),
        "previous_sha256": api_keys.c.sha256 if overlap_s else None,
        "previous_until_ns": now_ns + overlap_s * 10**9 if overlap_s else None,
        "rotated_ns": now_ns,
    }
    if connection.execute(update(api_keys).where(alive).values(values)).rowcount == 0:
        raise ConflictError(f"the API key {entry.name!r} is revoked or has expired: make a new one")
    return _entry(connection, key_id), key


def assign_api_key(connection: Connection, key_id: str, owner: str) -> ApiKeyEntry:
    """Say whom a key belongs to. Raises NotFoundError."""
    find_person(connection, owner)
    connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(owner=owner))
    return _entry(connection, key_id)


def revoke_api_key(connection: Connection, key_id: str, *, now_ns: int) -> ApiKeyEntry:
    """Refuse a key from now on; revoking it again keeps the first time. Raises NotFoundError."""
    alive = (api_keys.c.id == key_id) & api_keys.c.revoked_ns.is_(None)
    connection.execute(update(api_keys).where(alive).values(revoked_ns=now_ns))
    return _entry(connection, key_id)


def list_api_keys(connection: Connection) -> list[ApiKeyEntry]:
    """Every key that was ever made, oldest first."""
    return [_listed(row) for row in connection.execute(_WITH_OWNER.order_by(api_keys.c.created_ns, api_keys.c.id))]


_WITH_OWNER = select(
    api_keys, operators.c.name.label("owner_name"), operators.c.disabled_ns.label("owner_disabled_ns")
).join_from(api_keys, operators, api_keys.c.owner == operators.c.id, isouter=True)


def _holder(connection: Connection, key: str, now_ns: int) -> Row[Any]:
    refused = UnauthorizedError("the API key is unknown, expired or revoked")
    if not key.startswith(PREFIX) or len(key) > MAX_KEY_CHARS or not key.isascii():
        raise refused
    digest = _sha256(key)
    row = connection.execute(_WITH_OWNER.where(api_keys.c.sha256 == digest)).one_or_none()
    if row is None:
        in_overlap = (api_keys.c.previous_sha256 == digest) & (api_keys.c.previous_until_ns > now_ns)
        row = connection.execute(_WITH_OWNER.where(in_overlap)).one_or_none()
    if row is None:
        raise refused
    same = hmac.compare_digest(row.sha256, digest) or hmac.compare_digest(row.previous_sha256 or "", digest)
    ended = row.revoked_ns is not None or (row.expires_ns is not None and row.expires_ns <= now_ns)
    if not same or ended or row.owner_disabled_ns is not None:
        raise refused
    return row


def _operator(row: Row[Any]) -> Operator:
    return Operator(
        key_id=row.id,
        name=row.name,
        role=Role.parse(row.role),
        person_id=row.owner or "",
        expires_ns=row.expires_ns,
    )


def _entry(connection: Connection, key_id: str) -> ApiKeyEntry:
    row = connection.execute(_WITH_OWNER.where(api_keys.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no API key {key_id[:40]!r}")
    return _listed(row)


def _listed(row: Row[Any]) -> ApiKeyEntry:
    return ApiKeyEntry(
        key_id=row.id,
        name=row.name,
        role=Role.parse(row.role),
        created_ns=row.created_ns,
        revoked_ns=row.revoked_ns,
        expires_ns=row.expires_ns,
        last_used_ns=row.last_used_ns,
        rotated_ns=row.rotated_ns,
        owner=row.owner,
        owner_name=row.owner_name,
    )


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
