"""Brings a database to this release's tables, and says where it stands.

Invariant: an upgrade happens whole or not at all, and two processes that upgrade at once do it once.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from fleet_server.errors import ConfigError, UnavailableError

_MIGRATIONS = Path(__file__).parent / "migrations"
_UPGRADE_LOCK = 0x_ED6E_F1EE  # any number: PostgreSQL's advisory locks share one space per database


def upgrade(engine: Engine) -> str:
    """Apply every migration that is missing; returns the revision reached.

    Raises UnavailableError when the database is away, ConfigError when a newer release made it.
    """
    try:
        with engine.begin() as connection:
            _take_turn(connection)
            found = _revision(connection)
            known = {script.revision for script in _scripts().walk_revisions()}
            if found is not None and found not in known:
                raise ConfigError(
                    f"the database is at revision {found}, which this release does not know: upgrade edgefleet"
                )
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            return head_revision()
    except SQLAlchemyError as error:
        raise UnavailableError(f"the database could not be upgraded: {_first_line(error)}") from error


def current_revision(engine: Engine) -> str | None:
    """The revision the database is at; None before the first upgrade. Raises UnavailableError."""
    try:
        with engine.connect() as connection:
            return _revision(connection)
    except SQLAlchemyError as error:
        raise UnavailableError(f"the database does not answer: {_first_line(error)}") from error


def head_revision() -> str:
    """The revision this release works with."""
    head = _scripts().get_current_head()
    if head is None:
        raise RuntimeError("the migrations folder is empty")
    return head


def _take_turn(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_UPGRADE_LOCK})")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
