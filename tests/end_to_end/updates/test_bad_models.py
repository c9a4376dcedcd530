"""Versions that are signed, whole and bad: each is found on the device, without the server, and taken back."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from fleet_protocol.messages import EventKind, Phase, Probation
from tests.end_to_end.updates import bundles
from tests.end_to_end.updates.bundles import Bundle
from tests.end_to_end.updates.conftest import OpenScene
from tests.end_to_end.updates.device import Caller, now_ns, who_answered
from tests.end_to_end.updates.director import WAIT_S
from tests.end_to_end.updates.scene import Scene
from tests.real_servers.processes import wait_until

_BAD_VERSION = "1.3.0"
_LONG = Probation(duration_s=600)
_HANGS_SOON = Probation(duration_s=600, hang_timeout_s=1.0)
_CALL_PAUSE_S = 0.02
_BASELINE_CALLS = 60
_AFTER_CALLS = 20


def test_a_model_that_fails_its_golden_vectors_never_answers_and_is_in_quarantine_until_retry(scene: Scene) -> None:
    director, old = scene.director, scene.versions.old
    bad = bundles.with_wrong_golden_vectors(scene.versions.new, scene.keys.release)
    scene.artifacts.serve(bad.served())
    with Caller(scene.device) as caller:
        director.assign(bad)
        report = director.wait_for(Phase.FAILED)
        assert "differs from its golden output" in report.error
        warmings = _count(director.phases(bad), Phase.WARMING)

        director.assign(bad)
        report = director.wait_for(Phase.REJECTED)
        assert "in quarantine" in report.error
        assert "differs from its golden output" in report.error

        director.assign(bad, retry=True)
        director.wait_for(Phase.FAILED)
        director.wait_until_told(Phase.REJECTED)
    assert [phase for phase in director.phases(bad) if phase.is_end] == [Phase.FAILED, Phase.REJECTED, Phase.FAILED]
    assert _count(director.phases(bad), Phase.WARMING) == warmings + 1, "only a retry may load it again"
    for answer in caller.answers:
        who_answered(answer, old)
    scene.require_agreement(old)


def test_a_file_that_is_no_model_fails_and_the_incumbent_answers(scene: Scene) -> None:
    bad = bundles.not_a_model(scene.versions.new, scene.keys.release)
    scene.artifacts.serve(bad.served())
    scene.director.assign(bad)
    assert "is not an ONNX model" in scene.director.wait_for(Phase.FAILED).error
    scene.require_agreement(scene.versions.old)


@pytest.mark.parametrize(
    ("abort_while", "phase"),
    [
        pytest.param("warming", Phase.WARMING, id="while it warms"),
        pytest.param("serving", Phase.PROBATION, id="on its first call"),
    ],
)
def test_a_model_that_kills_the_process_is_reverted_by_the_next_start(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path, abort_while: str, phase: Phase
) -> None:
    with new_scene(tmp_path, snapshot=runs_old) as scene:
        device, director, old, new = scene.device, scene.director, scene.versions.old, scene.versions.new
        deadly = {"abort_on": new.model_sha256, "abort_while": abort_while}
        process = device.start(deadly)
        device.wait_for_health()
        director.assign(new, probation=_LONG)
        if phase is Phase.PROBATION:
            director.wait_for(Phase.PROBATION)
            assert device.read_digit().status == 0, "the deadly model was to kill the process"
        assert process.wait(WAIT_S) == -signal.SIGABRT
        assert device.state().models["digits"].phase is phase

        restarted_ns = now_ns()
        process = device.start(deadly)  # the supervisor's restart: the model is as deadly as before
        device.wait_for_health()
        report = director.wait_for(Phase.REVERTED, since_ns=restarted_ns)
        assert f"the agent process died in {phase.value}" in report.error
        event = director.wait_for_event(EventKind.REVERTED)
        assert (event.bundle, event.detail) == (new.digest, report.error)
        scene.require_agreement(old)

        before = director.report_count
        director.publish(director.signed(director.desired(new, generation=director.generation)))
        director.wait_for_another_report(before)
        director.assign(new)
        assert "in quarantine" in director.wait_for(Phase.REJECTED).error
        scene.require_agreement(old)
        assert process.returncode is None, "it died again: a crash loop"


def test_a_machine_that_loses_power_begins_the_update_again_but_not_for_ever(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path
) -> None:
    with new_scene(tmp_path, snapshot=runs_old) as scene:
        director, boot = scene.director, tmp_path / "boot_id"
        boot.write_text("boot-0")
        scene.device.start({"machine_boot_id": str(boot)})
        director.assign(scene.versions.new, probation=Probation(duration_s=600, max_machine_restarts=2))
        for restart in (1, 2):
            director.wait_for(Phase.PROBATION)
            scene.device.kill()
            boot.write_text(f"boot-{restart}")
            restarted_ns = now_ns()
            scene.device.start({"machine_boot_id": str(boot)})
            director.wait_for(Phase.PROBATION, since_ns=restarted_ns)
        scene.device.kill()
        boot.write_text("boot-3")
        scene.device.start({"machine_boot_id": str(boot)})
        scene.device.wait_for_health()
        assert "restarted 3 times" in director.wait_for(Phase.REVERTED).error
        scene.require_agreement(scene.versions.old)


def test_a_model_that_fails_on_real_inputs_is_reverted_without_the_server(scene: Scene) -> None:
    bad = bundles.failing_on_real_digits(scene.versions.new, _BAD_VERSION, scene.keys.release)
    scene.artifacts.serve(bad.served())
    with Caller(scene.device) as caller:
        _require_reverted_in_probation(scene, caller, bad, "inferences failed")
    assert any(answer.status == 500 for answer in caller.answers), "the bad model never served: this proves nothing"


def test_a_model_that_is_ten_times_slower_is_reverted_without_the_server(scene: Scene) -> None:
    bad = bundles.slow(scene.versions.new, _BAD_VERSION, scene.keys.release)
    scene.artifacts.serve(bad.served())
    with Caller(scene.device) as caller:
        _require_reverted_in_probation(scene, caller, bad, "p95 latency")
    latency_us = {version: _median_latency_us(caller, version) for version in caller.versions()}
    assert latency_us[_BAD_VERSION] > 10 * latency_us["1.0.0"], "the bad model was not slow: this proves nothing"


def test_a_model_that_hangs_is_taken_back_and_its_calls_are_answered_by_the_incumbent(scene: Scene) -> None:
    bad = bundles.looping(scene.versions.new, _BAD_VERSION, scene.keys.release)
    scene.artifacts.serve(bad.served())
    with Caller(scene.device) as caller, Caller(scene.device) as other:
        _require_reverted_in_probation(scene, caller, bad, "a run hangs", _HANGS_SOON)
    for answer in caller.answers + other.answers:  # those that hung and those that waited too
        who_answered(answer, scene.versions.old)


def test_a_model_stuck_in_one_operator_is_taken_back_and_others_are_answered_while_its_thread_is_lost(
    scene: Scene,
) -> None:
    bad = bundles.stuck(scene.versions.new, _BAD_VERSION, scene.keys.release)
    scene.artifacts.serve(bad.served())
    for _ in range(_BASELINE_CALLS):  # quick ones, which the thread of the local API learns to answer itself
        who_answered(scene.device.read_digit(), scene.versions.old)
    scene.director.assign(bad, probation=_HANGS_SOON)
    scene.director.wait_for(Phase.PROBATION)
    lost = threading.Thread(target=scene.device.read_digit, daemon=True)
    lost.start()
    report = scene.director.wait_for(Phase.REVERTED)
    assert "a run hangs" in report.error
    scene.require_agreement(scene.versions.old)
    assert lost.is_alive(), "the model was not stuck: this proves nothing"


def test_a_model_that_answers_otherwise_than_the_incumbent_is_reverted_without_the_server(scene: Scene) -> None:
    bad = bundles.answering_otherwise(scene.versions.new, _BAD_VERSION, scene.keys.release)
    scene.artifacts.serve(bad.served())
    scene.director.assign(bad, probation=Probation(duration_s=600, max_shadow_disagreement=0.2))
    scene.director.wait_for(Phase.PROBATION)

    def reverted() -> bool:
        scene.device.read_digit()
        time.sleep(_CALL_PAUSE_S)  # the incumbent is compared in idle time only
        return scene.device.state().models["digits"].phase is Phase.REVERTED

    wait_until(reverted, WAIT_S, "the model was taken back")
    error = scene.director.wait_for(Phase.REVERTED).error
    assert "answers differ from the incumbent's on the same inputs, 20.0% allowed" in error
    scene.require_agreement(scene.versions.old)


def _require_reverted_in_probation(
    scene: Scene, caller: Caller, bad: Bundle, error: str, probation: Probation = _LONG
) -> None:
    caller.wait_for_more(_BASELINE_CALLS)
    scene.director.assign(bad, probation=probation)
    report = scene.director.wait_for(Phase.REVERTED)
    assert error in report.error
    assert report.active == scene.versions.old.digest
    assert scene.director.wait_for_event(EventKind.REVERTED).bundle == bad.digest
    for answer in caller.wait_for_more(_AFTER_CALLS)[1:]:  # the first may have been asked before the revert
        who_answered(answer, scene.versions.old)
    scene.require_agreement(scene.versions.old)


def _median_latency_us(caller: Caller, version: str) -> float:
    latencies = sorted(
        answer.body["latency_us"]
        for answer in caller.answers
        if answer.status == 200 and answer.body["version"] == version
    )
    return float(latencies[len(latencies) // 2])


def _count(phases: list[Phase], phase: Phase) -> int:
    return sum(entry is phase for entry in phases)
