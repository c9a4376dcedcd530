"""`fleet simulate`: a fleet of virtual devices, for load tests and for trying rollouts out."""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.keys import PublicKey
from fleet_server.cli.client import JsonOption
from fleet_server.cli.exits import FAILED
from fleet_server.cli.output import show_json, show_line
from fleet_server.cli.stopping import StopFlag
from fleet_server.errors import ConfigError, InvalidRequestError

MAX_SECRET_FILE_BYTES = 16 * 1024
REPORT_EVERY_S = 10.0
_SERVER_USER = "fleet.server"

T = TypeVar("T")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    *,
    mqtt_url: Annotated[str, typer.Option(help="The broker: mqtt://HOST:PORT or mqtts://HOST:PORT.", metavar="URL")],
    fleet: Annotated[str, typer.Option(help="The fleet's id.")] = "default",
    devices: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices.")] = 1000,
    rate: Annotated[float, typer.Option(min=0, help="Predictions per second of each device.")] = 10.0,
    window_s: Annotated[float, typer.Option(min=0.1, max=86_400, help="Length of a telemetry window.")] = 60.0,
    duration: Annotated[float, typer.Option(min=0, help="Seconds to run; 0 until interrupted.")] = 0.0,
    prefix: Annotated[str, typer.Option(help="Devices are PREFIX-00001 and so on; one simulation per prefix.")] = "sim",
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same devices.")] = 0,
    spread: Annotated[float, typer.Option(min=0, max=3, help="How much devices differ.")] = 0.2,
    traffic_spread: Annotated[
        float, typer.Option(min=0, max=3, help="How much their traffic differs: SD of its logarithm.")
    ] = 0.7,
    silent_share: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of devices that are nearly silent.")
    ] = 0.0,
    outcome_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of predictions whose truth becomes known.")
    ] = 1.0,
    site: Annotated[
        list[str] | None,
        typer.Option(help="A site and its hours from UTC, as lisbon=0 or denver=-7; devices are spread. Repeatable."),
    ] = None,
    day_night: Annotated[
        str, typer.Option(help="How the hour counts: traffic=0.6,features=0.3,weekend=0.5; flat without.")
    ] = "",
    network: Annotated[
        str,
        typer.Option(
            help="How bad the net is: jitter_s, late_share, late_s, late_spread, repeat_share, lost_share, "
            "dark_every_s, dark_for_s, clock_share, clock_off_s, liar_share, liar_version, as name=value,name=value."
        ),
    ] = "",
    drift: Annotated[
        list[str] | None,
        typer.Option(
            help="Drift to put in: feature_shift:feature=brightness,by=0.8,site=lisbon,after_s=600,share=0.5, "
            "or feature_noise, class_gone, less_sure, accuracy, embedding_shift; or a file with them, .json or .toml. "
            "Repeatable."
        ),
    ] = None,
    update_s: Annotated[float, typer.Option(min=0, help="How long an update takes before its probation.")] = 5.0,
    version: Annotated[
        list[str] | None,
        typer.Option(
            help="How a version behaves: VERSION:accuracy=0.9,error_rate=0.01,latency_us=3000,ends_in=REVERTED. "
            "`default` stands for every other one. Repeatable."
        ),
    ] = None,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(help="Bundle folder: its version sends features, classes and scores as in its reference."),
    ] = None,
    director_key: Annotated[
        Path | None, typer.Option(help="The server's public key: desired states it did not sign are refused.")
    ] = None,
    username: Annotated[str, typer.Option(help="The MQTT user: the server's, it may write the whole fleet.")] = (
        _SERVER_USER
    ),
    password_file: Annotated[
        Path | None, typer.Option(help="File with its password; EDGEFLEET_MQTT_PASSWORD holds the password itself.")
    ] = None,
    ca_file: Annotated[Path | None, typer.Option(help="PEM file with the broker's authority.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run virtual devices against a real broker. They follow rollouts, and run no model.

    A load tool that uses the server's own credential: it needs a broker of its own (the one inside the server lets
    nobody speak for a device), and no device has a last will.

    Example: fleet simulate --devices 1000 --mqtt-url mqtt://127.0.0.1:1883 --rate 10 --version 1.1.0:accuracy=0.9
    Example: fleet simulate --mqtt-url mqtt://127.0.0.1:1883 --bundle models/digits/bundles/1.1.0 --site lisbon=0
    --site tokyo=9 --drift feature_shift:feature=brightness,by=0.8,site=lisbon --network late_share=0.05,late_s=300
    """
    # imported here: paho and numpy would slow down every other command
    from fleet_server.message_bus import PahoBus
    from fleet_server.simulator import Behaviour, DayNight, FleetBehaviour, NetFaults, Simulation, read_drifts

    behaviours = dict(_behaviour(text) for text in version or [])
    default = behaviours.pop("default", Behaviour())
    manifests = [read_manifest(folder) for folder in bundle or []]
    behaviour = FleetBehaviour(
        rate_per_s=rate,
        window_s=window_s,
        spread=spread,
        traffic_spread=traffic_spread,
        silent_share=silent_share,
        outcome_share=outcome_share,
        update_s=update_s,
        day=_settings(f"--day-night {day_night!r}", day_night, DayNight),
        sites=dict(_site(text) for text in site or []),
        drifts=read_drifts(drift or []),
        network=_settings(f"--network {network!r}", network, NetFaults),
        default=default,
        by_version=behaviours,
        manifests={(manifest.model, manifest.version): manifest for manifest in manifests},
    )
    bus = PahoBus(
        url=mqtt_url,
        client_id=f"edgefleet-simulator-{fleet}-{prefix}",
        username=username or None,
        password=_password(password_file),
        make_tls=lambda: ssl.create_default_context(cafile=ca_file),
    )
    simulation = Simulation(
        bus=bus,
        fleet=fleet,
        devices=devices,
        behaviour=behaviour,
        prefix=prefix,
        seed=seed,
        director_keys=[PublicKey.load(director_key)] if director_key else [],
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    ended = StopFlag()
    simulation.start()
    deadline_s = time.monotonic() + duration if duration else float("inf")
    while not ended.wait(max(0.0, min(REPORT_EVERY_S, deadline_s - time.monotonic()))):
        if time.monotonic() >= deadline_s:
            break
        _show(simulation.summary(), as_json=as_json)
    confirmed = simulation.stop()
    _show(simulation.summary(), as_json=as_json)
    if not confirmed:
        raise typer.Exit(FAILED)


def _behaviour(text: str) -> tuple[str, Any]:
    """(version, its behaviour) of VERSION:name=value,name=value. Raises InvalidRequestError."""
    from fleet_server.simulator import Behaviour

    version, colon, rest = text.partition(":")
    if not version or not colon or not rest:
        raise InvalidRequestError(f"--version {text!r}: use VERSION:accuracy=0.9,latency_us=3000")
    return version, _settings(f"--version {text!r}", rest, Behaviour)


def _settings(option: str, text: str, kind: type[T]) -> T:
    """The struct of name=value,name=value; its defaults for "". Raises InvalidRequestError that names the option."""
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    try:
        return msgspec.convert({name: value for name, _, value in pairs}, kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"{option}: {error}; use name=value,name=value") from None


def _site(text: str) -> tuple[str, float]:
    name, equals, offset = text.partition("=")
    try:
        if name and equals:
            return name, float(offset)
    except ValueError:
        pass
    raise InvalidRequestError(f"--site {text!r}: use NAME=HOURS, its hours from UTC, as lisbon=0 or denver=-7")


def _password(path: Path | None) -> str | None:
    if value := os.environ.get("EDGEFLEET_MQTT_PASSWORD"):
        return value
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return file.read(MAX_SECRET_FILE_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--password-file {path} cannot be read: {error}") from None


def _show(summary: Any, *, as_json: bool) -> None:
    if as_json:
        show_json(summary)
        return
    running = ", ".join(f"{name} on {count}" for name, count in summary.versions.items()) or "no model yet"
    show_line(
        f"{summary.devices:,} devices, {summary.windows:,} windows ({summary.unconfirmed:,} not confirmed), "
        f"{summary.predictions:,} predictions; {running}"
    )
