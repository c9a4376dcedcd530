"""`fleet telemetry`: a model's or a device's series, on the screen or as a CSV or Parquet file."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import milliseconds, percent, show_json, show_line, show_table
from fleet_server.errors import ConfigError

_FORMATS = {".csv": "csv", ".parquet": "parquet"}
_MAX_HOURS = 2 * 366 * 24
_NS_PER_S = 10**9


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("telemetry")(telemetry)


def telemetry(
    model: Annotated[str | None, typer.Argument(help="A model; or use --device.")] = None,
    *,
    device: Annotated[str | None, typer.Option("--device", help="One device in place of a model.")] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=_MAX_HOURS, help="How far to look back.")] = 1.0,
    start: Annotated[str | None, typer.Option(help="From when: 2026-03-01T09:40:00Z; in place of --hours.")] = None,
    end: Annotated[str | None, typer.Option(help="Until when; now by default.")] = None,
    step: Annotated[str, typer.Option(help="Length of a step: 30s, 5m, 1h, 1d.")] = "5m",
    group_by: Annotated[
        list[str] | None, typer.Option("--group-by", help="version, variant, arm, cohort, device, label:KEY; repeated.")
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option("--label", help="Only devices with KEY=VALUE; repeated.")
    ] = None,
    version: Annotated[str | None, typer.Option("--version", help="Only this version.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Only this arm.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write FILE.csv or FILE.parquet.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show telemetry over time. Example: fleet telemetry digits --hours 24 --step 1h --group-by version"""
    if (model is None) == (device is None):
        raise ConfigError("name a model, or a device with --device, and not both")
    if out is not None and out.suffix not in _FORMATS:
        raise ConfigError(f"--out {out}: use a file that ends in .csv or .parquet")
    if device is not None and selector:
        raise ConfigError("--label chooses among devices: leave it out with --device")
    path = f"models/{model}/metrics" if model is not None else f"devices/{device}/telemetry"
    asked: dict[str, Any] = {"step": step, "group_by": group_by or None, "version": version, "arm": arm}
    if model is not None:
        asked["selector"] = selector or None
    if start is None and end is None:
        asked |= _last(hours)
    else:
        asked |= {"start": start, "end": end}
    with open_client(server, api_key_file) as client:
        if out is not None:
            size_bytes = client.download(path, out, **asked, format=_FORMATS[out.suffix])
            found: dict[str, Any] = {"file": str(out), "size_bytes": size_bytes}
        else:
            found = client.get(path, **asked)
    if as_json:
        show_json(found)
    elif out is not None:
        show_line(f"{found['size_bytes']:,} bytes in {out}")
    else:
        _show(found)


def _last(hours: float) -> dict[str, int]:
    """The last hours up to the end of this minute: whole minutes are answered from merged series."""
    end_s = math.ceil(time.time() / 60) * 60
    start_s = max(0, end_s - math.ceil(hours * 60) * 60)
    return {"start_ns": start_s * _NS_PER_S, "end_ns": end_s * _NS_PER_S}


def _show(found: dict[str, Any]) -> None:
    keys = found["group_by"]
    headings = (
        "START (UTC)",
        *(key.upper() for key in keys),
        "COUNT",
        "ERRORS",
        "P50",
        "P95",
        "P99",
        "ACCURACY",
        "DEVICES",
    )
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(point["start_ns"] // _NS_PER_S)),
            *(point[key] for key in keys),
            f"{point['count']:,}",
            percent(point["error_rate"]),
            milliseconds(point["p50_us"]),
            milliseconds(point["p95_us"]),
            milliseconds(point["p99_us"]),
            _accuracy(point),
            point["devices"],
        )
        for point in found["points"]
    ]
    if not rows:
        show_line("Nothing was counted in this span.")
        return
    show_table(headings, rows)


def _accuracy(point: dict[str, Any]) -> str:
    """The accuracy with its interval; the estimated one where no outcome is known."""
    if point["accuracy"] is None:
        estimated = point["estimated_accuracy"]
        return "-" if estimated is None else f"about {percent(estimated)}"
    if point["accuracy_lower"] is None:
        return percent(point["accuracy"])
    return f"{percent(point['accuracy'])} ({100 * point['accuracy_lower']:.1f} to {100 * point['accuracy_upper']:.1f})"
