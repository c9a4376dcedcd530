"""Who of several servers does a piece of work: a lease in the database, taken and renewed by compare-and-set.

Invariant: of two holders at most one has an unexpired lease, as far as their clocks agree; work under a lease must
still bear being done twice, since a holder may be paused past its end.
"""

from __future__ import annotations

from sqlalchemy import Connection, or_, update
from sqlalchemy.dialects import postgresql, sqlite

from fleet_server.database.tables import leases


def take_lease(connection: Connection, name: str, holder: str, *, now_ns: int, duration_ns: int) -> bool:
    """Take or renew the lease `name`; False where somebody else holds it, which is a normal answer."""
    until_ns = now_ns + duration_ns
    row = leases.c
    renewed = connection.execute(
        update(leases)
        .where(row.name == name, or_(row.holder == holder, row.until_ns < now_ns))
        .values(holder=holder, until_ns=until_ns)
    ).rowcount
    if renewed:
        return True
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    made = dialect_insert(leases).values(name=name, holder=holder, until_ns=until_ns).on_conflict_do_nothing()
    return bool(connection.execute(made).rowcount)


def release_lease(connection: Connection, name: str, holder: str) -> None:
    """Give a lease back, so that the next one need not wait for its end."""
    connection.execute(leases.delete().where(leases.c.name == name, leases.c.holder == holder))
