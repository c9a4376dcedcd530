"""How the database is opened."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from fleet_server.database.engine import lock_for_write, open_engine
from fleet_server.database.schema import upgrade
from fleet_server.database.tables import models, versions
from fleet_server.errors import ConfigError


def test_sqlite_is_durable_and_keeps_foreign_keys(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'made' / 'fleet.db'}")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_version_without_its_model_is_refused(database_url: str) -> None:
    engine = open_engine(database_url)
    upgrade(engine)
    row = {
        "model": "kws",
        "version": "1.0.0",
        "bundle": "0" * 64,
        "manifest": {},
        "published_by": "x",
        "published_ns": 1,
    }
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(insert(versions).values(row))


def test_a_transaction_that_reads_before_it_writes_never_fails_half_way(database_url: str) -> None:
    engine = open_engine(database_url)
    upgrade(engine)
    errors: list[Exception] = []

    def add(prefix: int) -> None:
        try:
            for number in range(20):
                with engine.begin() as connection:
                    connection.execute(select(models)).all()
                    connection.execute(insert(models).values(model=f"m{prefix}-{number}", created_ns=1))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    with engine.connect() as connection:
        assert len(connection.execute(select(models)).all()) == 80


def test_a_locked_table_is_read_as_it_stays_until_the_transaction_ends(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    upgrade(engine)
    other_done = threading.Event()

    def write_too() -> None:
        with engine.begin() as connection:
            connection.execute(insert(models).values(model="other", created_ns=1))
        other_done.set()

    with engine.begin() as connection:
        lock_for_write(connection, "models")
        thread = threading.Thread(target=write_too)
        thread.start()
        assert not other_done.wait(0.2)
        assert connection.execute(select(models)).all() == []
    thread.join(30)
    assert other_done.is_set()


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysterydb://x/y"])
def test_a_url_that_cannot_be_opened_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match=r"database\.url") as refused:
        open_engine(url).connect()
    assert "\n" not in str(refused.value)


def test_a_closed_engine_leaves_a_whole_file(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'fleet.db'}")
    upgrade(engine)
    engine.dispose()
    with open_engine(f"sqlite:///{tmp_path / 'fleet.db'}").connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
