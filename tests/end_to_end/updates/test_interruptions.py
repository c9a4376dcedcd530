"""Updates that are overtaken, cut off or interrupted: the newest wish wins, and nothing is fetched twice."""

from __future__ import annotations

import itertools
import signal
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest

from edge_agent.control.time_zone import device_time_zone
from fleet_protocol.messages import EventKind, MaintenanceHours, Phase, Probation
from tests.end_to_end.updates import bundles
from tests.end_to_end.updates.artifact_server import ArtifactServer
from tests.end_to_end.updates.bundles import Bundle
from tests.end_to_end.updates.conftest import OpenScene
from tests.end_to_end.updates.device import Caller, who_answered
from tests.end_to_end.updates.scene import Scene
from tests.real_servers.processes import wait_until
from tests.real_servers.relay import Relay

_CHUNK_BYTES = 64 * 1024
_HELD_BYTES = 1024 * 1024
_TORN_AFTER_BYTES = 512 * 1024
_WAIT_S = 15.0
_AT_ONCE_S = 5.0
_LONG = Probation(duration_s=600)
_SEEDS = itertools.count()  # a file of its own for every test, on the server they share


@pytest.fixture
def heavy(scene: Scene) -> Bundle:
    """A version of some megabytes."""
    heavy = bundles.heavy(scene.versions.new, "1.4.0", scene.keys.release, seed=next(_SEEDS))
    scene.artifacts.serve(heavy.served())
    return heavy


def _partial_bytes(scene: Scene, bundle: Bundle) -> int:
    partial = scene.device.data / "bundles" / f"{bundle.model_sha256}.partial"
    return partial.stat().st_size if partial.exists() else 0


def _has_grown(scene: Scene, bundle: Bundle, before: int) -> bool:
    return _partial_bytes(scene, bundle) >= before + _TORN_AFTER_BYTES - _CHUNK_BYTES


def _wait_for_held_download(scene: Scene, bundle: Bundle) -> int:
    """Wait until the download stands still with all that can be had; the bytes on disk."""
    floor = _HELD_BYTES - _CHUNK_BYTES
    wait_until(lambda: _partial_bytes(scene, bundle) >= floor, _WAIT_S, "the download reached the held byte")
    return _partial_bytes(scene, bundle)


def test_a_newer_desired_preempts_a_download_that_stands_still(scene: Scene, heavy: Bundle) -> None:
    director, other = scene.director, scene.versions.other
    with scene.artifacts.held(heavy.model_sha256, _HELD_BYTES):
        director.assign(heavy)
        _wait_for_held_download(scene, heavy)
        director.assign(other)
        report = director.wait_for(Phase.HEALTHY)
    assert report.active == other.digest
    assert Phase.SUPERSEDED in director.phases(heavy)
    assert Phase.STAGED not in director.phases(heavy)
    scene.require_agreement(other)


def test_an_agent_whose_download_stands_still_ends_at_once_when_asked(scene: Scene, heavy: Bundle) -> None:
    with scene.artifacts.held(heavy.model_sha256, _HELD_BYTES):
        scene.director.assign(heavy)
        _wait_for_held_download(scene, heavy)
        assert scene.device.process is not None
        scene.device.process.signal(signal.SIGTERM)
        assert scene.device.process.wait(_AT_ONCE_S) == 0


def test_a_preempted_download_goes_on_where_it_was_when_it_is_wanted_again(scene: Scene, heavy: Bundle) -> None:
    director = scene.director
    with scene.artifacts.held(heavy.model_sha256, _HELD_BYTES):
        director.assign(heavy)
        _wait_for_held_download(scene, heavy)
        director.assign(heavy)
        director.wait_for(Phase.DOWNLOADING)
    director.wait_for(Phase.HEALTHY)
    _require_fetched_once(scene, heavy)
    scene.require_agreement(heavy)


def test_a_repeated_and_a_forged_desired_do_not_disturb_a_download(scene: Scene, heavy: Bundle) -> None:
    director = scene.director
    with scene.artifacts.held(heavy.model_sha256, _HELD_BYTES):
        director.assign(heavy)
        _wait_for_held_download(scene, heavy)
        director.publish(director.signed(director.desired(scene.versions.old, generation=director.generation)))
        forged = director.desired(scene.versions.old, generation=director.generation + 1)
        director.publish(director.signed(forged, [scene.keys.stranger]))
    director.wait_for(Phase.HEALTHY)
    director.wait_for_event(EventKind.DESIRED_REFUSED)
    assert [request.first_byte for request in scene.artifacts.requested(heavy.model_sha256)] == [0]
    scene.require_agreement(heavy)


