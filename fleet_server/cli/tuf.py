"""`fleet models export-tuf`: bundles as a repository of The Update Framework, written offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet_protocol.keys import PrivateKey
from fleet_server.cli.client import JsonOption
from fleet_server.cli.output import show_json, show_line

Days = Annotated[int, typer.Option(min=1, max=36_500)]


def export(
    out: Annotated[Path, typer.Argument(help="The repository, made where it is missing.", metavar="DIR")],
    bundle: Annotated[list[Path], typer.Argument(help="Signed bundle folders.", metavar="BUNDLE_DIR...")],
    *,
    root_key: Annotated[list[Path], typer.Option("--root-key", help="A private root key, may be repeated.")],
    release_key: Annotated[list[Path], typer.Option("--release-key", help="A private release key, repeatable.")],
    director_key: Annotated[Path, typer.Option("--director-key", help="The key of snapshot and timestamp.")],
    root_days: Days = 730,
    targets_days: Days = 365,
    timestamp_days: Days = 14,
    as_json: JsonOption = False,
) -> None:
    """Write bundles as a TUF repository for a static web server.

    Example: fleet models export-tuf repo BUNDLE_DIR --root-key a.key --release-key r.key --director-key d.key
    """
    from fleet_server.registry.tuf_export import Signers, export_tuf  # not at every start: it brings SQLAlchemy

    signers = Signers(
        root=[PrivateKey.load(path) for path in root_key],
        release=[PrivateKey.load(path) for path in release_key],
        director=PrivateKey.load(director_key),
    )
    version = export_tuf(
        bundle, out, signers=signers, root_days=root_days, targets_days=targets_days, timestamp_days=timestamp_days
    )
    if as_json:
        show_json({"repository": str(out), "version": version, "bundles": len(bundle)})
    else:
        show_line(f"{out} lists {len(bundle)} more bundle(s), as version {version}; serve it with any web server.")
