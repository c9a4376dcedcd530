"""Operators: the people and the machines that use the API, and what they may do.

An operator signs in with an API key or with a token of the identity provider. `actor` names the credential, for the
audit log; `person` names who holds it, for the rule of four eyes. A person stands in the table `operators`.

Invariants:
- roles are ordered, viewer < operator < approver < admin, and a higher one may do all a lower one may;
- a person is one row whatever they sign in with: their subject at the provider, and the keys that belong to them;
- a subject without a row becomes the person whose e-mail address the provider vouches for, else a new person;
- a person whose access was ended is refused with every credential from the next request on;
- being seen is written at most once in SEEN_EVERY_S: a request does not cost a write.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from fleet_server.database.engine import lock_for_write
from fleet_server.database.identity_tables import operators
from fleet_server.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError
from fleet_server.identity import audit

MAX_NAME_CHARS = 120
MAX_EMAIL_CHARS = 254
MAX_SUBJECT_CHARS = 255
"""OpenID Connect Core 1.0, section 2: a subject has at most 255 ASCII characters."""
MAX_ACTOR_CHARS = 128
SEEN_EVERY_S = 3_600


class Role(IntEnum):
    """What an operator may do; each includes those below it."""

    VIEWER = 1
    """Read everything."""
    OPERATOR = 2
    """Enrol devices, publish versions, create, pause, resume, abort and roll back rollouts."""
    APPROVER = 3
    """Approve rollouts."""
    ADMIN = 4
    """Make and revoke API keys, end a person's access."""

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
    """Who makes a request: with an API key (`key_id`), or signed in at the provider (`subject`)."""

    key_id: str
    name: str
    role: Role
    subject: str = ""
    person_id: str = ""
    expires_ns: int | None = None

    @property
    def actor(self) -> str:
        """How the audit log names the credential."""
        if not self.subject:
            return f"key:{self.name}"
        actor = f"oidc:{self.subject}"
        return actor if len(actor) <= MAX_ACTOR_CHARS else f"oidc-sha256:{_sha256(self.subject)}"

    @property
    def person(self) -> str:
        """Who the operator is, whatever they signed in with: what a rule of four eyes compares."""
        return f"person:{self.person_id}" if self.person_id else self.actor


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """What the provider says of somebody; `email` only when the provider vouches for it."""

    issuer: str
    subject: str
    name: str
    role: Role
    email: str | None = None
    expires_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody, as listed. `role` is what the provider's claims gave at the latest sign-in."""

    id: str
    name: str
    email: str | None
    subject: str | None
    role: str | None
    created_ns: int
    last_seen_ns: int | None
    disabled_ns: int | None


def add_person(
    connection: Connection,
    *,
    name: str,
    email: str | None = None,
    issuer: str | None = None,
    subject: str | None = None,
    now_ns: int,
) -> Person:
    """Make a person known before they sign in. Raises InvalidRequestError or ConflictError."""
    name = check_operator_name(name, "a person's name")
    if email is not None:
        email = email.strip().lower()
        if not 3 <= len(email) <= MAX_EMAIL_CHARS or "@" not in email or not email.isprintable() or " " in email:
            raise InvalidRequestError("email is not an address: use NAME@DOMAIN")
    if subject is not None and not (0 < len(subject) <= MAX_SUBJECT_CHARS and subject.isprintable()):
        raise InvalidRequestError(f"subject has 1 to {MAX_SUBJECT_CHARS} printable characters")
    if subject is not None and not issuer:
        raise InvalidRequestError("subject is one of the identity provider's, and the server has none: set [oidc]")
    row = {
        "id": secrets.token_hex(8),
        "name": name,
        "email": email,
        "issuer": issuer if subject else None,
        "subject": subject,
        "created_ns": now_ns,
    }
    try:
        connection.execute(insert(operators).values(row))
    except IntegrityError:
        raise ConflictError("somebody with this e-mail address or subject is known already") from None
    return find_person(connection, str(row["id"]))


