"""`fleet kpis`, `fleet ingest` and `fleet audit`."""

from __future__ import annotations

from typing import Annotated

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.exits import FAILED
from fleet_server.cli.output import ago, milliseconds, percent, show_facts, show_json, show_line, show_table

_audit = typer.Typer(help="The audit log.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("kpis")(kpis)
    app.command("ingest")(ingest)
    app.add_typer(_audit, name="audit")


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


@_audit.command("list")
def list_entries(
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many, the newest first.")] = 50,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List who did what, the newest first. Example: fleet audit list --limit 10"""
    with open_client(server, api_key_file) as client:
        found = client.get("audit", limit=limit)["items"]
    if as_json:
        show_json(found)
        return
    rows = [(e["id"], ago(e["at_ns"]), e["actor"], e["action"], e["subject"]) for e in found]
    show_table(("ID", "WHEN", "WHO", "WHAT", "TO"), rows)


@_audit.command("verify")
def verify(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Check the log's chain of hashes: exit 0 when it holds, 1 when it does not. Example: fleet audit verify"""
    with open_client(server, api_key_file) as client:
        found = client.get("audit/verify")
    if as_json:
        show_json(found)
    else:
        broken = f"the chain is broken from entry {found['first_broken_id']} on"
        show_line("the chain holds" if found["holds"] else broken)
    if not found["holds"]:
        raise typer.Exit(FAILED)
