"""Enrolment tokens: what a new device shows to be let into the fleet.

Invariants:
- 256 random bits, shown once, of which the server keeps only the SHA-256;
- every use is one compare-and-set on the count of uses: n uses are n devices, however many ask at once;
- a token that is wrong, used up, expired, revoked or meant for another device is refused in the same words;
- a device that has an identity is enrolled again only by a token made for exactly that device, so that a token for
  new devices cannot take over an old one;
- a request whose answer was lost may be sent again: the same device with the same key uses no further use.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sqlalchemy import Connection, Row, insert, or_, select, update

from fleet_protocol.errors import InvalidName
from fleet_protocol.names import check_name
from fleet_server.database.engine import lock_for_write
from fleet_server.database.identity_tables import device_certificates, enrolment_tokens, revoked_devices
from fleet_server.database.tables import devices
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError
from fleet_server.identity.device_credentials import check_labels

PREFIX = "eft_"
TOKEN_BYTES = 32
MAX_TOKEN_CHARS = 128
MAX_NOTE_CHARS = 120
MAX_USES = 100_000
MIN_LIFE_S, MAX_LIFE_S = 60, 365 * 86_400
_PATTERN = re.compile(r"^[a-z0-9_*?-]{1,64}$")
_REFUSED = "the enrolment token is unknown, used up, expired or not for this device: ask the operator for a new one"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTerms:
    """What a token allows. At most one of `device` (exactly this id) and `device_pattern` (`*` and `?`) is set."""

    note: str = ""
    device: str | None = None
    device_pattern: str | None = None
    labels: Mapping[str, str]
    max_uses: int = 1
    life_s: int = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEntry:
    """A token as it is listed."""

    id: str
    note: str
    device: str | None
    device_pattern: str | None
    labels: dict[str, str]
    max_uses: int
    uses: int
    created_by: str
    created_ns: int
    expires_ns: int
    revoked_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redemption:
    """A token that was accepted for one device."""

    token_id: str
    labels: dict[str, str]
    is_repeat: bool


def create_token(
    connection: Connection, terms: TokenTerms, *, fleet: str, created_by: str, now_ns: int
) -> tuple[TokenEntry, str]:
    """Make a token; returns (how it is listed, the token itself, which is kept nowhere). Raises InvalidRequestError."""
    _check(terms)
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    row = {
        "id": secrets.token_hex(8),
        "fleet": fleet,
        "sha256": _sha256(token),
        "note": terms.note,
        "device": terms.device,
        "device_pattern": terms.device_pattern,
        "labels": check_labels(terms.labels),
        "max_uses": terms.max_uses,
        "uses": 0,
        "created_by": created_by[:128],
        "created_ns": now_ns,
        "expires_ns": now_ns + terms.life_s * 10**9,
    }
    connection.execute(insert(enrolment_tokens).values(row))
    return get_token(connection, fleet, str(row["id"])), token


def redeem(
    connection: Connection, token: str, *, fleet: str, device: str, key_sha256: str | None, now_ns: int
) -> Redemption:
    """Take one use for `device`, whose request was signed with the key `key_sha256`.

    Part of the transaction that enrols. Raises UnauthorizedError, and ConflictError where the device has an identity
    that this token may not replace.
    """
    if not token.startswith(PREFIX) or len(token) > MAX_TOKEN_CHARS or not token.isascii():
        raise UnauthorizedError(_REFUSED)
    lock_for_write(connection, enrolment_tokens.name)
    where = (enrolment_tokens.c.sha256 == _sha256(token)) & (enrolment_tokens.c.fleet == fleet)
    row = connection.execute(select(enrolment_tokens).where(where)).one_or_none()
    if row is None or row.revoked_ns is not None or row.expires_ns <= now_ns or not _is_for(row, device):
        raise UnauthorizedError(_REFUSED)
    labels = dict(row.labels)
    if key_sha256 is not None and _was_enrolled_with(connection, row.id, fleet, device, key_sha256):
        return Redemption(token_id=row.id, labels=labels, is_repeat=True)
    if row.device is None and _has_identity(connection, fleet, device):
        raise ConflictError(
            f"the device {device!r} has an identity already: to give it a new one, make a token for exactly this device"
        )
    unused = where & (enrolment_tokens.c.uses < enrolment_tokens.c.max_uses) & enrolment_tokens.c.revoked_ns.is_(None)
    taken = connection.execute(update(enrolment_tokens).where(unused).values(uses=enrolment_tokens.c.uses + 1))
    if taken.rowcount != 1:
        raise UnauthorizedError(_REFUSED)
    return Redemption(token_id=row.id, labels=labels, is_repeat=False)


def revoke_token(connection: Connection, fleet: str, token_id: str, *, now_ns: int) -> TokenEntry:
    """Refuse a token from now on; revoking it again keeps the first time. Raises NotFoundError."""
    alive = (enrolment_tokens.c.fleet == fleet) & (enrolment_tokens.c.id == token_id)
    alive &= enrolment_tokens.c.revoked_ns.is_(None)
    connection.execute(update(enrolment_tokens).where(alive).values(revoked_ns=now_ns))
    return get_token(connection, fleet, token_id)


def get_token(connection: Connection, fleet: str, token_id: str) -> TokenEntry:
    """One token. Raises NotFoundError."""
    where = (enrolment_tokens.c.fleet == fleet) & (enrolment_tokens.c.id == token_id)
    row = connection.execute(select(enrolment_tokens).where(where)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no enrolment token {token_id[:40]!r}")
    return _entry(row)


def list_tokens(connection: Connection, fleet: str, *, after: str, limit: int) -> list[TokenEntry]:
    """Tokens that were ever made, by id, those after the id `after`."""
    where = (enrolment_tokens.c.fleet == fleet) & (enrolment_tokens.c.id > after)
    rows = connection.execute(select(enrolment_tokens).where(where).order_by(enrolment_tokens.c.id).limit(limit))
    return [_entry(row) for row in rows]


def _check(terms: TokenTerms) -> None:
    if len(terms.note) > MAX_NOTE_CHARS or not terms.note.isprintable():
        raise InvalidRequestError(f"note: at most {MAX_NOTE_CHARS} printable characters")
    if terms.device is not None and terms.device_pattern is not None:
        raise InvalidRequestError("device and device_pattern: give at most one of them")
    if terms.device is not None:
        try:
            check_name("device", terms.device)
        except InvalidName as error:
            raise InvalidRequestError(str(error)) from None
        if terms.max_uses != 1:
            raise InvalidRequestError("max_uses: a token for one device has one use")
    if terms.device_pattern is not None and not _PATTERN.match(terms.device_pattern):
        raise InvalidRequestError("device_pattern: 1 to 64 of a-z 0-9 _ - and the wildcards * and ?")
    if not 1 <= terms.max_uses <= MAX_USES:
        raise InvalidRequestError(f"max_uses: 1 to {MAX_USES}")
    if not MIN_LIFE_S <= terms.life_s <= MAX_LIFE_S:
        raise InvalidRequestError(f"life_s: {MIN_LIFE_S} to {MAX_LIFE_S} seconds")


def _is_for(row: Row[tuple[object, ...]], device: str) -> bool:
    if row.device is not None:
        return bool(row.device == device)
    return row.device_pattern is None or fnmatchcase(device, row.device_pattern)


def _was_enrolled_with(connection: Connection, token_id: str, fleet: str, device: str, key_sha256: str) -> bool:
    of = device_certificates.c
    where = (of.token_id == token_id) & (of.fleet == fleet) & (of.device == device) & (of.key_sha256 == key_sha256)
    found = connection.execute(select(of.serial).where(where, of.revoked_ns.is_(None)).limit(1)).first()
    return found is not None


def _has_identity(connection: Connection, fleet: str, device: str) -> bool:
    known = (devices.c.fleet == fleet) & (devices.c.device == device) & devices.c.secret_sha256.is_not(None)
    certified = (device_certificates.c.fleet == fleet) & (device_certificates.c.device == device)
    revoked = (revoked_devices.c.fleet == fleet) & (revoked_devices.c.device == device)
    is_there = or_(
        select(devices.c.device).where(known).exists(),
        select(device_certificates.c.serial).where(certified).exists(),
        select(revoked_devices.c.device).where(revoked).exists(),
    )
    return bool(connection.execute(select(is_there)).scalar())


def _entry(row: Row[tuple[object, ...]]) -> TokenEntry:
    return TokenEntry(**{name: getattr(row, name) for name in TokenEntry.__dataclass_fields__})


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