def find_person(connection: Connection, person_id: str) -> Person:
    """The person of that id. Raises NotFoundError."""
    row = connection.execute(select(operators).where(operators.c.id == person_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no person {person_id[:40]!r}: `fleet operators people` lists them")
    return _person(row)


def list_people(connection: Connection, *, limit: int, after: str = "") -> list[Person]:
    """People by id, those after the id `after`."""
    page = select(operators).where(operators.c.id > after).order_by(operators.c.id).limit(limit)
    return [_person(row) for row in connection.execute(page)]


def set_access(connection: Connection, person_id: str, *, ended: bool, now_ns: int) -> Person:
    """End somebody's access, or give it back; ending it again keeps the first time. Raises NotFoundError."""
    this = operators.c.id == person_id
    if ended:
        connection.execute(update(operators).where(this & operators.c.disabled_ns.is_(None)).values(disabled_ns=now_ns))
    else:
        connection.execute(update(operators).where(this).values(disabled_ns=None))
    return find_person(connection, person_id)


def operator_of(engine: Engine, sign_in: SignIn, *, now_ns: int) -> Operator:
    """The operator who signed in at the provider; makes their row at the first time. Raises UnauthorizedError."""
    theirs = (operators.c.issuer == sign_in.issuer) & (operators.c.subject == sign_in.subject)
    with engine.connect() as connection:
        row = connection.execute(select(operators).where(theirs)).one_or_none()
    role = sign_in.role.name.lower()
    if row is None:
        row = _first_sign_in(engine, sign_in, now_ns=now_ns)
    elif row.disabled_ns is None and (row.role != role or now_ns - (row.last_seen_ns or 0) > SEEN_EVERY_S * 10**9):
        with engine.begin() as connection:
            connection.execute(update(operators).where(theirs).values(last_seen_ns=now_ns, role=role))
    if row.disabled_ns is not None:
        raise UnauthorizedError("this sign-in is not accepted here: ask an admin")
    return Operator(
        key_id="",
        name=sign_in.name,
        role=sign_in.role,
        subject=sign_in.subject,
        person_id=row.id,
        expires_ns=sign_in.expires_ns,
    )


def check_operator_name(name: str, what: str) -> str:
    """`name` when it may stand in the audit log. Raises InvalidRequestError."""
    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise InvalidRequestError(f"{what} has 1 to {MAX_NAME_CHARS} printable characters")
    return name


def _first_sign_in(engine: Engine, sign_in: SignIn, *, now_ns: int) -> Row[Any]:
    theirs = (operators.c.issuer == sign_in.issuer) & (operators.c.subject == sign_in.subject)
    seen = {"last_seen_ns": now_ns, "role": sign_in.role.name.lower()}
    identity = {"issuer": sign_in.issuer, "subject": sign_in.subject}
    with engine.begin() as connection:
        lock_for_write(connection, operators.name)
        row = connection.execute(select(operators).where(theirs)).one_or_none()
        if row is not None:  # another request of theirs was faster
            return row
        email = sign_in.email.lower() if sign_in.email else None
        known = connection.execute(select(operators).where(operators.c.email == email)).one_or_none() if email else None
        if known is not None and known.subject is None:
            person_id, how = known.id, "by e-mail"
            connection.execute(update(operators).where(operators.c.id == person_id).values(**identity, **seen))
        else:
            person_id, how = secrets.token_hex(8), "new"
            row_email = email if known is None else None
            values = {"id": person_id, "name": sign_in.name, "email": row_email, "created_ns": now_ns}
            connection.execute(insert(operators).values(**values, **identity, **seen))
        actor = Operator(key_id="", name=sign_in.name, role=sign_in.role, subject=sign_in.subject).actor
        detail = {"person": f"person:{person_id}", "name": sign_in.name, "how": how}
        audit.append(
            connection, actor=actor, action="operator.first_sign_in", subject=person_id, detail=detail, at_ns=now_ns
        )
        return connection.execute(select(operators).where(operators.c.id == person_id)).one()


def _person(row: Row[Any]) -> Person:
    return Person(**{name: getattr(row, name) for name in Person.__dataclass_fields__})


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
