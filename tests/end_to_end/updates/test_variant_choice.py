"""A bundle of several variants on a real device: what it fetches, chooses and says, with hints, crashes and reverts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_protocol.bundle_folder import add_file, write_manifest
from fleet_protocol.messages import ModelReport, Phase, Probation
from tests.end_to_end.fleet import Fleet, eventually
from tests.end_to_end.updates.bundles import Bundle, digits, with_variants
from tests.end_to_end.updates.conftest import OpenScene
from tests.end_to_end.updates.device import now_ns
from tests.end_to_end.updates.director import WAIT_S
from tests.end_to_end.updates.scene import Scene
from tests.real_servers.processes import wait_until

_ROLLOUT_S = 60.0
_POLICY = {
    "stages": [{"percent": 30, "bake_s": 0.5}, {"percent": 100, "bake_s": 0.5}],
    "max_bake_extensions": 100,
    "deploy_deadline_s": 60,
    "probation": {"duration_s": 0.5, "min_inferences": 10, "max_p95_latency_ratio": 1000.0},
    "gates": [{"gate": "update_failures", "max_share": 0.0}],
}


@pytest.fixture
def several(scene: Scene) -> Bundle:
    """1.1.0 as three variants: `slow`, `int8`, and `wrong`, which answers otherwise than its golden vectors."""
    return serve(scene, with_variants(scene.versions.new, scene.keys.release))


def serve(scene: Scene, bundle: Bundle) -> Bundle:
    scene.artifacts.serve(bundle.served())
    return bundle


def fetched(scene: Scene, bundle: Bundle, since: int) -> set[str]:
    """The variants that were asked for since a count of requests, and "people" for a file that no device needs."""
    names = {variant.file.sha256: variant.name for variant in bundle.manifest.variants}
    names |= {artifact.sha256: "people" for artifact in (bundle.manifest.card, bundle.manifest.report) if artifact}
    asked = {request.sha256 for request in scene.artifacts.requests[since:]}
    return {names[sha256] for sha256 in asked if sha256 in names}


def healthy_on(scene: Scene, bundle: Bundle) -> ModelReport:
    report = scene.director.wait_for(Phase.HEALTHY, where=lambda found: found.active == bundle.digest)
    scene.require_agreement(bundle)
    return report


def on_disk(scene: Scene) -> set[str]:
    return {path.name for path in (scene.device.data / "bundles").iterdir()}


def test_a_device_measures_every_candidate_keeps_the_fastest_right_one_and_reports_all(
    scene: Scene, several: Bundle
) -> None:
    since = len(scene.artifacts.requests)
    scene.director.assign(several)
    report = healthy_on(scene, several)

    assert report.variant == "int8"
    figures = {one.variant: one for one in report.variants}
    assert {name: (one.right, one.fault) for name, one in figures.items()} == {
        "slow": (True, ""), "int8": (True, ""), "wrong": (False, "wrong answers"),
    }  # fmt: skip
    assert figures["slow"].p50_us > figures["int8"].p50_us > 0
    assert figures["int8"].memory_bytes > 0
    assert fetched(scene, several, since) == {"slow", "int8", "wrong"}
    kind = scene.director.newest()
    assert kind.cpu_signature and kind.onnxruntime_version


def test_a_hint_that_holds_is_the_only_variant_that_is_fetched_and_its_figures_are_reported(
    scene: Scene, several: Bundle
) -> None:
    since = len(scene.artifacts.requests)
    scene.director.assign(several, variant="slow")
    report = healthy_on(scene, several)

    assert report.variant == "slow"
    [figures] = report.variants
    assert (figures.variant, figures.right, figures.p50_us > 0) == ("slow", True, True)
    assert fetched(scene, several, since) == {"slow"}


def test_a_hint_that_does_not_hold_fetches_the_others_and_the_device_chooses_itself(
    scene: Scene, several: Bundle
) -> None:
    since = len(scene.artifacts.requests)
    scene.director.assign(several, variant="wrong")
    report = healthy_on(scene, several)

    assert report.variant == "int8"
    assert [one.variant for one in report.variants if not one.right] == ["wrong"]
    assert fetched(scene, several, since) == {"slow", "int8", "wrong"}
    phases = scene.director.phases(several)
    assert phases[: phases.index(Phase.PROBATION)] == [
        Phase.ACKED, Phase.DOWNLOADING, Phase.STAGED, Phase.WARMING,
        Phase.DOWNLOADING, Phase.STAGED, Phase.WARMING,
    ]  # fmt: skip


def test_a_death_after_a_hint_did_not_hold_goes_on_with_the_others(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path
) -> None:
    with new_scene(tmp_path, snapshot=runs_old) as scene:
        several = serve(scene, with_variants(scene.versions.new, scene.keys.release))
        slow = next(variant.file.sha256 for variant in several.manifest.variants if variant.name == "slow")
        scene.start_on_old()
        with scene.artifacts.held(slow, after_bytes=10):
            scene.director.assign(several, variant="wrong")
            # the reports between may be passed over: warming took but milliseconds
            wait_until(lambda: bool(scene.artifacts.requested(slow)), WAIT_S, "the other variants were asked for")
            scene.device.kill()
            target = scene.device.state().models["digits"].target
            assert target is not None and target.variant == ""
        scene.device.start()
        scene.device.wait_for_health()

        assert healthy_on(scene, several).variant == "int8"


def test_what_was_not_chosen_leaves_the_disk_and_a_return_to_the_bundle_works(scene: Scene, several: Bundle) -> None:
    scene.director.assign(several)
    healthy_on(scene, several)
    files = {variant.name: variant.file.sha256 for variant in several.manifest.variants}
    wait_until(lambda: not {files["slow"], files["wrong"]} & on_disk(scene), WAIT_S, "what was not chosen left")
    assert {files["int8"], several.manifest.golden.sha256, several.digest} <= on_disk(scene)

    scene.director.assign(scene.versions.other)
    healthy_on(scene, scene.versions.other)
    since = len(scene.artifacts.requests)
    scene.director.assign(several, variant="int8")
    assert healthy_on(scene, several).variant == "int8"
    assert fetched(scene, several, since) == set()
    scene.director.assign(scene.versions.other)
    healthy_on(scene, scene.versions.other)
    scene.director.assign(several)
    assert healthy_on(scene, several).variant == "int8"
    assert fetched(scene, several, since) == {"slow", "wrong"}


def test_a_revert_in_probation_needs_no_network_though_only_the_chosen_variant_is_kept(
    scene: Scene, several: Bundle
) -> None:
    scene.director.assign(several)
    healthy_on(scene, several)
    scene.director.assign(scene.versions.other, probation=Probation(duration_s=600))
    scene.director.wait_for(Phase.PROBATION)
    since = len(scene.artifacts.requests)
    scene.device.kill()
    scene.device.start()
    scene.device.wait_for_health()

    report = scene.director.wait_for(Phase.REVERTED)
    assert (report.active, report.variant) == (several.digest, "int8")
    assert {one.variant for one in report.variants} == {"slow", "int8", "wrong"}
    scene.device.require_answers_of(several)
    assert len(scene.artifacts.requests) == since


def test_a_staged_bundle_whose_file_is_gone_is_fetched_again(scene: Scene, several: Bundle) -> None:
    files = {variant.name: variant.file.sha256 for variant in several.manifest.variants}
    scene.director.assign(several, probation=Probation(duration_s=600))
    scene.director.wait_for(Phase.PROBATION)
    scene.device.stop()
    assert scene.device.state().models["digits"].phase is Phase.STAGED
    (scene.device.data / "bundles" / files["int8"]).unlink()
    since, restarted_ns = len(scene.artifacts.requests), now_ns()
    scene.device.start()

    assert scene.director.wait_for(Phase.PROBATION, since_ns=restarted_ns).variant == "int8"
    assert fetched(scene, several, since) == {"int8"}


def test_the_first_devices_measurements_tell_the_rest_of_its_kind_what_to_fetch(tmp_path: Path) -> None:
    several = with_variants(digits("1.1.0", ()), ())
    folder = tmp_path / "several"
    for content in several.files.values():
        add_file(folder, content)
    write_manifest(folder, several.manifest)
    names = ("press-1", "press-2", "press-3")
    with Fleet(tmp_path / "fleet") as fleet:
        for name in names:
            fleet.add_device(name, from_fleet=True)
        fleet.publish("1.1.0", folder)
        rollout = fleet.roll_out("1.1.0", _POLICY)
        eventually(lambda: fleet.rollout(rollout)["state"] == "COMPLETED", _ROLLOUT_S, "the rollout is complete")
        told = {name: fleet.reported(name) or {} for name in names}
        [kind] = fleet.client.pages("models/digits/versions/1.1.0/variants")

    measured = {name: {one["variant"] for one in report.get("variants", [])} for name, report in told.items()}
    assert sorted(measured.values(), key=len) == [{"int8"}, {"int8"}, {"slow", "int8", "wrong"}]
    assert {report["variant"] for report in told.values()} == {"int8"}
    assert (kind["preferred"], kind["is_complete"]) == ("int8", True)
    assert {one["variant"]: (one["right"], one["wrong"]) for one in kind["variants"]} == {
        "slow": (1, 0), "int8": (3, 0), "wrong": (0, 1),
    }  # fmt: skip
