"""The audit log notices what was done to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, delete, select, text, update

from fleet_server.database.tables import audit_log, models
from fleet_server.identity import audit


def _append(engine: Engine, number: int) -> int:
    with engine.begin() as connection:
        detail = {"n": number, "labels": {"b": "1", "a": None}, "share": 0.1}
        return audit.append(connection, actor="key:x", action="a", subject=f"s{number}", detail=detail, at_ns=number)


def test_a_whole_chain_holds(engine: Engine) -> None:
    assert audit.verify(engine) is None
    assert [_append(engine, number) for number in range(5)] == [1, 2, 3, 4, 5]
    assert audit.verify(engine) is None
    with engine.connect() as connection:
        assert [entry.id for entry in audit.list_entries(connection, limit=2, before=5)] == [4, 3]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("actor", "key:innocent"),
        ("action", "b"),
        ("subject", "other"),
        ("detail", {"n": 99}),
        ("at_ns", 7),
        ("hash", "f" * 64),
        ("previous_hash", "e" * 64),
    ],
)
def test_a_changed_entry_is_found(engine: Engine, column: str, value: object) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.begin() as connection:
        connection.execute(update(audit_log).where(audit_log.c.id == 3).values({column: value}))
    assert audit.verify(engine) == 3


def test_a_removed_entry_is_found(engine: Engine) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.begin() as connection:
        connection.execute(delete(audit_log).where(audit_log.c.id == 2))
    assert audit.verify(engine) == 3


def test_entries_that_changed_places_are_found(engine: Engine) -> None:
    for number in range(5):
        _append(engine, number)
    with engine.begin() as connection:
        for old, new in ((2, 99), (3, 2), (99, 3)):
            connection.execute(update(audit_log).where(audit_log.c.id == old).values(id=new))
    assert audit.verify(engine) == 2


def test_writers_at_once_never_fork_the_chain(engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: _append(engine, number), range(40)))
    assert sorted(ids) == list(range(1, 41))
    assert audit.verify(engine) is None


def test_an_entry_is_there_only_with_its_change(engine: Engine) -> None:
    with pytest.raises(RuntimeError), engine.begin() as connection:
        connection.execute(models.insert().values(model="m", created_ns=1))
        audit.append(connection, actor="x", action="a", subject="m", at_ns=1)
        raise RuntimeError
    with engine.connect() as connection:
        assert connection.execute(select(audit_log)).all() == []
        assert connection.execute(text("SELECT count(*) FROM models")).scalar() == 0


def test_long_subjects_are_cut_and_still_hold(engine: Engine) -> None:
    with engine.begin() as connection:
        audit.append(connection, actor="x", action="a", subject="s" * 1000, at_ns=1)
    assert audit.verify(engine) is None
