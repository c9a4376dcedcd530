"""Renews signed desired states before they expire: the same generation and content, issued later.

A device whose word has expired begins nothing new on it, so that nobody who withholds newer messages can hold it on an
old word for good; what runs goes on. Invariants: a renewal changes neither the generation nor what is assigned; it is a
compare-and-set on the generation, so that a new word is never overwritten by an old one renewed.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from sqlalchemy import Engine, bindparam, select, update

from fleet_protocol.envelope import DESIRED_TYPE, read_unverified, sign_envelope, signers_of
from fleet_protocol.errors import ProtocolError
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Desired, decode, encode
from fleet_server.database.tables import desired
from fleet_server.rollouts.desired import FRESHNESS_S

MAX_A_ROUND = 1_000
"""Devices renewed in one transaction."""


def refresh_due(
    engine: Engine,
    *,
    fleet: str,
    signer: PrivateKey,
    now_ns: int,
    freshness_s: float = FRESHNESS_S,
    root_version: int = 0,
    renew_before_ns: int = 0,
) -> bool:
    """Renew the desired states, oldest first, of which half the time is over; whether more may be due.

    So are those issued before `renew_before_ns`, when another trust root or director key came. The publisher sends them
    again, as it does new ones.
    """
    due_ns = max(now_ns - int(freshness_s * 1e9) // 2, renew_before_ns)
    query = (
        select(desired.c.device, desired.c.generation, desired.c.envelope)
        .where(desired.c.fleet == fleet, desired.c.issued_at_ns < due_ns, desired.c.envelope != b"")
        .order_by(desired.c.issued_at_ns)
        .limit(MAX_A_ROUND)
    )
    with engine.connect() as connection:
        due = connection.execute(query).all()
    rows = []
    for row in due:
        try:
            word = decode(Desired, read_unverified(row.envelope, DESIRED_TYPE))
        except ProtocolError:
            continue  # a row that somebody tore: the next assignment replaces it
        renewed = msgspec.structs.replace(
            word,
            issued_at_ns=now_ns,
            expires_ns=now_ns + int(freshness_s * 1e9),
            root_version=root_version or word.root_version,
        )
        rows.append(
            {
                "of_device": row.device,
                "read_generation": row.generation,
                "new_envelope": sign_envelope(DESIRED_TYPE, encode(renewed), [signer]),
            }
        )
    if rows:
        statement = (
            update(desired)
            .where(
                desired.c.fleet == fleet,
                desired.c.device == bindparam("of_device"),
                desired.c.generation == bindparam("read_generation"),
            )
            .values(envelope=bindparam("new_envelope"), issued_at_ns=now_ns, published_generation=0)
        )
        with engine.begin() as connection:
            connection.execute(statement, rows)
    return len(due) == MAX_A_ROUND


def freshness_rounds(
    engine: Engine,
    *,
    fleet: str,
    signer: PrivateKey,
    now_ns: Callable[[], int],
    root_version: Callable[[], int] = lambda: 0,
    root_changed_ns: Callable[[], int] = lambda: 0,
) -> Callable[[], bool]:
    """A step for the server's rounds: renew what is due; True when there is more.

    What an earlier director key signed is renewed at once: devices that follow the newest root do not believe it.
    """
    director_changed_ns = now_ns() if _is_signed_by_another(engine, fleet, signer) else 0
    return lambda: refresh_due(
        engine,
        fleet=fleet,
        signer=signer,
        now_ns=now_ns(),
        root_version=root_version(),
        renew_before_ns=max(director_changed_ns, root_changed_ns()),
    )


def _is_signed_by_another(engine: Engine, fleet: str, signer: PrivateKey) -> bool:
    """Whether the desired state that is renewed first, the oldest, has another director's signature."""
    oldest = select(desired.c.envelope).where(desired.c.fleet == fleet).order_by(desired.c.issued_at_ns).limit(1)
    with engine.connect() as connection:
        envelope = connection.execute(oldest).scalar()
    try:
        return envelope is not None and not signers_of(bytes(envelope), [signer.public])
    except ProtocolError:
        return True
