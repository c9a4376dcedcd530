"""`fleet keys`: signing keys and trust roots on this machine. Only `push-root` needs a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_protocol.bundle_folder import read_manifest, sign_bundle
from fleet_protocol.errors import KeyFileError
from fleet_protocol.keys import PrivateKey, PublicKey
from fleet_protocol.manifest import bundle_digest
from fleet_server.cli import keys_root
from fleet_server.cli.client import JsonOption
from fleet_server.cli.output import show_facts, show_json, show_line

app = typer.Typer(help="Signing keys and trust roots.", no_args_is_help=True)
app.add_typer(keys_root.app, name="root")
app.command("push-root")(keys_root.push_root)


@app.command("make")
def make(
    name: Annotated[Path, typer.Argument(help="Writes NAME.key (mode 0600) and NAME.pub.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Make an Ed25519 key pair. Example: fleet keys make release"""
    path = name if name.suffix == ".key" else name.with_name(name.name + ".key")
    key = PrivateKey.generate()
    key.save(path)
    public = path.with_suffix(".pub")
    if as_json:
        show_json({"private": str(path), "public": str(public), "key_id": key.public.key_id})
    else:
        show_line(f"{path} and {public}: key {key.public.key_id}")


@app.command("sign")
def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle folder.", metavar="BUNDLE_DIR")],
    *,
    key: Annotated[list[Path], typer.Option("--key", help="A private key, may be repeated.")],
    as_json: JsonOption = False,
) -> None:
    """Sign a bundle, or add signatures to it. Example: fleet keys sign BUNDLE_DIR --key release.key"""
    keys = [PrivateKey.load(path) for path in key]
    envelope = sign_bundle(bundle, keys)
    manifest, digest = read_manifest(bundle), bundle_digest(envelope)
    if as_json:
        signed_by = [k.public.key_id for k in keys]
        show_json({"model": manifest.model, "version": manifest.version, "bundle": digest, "signed_by": signed_by})
    else:
        show_line(f"{manifest.model} {manifest.version} signed: bundle {digest}")


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="A private (.key) or public (.pub) key.")], *, as_json: JsonOption = False
) -> None:
    """Show a key's id. Example: fleet keys show release.pub"""
    try:
        public, kind = PrivateKey.load(file).public, "private"
    except KeyFileError:
        public, kind = PublicKey.load(file), "public"
    if as_json:
        show_json({"file": str(file), "kind": kind, "key_id": public.key_id, "public_pem": public.pem().decode()})
    else:
        show_facts((("file", file), ("kind", kind), ("key id", public.key_id)))
