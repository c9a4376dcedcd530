"""`fleet drift`: has what the devices see moved away from what the model was made with?"""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import show_json, show_line, show_table

_MAX_HOURS = 14 * 24


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("drift")(drift)


def drift(
    model: str,
    version: Annotated[str | None, typer.Argument(help="A version; without it every one that ran.")] = None,
    *,
    hours: Annotated[float, typer.Option(min=0.01, max=_MAX_HOURS, help="How far to look back.")] = 1.0,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what devices saw with the model's reference. Example: fleet drift digits 1.1.0 --hours 24"""
    end_ns = time.time_ns()
    with open_client(server, api_key_file) as client:
        found = client.get(
            "drift", model=model, version=version, start_ns=max(0, end_ns - int(hours * 3600e9)), end_ns=end_ns
        )
    if as_json:
        show_json(found)
        return
    for report in found["reports"]:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    show_line(report["sentence"])
    if report["windows_truncated"]:
        show_line(f"Only the latest {report['windows']} windows were read: look back less far to see all of a span.")
    rows = [
        (s["signal"], s["verdict"], s["devices"], s["values"], _number(s["adjusted_p_value"]), _percent(s["shift"]))
        for s in report["signals"]
    ]
    show_table(("SIGNAL", "VERDICT", "DEVICES", "VALUES", "P", "RANK SHIFT"), rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"
