"""`fleet init`: a folder from which a server starts at once."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fleet_protocol.keys import PrivateKey
from fleet_protocol.names import check_name
from fleet_server.cli.client import JsonOption
from fleet_server.cli.operators import write_secret
from fleet_server.cli.output import show_json, show_line
from fleet_server.config import load_config
from fleet_server.errors import ConfigError

_CONFIG = """\
# An edgefleet server. Every setting: docs/configuration.md. Paths start at this file's folder.
fleet = "{fleet}"
data_dir = "data"

[http]
host = "{host}"
port = {http_port}
# public_url = "https://fleet.example.com"   # how devices reach this server, where it is not host and port

[mqtt]
embedded = true              # a broker inside the server; for a fleet set false and url = "mqtts://HOST:8883"
listen_host = "{host}"
listen_port = {mqtt_port}
tls = {tls}
password_file = "keys/mqtt.password"

[identity]                   # signs devices' certificates; `fleet tokens create` lets devices in
ca_certificate = "keys/ca.crt"
ca_key = "keys/ca.key"

[trust]
release_keys = ["keys/release.pub"]
release_threshold = 1
director_key = "keys/director.key"
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where the server will live.", metavar="DIR")],
    *,
    fleet: Annotated[str, typer.Option(help="The fleet's id: a-z 0-9 _ -.")] = "default",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65_535)] = 8080,
    mqtt_port: Annotated[int, typer.Option(min=0, max=65_535)] = 1883,
    tls: Annotated[
        bool | None,
        typer.Option("--tls/--no-tls", help="MQTT with TLS. Default: unless the address is this machine's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a config, keys, a database and an admin's API key. Example: fleet init my-fleet"""
    tls = tls if tls is not None else host not in ("localhost", "127.0.0.1", "::1")
    made = make_server_folder(folder, fleet=fleet, host=host, http_port=http_port, mqtt_port=mqtt_port, tls=tls)
    if as_json:
        show_json({"config": str(made.config_file), "api_key_file": str(made.api_key_file), "fleet": fleet})
        return
    show_line(f"The fleet {fleet!r} is ready in {folder}:")
    show_line(f"  fleet serve --config {made.config_file}")
    show_line(f"  fleet devices list --api-key-file {made.api_key_file}")
    show_line(f"Keep {made.release_key} off this machine: whoever has it decides what devices run.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFolder:
    """What `make_server_folder` wrote."""

    config_file: Path
    api_key_file: Path
    release_key: Path


def make_server_folder(
    folder: Path, *, fleet: str, host: str, http_port: int, mqtt_port: int, tls: bool = False
) -> ServerFolder:
    """Write everything a server starts from. Raises ConfigError, and leaves a folder that has a config alone."""
    check_name("fleet", fleet)
    if not host or not all(char.isalnum() or char in ".-:" for char in host):
        raise ConfigError(f"--host {host!r} is not an address")
    config_file = folder / "fleet.toml"
    if config_file.exists():
        raise ConfigError(f"{config_file} exists already: `fleet serve --config {config_file}` starts it")
    try:
        (folder / "keys").mkdir(parents=True, exist_ok=True)
        (folder / "keys").chmod(0o700)
        (folder / "data").mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {folder}: {error.strerror}") from None
    PrivateKey.generate().save(folder / "keys" / "release.key")
    PrivateKey.generate().save(folder / "keys" / "director.key")
    write_secret(folder / "keys" / "mqtt.password", secrets.token_urlsafe(32))
    _make_authority(folder / "keys", fleet)
    settings = {"fleet": fleet, "host": host, "http_port": http_port, "mqtt_port": mqtt_port}
    config_file.write_text(_CONFIG.format(**settings, tls=str(tls).lower()))
    key_file = folder / "admin.key"
    write_secret(key_file, _make_admin(config_file))
    return ServerFolder(config_file=config_file, api_key_file=key_file, release_key=folder / "keys" / "release.key")


def _make_authority(keys: Path, fleet: str) -> None:
    # imported here: the commands that only speak to a server start faster without cryptography
    from fleet_server.identity.certificate_authority import CertificateAuthority

    CertificateAuthority.create(
        fleet=fleet, certificate_file=keys / "ca.crt", key_file=keys / "ca.key", now=datetime.now(UTC)
    )


def _make_admin(config_file: Path) -> str:
    # imported here: the commands that only speak to a server start faster without SQLAlchemy
    from fleet_server.database.engine import open_engine
    from fleet_server.database.schema import upgrade
    from fleet_server.identity import audit
    from fleet_server.identity.api_keys import Role, create_api_key

    engine = open_engine(load_config(config_file).database_url)
    try:
        upgrade(engine)
        now_ns = time.time_ns()
        with engine.begin() as connection:
            key_id, key = create_api_key(connection, name="admin", role=Role.ADMIN, now_ns=now_ns)
            detail = {"id": key_id, "role": "admin"}
            audit.append(connection, actor="init", action="key.create", subject="admin", detail=detail, at_ns=now_ns)
    finally:
        engine.dispose()
    return key
