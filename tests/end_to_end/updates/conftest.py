"""What an update test starts from: the signed versions, the artifact server, and a device that runs 1.0.0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from fleet_protocol.messages import Phase
from tests.end_to_end.updates.artifact_server import ArtifactServer
from tests.end_to_end.updates.bundles import Keys, digits
from tests.end_to_end.updates.scene import Scene, Versions, open_scene


class OpenScene(Protocol):
    """`open_scene` with the session's parts filled in."""

    def __call__(
        self, folder: Path, *, snapshot: Path | None, server_url: str | None = None, download_attempts: int = 3
    ) -> AbstractContextManager[Scene]:
        """A scene in `folder`."""


@pytest.fixture(scope="session")
def keys() -> Keys:
    """The run's keys."""
    return Keys()


@pytest.fixture(scope="session")
def versions(keys: Keys) -> Versions:
    """The real digits versions, signed."""
    return Versions(
        old=digits("1.0.0", keys.release), new=digits("1.1.0", keys.release), other=digits("1.2.0", keys.release)
    )


@pytest.fixture(scope="session")
def artifacts(versions: Versions) -> Iterator[ArtifactServer]:
    """A server that has the real versions."""
    with ArtifactServer() as server:
        for bundle in (versions.old, versions.new, versions.other):
            server.serve(bundle.served())
        yield server


@pytest.fixture(scope="session")
def new_scene(keys: Keys, versions: Versions, artifacts: ArtifactServer) -> OpenScene:
    """How to open a scene."""

    def new(
        folder: Path, *, snapshot: Path | None, server_url: str | None = None, download_attempts: int = 3
    ) -> AbstractContextManager[Scene]:
        return open_scene(
            folder,
            keys=keys,
            versions=versions,
            artifacts=artifacts,
            snapshot=snapshot,
            server_url=server_url,
            download_attempts=download_attempts,
        )

    return new


@pytest.fixture(scope="session")
def runs_old(new_scene: OpenScene, versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a device that installed 1.0.0 by a real update and was stopped in good order."""
    folder = tmp_path_factory.mktemp("runs-old")
    with new_scene(folder, snapshot=None) as scene:
        scene.device.start()
        scene.director.assign(versions.old)
        scene.director.wait_for(Phase.HEALTHY)
        scene.require_agreement(versions.old)
        scene.device.stop()
        return scene.device.data


@pytest.fixture
def scene(new_scene: OpenScene, runs_old: Path, tmp_path: Path) -> Iterator[Scene]:
    """A device that runs 1.0.0, as generation 1 told it to."""
    with new_scene(tmp_path, snapshot=runs_old) as scene:
        scene.start_on_old()
        yield scene
