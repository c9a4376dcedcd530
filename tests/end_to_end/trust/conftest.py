"""What a trust test starts from: root keys, and a device that pinned root 1 and runs 1.0.0 by its word."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomli_w

from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Phase
from fleet_protocol.root import KeyRule, make_root, sign_root
from tests.end_to_end.updates.artifact_server import ArtifactServer
from tests.end_to_end.updates.bundles import Keys, digits
from tests.end_to_end.updates.director import FLEET
from tests.end_to_end.updates.scene import Scene, Versions, open_scene

YEAR_NS = 365 * 86_400 * 10**9


@dataclass(frozen=True, kw_only=True)
class Roots:
    """Makes roots that two holders sign; `keys` release and direct where nothing else is said."""

    keys: Keys
    holders: tuple[PrivateKey, PrivateKey] = field(
        default_factory=lambda: (PrivateKey.generate(), PrivateKey.generate())
    )
    new_director: PrivateKey = field(default_factory=PrivateKey.generate)
    new_release: PrivateKey = field(default_factory=PrivateKey.generate)

    def envelope(
        self,
        version: int,
        *,
        director: PrivateKey | None = None,
        release: tuple[PrivateKey, ...] | None = None,
        by: tuple[PrivateKey, ...] | None = None,
        expires_in_ns: int = YEAR_NS,
    ) -> bytes:
        """The signed root of that version."""
        now_ns, releasing = time.time_ns(), release or self.keys.release
        root = make_root(
            version=version,
            fleet=FLEET,
            issued_at_ns=now_ns - YEAR_NS,
            expires_ns=now_ns + expires_in_ns,
            root=KeyRule(tuple(key.public for key in self.holders), 2),
            release=KeyRule(tuple(key.public for key in releasing), 2),
            director=KeyRule(((director or self.keys.director).public,), 1),
        )
        return sign_root(root, self.holders if by is None else by)


def root_path(version: int) -> str:
    """Where a device asks for a root, as the artifact server names its contents."""
    return f"/api/v1/trust/roots/{version}"


@pytest.fixture(scope="session")
def roots() -> Roots:
    """The run's keys and root holders."""
    return Roots(keys=Keys())


@pytest.fixture(scope="session")
def versions(roots: Roots) -> Versions:
    """The real digits versions, signed."""
    old, new, other = (digits(version, roots.keys.release) for version in ("1.0.0", "1.1.0", "1.2.0"))
    return Versions(old=old, new=new, other=other)


@contextmanager
def pinned_scene(
    folder: Path, roots: Roots, versions: Versions, *, snapshot: Path | None, pinned: bytes | None = None
) -> Iterator[Scene]:
    """A scene whose device pins root 1, with a server of its own."""
    with ArtifactServer() as artifacts:
        for bundle in (versions.old, versions.new, versions.other):
            artifacts.serve(bundle.served())
        with open_scene(folder, keys=roots.keys, versions=versions, artifacts=artifacts, snapshot=snapshot) as scene:
            device = scene.device
            (device.folder / "root.json").write_bytes(pinned or roots.envelope(1))
            config = tomllib.loads(device.config_file.read_text())
            config["trust"] = {"root": "root.json"}
            device.config_file.write_text(tomli_w.dumps(config))
            yield scene


@pytest.fixture(scope="session")
def runs_old(roots: Roots, versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a device that installed 1.0.0 by a real update under root 1."""
    with pinned_scene(tmp_path_factory.mktemp("pinned"), roots, versions, snapshot=None) as scene:
        scene.device.start()
        scene.director.assign(versions.old)
        scene.director.wait_for(Phase.HEALTHY)
        scene.device.stop()
        return scene.device.data


@pytest.fixture
def scene(roots: Roots, versions: Versions, runs_old: Path, tmp_path: Path) -> Iterator[Scene]:
    """A device that pinned root 1 and runs 1.0.0."""
    with pinned_scene(tmp_path, roots, versions, snapshot=runs_old) as scene:
        scene.start_on_old()
        yield scene
