"""`fleet operators`: the people who operate the fleet, and API keys. For admins; `me` for everybody."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import ago, show_facts, show_json, show_line, show_table
from fleet_server.errors import ConfigError

OutOption = Annotated[Path | None, typer.Option("--out", help="Write the key to this new file (mode 0600).")]

app = typer.Typer(help="Operators and their API keys.", no_args_is_help=True)


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
        (
            k["id"],
            k["name"],
            k["role"],
            k.get("owner_name"),
            ago(k["created_ns"]),
            ago(k.get("last_used_ns")),
            _state_of(k),
        )
        for k in found
    ]
    show_table(("ID", "NAME", "ROLE", "OWNER", "CREATED", "USED", "STATE"), rows)


@app.command("add")
def add(
    name: str,
    role: Annotated[str, typer.Argument(help="viewer, operator, approver or admin.")],
    *,
    days: Annotated[int | None, typer.Option(help="Refuse the key after so many days.")] = None,
    owner: Annotated[str | None, typer.Option(help="Whose key it is: an id from `fleet operators people`.")] = None,
    out: OutOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key; it is shown only once. Example: fleet operators add ci operator --days 90 --out ci.key"""
    _check_new(out)
    body = {"name": name, "role": role, "days": days, "owner": owner}
    with open_client(server, api_key_file) as client:
        made = client.change("POST", "operators/keys", {k: v for k, v in body.items() if v is not None})
    _show_key(made, out, as_json=as_json)


@app.command("rotate")
def rotate(
    key_id: str,
    *,
    overlap_s: Annotated[int, typer.Option("--overlap-s", help="Seconds in which the old key still works.")] = 0,
    out: OutOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret. Example: fleet operators rotate 3f9a60c2d41b7e58 --overlap-s 3600 --out ci.key"""
    _check_new(out)
    with open_client(server, api_key_file) as client:
        made = client.change("POST", f"operators/keys/{key_id}/rotate", {"overlap_s": overlap_s})
    _show_key(made, out, as_json=as_json)


@app.command("assign")
def assign(
    key_id: str,
    person: str,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whose a key is. Example: fleet operators assign 3f9a60c2d41b7e58 77c1e0a95b2d4f36"""
    with open_client(server, api_key_file) as client:
        assigned = client.change("PATCH", f"operators/keys/{key_id}", {"owner": person})
    if as_json:
        show_json(assigned)
    else:
        show_line(f"the key {assigned['name']} belongs to {assigned['owner_name']}")


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


@app.command("me")
def me(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show who you are here, and what you may do. Example: fleet operators me"""
    with open_client(server, api_key_file) as client:
        view = client.get("operators/me")
    if as_json:
        show_json(view)
    else:
        show_facts((name, view[name]) for name in ("name", "role", "signed_in_with", "actor", "person"))


@app.command("people")
def people(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """List everybody who signed in or was made known. Example: fleet operators people"""
    with open_client(server, api_key_file) as client:
        found = client.pages("operators")
    if as_json:
        show_json(found)
        return
    rows = [
        (p["id"], p["name"], p["email"], p["role"], ago(p["last_seen_ns"]), "ended" if p["disabled_ns"] else "")
        for p in found
    ]
    show_table(("ID", "NAME", "EMAIL", "ROLE", "SEEN", "ACCESS"), rows)


@app.command("add-person")
def add_person(
    name: str,
    *,
    email: Annotated[str | None, typer.Option(help="The address the identity provider knows them by.")] = None,
    subject: Annotated[str | None, typer.Option(help="Their subject at the identity provider.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make somebody known before they sign in. Example: fleet operators add-person "Ada Lovelace" --email ada@x.org"""
    body = {"name": name, "email": email, "subject": subject}
    with open_client(server, api_key_file) as client:
        made = client.change("POST", "operators", {k: v for k, v in body.items() if v is not None})
    if as_json:
        show_json(made)
    else:
        show_line(f"{made['name']} is {made['id']}")


@app.command("end-access")
def end_access(
    person: str,
    *,
    again: Annotated[bool, typer.Option("--give-back", help="Give it back.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse every sign-in and key of somebody. Example: fleet operators end-access 77c1e0a95b2d4f36"""
    with open_client(server, api_key_file) as client:
        changed = client.change("PATCH", f"operators/{person}", {"ended": not again})
    if as_json:
        show_json(changed)
    else:
        show_line(f"{changed['name']} {'has access again' if again else 'has no access any more'}")


def _state_of(key: dict[str, Any]) -> str:
    if key["revoked_ns"]:
        return f"revoked {ago(key['revoked_ns'])}"
    left_s = (key.get("expires_ns") or 0) / 1e9 - time.time()
    if not key.get("expires_ns"):
        return ""
    return f"{left_s / 86_400:.0f} d left" if left_s > 0 else "expired"


def _check_new(out: Path | None) -> None:
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already: remove it, or write to another file")


def _show_key(made: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        write_secret(out, made.pop("key"))
    if as_json:
        show_json(made)
    else:
        show_line(made.get("key") or f"the key of {made['name']} is in {out}")


def write_secret(path: Path, secret: str) -> None:
    """Write a secret to a new file that only its owner can read. Raises ConfigError."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None
