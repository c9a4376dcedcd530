"""The attacks on whom a device believes, by name, against a real agent and a real broker.

docs/trust.md lists every attack with its test; those on single bundles and messages are in ../updates/test_attacks.py.
"""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, EventKind, Phase
from tests.end_to_end.trust.conftest import Roots, pinned_scene, root_path
from tests.end_to_end.updates.bundles import MODEL, sign
from tests.end_to_end.updates.director import WAIT_S
from tests.end_to_end.updates.scene import Scene, Versions
from tests.real_servers.processes import wait_until


def direct(scene: Scene, signer: PrivateKey, *, generation: int, root_version: int, expires_ns: int = 0) -> None:
    """Assign 1.1.0 on the word of `signer`."""
    word = scene.director.desired(scene.versions.new, generation=generation)
    word = replace(word, root_version=root_version, expires_ns=expires_ns)
    scene.director.publish(scene.director.signed(word, [signer]))


def test_a_stolen_director_key_ends_with_the_next_root_whatever_the_thief_had_signed(
    scene: Scene, roots: Roots
) -> None:
    """Fast-forward: the thief used up the generations. The next root's director is heard all the same."""
    director, old, new = scene.director, scene.versions.old, scene.versions.new
    director.generation = 2**53 - 1
    director.publish(director.signed(director.desired(old, generation=director.generation)))
    director.wait_for(Phase.HEALTHY)

    scene.artifacts.serve({root_path(2): roots.envelope(2, director=roots.new_director)})
    direct(scene, roots.new_director, generation=2, root_version=2)
    director.generation = 2
    director.wait_for(Phase.HEALTHY, where=lambda report: report.active == new.digest)
    assert director.newest().root_version == 2
    assert scene.device.state().directed_by == (roots.new_director.public.key_id,)


def test_a_revoked_release_key_installs_nothing_more_and_stops_nothing_that_runs(scene: Scene, roots: Roots) -> None:
    director, new = scene.director, scene.versions.new
    releasing = (roots.new_release, roots.keys.release[0])
    scene.artifacts.serve({root_path(2): roots.envelope(2, release=releasing)})
    director.generation += 1
    direct(scene, roots.keys.director, generation=director.generation, root_version=2)
    report = director.wait_for(Phase.REJECTED)
    assert "1 valid signatures by trusted keys, 2 needed" in report.error
    assert scene.artifacts.requested(new.model_sha256) == [], "it fetched what it must not run"
    scene.require_agreement(scene.versions.old)

    scene.device.kill()
    scene.device.start()
    scene.device.wait_for_health()
    scene.device.require_answers_of(scene.versions.old)

    again = sign(new.manifest, new.files, releasing)
    scene.artifacts.serve(again.served())
    director.assign(again)
    director.wait_for(Phase.HEALTHY)
    scene.require_agreement(again)


def test_a_forged_root_is_not_followed_and_what_names_it_waits(scene: Scene, roots: Roots) -> None:
    """One root key of two is stolen, and the server with its director key."""
    stolen = (roots.holders[0], roots.keys.stranger)
    forged = roots.envelope(2, release=(roots.keys.stranger, roots.new_release), by=stolen)
    scene.artifacts.serve({root_path(2): forged})
    scene.director.generation += 1
    direct(scene, roots.keys.director, generation=scene.director.generation, root_version=2)
    wait_until(lambda: scene.artifacts.requested(root_path(2)), WAIT_S, "the forged root was fetched")
    wait_until(lambda: "trust root 2 is not here yet" in scene.director.newest().held_back, WAIT_S, "it was told")
    report = scene.director.wait_for(Phase.ACKED)
    assert report.active == scene.versions.old.digest
    scene.device.require_answers_of(scene.versions.old)
    assert not (scene.device.data / "roots" / "2.json").exists()


