"""`fleet rollout simulate`: a policy tried on a simulated fleet with a broken or an equal model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import show_facts, show_json, show_line, show_table
from fleet_server.cli.rollout_screen import duration
from fleet_server.errors import ConfigError
from fleet_server.rollouts.policy import parse_policy
from fleet_server.rollouts.policy_file import read_policy_file

if TYPE_CHECKING:
    from fleet_server.rollouts.simulation import RecordedDevices, Share, Summary

MAX_DEVICES = 1_000_000
MAX_RUNS = 100_000
MAX_PROCESSES = 256
REPLAY_HOURS = 24
_NS_PER_S = 10**9
_ENDS = {
    "rolled_back": "rolled back",
    "completed": "completed",
    "completed_in_part": "completed, but segments taken back",
    "paused_by_fail": "paused, a gate failed",
    "paused_inconclusive": "paused, a gate could not say",
    "paused_by_deadline": "paused by the deadline",
    "unfinished": "not over",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    policy: Annotated[Path, typer.Argument(help="JSON or YAML file with the policy.")],
    *,
    fleet: Annotated[int, typer.Option(min=1, max=MAX_DEVICES, help="How many devices.")] = 10_000,
    breaks: Annotated[
        list[str] | None,
        typer.Option(
            "--break",
            metavar="KIND:AMOUNT%",
            help="What is wrong with the model: accuracy:-5%, latency:+20%, errors:+2%, memory:+50%, "
            "crash:2%, hang:1%, silent:1% (of devices). Repeatable.",
        ),
    ] = None,
    equal: Annotated[bool, typer.Option("--equal", help="A model that is as good as its incumbent.")] = False,
    runs: Annotated[int, typer.Option(min=1, max=MAX_RUNS, help="How many rollouts.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="The same seed makes the same rollouts.")] = 0,
    processes: Annotated[
        int, typer.Option(min=0, max=MAX_PROCESSES, help="At the same time; 0 is one for each core.")
    ] = 0,
    replay: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="MODEL VERSION", help="Draw the devices from what those with this version did."),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try a policy on a simulated fleet. Example: fleet rollout simulate policy.yaml --break accuracy:-5% --runs 100"""
    from fleet_server.rollouts.simulation import Scenario, parse_breaks, simulate_rollouts, summarize

    if equal == bool(breaks):
        raise ConfigError("say what is wrong with the model, as --break accuracy:-5%, or that nothing is, --equal")
    harm = parse_breaks(breaks or ())
    scenario = Scenario(policy=parse_policy(read_policy_file(policy)), devices=fleet, breaks=harm)
    if replay is not None:
        scenario = replace(scenario, recorded=_recorded(*replay, server=server, api_key_file=api_key_file))
    began = time.monotonic()
    workers = min(runs, processes or os.cpu_count() or 1)
    results = list(simulate_rollouts(scenario, range(seed, seed + runs), processes=workers))
    summary = summarize(results, devices=fleet)
    if as_json:
        show_json(
            {
                "policy": str(policy),
                "breaks": breaks or [],
                "seed": seed,
                "replay": list(replay) if replay else None,
                **msgspec.to_builtins(summary),
            }
        )
        return
    _show(summary, what=", ".join(breaks or ["an equal model"]), took_s=time.monotonic() - began)


def _recorded(model: str, version: str, *, server: str, api_key_file: Path | None) -> RecordedDevices:
    from fleet_server.rollouts.simulation.recorded import recorded_devices

    end_s = math.ceil(time.time() / 60) * 60
    span = {"start_ns": (end_s - REPLAY_HOURS * 3600) * _NS_PER_S, "end_ns": end_s * _NS_PER_S}
    with open_client(server, api_key_file) as client:
        found = client.get(f"models/{model}/metrics", group_by="device", version=version, step="1d", **span)
    try:
        return recorded_devices(found["points"], hours=REPLAY_HOURS)
    except KeyError as error:
        raise ConfigError(f"the server's series has no {error}: it is of another version than this command") from None


def _show(summary: Summary, *, what: str, took_s: float) -> None:
    show_facts((("simulated", f"{summary.runs} rollouts of {what} to {summary.devices:,} devices, {took_s:.0f} s"),))
    show_table(
        ("ENDED", "ROLLOUTS", "SHARE", "95 % INTERVAL"),
        [(_ENDS.get(name, name), share.count, _percent(share.share), _interval(share))
         for name, share in summary.ends.items()],
    )  # fmt: skip
    alarms = summary.alarms
    show_facts(
        (
            ("a gate failed in", f"{_percent(alarms.share)} of rollouts ({_interval(alarms)})"),
            ("time to stop", _times(summary.stopped_s)),
            ("devices exposed by then", _exposed(summary.exposed, summary.devices)),
            ("stopped by", ", ".join(f"{name} {count}" for name, count in summary.gates.items())),
            ("stopped in stage", ", ".join(f"{name}: {count}" for name, count in summary.stages.items())),
            ("all back after", _times(summary.back_s)),
            ("time to complete", _times(summary.completed_s)),
            ("failed updates", f"{summary.failed_updates:.1f} a rollout"),
        )
    )
    show_line("Simulated time, simulated devices: docs/rollout_simulation.md says what that leaves out.")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(share: Share) -> str:
    return f"{100 * share.lower:.1f} to {100 * share.upper:.1f} %"


def _times(spread: Mapping[str, float] | None) -> str:
    return "" if spread is None else f"median {duration(spread['median'])}, 95 % within {duration(spread['p95'])}"


def _exposed(spread: Mapping[str, float] | None, devices: int) -> str:
    if spread is None:
        return ""
    median, p95 = spread["median"], spread["p95"]
    return f"median {median:.0f} ({_percent(median / devices)} of the fleet), 95 % at most {p95:.0f}"
