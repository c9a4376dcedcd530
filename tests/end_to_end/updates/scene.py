"""One update's stage: a Mosquitto, a director and one device, and the versions there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fleet_protocol.messages import Phase
from tests.end_to_end.updates.artifact_server import ArtifactServer
from tests.end_to_end.updates.bundles import Bundle, Keys
from tests.end_to_end.updates.device import Device
from tests.end_to_end.updates.director import Director
from tests.real_servers.mosquitto import Mosquitto


@dataclass(frozen=True, kw_only=True)
class Versions:
    """The real digits models: `old` 1.0.0, `new` 1.1.0 and `other` 1.2.0."""

    old: Bundle
    new: Bundle
    other: Bundle


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a test plays with. Nothing runs on the device before the test starts it."""

    keys: Keys
    versions: Versions
    artifacts: ArtifactServer
    director: Director
    device: Device

    def start_on_old(self) -> None:
        """Start the agent, and see 1.0.0 answer and be reported HEALTHY."""
        self.device.start()
        self.device.wait_for_health()
        self.director.wait_for(Phase.HEALTHY, where=lambda report: report.active == self.versions.old.digest)
        self.device.require_answers_of(self.versions.old)

    def require_agreement(self, active: Bundle | None) -> None:
        """What is reported, what /models says and what really answers are one and the same bundle."""
        report = self.director.wait_for()
        assert report.active == (active.digest if active else None), report
        if active is None:
            assert self.device.serving() is None
            assert self.device.read_digit().status == 404
            return
        assert self.device.serving() == (active.digest, active.version, report.phase.value)
        assert report.version == active.version
        self.device.require_answers_of(active)


@contextmanager
def open_scene(
    folder: Path,
    *,
    keys: Keys,
    versions: Versions,
    artifacts: ArtifactServer,
    snapshot: Path | None,
    server_url: str | None = None,
    download_attempts: int = 3,
) -> Iterator[Scene]:
    """A scene in a folder of its own. `snapshot` is the data of a device that accepted generation 1, or None."""
    with (
        Mosquitto(folder / "mosquitto", persistence=False) as broker,
        Director(broker_port=broker.port, keys=keys) as director,
        Device(
            folder / "device",
            keys=keys,
            broker_port=broker.port,
            server_url=server_url or artifacts.url,
            snapshot=snapshot,
            download_attempts=download_attempts,
        ) as device,
    ):
        director.generation = 0 if snapshot is None else 1
        yield Scene(keys=keys, versions=versions, artifacts=artifacts, director=director, device=device)
