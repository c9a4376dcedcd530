"""`fleet models`: look at the catalogue, publish a bundle, look into a bundle folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_protocol.bundle_folder import file_path, read_envelope
from fleet_protocol.manifest import read_unverified_manifest
from fleet_server.cli import tuf
from fleet_server.cli.bundle_inspection import card_text, inspect_bundle, show_card, show_inspection
from fleet_server.cli.client import DEFAULT_SERVER, FleetClient, JsonOption, KeyFileOption, ServerOption, open_client
from fleet_server.cli.output import ago, show_json, show_line, show_table
from fleet_server.errors import ConfigError

app = typer.Typer(help="Models and versions.", no_args_is_help=True)
app.command("export-tuf")(tuf.export)

BundleArgument = Annotated[Path, typer.Argument(help="A bundle folder.", metavar="BUNDLE_DIR")]


@app.command("list")
def list_models(
    *, server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """List models. Example: fleet models list"""
    with open_client(server, api_key_file) as client:
        found = client.pages("models")
    if as_json:
        show_json(found)
        return
    rows = [(m["model"], m["latest"], m["versions"], ago(m["created_ns"])) for m in found]
    show_table(("MODEL", "LATEST", "VERSIONS", "CREATED"), rows)


@app.command("show")
def show_model(
    model: str,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a model's versions. Example: fleet models show digits"""
    with open_client(server, api_key_file) as client:
        found = client.get(f"models/{model}")
    if as_json:
        show_json(found)
        return
    show_table(
        ("VERSION", "BUNDLE", "VARIANTS", "PUBLISHED", "BY"),
        [
            (
                version["version"],
                version["bundle"][:16],
                ", ".join(variant["name"] for variant in version["variants"]),
                ago(version["published_ns"]),
                version["published_by"],
            )
            for version in found["versions"]
        ],
    )


@app.command("variants")
def show_variants(
    model: str,
    version: str,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """What the fleet measured of a version's variants, by CPU. Example: fleet models variants digits 1.0.0"""
    with open_client(server, api_key_file) as client:
        found = client.pages(f"models/{model}/versions/{version}/variants")
    if as_json:
        show_json(found)
        return
    show_table(
        ("CPU", "ONNX RUNTIME", "VARIANT", "RIGHT", "WRONG", "P50", "MEMORY", "PREFERRED"),
        [
            (
                kind["cpu_signature"],
                kind["onnxruntime_version"],
                one["variant"],
                one["right"],
                one["wrong"],
                "-" if one["p50_us"] is None else f"{one['p50_us']:.1f} us",
                "-" if one["memory_bytes"] is None else f"{one['memory_bytes'] / 1e6:.1f} MB",
                one["variant"] == kind["preferred"],
            )
            for kind in found
            for one in kind["variants"]
        ],
    )


@app.command("publish")
def publish(
    bundle: BundleArgument,
    *,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a signed bundle and publish it. Example: fleet models publish models/digits/bundles/1.0.0"""
    with open_client(server, api_key_file) as client:
        result = publish_bundle(client, bundle)
    if as_json:
        show_json(result)
        return
    done = "published" if result["created"] else "was published already"
    uploaded = result["uploaded"]
    show_line(f"{result['model']} {result['version']} {done}: bundle {result['bundle']}, {uploaded} files uploaded")


def publish_bundle(client: FleetClient, bundle: Path) -> dict[str, Any]:
    """Upload what the server lacks of a signed bundle folder, then publish it; returns what the server said."""
    envelope = read_envelope(bundle)
    manifest = read_unverified_manifest(envelope)
    for artifact in manifest.artifacts():
        if not file_path(bundle, artifact.sha256).is_file():
            raise ConfigError(f"{bundle} lacks the file {artifact.sha256} that its manifest names")
    uploaded = 0
    for artifact in manifest.artifacts():
        if not client.has_artifact(artifact.sha256):
            client.upload(artifact.sha256, file_path(bundle, artifact.sha256))
            uploaded += 1
    result: dict[str, Any] = client.change("POST", f"models/{manifest.model}/versions", content=envelope)
    return {**result, "uploaded": uploaded}


@app.command("inspect")
def inspect(
    bundle: BundleArgument,
    *,
    card: Annotated[bool, typer.Option("--card", help="Print the model card instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a bundle folder, without checking its signatures. Example: fleet models inspect BUNDLE_DIR"""
    found = inspect_bundle(bundle)
    if as_json:
        show_json(found)
    elif card:
        show_card(card_text(found))
    else:
        show_inspection(found)
