"""`fleet tokens`: what new devices are let into the fleet with."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.devices import parse_labels
from fleet_server.cli.operators import write_secret
from fleet_server.cli.output import ago, labels_text, show_json, show_line, show_table
from fleet_server.errors import ConfigError

app = typer.Typer(help="Enrolment tokens for new devices.", no_args_is_help=True)
_UNITS_S = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}


@app.command("create")
def create(
    *,
    uses: Annotated[int, typer.Option(min=1, help="How many devices it lets in.")] = 1,
    expires: Annotated[str, typer.Option(metavar="TIME", help="Until when: 30min, 24h, 7d.")] = "24h",
    device: Annotated[
        str | None, typer.Option(help="Only this device; one that is enrolled gets a new identity.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="Only devices whose id matches, with * and ?.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="KEY=VALUE the device gets, may be repeated.")
    ] = None,
    note: Annotated[str, typer.Option(help="What it is for, for the list.")] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write the token to this new file (mode 0600).")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token; it is shown only once. Example: fleet tokens create --label site=lab --uses 20 --expires 7d"""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already: write to another file")
    body = {
        "max_uses": uses,
        "life_s": _seconds(expires),
        "device": device,
        "device_pattern": pattern,
        "labels": parse_labels(label) if label else {},
        "note": note,
    }
    with open_client(server, api_key_file) as client:
        made = client.change("POST", "enrolment-tokens", body)
    if out is not None:
        write_secret(out, made.pop("token"))
        made["file"] = str(out)
    if as_json:
        show_json(made)
        return
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(made["expires_ns"] / 1e9))
    show_line(
        f"Token {made['id']}, for {uses} {'device' if uses == 1 else 'devices'} until {until}, shown only this once:"
    )
    show_line(f"  {out if out is not None else made['token']}")
    given = f"--token-file {out}" if out is not None else "--token-file -"
    show_line("On the device:")
    show_line(f"  edge-agent enrol --server {made['server_url']} {given} --device {device or 'ID'}")


@app.command("list")
def list_tokens(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """List tokens, also those that are used up. Example: fleet tokens list"""
    with open_client(server, api_key_file) as client:
        found = client.pages("enrolment-tokens")
    if as_json:
        show_json(found)
        return
    rows = [
        (
            token["id"],
            f"{token['uses']} of {token['max_uses']}",
            _state(token),
            token["device"] or token["device_pattern"],
            labels_text(token["labels"]),
            token["created_by"],
            ago(token["created_ns"]),
            token["note"],
        )
        for token in sorted(found, key=lambda token: token["created_ns"])
    ]
    show_table(("ID", "USES", "STATE", "DEVICE", "LABELS", "BY", "CREATED", "NOTE"), rows)


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id from `fleet tokens list`.")],
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let nobody in with a token any more; devices it let in stay. Example: fleet tokens revoke 1f0c2a9be07d4c11"""
    with open_client(server, api_key_file) as client:
        ended = client.change("DELETE", f"enrolment-tokens/{token_id}")
    if as_json:
        show_json(ended)
    else:
        show_line(f"Token {token_id} is revoked; {ended['uses']} devices were let in with it.")


def _state(token: dict[str, Any]) -> str:
    if token["revoked_ns"] is not None:
        return "revoked"
    if token["uses"] >= token["max_uses"]:
        return "used up"
    return "expired" if token["expires_ns"] < time.time_ns() else "good"


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d{1,7})(s|min|h|d)", text)
    if not match:
        raise ConfigError(f"--expires {text!r} is not a time such as 30min, 24h or 7d")
    return int(match[1]) * _UNITS_S[match[2]]