def test_rollback_of_the_root_is_not_possible_after_a_restart(scene: Scene, roots: Roots) -> None:
    scene.artifacts.serve({root_path(2): roots.envelope(2, director=roots.new_director)})
    direct(scene, roots.new_director, generation=2, root_version=2)
    scene.director.generation = 2
    scene.director.wait_for(Phase.HEALTHY)
    scene.device.kill()
    scene.artifacts.serve({root_path(2): roots.envelope(2)})
    direct(scene, roots.keys.director, generation=9, root_version=1)  # root 1's director
    scene.device.start()
    scene.device.wait_for_health()
    event = scene.director.wait_for_event(EventKind.DESIRED_REFUSED)
    assert "0 valid signatures" in event.detail
    assert scene.device.state().generation == 2
    assert scene.director.newest().root_version == 2


def test_freeze_a_word_that_expired_begins_nothing_and_is_told_and_a_later_one_does(scene: Scene) -> None:
    director = scene.director
    director.generation += 1
    direct(scene, scene.keys.director, generation=director.generation, root_version=1, expires_ns=time.time_ns() - 1)
    report = director.wait_for(Phase.ACKED)
    assert "expired on" in report.error
    assert report.active == scene.versions.old.digest
    wait_until(lambda: "expired on" in director.newest().held_back, WAIT_S, "the stale word was told")
    assert scene.artifacts.requested(scene.versions.new.digest) == []

    direct(scene, scene.keys.director, generation=director.generation, root_version=1, expires_ns=2 * time.time_ns())
    director.wait_for(Phase.HEALTHY, where=lambda report: report.active == scene.versions.new.digest)
    wait_until(lambda: director.newest().held_back == "", WAIT_S, "nothing is held back any more")


def test_an_expired_root_begins_nothing_new_until_the_next_one_is_here(
    roots: Roots, versions: Versions, runs_old: Path, tmp_path: Path
) -> None:
    expired = roots.envelope(1, expires_in_ns=-1)
    with pinned_scene(tmp_path, roots, versions, snapshot=runs_old, pinned=expired) as scene:
        scene.start_on_old()
        scene.director.assign(versions.new)
        assert "trust root 1 expired" in scene.director.wait_for(Phase.ACKED).error
        scene.device.require_answers_of(versions.old)
        scene.artifacts.serve({root_path(2): roots.envelope(2)})
        director = scene.director
        direct(scene, roots.keys.director, generation=director.generation + 1, root_version=2)
        director.generation += 1
        director.wait_for(Phase.HEALTHY)
        scene.require_agreement(versions.new)


def test_mix_and_match_arms_of_different_bundles_are_each_checked_alone(scene: Scene) -> None:
    """One arm is the incumbent, the other names a manifest whose signatures are of another one."""
    new, other, director = scene.versions.new, scene.versions.other, scene.director
    mixed = sign(replace(other.manifest, golden=new.manifest.golden), other.files, (scene.keys.stranger,))
    scene.artifacts.serve(mixed.served())
    director.generation += 1
    word = director.desired(scene.versions.old, generation=director.generation)
    arm = Assignment(model=MODEL, version=mixed.version, bundle=mixed.digest, arm="b", weight=0.5)
    director.publish(director.signed(replace(word, assignments=[*word.assignments, arm])))
    assert director.wait_for(Phase.REJECTED, arm="b").active is None
    assert director.wait_for(Phase.HEALTHY).active == scene.versions.old.digest
    scene.device.require_answers_of(scene.versions.old)


def test_a_stolen_server_key_alone_chooses_among_released_bundles_and_runs_no_other_bytes(
    scene: Scene, roots: Roots
) -> None:
    """What stays possible is written down in docs/trust.md: an old release, none, or no news at all."""
    evil = sign(scene.versions.new.manifest, scene.versions.new.files, (roots.keys.director, roots.keys.stranger))
    scene.artifacts.serve(evil.served())
    scene.director.assign(evil)
    assert "0 valid signatures" in scene.director.wait_for(Phase.REJECTED).error
    scene.require_agreement(scene.versions.old)
    scene.director.assign(scene.versions.other)
    scene.director.wait_for(Phase.HEALTHY)
    scene.require_agreement(scene.versions.other)
