"""`fleet broker-config`: the files of a Mosquitto that serves the fleet by certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_server.cli.client import JsonOption
from fleet_server.cli.output import show_json, show_line
from fleet_server.config import load_config
from fleet_server.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("broker-config")(broker_config)


def broker_config(
    folder: Annotated[
        Path, typer.Argument(help="Writes mosquitto.conf, acl, ca.crt, broker.crt, broker.key, revoked.crl.")
    ],
    *,
    config: Annotated[Path, typer.Option(help="The server's config, for its fleet and authority.")] = Path(
        "fleet.toml"
    ),
    host: Annotated[list[str], typer.Option("--host", help="A name or address of the broker, may be repeated.")],
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8883,
    installed_at: Annotated[
        str | None, typer.Option("--at", help="Where the broker will find the files. Default: the folder itself.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a Mosquitto's files, or renew its certificate. Example: fleet broker-config mosquitto --host mqtt.lan"""
    # imported here: the commands that only speak to a server start faster without cryptography
    from fleet_server.message_bus.broker_files import is_folder_name, mosquitto_config, write_broker_files
    from fleet_server.message_bus.opening import load_authority

    settings = load_config(config)
    authority = load_authority(settings)
    if authority is None:
        raise ConfigError(f"{config} has no authority: set identity.ca_certificate and identity.ca_key")
    at = installed_at or str(folder.absolute())
    if not is_folder_name(at):
        raise ConfigError(f"--at {at!r}: use a whole path without spaces, as Mosquitto takes it")
    text = mosquitto_config(port=port, at=at.rstrip("/"), data=f"{at.rstrip('/')}/data")
    write_broker_files(folder, authority=authority, fleet=settings.fleet, hosts=host, config=text)
    (folder / "data").mkdir(exist_ok=True)
    url = f"mqtts://{host[0]}:{port}"
    if as_json:
        show_json({"folder": str(folder), "url": url, "fleet": settings.fleet})
        return
    show_line(f"{folder} is ready: mosquitto -c {at}/mosquitto.conf")
    show_line(f"In {config}, so that the server uses it and tells it who is revoked:")
    show_line("  [mqtt]")
    show_line("  embedded = false")
    show_line(f'  url = "{url}"')
    show_line('  sign_in = "certificate"')
    show_line("  [identity]")
    show_line(f'  crl_file = "{folder.absolute() / "revoked.crl"}"')
    show_line('  reload_command = ["systemctl", "reload", "mosquitto"]')
