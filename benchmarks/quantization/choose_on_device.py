"""`python -m benchmarks.quantization.choose_on_device BUNDLE_FOLDER`: what a device here runs of a bundle.

The bundle is signed with a key of this run and put into a bundle store, and the agent's own code chooses. Prints one
JSON object.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from edge_agent.config import RuntimeSection
from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.variant_choice import choose_variant
from edge_agent.runtime.loading import Loading
from edge_agent.runtime.residency import Residency
from fleet_protocol.bundle_folder import file_path, read_manifest
from fleet_protocol.envelope import MANIFEST_TYPE, sign_envelope
from fleet_protocol.keys import PrivateKey
from fleet_protocol.manifest import bundle_digest, encode_manifest


def main(bundle_folder: str) -> None:
    """Choose, and tell the variant, its file's digest and every candidate's p50."""
    source, key = Path(bundle_folder), PrivateKey.generate()
    manifest = read_manifest(source)
    envelope = sign_envelope(MANIFEST_TYPE, encode_manifest(manifest), [key])
    with TemporaryDirectory(prefix="edgefleet-choice-") as folder:
        store = BundleStore(Path(folder), release_keys=[key.public], threshold=1, reserve_bytes=0)
        store.path(bundle_digest(envelope)).write_bytes(envelope)
        for artifact in manifest.artifacts():
            shutil.copyfile(file_path(source, artifact.sha256), store.path(artifact.sha256))
        residency = Residency(budget_bytes=None, on_event=lambda *_: None)
        loading = Loading(runtime=RuntimeSection(threads=1), residency=residency, cache_dir=None)
        chosen = choose_variant(bundle_digest(envelope), store=store, loading=loading)
        residency.close()
    told = {
        "variant": chosen.warm.variant.name,
        "sha256": chosen.warm.variant.file.sha256,
        "p50_us": {one.variant: round(one.p50_us, 2) for one in chosen.figures if one.right},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
