"""`fleet rollout`: create, watch and command rollouts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.exits import FAILED
from fleet_server.cli.output import ago, show_facts, show_json, show_line, show_table
from fleet_server.errors import ConfigError

MAX_POLICY_BYTES = 256 * 1024
POLL_S = 1.0
_ENDS = ("COMPLETED", "ROLLED_BACK", "CANCELED")

app = typer.Typer(help="Roll versions out, and take them back.", no_args_is_help=True)


@app.command("create")
def create(
    model: str,
    version: str,
    *,
    policy: Annotated[
        Path | None, typer.Option("-f", "--policy", help="JSON file with the policy; without it the defaults hold.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Roll a published version out. Example: fleet rollout create digits 1.1.0 -f policy.json"""
    body = {"model": model, "version": version, "policy": _read_policy(policy)}
    with open_client(server, api_key_file) as client:
        view = client.change("POST", "rollouts", body)
    _show(view, as_json=as_json)


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
                _stage(r),
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
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    told: tuple[Any, ...] | None = None
    with open_client(server, api_key_file) as client:
        while True:
            view = client.get(f"rollouts/{rollout}")
            now = (view["state"], view["stage"], view["step"], view["reason"], view["exposed_count"])
            if now != told:
                told = now
                if as_json:
                    show_json(view)
                else:
                    reason = f": {view['reason']}" if view["reason"] else ""
                    show_line(f"{view['state']} {_stage(view)}, {view['exposed_count']} devices{reason}")
            if view["state"] in _ENDS:
                raise typer.Exit(0 if view["state"] == "COMPLETED" else FAILED)
            if deadline is not None and time.monotonic() > deadline:
                show_line(f"still {view['state']} after {timeout_s:g} s") if not as_json else None
                raise typer.Exit(FAILED)
            time.sleep(POLL_S)


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


def _read_policy(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY_BYTES + 1)
        if len(data) > MAX_POLICY_BYTES:
            raise ConfigError(f"{path} exceeds {MAX_POLICY_BYTES} bytes: it is not a policy")
        policy: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except OSError as error:
        raise ConfigError(f"cannot read the policy {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"the policy {path} is not a JSON object: {error}") from None
    return policy


def _show(view: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(view)
        return
    show_facts(
        (
            ("rollout", view["id"]),
            ("model", f"{view['model']} {view['version']}"),
            ("state", view["state"]),
            ("stage", _stage(view)),
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


def _stage(view: dict[str, Any]) -> str:
    step = f" {view['step']}" if view["step"] else ""
    return f"{min(view['stage'] + 1, view['stages'])}/{view['stages']}{step}"
