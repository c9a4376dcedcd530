"""`fleet drift`: has what the devices see moved, against what the model was made with or another time or place?"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.drift_report import drift_report
from fleet_server.cli.output import ago, show_json, show_line, show_table

_MAX_HOURS = 14 * 24
_AGAINST = "reference, last-week, same-hours, fleet (with --device), version:VERSION or selector:KEY=VALUE."

app = typer.Typer(help="What moved, where and since when.", no_args_is_help=True)
app.command("report")(drift_report)


@app.command("show")
def show(
    model: str,
    version: Annotated[str | None, typer.Argument(help="A version; without it every one that ran.")] = None,
    *,
    hours: Annotated[float, typer.Option(min=0.01, max=_MAX_HOURS, help="How far to look back.")] = 1.0,
    against: Annotated[str, typer.Option(help=f"What to compare with: {_AGAINST}")] = "reference",
    device: Annotated[str | None, typer.Option(help="One device alone.")] = None,
    selector: Annotated[str | None, typer.Option(help="Devices with these labels: KEY=VALUE,...")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what devices saw with something else. Example: fleet drift show digits 1.1.0 --hours 24"""
    from fleet_server.cli.drift_text import show_reports  # with it come numpy and the engine's words
    from fleet_server.drift.findings import DriftReport

    end_ns = time.time_ns()
    with open_client(server, api_key_file) as client:
        found = client.get(
            "drift",
            model=model,
            version=version,
            start_ns=max(0, end_ns - int(hours * 3600e9)),
            end_ns=end_ns,
            against=against,
            seen_device=device,
            seen_selector=selector,
            detail="true",
        )
    if as_json:
        show_json(found)
        return
    show_reports(msgspec.convert(found["reports"], list[DriftReport]))


@app.command("findings")
def findings(
    model: Annotated[str | None, typer.Argument(help="A model; without it all of them.")] = None,
    *,
    closed: Annotated[bool, typer.Option("--closed", help="Those that ended too.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the standing watch found and still sees. Example: fleet drift findings"""
    with open_client(server, api_key_file) as client:
        found = client.get("drift/findings", model=model, closed=str(closed).lower())
    if as_json:
        show_json(found)
        return
    rows = [
        (
            one["id"],
            f"{one['model']} {one['version']}",
            one["finding"]["severity"],
            one["finding"]["sentence"],
            ago(one["opened_ns"]),
            one["acknowledged_by"] or ("closed" if one["closed_ns"] else None),
        )
        for one in found["findings"]
    ]
    show_table(("ID", "VERSION", "SEVERITY", "WHAT", "OPEN FOR", "ACKNOWLEDGED"), rows)


@app.command("acknowledge")
def acknowledge(
    finding: Annotated[str, typer.Argument(help="The id that `fleet drift findings` shows.")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that somebody has taken note of a finding. Example: fleet drift acknowledge 3f1c..."""
    with open_client(server, api_key_file) as client:
        done = client.change("POST", f"drift/findings/{finding}/acknowledge", {})
    if as_json:
        show_json(done)
        return
    show_line(f"{done['model']} {done['version']} {done['signal']}: acknowledged by {done['acknowledged_by']}")
