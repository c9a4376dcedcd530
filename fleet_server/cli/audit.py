"""`fleet audit`: read, check, pin, seal and export the audit log."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from fleet_protocol.keys import PrivateKey, PublicKey
from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.exits import FAILED
from fleet_server.cli.output import ago, show_json, show_line, show_table
from fleet_server.config import load_config
from fleet_server.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from fleet_server.identity.audit_chain import Head

MAX_SEAL_BYTES = 64 * 1024
_SPANS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}

app = typer.Typer(help="Who did what.", no_args_is_help=True)

HeadOption = Annotated[list[str] | None, typer.Option("--head", help="A head you pinned before.", metavar="HASH:ID")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Read the database of this config, on the server's machine.")
]


@app.command("list")
def list_entries(
    *,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many, the newest first.")] = 50,
    since: Annotated[str | None, typer.Option(help="90s, 15min, 6h, 7d, or a time as 2026-11-23T08:00.")] = None,
    actor: Annotated[str | None, typer.Option(help="key:NAME or oidc:SUBJECT.")] = None,
    action: Annotated[str | None, typer.Option(help="rollout.create, or rollout.* for all of its kind.")] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what was done. Example: fleet audit list --since 7d --action "rollout.*" """
    since_ns = None if since is None else parse_since(since, now_s=time.time())
    with open_client(server, api_key_file) as client:
        found = client.get("audit", limit=limit, since_ns=since_ns, actor=actor, action=action)["items"]
    if as_json:
        show_json(found)
        return
    rows = [(e["id"], ago(e["at_ns"]), _who(e), e["action"], e["subject"]) for e in found]
    show_table(("ID", "WHEN", "WHO", "WHAT", "TO"), rows)


@app.command("head")
def show_head(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show the newest entry's hash and id, to keep elsewhere. Example: fleet audit head"""
    with open_client(server, api_key_file) as client:
        found = client.get("audit/head")
    if as_json:
        show_json(found)
    else:
        show_line(found["head"] or "the log is empty")


@app.command("verify")
def verify(
    *,
    head: HeadOption = None,
    seal: Annotated[list[Path] | None, typer.Option("--seal", help="A seal made before.", metavar="FILE")] = None,
    public_key: Annotated[list[Path] | None, typer.Option("--public-key", help="Whose seals count.")] = None,
    file: Annotated[Path | None, typer.Option("--file", help="Check this export instead of the server's log.")] = None,
    config: ConfigOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the log; exit code 1 where it does not hold. Example: fleet audit verify --head HASH:ID"""
    from fleet_server.identity.audit_chain import Head

    heads = [Head.parse(text) for text in head or ()]
    seals = _read_seals(seal or [], public_key or [])
    heads += [Head(id=found["id"], hash=found["hash"]) for found in seals]
    if file is not None and config is not None:
        raise ConfigError("--file and --config name two logs: give one of them")
    if file is not None:
        found = _check_file(file, heads)
    elif config is not None:
        found = _check_database(config, heads)
    else:
        with open_client(server, api_key_file) as client:
            found = client.get("audit/verify", head=[str(one) for one in heads] or None)
    fleet = found.get("fleet")
    others = sorted({one["fleet"] for one in seals if fleet and one["fleet"] != fleet})
    if others:
        raise ConfigError(f"the seal is of the fleet {others[0]!r} and the log of {fleet!r}")
    if as_json:
        show_json(found)
    elif found["holds"]:
        show_line(f"the log holds: {found['entries']} entries, head {found['head']}")
    else:
        show_line(f"the log is broken from entry {found['first_broken_id']}: {found['reason']}")
    if not found["holds"]:
        raise typer.Exit(FAILED)


@app.command("seal")
def seal_log(
    *,
    key: Annotated[Path, typer.Option("--key", help="An Ed25519 private key that the server does not have.")],
    out: Annotated[Path, typer.Option("--out", help="Write the seal to this new file.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the log and sign its head. Example: fleet audit seal --key auditor.key --out 2026-11.seal"""
    from fleet_server.identity.audit_chain import Head, make_seal

    signer = PrivateKey.load(key)
    with open_client(server, api_key_file) as client:
        found = client.get("audit/verify")
    if not found["holds"]:
        show_line(f"the log is broken from entry {found['first_broken_id']}: {found['reason']}; nothing was sealed")
        raise typer.Exit(FAILED)
    if found["head"] is None:
        raise ConfigError("the log is empty: there is nothing to seal")
    made = make_seal(Head.parse(found["head"]), fleet=found["fleet"], keys=[signer], at_ns=time.time_ns())
    try:
        with out.open("xb") as target:
            target.write(made)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    if as_json:
        show_json({"head": found["head"], "entries": found["entries"], "key_id": signer.public.key_id})
    else:
        show_line(f"{out} seals {found['entries']} entries, head {found['head']}")


@app.command("export")
def export(
    *,
    out: Annotated[Path, typer.Option("--out", help="Write the entries to this file, one JSON object a line.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole log to a file. Example: fleet audit export --out audit.jsonl"""
    with open_client(server, api_key_file) as client:
        size_bytes = client.download("audit/export", out)
    if as_json:
        show_json({"file": str(out), "size_bytes": size_bytes})
    else:
        show_line(f"{out} has the log, {size_bytes} bytes: `fleet audit verify --file {out}` checks it")


def parse_since(text: str, *, now_s: float) -> int:
    """UTC nanoseconds of a span before now, or of a time; without a zone it is UTC. Raises InvalidRequestError."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :]
    if unit in _SPANS and number.isascii() and number.isdigit() and len(number) < 9:
        return max(0, int((now_s - int(number) * _SPANS[unit]) * 1e9))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequestError("--since is a span like 90s, 15min, 6h, 7d, or a time as 2026-11-23T08:00") from None
    return max(0, int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e9))


def _check_file(file: Path, heads: list[Head]) -> dict[str, Any]:
    from fleet_server.identity.audit_chain import check_chain, read_export

    try:
        with file.open("rb") as source:
            found = check_chain(read_export(source), pinned=heads)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    return _view(found)


def _check_database(config: Path, heads: list[Head]) -> dict[str, Any]:
    from fleet_server.database.engine import open_engine
    from fleet_server.identity import audit

    settings = load_config(config)
    engine = open_engine(settings.database_url)
    try:
        return {"fleet": settings.fleet, **_view(audit.check(engine, pinned=heads))}
    finally:
        engine.dispose()


def _view(found: Any) -> dict[str, Any]:
    view: dict[str, Any] = msgspec.to_builtins(found)
    return {**view, "holds": found.holds, "head": str(found.head) if found.head else None}


def _read_seals(files: list[Path], public_keys: list[Path]) -> list[dict[str, Any]]:
    from fleet_server.identity.audit_chain import read_seal

    if files and not public_keys:
        raise ConfigError("--seal needs --public-key: whose seals count")
    trusted = [PublicKey.load(path) for path in public_keys]
    seals = []
    for file in files:
        try:
            with file.open("rb") as source:
                data = source.read(MAX_SEAL_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from None
        seals.append(msgspec.to_builtins(read_seal(data, trusted)))
    return seals


def _who(entry: dict[str, Any]) -> str:
    by = entry["detail"].get("by")
    return f"{by['name']} ({entry['actor']})" if isinstance(by, dict) and "name" in by else str(entry["actor"])
