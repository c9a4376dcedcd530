"""The migrations make exactly the tables the code works with, once, and whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from fleet_server.database.engine import open_engine
from fleet_server.database.identity_tables import metadata
from fleet_server.database.schema import current_revision, head_revision, upgrade
from fleet_server.errors import ConfigError, UnavailableError


def _engine(folder: Path) -> Engine:
    return open_engine(f"sqlite:///{folder / 'fleet.db'}")


def test_the_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_a_column_the_migrations_forgot_would_be_seen(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE devices DROP COLUMN online"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) != []


def test_upgrading_again_changes_nothing(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    assert current_revision(engine) is None
    assert upgrade(engine) == head_revision()
    assert upgrade(engine) == head_revision() == current_revision(engine)


def test_servers_that_start_at_once_upgrade_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        reached = list(pool.map(lambda _: upgrade(_engine(tmp_path)), range(4)))
    assert reached == [head_revision()] * 4


def test_an_upgrade_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rollouts (in_the_way INTEGER)"))
    with pytest.raises(UnavailableError):
        upgrade(engine)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["rollouts"]


def test_a_database_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999"):
        upgrade(engine)
