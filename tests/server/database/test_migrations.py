"""The migrations make exactly the tables the code works with, once, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from fleet_server.database.engine import open_engine
from fleet_server.database.identity_tables import metadata
from fleet_server.database.schema import current_revision, head_revision, upgrade
from fleet_server.errors import ConfigError, UnavailableError


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(database_url)
    yield opened
    opened.dispose()


def test_the_migrations_make_exactly_the_tables_of_the_code(engine: Engine) -> None:
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_a_column_the_migrations_forgot_would_be_seen(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE devices DROP COLUMN online"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) != []


def test_upgrading_again_changes_nothing(engine: Engine) -> None:
    assert current_revision(engine) is None
    assert upgrade(engine) == head_revision()
    assert upgrade(engine) == head_revision() == current_revision(engine)


def test_servers_that_start_at_once_upgrade_once(database_url: str) -> None:
    engines = [open_engine(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        reached = list(pool.map(upgrade, engines))
    for engine in engines:
        engine.dispose()
    assert reached == [head_revision()] * 4


def test_an_upgrade_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE rollouts (in_the_way INTEGER)"))
    with pytest.raises(UnavailableError):
        upgrade(engine)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["rollouts"]


def test_a_database_of_a_newer_release_is_refused(engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999"):
        upgrade(engine)
