"""`fleet drift report`: what the server says of a model's drift, as one HTML file.

The file is there whole or not at all, and is written last: no question that fails leaves a file, or spoils an old one.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import httpx
import msgspec
import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import show_json, show_line
from fleet_server.errors import ConfigError, FleetError

if TYPE_CHECKING:
    from fleet_server.drift.findings import DriftReport

MAX_HOURS = 14 * 24
_HOUR_NS = 3600 * 10**9


def drift_report(
    model: str,
    version: Annotated[str | None, typer.Argument(help="A version; without it every one that ran.")] = None,
    *,
    hours: Annotated[float, typer.Option(min=0.01, max=MAX_HOURS, help="How far to look back.")] = 24.0,
    against: Annotated[
        str | None,
        typer.Option(
            help="What to compare with: reference, last-week, same-hours, fleet, version:VERSION, selector:KEY=VALUE."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="One device alone.")] = None,
    selector: Annotated[str | None, typer.Option(help="Devices with these labels: KEY=VALUE,...")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file; by default drift-MODEL.html here.", metavar="FILE")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a drift report to look at. Example: fleet drift report digits --hours 24 --out drift.html"""
    from fleet_server.drift.page import Making, render_page

    target = out or Path(default_name(model, version))
    _check_target(target)
    now_ns = time.time_ns()
    question = {
        "model": model,
        "version": version,
        "start_ns": max(0, now_ns - int(hours * _HOUR_NS)),
        "end_ns": now_ns,
        "against": against,
        "seen_device": device,
        "seen_selector": selector,
        "detail": "true",
    }
    asked = {name: value for name, value in question.items() if value is not None}
    with open_client(server, api_key_file) as client:
        reports = read_reports(client.get("drift", **asked))
    made = Making(
        made_at_ns=now_ns,
        server=without_credentials(server),
        edgefleet=version_of("edgefleet"),
        query=f"GET /api/v1/drift?{urlencode(asked)}",
    )
    write_whole(target, render_page(model, reports, made))
    if as_json:
        said = [
            {name: getattr(one, name) for name in ("version", "verdict", "severity", "sentence")} for one in reports
        ]
        show_json({"file": str(target), "model": model, "reports": said})
        return
    for report in reports:
        show_line(report.sentence)
    show_line(f"{target} is written." if reports else f"{target} is written, but no version sent telemetry to judge.")


def read_reports(answer: Any) -> list[DriftReport]:
    """The reports in the server's answer. Raises FleetError when it is not one that this command knows."""
    from fleet_server.drift.findings import DriftReport

    try:
        return msgspec.convert(answer["reports"], list[DriftReport])
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise FleetError(
            f"the server's answer on drift cannot be read ({error}): use the `fleet` of the server's own version"
        ) from None


def default_name(model: str, version: str | None) -> str:
    """The name of the file: of the model and the version, without what a file's name should not hold."""
    parts = [re.sub(r"[^A-Za-z0-9._+-]", "_", part).lstrip(".")[:80] for part in (model, version or "") if part]
    return "-".join(["drift", *parts]) + ".html"


def without_credentials(server: str) -> str:
    """A server's address as it may be shown to others."""
    url = httpx.URL(server)
    return str(url.copy_with(userinfo=b"", query=None, fragment=None)) if url.userinfo or url.query else server


def write_whole(target: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was, also after a power cut. Raises ConfigError."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # a temporary file is for its owner alone; a report is as open as other files of the user
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}; name another file with --out") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise ConfigError(f"{target} is a folder: name a file in it with --out")
    if not target.parent.is_dir():
        raise ConfigError(f"there is no folder {target.parent}: make it, or name another file with --out")
