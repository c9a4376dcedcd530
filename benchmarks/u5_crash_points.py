"""U5: of devices killed at every durable write of three updates, how many have a working, named model afterwards.

Real agents, each a process with a broker, a director and an artifact server of its own; the digits model goes from
1.0.0 to 1.1.0, then to a signed version that fails on real inputs and is taken back in probation, then to 1.2.0, while
an application calls. One undisturbed run records every crash point: before and after each step of each durable write of
the state, the bundle store and the outbox. Then the whole is repeated once per point, and there the process is killed
(SIGKILL). A survivor, started again, answers a real digit with the numbers of the very version that it names, and
updates to 1.2.0 in the end. Points of the network's threads may come together in another run; where one is not reached
the process is killed at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.quantization.bundles import say
from benchmarks.result import Result
from fleet_protocol.messages import Phase, Probation
from tests.end_to_end.updates.artifact_server import ArtifactServer
from tests.end_to_end.updates.bundles import Bundle, Keys, digits, failing_on_real_digits
from tests.end_to_end.updates.device import Answer, Caller, Device, who_answered
from tests.end_to_end.updates.director import AT_ONCE, WAIT_S
from tests.end_to_end.updates.scene import Scene, Versions, open_scene
from tests.real_servers.processes import wait_until

ID = "U5"
TITLE = "devices with a working, named model after a kill -9 at each durable write of three updates / kills"
TARGET = 1.0
LONG = True
_BAD_VERSION = "1.1.1"
_AT_ONCE = 3  # runs side by side: most of each is waiting
_JUDGED = Probation(duration_s=600.0, min_inferences=20)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one killed device came back: `failure` is empty for a survivor."""

    point: str
    was_reached: bool
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every run starts from."""

    keys: Keys
    versions: Versions
    bad: Bundle
    artifacts: ArtifactServer
    snapshot: Path

    @property
    def steps(self) -> tuple[tuple[Bundle, Probation, Phase], ...]:
        """The three updates, and how each ends."""
        return (
            (self.versions.new, AT_ONCE, Phase.HEALTHY),
            (self.bad, _JUDGED, Phase.REVERTED),
            (self.versions.other, AT_ONCE, Phase.HEALTHY),
        )


def run() -> Result:
    """Record, then kill at every point."""
    endings = sweep(every=1)
    return judge(endings)


def sweep(*, every: int) -> list[Ending]:
    """Kill at every `every`-th point."""
    keys = Keys()
    versions = Versions(
        old=digits("1.0.0", keys.release), new=digits("1.1.0", keys.release), other=digits("1.2.0", keys.release)
    )
    bad = failing_on_real_digits(versions.new, _BAD_VERSION, keys.release)
    with TemporaryDirectory(prefix="edgefleet-u5-") as name, ArtifactServer() as artifacts:
        folder = Path(name)
        for bundle in (versions.old, versions.new, bad, versions.other):
            artifacts.serve(bundle.served())
        snapshot = _installed(folder / "installed", keys, versions, artifacts)
        stage = Stage(keys=keys, versions=versions, bad=bad, artifacts=artifacts, snapshot=snapshot)
        points = _recorded(folder / "recorded", stage)[::every]
        say(f"{len(points)} crash points in three updates")

        def kill_at(point: str) -> Ending:
            return _killed(folder / point.replace(":", "-"), stage, point)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(kill_at, points))


def judge(endings: Sequence[Ending]) -> Result:
    """The share of survivors; every point of the updater and of the start must have been reached."""
    died = [ending for ending in endings if ending.failure]
    steady = [ending for ending in endings if ending.point.startswith(("updater:", "MainThread:"))]
    missed = [ending.point for ending in steady if not ending.was_reached]
    share = round((len(endings) - len(died)) / len(endings), 4) if endings else 0.0
    return Result(
        id=ID,
        title=TITLE,
        ratio=share,
        target=f">= {TARGET}, every point of the updater reached",
        holds=share >= TARGET and not missed,
        figures={
            "kills": len(endings),
            "points_reached": sum(ending.was_reached for ending in endings),
            "points_of_the_updater_and_the_start": len(steady),
            "of_these_not_reached": missed,
            "not_survived": {ending.point: ending.failure for ending in died},
        },
    )


def _installed(folder: Path, keys: Keys, versions: Versions, artifacts: ArtifactServer) -> Path:
    """The data of a device that installed 1.0.0."""
    with open_scene(folder, keys=keys, versions=versions, artifacts=artifacts, snapshot=None) as scene:
        scene.device.start()
        scene.director.assign(versions.old)
        scene.director.wait_for(Phase.HEALTHY)
        scene.device.stop()
        return scene.device.data


def _scene(folder: Path, stage: Stage) -> AbstractContextManager[Scene]:
    return open_scene(
        folder, keys=stage.keys, versions=stage.versions, artifacts=stage.artifacts, snapshot=stage.snapshot
    )


def _recorded(folder: Path, stage: Stage) -> list[str]:
    with _scene(folder, stage) as scene:
        record = scene.device.folder / "points"
        if _updated_thrice(scene, stage, {"record": str(record)}):
            raise RuntimeError("the undisturbed run died")
        scene.device.kill()
        return [line.split()[0] for line in record.read_text().splitlines()]


def _killed(folder: Path, stage: Stage, point: str) -> Ending:
    try:
        with _scene(folder, stage) as scene:
            reached = _updated_thrice(scene, stage, {"kill_at": point})
            scene.device.kill()
            try:
                _require_survivor(scene, stage)
            except (AssertionError, TimeoutError, RuntimeError) as error:
                return Ending(point=point, was_reached=reached, failure=f"{type(error).__name__}: {error!s:.300}")
            return Ending(point=point, was_reached=reached)
    except (AssertionError, TimeoutError, RuntimeError, OSError) as error:
        return Ending(point=point, was_reached=False, failure=f"the run itself: {error!s:.300}")


def _updated_thrice(scene: Scene, stage: Stage, plan: dict[str, str]) -> bool:
    """Play the updates; whether the agent killed itself on the way."""
    process = scene.device.start(plan)

    def is_dead() -> bool:
        return process.returncode is not None

    with Caller(scene.device):
        for bundle, probation, end in stage.steps:
            scene.director.assign(bundle, probation=probation)
            wait_until(lambda: is_dead() or _has_reported(scene, end), WAIT_S, f"{end} or the kill came")  # noqa: B023 - called at once
            if is_dead():
                return True
        if plan.get("kill_at", "").startswith(("updater:", "MainThread:")):  # the last writes come after the report
            process.wait(WAIT_S)
    scene.director.wait_until_told(Phase.HEALTHY)
    return is_dead()


def _has_reported(scene: Scene, end: Phase) -> bool:
    try:
        scene.director.wait_for(end, timeout_s=0)
    except TimeoutError:
        return False
    return True


def _good_answer(device: Device) -> Answer | None:
    answer = device.read_digit()
    return answer if answer.status == HTTPStatus.OK else None


def _require_survivor(scene: Scene, stage: Stage) -> None:
    """Started again it answers as the version it names, and takes the last update."""
    device, director, versions = scene.device, scene.director, scene.versions
    device.start()
    device.wait_for_health()
    with Caller(device):  # a bad version that was under way still has to show itself
        answer = wait_until(lambda: _good_answer(device), WAIT_S, "a digit was read")
        assert answer is not None
        who_answered(answer, versions.old, versions.new, versions.other)
        director.assign(versions.other, retry=True)
        director.wait_for(Phase.HEALTHY)
        who_answered(device.read_digit(), versions.old, versions.new, versions.other)
    scene.require_agreement(versions.other)
