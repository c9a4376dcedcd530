"""Models, versions, and the content-addressed files they are made of."""

from __future__ import annotations

from fleet_server.registry.artifact_store import ArtifactStore, ArtifactWriter, LocalArtifactStore
from fleet_server.registry.publishing import PublishedVersion, publish

__all__ = ["ArtifactStore", "ArtifactWriter", "LocalArtifactStore", "PublishedVersion", "publish"]
