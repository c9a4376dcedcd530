"""`fleet keys root`: makes, changes, signs and checks trust roots as files, offline; `push-root` gives the server one.

Invariants: a root file is written whole or not at all; a new version goes into a new file, and no file is overwritten
but by signing it; nothing is signed that is not a root.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_protocol.envelope import add_signatures, signers_of
from fleet_protocol.errors import KeyFileError, ProtocolError
from fleet_protocol.keys import PrivateKey, PublicKey
from fleet_protocol.root import (
    MAX_ROOT_BYTES,
    ROLES,
    KeyRule,
    Root,
    make_root,
    read_unverified_root,
    sign_root,
    verify_first_root,
    verify_next_root,
)
from fleet_server.cli.client import DEFAULT_SERVER, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import show_facts, show_json, show_line
from fleet_server.errors import ConfigError

DAY_NS = 86_400 * 10**9
DEFAULT_DAYS = 730
_MIN_ID_CHARS = 8

app = typer.Typer(help="Trust roots: who may release, direct, and change the root.", no_args_is_help=True)

RootArgument = Annotated[Path, typer.Argument(help="A root file.", metavar="ROOT")]
OutOption = Annotated[Path, typer.Option("--out", help="The new root file.", metavar="FILE")]
SignOption = Annotated[
    list[Path] | None, typer.Option("--key", help="A private root key to sign with now, may be repeated.")
]
DaysOption = Annotated[int, typer.Option("--expires-days", min=1, max=36_500, help="Days until devices want the next.")]


@app.command("init")
def init(
    out: Annotated[Path, typer.Argument(help="The root file to write.", metavar="FILE")],
    *,
    fleet: Annotated[str, typer.Option(help="The fleet's id.")],
    root: Annotated[list[Path], typer.Option("--root", help="A public key that may change the root, repeatable.")],
    release: Annotated[list[Path], typer.Option("--release", help="A public key that may release, repeatable.")],
    director: Annotated[list[Path], typer.Option("--director", help="The server's public key, repeatable.")],
    root_threshold: Annotated[int, typer.Option(min=1, max=64)] = 1,
    release_threshold: Annotated[int, typer.Option(min=1, max=64)] = 1,
    director_threshold: Annotated[int, typer.Option(min=1, max=64)] = 1,
    expires_days: DaysOption = DEFAULT_DAYS,
    key: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make version 1.

    Example: fleet keys root init 1.root.json --fleet demo --root a.pub --release r.pub --director d.pub --key a.key
    """
    now_ns = time.time_ns()
    made = make_root(
        version=1,
        fleet=fleet,
        issued_at_ns=now_ns,
        expires_ns=now_ns + expires_days * DAY_NS,
        root=KeyRule(_public_keys(root), root_threshold),
        release=KeyRule(_public_keys(release), release_threshold),
        director=KeyRule(_public_keys(director), director_threshold),
    )
    _write_new(out, sign_root(made, _private_keys(key)), as_json=as_json)


