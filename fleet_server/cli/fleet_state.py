"""`fleet kpis` and `fleet ingest`."""

from __future__ import annotations

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import milliseconds, percent, show_facts, show_json, show_table


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("kpis")(kpis)
    app.command("ingest")(ingest)


def kpis(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show the fleet's last 24 hours. Example: fleet kpis"""
    with open_client(server, api_key_file) as client:
        found = client.get("kpis")
    if as_json:
        show_json(found)
        return
    show_facts(
        (
            ("fleet", found["fleet"]),
            ("devices online", f"{found['devices_online']} of {found['devices']}"),
            ("predictions", f"{found['predictions']:,}"),
            ("p50", milliseconds(found["p50_us"])),
            ("p95", milliseconds(found["p95_us"])),
            ("p99", milliseconds(found["p99_us"])),
            ("error rate", percent(found["error_rate"])),
            ("accuracy", percent(found["accuracy"])),
            ("uptime", percent(found["uptime_share"])),
        )
    )


def ingest(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show how complete the telemetry is. Example: fleet ingest --json"""
    with open_client(server, api_key_file) as client:
        found = client.get("ingest")
    if as_json:
        show_json(found)
        return
    show_facts(
        (
            ("windows stored", f"{found['windows']:,}"),
            ("repeats dropped", f"{found['repeats']:,}"),
            ("missing sequences", f"{found['missing']:,}"),
        )
    )
    if found["incomplete"]:
        rows = [(i["device"], i["boot_id"], i["missing"]) for i in found["incomplete"]]
        show_table(("DEVICE", "BOOT", "MISSING"), rows)
