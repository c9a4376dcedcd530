"""`fleet serve`."""

from __future__ import annotations

import typer

from fleet_server.cli.database import DEFAULT_CONFIG, ConfigOption
from fleet_server.config import load_config


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(*, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Run the fleet server. Example: fleet serve --config fleet.toml"""
    settings = load_config(config)
    from fleet_server.server import serve as run  # heavy: broker, HTTP server, statistics

    run(settings)
