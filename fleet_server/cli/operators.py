"""`fleet operators`: operators' API keys. For admins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import ago, show_json, show_line, show_table
from fleet_server.errors import ConfigError

app = typer.Typer(help="Operators' API keys.", no_args_is_help=True)


@app.command("list")
def list_keys(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """List API keys. Example: fleet operators list"""
    with open_client(server, api_key_file) as client:
        found = client.get("operators/keys")["items"]
    if as_json:
        show_json(found)
        return
    rows = [
        (k["id"], k["name"], k["role"], ago(k["created_ns"]), ago(k["revoked_ns"]) if k["revoked_ns"] else "")
        for k in found
    ]
    show_table(("ID", "NAME", "ROLE", "CREATED", "REVOKED"), rows)


@app.command("add")
def add(
    name: str,
    role: Annotated[str, typer.Argument(help="viewer, operator, approver or admin.")],
    *,
    out: Annotated[Path | None, typer.Option("--out", help="Write the key to this new file (mode 0600).")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key; it is shown only once. Example: fleet operators add ci operator --out ci.key"""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already: remove it, or write to another file")
    with open_client(server, api_key_file) as client:
        made = client.change("POST", "operators/keys", {"name": name, "role": role})
    if out is not None:
        write_secret(out, made.pop("key"))
    if as_json:
        show_json(made)
    else:
        show_line(made.get("key") or f"the key of {name} is in {out}")


@app.command("revoke")
def revoke(
    key_id: str,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse an API key from now on. Example: fleet operators revoke 3f9a60c2d41b7e58"""
    with open_client(server, api_key_file) as client:
        revoked = client.change("DELETE", f"operators/keys/{key_id}")
    if as_json:
        show_json(revoked)
    else:
        show_line(f"the key {revoked['name']} is revoked")


def write_secret(path: Path, secret: str) -> None:
    """Write a secret to a new file that only its owner can read. Raises ConfigError."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