def test_a_download_resumes_by_range_after_kill_9(scene: Scene, heavy: Bundle) -> None:
    with scene.artifacts.held(heavy.model_sha256, _HELD_BYTES):
        scene.director.assign(heavy)
        _wait_for_held_download(scene, heavy)
        scene.device.kill()
    on_disk = _partial_bytes(scene, heavy)
    scene.device.start()
    scene.device.wait_for_health()
    scene.director.wait_for(Phase.HEALTHY)
    assert [request.first_byte for request in scene.artifacts.requested(heavy.model_sha256)] == [0, on_disk]
    _require_fetched_once(scene, heavy)
    scene.require_agreement(heavy)


def test_a_download_goes_on_over_a_link_that_tears_again_and_again(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path, artifacts: ArtifactServer
) -> None:
    with Relay(artifacts.port) as relay:
        url = f"http://127.0.0.1:{relay.port}"
        with new_scene(tmp_path, snapshot=runs_old, server_url=url, download_attempts=1000) as scene:
            torn = bundles.heavy(scene.versions.new, "1.4.0", scene.keys.release, seed=next(_SEEDS))
            artifacts.serve(torn.served())
            scene.start_on_old()
            scene.director.assign(torn)
            for part in range(1, 5):
                before = _partial_bytes(scene, torn)
                relay.cut_after(_TORN_AFTER_BYTES)
                wait_until(partial(_has_grown, scene, torn, before), _WAIT_S, f"part {part} came through")
            relay.restore()
            scene.director.wait_for(Phase.HEALTHY)
            starts = [request.first_byte for request in artifacts.requested(torn.model_sha256)]
            assert starts == sorted(starts), "progress was lost"
            assert len(set(starts)) > 3, "the link was not torn: this proves nothing"
            scene.require_agreement(torn)


def test_a_server_that_is_away_between_desired_and_download_delays_only_the_update(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path, artifacts: ArtifactServer
) -> None:
    with Relay(artifacts.port) as relay:
        url = f"http://127.0.0.1:{relay.port}"
        with new_scene(tmp_path, snapshot=runs_old, server_url=url, download_attempts=1000) as scene:
            scene.start_on_old()
            relay.cut()
            with Caller(scene.device) as caller:
                scene.director.assign(scene.versions.new)
                scene.director.wait_for(Phase.DOWNLOADING)
                for answer in caller.wait_for_more(20):
                    who_answered(answer, scene.versions.old)
                relay.restore()
                scene.director.wait_for(Phase.HEALTHY)
            assert all(answer.status == 200 for answer in caller.answers)
            scene.require_agreement(scene.versions.new)


def test_a_rollback_during_probation_returns_at_once(scene: Scene) -> None:
    director, old, new = scene.director, scene.versions.old, scene.versions.new
    director.assign(new, probation=_LONG)
    director.wait_for(Phase.PROBATION)
    scene.require_agreement(new)
    director.assign(old)
    report = director.wait_for(Phase.HEALTHY, timeout_s=_AT_ONCE_S)
    assert report.active == old.digest
    scene.require_agreement(old)


def test_a_rollback_of_a_proven_version_needs_no_server(scene: Scene) -> None:
    director, old, new = scene.director, scene.versions.old, scene.versions.new
    director.assign(new)
    director.wait_for(Phase.HEALTHY)
    requests_before = len(scene.artifacts.requests)
    director.assign(old, probation=_LONG)
    director.wait_for(Phase.HEALTHY, timeout_s=_AT_ONCE_S)
    assert len(scene.artifacts.requests) == requests_before
    scene.require_agreement(old)


def _require_fetched_once(scene: Scene, bundle: Bundle) -> None:
    """No byte of the model file went over the network twice, but for at most one chunk."""
    size = len(bundle.files[bundle.model_sha256])
    sent = sum(request.sent_bytes for request in scene.artifacts.requested(bundle.model_sha256))
    assert size <= sent <= size + _CHUNK_BYTES


def test_an_update_waits_for_its_maintenance_hours_and_the_device_says_where_it_lives(scene: Scene) -> None:
    director, new = scene.director, scene.versions.new
    now = datetime.now(UTC)
    later, much_later = (f"{now + timedelta(hours=hours):%H:%M}" for hours in (2, 3))

    def publish(hours: MaintenanceHours) -> None:
        director.generation += 1
        desired = director.desired(new, generation=director.generation)
        director.publish(director.signed(msgspec.structs.replace(desired, maintenance=hours)))

    publish(MaintenanceHours(start=later, end=much_later, time_zone="Etc/UTC"))
    director.wait_for(Phase.ACKED)
    assert director.newest().time_zone == device_time_zone()
    scene.device.require_answers_of(scene.versions.old)
    publish(MaintenanceHours(start=much_later, end=later, time_zone="Etc/UTC"))  # all but that hour
    director.wait_for(Phase.HEALTHY)
    assert director.phases(new).count(Phase.DOWNLOADING) == 1
    scene.require_agreement(new)
