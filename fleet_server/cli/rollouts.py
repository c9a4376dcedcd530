"""`fleet rollout`: create, watch and command rollouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import ago, show_facts, show_json, show_table
from fleet_server.cli.rollout_plan import show_plan
from fleet_server.cli.rollout_screen import stage_of
from fleet_server.cli.rollout_simulate import register as register_simulate
from fleet_server.cli.rollout_watch import watch_rollout
from fleet_server.rollouts.policy_file import read_policy_file

app = typer.Typer(help="Roll versions out, and take them back.", no_args_is_help=True)
register_simulate(app)


@app.command("create")
def create(
    model: str,
    version: str,
    *,
    policy: Annotated[
        Path | None,
        typer.Option("-f", "--policy", help="JSON or YAML file with the policy; without it the defaults hold."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; show devices, order, time, bytes and what gates can see.")
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Roll a published version out. Example: fleet rollout create digits 1.1.0 -f policy.yaml --dry-run"""
    body = {"model": model, "version": version, "policy": read_policy_file(policy) if policy else {}}
    with open_client(server, api_key_file) as client:
        answer = client.change("POST", "rollouts/plan" if dry_run else "rollouts", body)
    if not dry_run:
        _show(answer, as_json=as_json)
    elif as_json:
        show_json(answer)
    else:
        show_plan(answer)


@app.command("list")
def list_rollouts(
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, the newest first.")] = 20,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, the newest first. Example: fleet rollout list"""
    with open_client(server, api_key_file) as client:
        found = client.get("rollouts", limit=limit)["items"]
    if as_json:
        show_json(found)
        return
    show_table(
        ("ID", "MODEL", "VERSION", "STATE", "STAGE", "DEVICES", "CHANGED", "REASON"),
        [
            (
                r["id"],
                r["model"],
                r["version"],
                r["state"],
                stage_of(r),
                r["exposed_count"],
                ago(r["updated_ns"]),
                r["reason"],
            )
            for r in found
        ],
    )


@app.command("show")
def show(
    rollout: str,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a rollout with its devices and gates. Example: fleet rollout show ID"""
    with open_client(server, api_key_file) as client:
        _show(client.get(f"rollouts/{rollout}"), as_json=as_json)


@app.command("watch")
def watch(
    rollout: str,
    *,
    timeout_s: Annotated[float | None, typer.Option("--timeout", help="Give up after so many seconds.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a rollout to its end: exit 0 when it completed, 1 when it did not. Example: fleet rollout watch ID"""
    with open_client(server, api_key_file) as client:
        code = watch_rollout(lambda: client.get(f"rollouts/{rollout}"), timeout_s=timeout_s, as_json=as_json)
    raise typer.Exit(code)


def _command(name: str, description: str) -> Callable[..., None]:
    def run(
        rollout: str,
        *,
        server: ServerOption = DEFAULT_SERVER,
        api_key_file: KeyFileOption = None,
        as_json: JsonOption = False,
    ) -> None:
        with open_client(server, api_key_file) as client:
            _show(client.change("POST", f"rollouts/{rollout}/{name}"), as_json=as_json)

    run.__doc__ = f"{description} Example: fleet rollout {name} ID"
    return run


for _name, _description in (
    ("approve", "Approve a rollout that waits for it."),
    ("pause", "Hold a rollout where it is."),
    ("resume", "Let a paused rollout go on."),
    ("abort", "Stop a rollout."),
    ("rollback", "Take the version back from every device that has it."),
):
    app.command(_name)(_command(_name, _description))


def _show(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(view)
        return
    show_facts(
        (
            ("rollout", view["id"]),
            ("model", f"{view['model']} {view['version']}"),
            ("state", view["state"]),
            ("stage", stage_of(view)),
            ("devices", view["exposed_count"]),
            ("reason", view["reason"]),
            ("created by", view["created_by"]),
        )
    )
    if view["gates"]:
        rows = [(g["gate"], g["stage"] + 1, g["verdict"], g["explanation"]) for g in view["gates"]]
        show_table(("GATE", "STAGE", "VERDICT", "WHY"), rows)
    if view["devices"]:
        rows = [(d["device"], d["stage"] + 1, d["phase"], d["incumbent_version"]) for d in view["devices"]]
        show_table(("DEVICE", "STAGE", "PHASE", "BEFORE"), rows)
