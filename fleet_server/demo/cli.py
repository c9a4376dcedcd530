"""`fleet demo`: runs the story, keeps the fleet going, ends with the balance.

With `--duration` it ends by itself, not before the story is told; without, at Ctrl-C. With `--json` standard
output holds one JSON object, the summary, and the story goes to standard error.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.cli.exits import FAILED, INTERRUPTED
from fleet_server.cli.stopping import StopFlag
from fleet_server.demo.fleet import DemoFleet, Sources
from fleet_server.demo.scenario import Story
from fleet_server.demo.summary import is_success, settle_and_summarise
from fleet_server.errors import FleetError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    *,
    duration: Annotated[float | None, typer.Option(min=0, help="Seconds to run; without it until Ctrl-C.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
    source: Annotated[Path, typer.Option(help="The edgefleet checkout with models/ and examples/.")] = Path(),
    keep: Annotated[bool, typer.Option(help="Keep the folder with logs and data.")] = False,
) -> None:
    """Run a whole fleet on this machine. Example: fleet demo --duration 60 --json"""
    sources = Sources.find(source.resolve())
    stop = StopFlag()
    folder = Path(tempfile.mkdtemp(prefix="edgefleet-demo-"))
    narrator = _Narrator()
    ok = False
    try:
        summary = _run(sources, folder, duration, narrator, stop)
        ok = summary["ok"] = is_success(summary)
        _show(summary, as_json, narrator)
    finally:
        if keep or not ok:
            narrator.say(f"logs and data are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if not ok:
        raise typer.Exit(INTERRUPTED if stop.is_set() else FAILED)


class _Narrator:
    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", file=sys.stderr, flush=True)  # noqa: T201 - the show


def _run(
    sources: Sources, folder: Path, duration_s: float | None, narrator: _Narrator, stop: StopFlag
) -> dict[str, Any]:
    started_ns, say = time.time_ns(), narrator.say
    deadline = time.monotonic() + duration_s if duration_s is not None else None
    with DemoFleet(sources, folder) as fleet:
        say(f"broker: {fleet.broker_description}")
        say(f"fleet server: {fleet.server_url}/docs (API key in {fleet.api_key_file})")
        say("five devices classify handwritten digits, each a process of its own")
        story = Story(fleet, say, stop)
        try:
            for scene in (
                story.install_first_version,
                story.upgrade,
                story.take_back_broken_version,
                story.cut_one_device_off,
            ):
                scene()
        except FleetError as error:
            say(f"the story broke off: {error}")
        else:
            if deadline is None and not stop.is_set():
                say(f"the fleet goes on until Ctrl-C: {fleet.server_url}/docs")
            stop.wait(max(0.0, deadline - time.monotonic()) if deadline is not None else None)
        say("ending the devices and counting")
        return settle_and_summarise(fleet, story, started_ns=started_ns)


def _show(summary: dict[str, Any], as_json: bool, narrator: _Narrator) -> None:
    if as_json:
        print(json.dumps(summary), flush=True)  # noqa: T201 - the command's result
        return
    narrator.say(
        f"{summary['inferences']} inferences, {summary['windows_sent']} windows sent, "
        f"{summary['stored']} stored, {summary['lost']} lost, {summary['duplicates']} doubled"
    )
