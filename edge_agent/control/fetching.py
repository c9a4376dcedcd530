"""Brings what this device needs of a bundle onto its disk: the manifest, the golden vectors, and the variants it looks
at. Nothing else of a bundle is ever asked for.

Order: room on the disk at all → the manifest, verified → does it fit → room for every file that is missing → the files,
each as a delta from one that is here or else whole, each verified. A file that is there already is not fetched again,
so that an interrupted fetch goes on where it ended. Raises BundleRefusedError, ArtifactCorruptError, DownloadError and
DownloadStopped.
"""

from __future__ import annotations

import platform

from edge_agent.control.bundle_store import BundleStore
from edge_agent.control.candidates import needed_files, wanted_variants
from edge_agent.control.delta import fetch_by_delta
from edge_agent.control.download import Downloader
from edge_agent.control.fit import check_fit
from edge_agent.errors import ArtifactCorruptError
from fleet_protocol.envelope import MAX_ENVELOPE_BYTES
from fleet_protocol.manifest import Artifact, Manifest
from fleet_protocol.messages import Assignment

_FETCH_TRIES = 2  # a second look, since damage may have happened on the way


def fetch_bundle(
    assignment: Assignment, *, store: BundleStore, downloader: Downloader, machine: str | None = None
) -> Manifest:
    """Bring every file that the assignment needs here into the store, verified; returns the manifest.

    `machine` is the architecture, this machine's by default.
    """
    if not store.path(assignment.bundle).exists():
        store.require_space(0)
        _fetch(assignment.bundle, None, store=store, downloader=downloader)
    manifest = store.manifest(assignment.bundle)
    check_fit(manifest, assignment)
    missing = _missing(manifest, assignment, store=store, machine=machine)
    store.require_space(sum(artifact.size_bytes - store.partial_size(artifact.sha256) for artifact in missing))
    for artifact in missing:
        if not (downloader.deltas and fetch_by_delta(artifact, manifest, store=store, downloader=downloader)):
            _fetch(artifact.sha256, artifact, store=store, downloader=downloader)
    return manifest


def is_fetched(assignment: Assignment, *, store: BundleStore, machine: str | None = None) -> bool:
    """Whether `fetch_bundle` would find everything there: the hint may have changed, or a file may be gone."""
    if not store.path(assignment.bundle).exists():
        return False
    return not _missing(store.manifest(assignment.bundle), assignment, store=store, machine=machine)


def _missing(manifest: Manifest, assignment: Assignment, *, store: BundleStore, machine: str | None) -> list[Artifact]:
    variants = wanted_variants(manifest, assignment.variant, machine or platform.machine())
    return [artifact for artifact in needed_files(manifest, variants) if not store.has(artifact)]


def _fetch(sha256: str, artifact: Artifact | None, *, store: BundleStore, downloader: Downloader) -> None:
    exact = artifact.size_bytes if artifact else None
    limit = MAX_ENVELOPE_BYTES if exact is None else exact
    for attempt in range(_FETCH_TRIES):
        try:
            downloader.fetch(sha256, store.partial_path(sha256), max_bytes=limit, exact_bytes=exact)
            store.adopt(sha256)
        except ArtifactCorruptError:
            if attempt + 1 == _FETCH_TRIES:
                raise
        else:
            return