@app.command("rotate")
def rotate(
    before: RootArgument,
    *,
    out: OutOption,
    add_root: Annotated[list[Path] | None, typer.Option(help="A public key, repeatable.")] = None,
    add_release: Annotated[list[Path] | None, typer.Option(help="A public key, repeatable.")] = None,
    add_director: Annotated[list[Path] | None, typer.Option(help="A public key, repeatable.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A key's .pub file or id, repeatable.")] = None,
    root_threshold: Annotated[int | None, typer.Option(min=1, max=64)] = None,
    release_threshold: Annotated[int | None, typer.Option(min=1, max=64)] = None,
    director_threshold: Annotated[int | None, typer.Option(min=1, max=64)] = None,
    expires_days: DaysOption = DEFAULT_DAYS,
    key: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the next version, with other keys or a later expiry.

    Example: fleet keys root rotate 1.root.json --out 2.root.json --add-director new.pub --remove old.pub
    """
    known = _read(before)
    added = {"root": add_root, "release": add_release, "director": add_director}
    thresholds = {"root": root_threshold, "release": release_threshold, "director": director_threshold}
    made = _next(known, added, remove or [], thresholds, expires_days)
    _write_new(out, sign_root(made, _private_keys(key)), as_json=as_json, before=known)


@app.command("revoke")
def revoke(
    before: RootArgument,
    revoked: Annotated[list[str], typer.Argument(help="The keys' .pub files or ids.", metavar="KEY...")],
    *,
    out: OutOption,
    expires_days: DaysOption = DEFAULT_DAYS,
    key: SignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the next version without these keys. Example: fleet keys root revoke 1.root.json lost.pub --out 2.root.json

    What devices run already stays until it is replaced; nothing signed only by these keys is installed any more.
    """
    known = _read(before)
    made = _next(known, {}, revoked, {}, expires_days)
    _write_new(out, sign_root(made, _private_keys(key)), as_json=as_json, before=known)


@app.command("sign")
def sign(
    file: RootArgument,
    *,
    key: Annotated[list[Path], typer.Option("--key", help="A private root key, may be repeated.")],
    as_json: JsonOption = False,
) -> None:
    """Add signatures to a root file; `show` it first. Example: fleet keys root sign 2.root.json --key a.key"""
    _read(file)
    signed = add_signatures(_bytes(file), _private_keys(key))
    _replace(file, signed)
    _tell(file, signed, as_json=as_json)


@app.command("show")
def show(file: RootArgument, *, as_json: JsonOption = False) -> None:
    """Show a root and whose signatures it has. Example: fleet keys root show 2.root.json"""
    _tell(file, _bytes(file), as_json=as_json)


@app.command("verify")
def verify(
    files: Annotated[list[Path], typer.Argument(help="The trusted root, then those after it.", metavar="ROOT...")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Check that each root follows the one before. Example: fleet keys root verify 1.root.json 2.root.json"""
    newest = _read(files[0])
    for at, file in enumerate(files):
        try:
            envelope = _bytes(file)
            newest = verify_next_root(newest, envelope) if at else verify_first_root(envelope, fleet=newest.fleet)
        except ProtocolError as error:
            raise type(error)(f"{file}: {error}") from None
    if as_json:
        show_json({"fleet": newest.fleet, "newest": newest.version, "holds": True})
    else:
        show_line(f"The chain holds up to version {newest.version} of the fleet {newest.fleet}.")


def push_root(
    file: RootArgument,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give the next root to the server, from which devices fetch it. Example: fleet keys push-root 2.root.json"""
    root, envelope = _read(file), _bytes(file)
    with open_client(server, api_key_file) as client:
        answer = client.change("POST", "trust/roots", content=envelope)
    if as_json:
        show_json(answer)
    else:
        show_line(f"Trust root {root.version} is on the server; devices follow it as they hear of it.")


def _next(
    known: Root,
    added: dict[str, list[Path] | None],
    removed: list[str],
    thresholds: dict[str, int | None],
    expires_days: int,
) -> Root:
    gone = {_key_id(known, text) for text in removed}
    rules = {}
    for name in ROLES:
        rule = known.rule(name)
        kept = [public for public in rule.keys if public.key_id not in gone] + list(_public_keys(added.get(name) or []))
        rules[name] = KeyRule(tuple(kept), thresholds.get(name) or rule.threshold)
        if len({public.key_id for public in kept}) < rules[name].threshold:
            raise ConfigError(
                f"{name} would have {len(kept)} keys for a threshold of {rules[name].threshold}: "
                f"add one with --add-{name}, or lower --{name}-threshold"
            )
    now_ns = time.time_ns()
    return make_root(
        version=known.version + 1,
        fleet=known.fleet,
        issued_at_ns=now_ns,
        expires_ns=now_ns + expires_days * DAY_NS,
        **rules,
    )


def _key_id(known: Root, text: str) -> str:
    wanted = PublicKey.load(Path(text)).key_id if Path(text).is_file() else text
    found = [key_id for key_id in known.keys if key_id.startswith(wanted)] if len(wanted) >= _MIN_ID_CHARS else []
    if len(found) != 1:
        raise ConfigError(f"{text!r} is neither a key file nor the id of one key in root {known.version}")
    return found[0]


def _public_keys(paths: list[Path]) -> tuple[PublicKey, ...]:
    return tuple(PublicKey.load(path) for path in paths)


def _private_keys(paths: list[Path] | None) -> list[PrivateKey]:
    return [PrivateKey.load(path) for path in paths or []]


def _read(file: Path) -> Root:
    try:
        return read_unverified_root(_bytes(file))
    except ProtocolError as error:
        raise type(error)(f"{file}: {error}") from None


def _bytes(file: Path) -> bytes:
    try:
        with file.open("rb") as source:
            return source.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {file}: {error.strerror}") from None


def _write_new(out: Path, envelope: bytes, *, as_json: bool, before: Root | None = None) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already: name a new file")
    _replace(out, envelope)
    _tell(out, envelope, as_json=as_json, before=before)


def _replace(file: Path, envelope: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(envelope)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None


def _tell(file: Path, envelope: bytes, *, as_json: bool, before: Root | None = None) -> None:
    root = read_unverified_root(envelope)
    rules = {f"root {root.version}": root.rule("root")}
    if before is not None:
        rules[f"root {before.version}"] = before.rule("root")
    signed = {name: sorted(signers_of(envelope, rule.keys)) for name, rule in rules.items()}
    if as_json:
        show_json({"file": str(file), **_facts(root), "signed_by": signed[f"root {root.version}"]})
        return
    facts: list[tuple[str, Any]] = [("file", file), ("fleet", root.fleet), ("version", root.version)]
    facts.append(("expires", time.strftime("%Y-%m-%d", time.gmtime(root.expires_ns // 10**9))))
    for name in ROLES:
        role = getattr(root, name)
        ids = " ".join(key_id[:16] for key_id in role.key_ids)
        facts.append((name, f"{role.threshold} of {len(role.key_ids)}: {ids}"))
    for name, rule in rules.items():
        facts.append((f"signed for {name}", f"{len(signed[name])} of {rule.threshold} needed"))
    show_facts(tuple(facts))


def _facts(root: Root) -> dict[str, Any]:
    roles = {name: getattr(root, name) for name in ROLES}
    return {
        "fleet": root.fleet,
        "version": root.version,
        "issued_at_ns": root.issued_at_ns,
        "expires_ns": root.expires_ns,
        "roles": {name: {"key_ids": role.key_ids, "threshold": role.threshold} for name, role in roles.items()},
    }
