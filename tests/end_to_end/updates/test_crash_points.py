"""Kill -9 at every durable write of an update: the device always comes back, answers, and says the truth.

The sweep first records the points of an undisturbed update, then repeats the update once per point and dies
there. Points are counted per thread, so that those of the updater and of the start are the same in every run;
the network thread's acknowledgements may fall together, and a point that a run does not reach is a kill at its end.

An update over an incumbent is swept whole. What writes the same things in other company is swept in steps; all of it
with EDGEFLEET_SWEEP=all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fleet_protocol.messages import MAIN_ARM, EventKind, Phase, Probation
from tests.end_to_end.updates.artifact_server import ArtifactServer
from tests.end_to_end.updates.bundles import Bundle, Keys, with_variants
from tests.end_to_end.updates.conftest import OpenScene
from tests.end_to_end.updates.device import Device, now_ns, who_answered
from tests.end_to_end.updates.director import WAIT_S
from tests.end_to_end.updates.scene import Scene, Versions
from tests.real_servers.processes import wait_until

_AT_ONCE = 4  # runs side by side: most of each is waiting
_KILLED = -9
_SAME_IN_EVERY_RUN = ("updater:", "MainThread:")
_EVERY_OF_FIRST = 3  # the same writes, but for what is done with an incumbent
_EVERY_OF_ARMS = 5  # each arm writes what a lone update writes, and that one is swept whole
_EVERY_OF_VARIANTS = 4  # most are the same writes again, once more for each file
_NEW_ARMS = ("b", "next")
_UNPROVEN = (Phase.WARMING, Phase.PROBATION)


def test_an_update_survives_kill_9_at_every_durable_write(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, point: str | None) -> tuple[list[str], bool]:
        with new_scene(folder, snapshot=runs_old) as scene:
            points, reached = _update_until_killed(scene, point)
            if point is not None:
                _require_recovery(scene, incumbent=True)
            return points, reached

    with capsys.disabled():
        _sweep(run, tmp_path, "1.0.0 -> 1.1.0")


def test_a_first_installation_survives_kill_9_at_every_durable_write(
    new_scene: OpenScene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, point: str | None) -> tuple[list[str], bool]:
        with new_scene(folder, snapshot=None) as scene:
            points, reached = _update_until_killed(scene, point)
            if point is not None:
                _require_recovery(scene, incumbent=False)
            return points, reached

    with capsys.disabled():
        _sweep(run, tmp_path, "first installation of 1.1.0", every=_EVERY_OF_FIRST)


def test_a_recovery_survives_kill_9_at_every_durable_write(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_scene(tmp_path / "dies-in-probation", snapshot=runs_old) as scene:
        scene.device.start()
        scene.director.assign(scene.versions.new, probation=Probation(duration_s=600))
        scene.director.wait_for(Phase.PROBATION)
        scene.device.kill()
        died_in_probation = scene.device.data

    def run(folder: Path, point: str | None) -> tuple[list[str], bool]:
        with new_scene(folder, snapshot=died_in_probation) as scene:
            scene.director.generation = 2
            points, reached = _run_until_killed(scene, point, Phase.REVERTED)
            if point is not None:
                _require_recovery(scene, incumbent=True, always_reverted=True)
            return points, reached

    with capsys.disabled():
        _sweep(run, tmp_path, "recovery from a death in probation", only="MainThread:")


def test_the_coming_of_an_arm_and_a_shadow_survives_kill_9_at_its_durable_writes(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, point: str | None) -> tuple[list[str], bool]:
        with new_scene(folder, snapshot=runs_old) as scene:
            scene.director.assign_arms(_arms(scene))
            points, reached = _run_until_killed(scene, point, Phase.HEALTHY, arms=_NEW_ARMS)
            if point is not None:
                _require_recovery_of_arms(scene)
            return points, reached

    with capsys.disabled():
        _sweep(run, tmp_path, "1.0.0 gets an arm 1.1.0 and a shadow 1.2.0", only="updater:", every=_EVERY_OF_ARMS)


@pytest.fixture(scope="session")
def several(versions: Versions, artifacts: ArtifactServer, keys: Keys) -> Bundle:
    """1.1.0 as three variants."""
    made = with_variants(versions.new, keys.release)
    artifacts.serve(made.served())
    return made


def test_an_update_whose_hinted_variant_does_not_hold_survives_kill_9_at_its_durable_writes(
    new_scene: OpenScene, runs_old: Path, several: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(folder: Path, point: str | None) -> tuple[list[str], bool]:
        with new_scene(folder, snapshot=runs_old) as plain:
            scene = replace(plain, versions=replace(plain.versions, new=several))
            scene.director.assign(several, variant="wrong")
            points, reached = _run_until_killed(scene, point, Phase.HEALTHY)
            if point is not None:
                _require_recovery(scene, incumbent=True)
            return points, reached

    with capsys.disabled():
        _sweep(run, tmp_path, "1.0.0 -> one of three variants of 1.1.0", only="updater:", every=_EVERY_OF_VARIANTS)


def _sweep(
    run: Callable[[Path, str | None], tuple[list[str], bool]], folder: Path, what: str, only: str = "", every: int = 1
) -> None:
    points, _ = run(folder / "recorded", None)
    step = 1 if os.environ.get("EDGEFLEET_SWEEP") == "all" else every
    points = [point for point in points if point.startswith(only)][::step]
    assert len(points) > 5, points

    def run_one(point: str) -> bool:
        try:
            return run(folder / point.replace(":", "-"), point)[1]
        except Exception as error:
            error.add_note(f"killed at {point}")
            raise

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        reached = dict(zip(points, pool.map(run_one, points), strict=True))
    missed = [point for point, was_reached in reached.items() if not was_reached]
    print(f"\n{what}: {len(points)} crash points, {len(points) - len(missed)} reached")  # noqa: T201 - told to the reader of the run
    assert not [point for point in missed if point.startswith(_SAME_IN_EVERY_RUN)]
    assert len(missed) <= len(points) // 4, missed


def _update_until_killed(scene: Scene, point: str | None) -> tuple[list[str], bool]:
    scene.director.assign(scene.versions.new)
    return _run_until_killed(scene, point, Phase.HEALTHY)


def _run_until_killed(
    scene: Scene, point: str | None, end: Phase, arms: tuple[str, ...] = (MAIN_ARM,)
) -> tuple[list[str], bool]:
    """Run the dangerous agent until it kills itself at `point`, or is killed at the end of its work.

    Returns the points it passed (when there is no `point`), and whether it reached the point.
    """
    device, record = scene.device, scene.device.folder / "points"
    process = device.start({"record": str(record)} if point is None else {"kill_at": point})

    def killed_itself_or_done() -> str | None:
        if process.returncode is not None:
            return "ended"
        try:
            for arm in arms:
                scene.director.wait_for(end, timeout_s=0, arm=arm)
        except TimeoutError:
            return None
        return "done"

    ended = wait_until(killed_itself_or_done, WAIT_S, f"the agent died at {point} or reached {end}")
    if ended == "done" and point is not None and point.startswith(_SAME_IN_EVERY_RUN):
        process.wait(WAIT_S)  # its last writes come after the report
    if point is None:
        scene.director.wait_until_told(end)
    reached = process.returncode is not None
    assert process.returncode in (None, _KILLED), process.output()
    device.kill()
    return [line.split()[0] for line in record.read_text().splitlines()] if point is None else [], reached


def _arms(scene: Scene) -> dict[str, tuple[Bundle, float]]:
    versions = scene.versions
    return {MAIN_ARM: (versions.old, 0.5), "b": (versions.new, 0.5), "next": (versions.other, 0.0)}


def _require_recovery_of_arms(scene: Scene) -> None:
    """A normal start: main answers whatever happened to the others, each arm ends by itself, a retry brings all."""
    device, director, old, new = scene.device, scene.director, scene.versions.old, scene.versions.new
    models = device.state().models
    died_in = {arm: models[f"digits/{arm}"].phase if f"digits/{arm}" in models else None for arm in _NEW_ARMS}
    restarted_ns = now_ns()
    device.start()
    device.wait_for_health(200)
    assert device.state().models["digits"].phase is Phase.HEALTHY
    who_answered(device.read_digit(), old, new)
    for arm, died in died_in.items():
        report = director.wait_for_end(since_ns=restarted_ns, arm=arm)
        reverted = died in (*_UNPROVEN, Phase.REVERTED)
        assert report.phase is (Phase.REVERTED if reverted else Phase.HEALTHY), (arm, died_in, report)
        assert (report.active is None) is reverted
    assert director.wait_for().active == old.digest
    director.assign_arms(_arms(scene), retry=True)
    for arm in (MAIN_ARM, *_NEW_ARMS):
        director.wait_for(Phase.HEALTHY, arm=arm)
    answered = {who_answered(device.read_digit(), old, new).version for _ in range(60)}
    assert answered == {old.version, new.version}


def _require_recovery(scene: Scene, *, incumbent: bool, always_reverted: bool = False) -> None:
    """A normal start comes back, answers with a whole model, says which, and takes the update with a retry."""
    device, director, old, new = scene.device, scene.director, scene.versions.old, scene.versions.new
    died_in = _phase_on_disk(device)
    restarted_ns = now_ns()
    device.start()
    if incumbent:
        device.wait_for_health(200)
        who_answered(device.read_digit(), old, new)
    else:
        device.wait_for_health(200, 503)
    report = director.wait_for_end(since_ns=restarted_ns)
    reverted = always_reverted or died_in in (*_UNPROVEN, Phase.REVERTED)
    assert report.phase is (Phase.REVERTED if reverted else Phase.HEALTHY), (died_in, report)
    if not reverted:
        scene.require_agreement(new)
    else:
        assert "died in" in report.error
        scene.require_agreement(old if incumbent else None)
    if died_in in _UNPROVEN:
        assert director.wait_for_event(EventKind.REVERTED).bundle == new.digest
    director.assign(new, retry=True)
    director.wait_for(Phase.HEALTHY)
    scene.require_agreement(new)


def _phase_on_disk(device: Device) -> Phase | None:
    model = device.state().models.get("digits")
    return model.phase if model else None
