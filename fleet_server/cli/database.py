"""`fleet db`: the database and the telemetry store, on the server's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_server.cli.client import JsonOption
from fleet_server.cli.output import show_json, show_line
from fleet_server.config import ServerConfig, load_config

app = typer.Typer(help="The server's database.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="The server's config.", metavar="FILE")]
DEFAULT_CONFIG = Path("fleet.toml")


@app.command("init")
def init_databases(*, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Create what is missing in the database and in the telemetry store. Example: fleet db init"""
    settings = load_config(config)
    before, reached = _upgrade(settings)
    from fleet_server.telemetry_store import open_store  # heavy, see _upgrade

    store = open_store(settings.telemetry_store_url, token=settings.store_token() or "")
    try:
        store.set_up(
            raw_retention_s=settings.telemetry_store.raw_retention_s,
            merged_retention_s=settings.telemetry_store.merged_retention_s,
        )
    finally:
        store.close()
    _report(before, reached, as_json=as_json)


@app.command("upgrade")
def upgrade_database(*, config: ConfigOption = DEFAULT_CONFIG, as_json: JsonOption = False) -> None:
    """Bring the database to this release's tables. Example: fleet db upgrade --config fleet.toml"""
    before, reached = _upgrade(load_config(config))
    _report(before, reached, as_json=as_json)


def _upgrade(settings: ServerConfig) -> tuple[str | None, str]:
    # imported here: commands that only speak to a server start in half the time without SQLAlchemy and Alembic
    from fleet_server.database.engine import open_engine
    from fleet_server.database.schema import current_revision, upgrade

    engine = open_engine(settings.database_url)
    try:
        return current_revision(engine), upgrade(engine)
    finally:
        engine.dispose()


def _report(before: str | None, reached: str, *, as_json: bool) -> None:
    if as_json:
        show_json({"before": before, "revision": reached})
    else:
        show_line(f"the database is at revision {reached}" + ("" if before != reached else " already"))
