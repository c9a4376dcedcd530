"""A process that hangs is ended by its supervisor's watchdog, and the next start takes the model back."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from fleet_protocol.messages import Phase, Probation
from tests.agent.service.notify_socket import NotifySocket
from tests.end_to_end.updates import bundles
from tests.end_to_end.updates.conftest import OpenScene
from tests.end_to_end.updates.device import now_ns
from tests.end_to_end.updates.director import WAIT_S
from tests.real_servers.processes import wait_until

_WATCHDOG_US = 1_000_000
_PATIENT = Probation(duration_s=600, hang_timeout_s=600.0)


def test_a_model_that_holds_every_lane_is_ended_by_the_watchdog_and_taken_back_by_the_next_start(
    new_scene: OpenScene, runs_old: Path, tmp_path: Path
) -> None:
    with new_scene(tmp_path, snapshot=runs_old) as scene, NotifySocket(tmp_path) as told:
        device, director, old = scene.device, scene.director, scene.versions.old
        bad = bundles.stuck(scene.versions.new, "1.3.0", scene.keys.release)
        scene.artifacts.serve(bad.served())
        device.set(runtime={"hang_timeout_s": 1.0}, lanes={"max": 1})
        supervised = {"NOTIFY_SOCKET": told.address, "WATCHDOG_USEC": str(_WATCHDOG_US)}
        process = device.start(env=supervised)
        told.wait_for("READY=1", timeout_s=WAIT_S)
        told.wait_for("WATCHDOG=1")
        director.assign(bad, probation=_PATIENT)
        director.wait_for(Phase.PROBATION)
        caller = threading.Thread(target=device.read_digit, daemon=True)
        caller.start()

        assert "every lane of digits has been at the same run" in told.wait_for("STATUS=stuck: ", timeout_s=WAIT_S)
        _end_as_systemd_does(told, process.pid)
        assert process.wait(WAIT_S) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in process.output(), "the stacks say where it was stuck"
        caller.join(WAIT_S)

        restarted_ns = now_ns()
        device.start(env=supervised)
        device.wait_for_health()
        report = director.wait_for(Phase.REVERTED, since_ns=restarted_ns)
        assert "the agent process died in PROBATION with this model" in report.error
        scene.require_agreement(old)
        device.stop()
        assert told.told()[-1] == "STOPPING=1"


def _end_as_systemd_does(told: NotifySocket, pid: int) -> None:
    """SIGABRT once no sign of life came within the watchdog's patience."""
    fed = told.count("WATCHDOG=1")
    patience = threading.Event()

    def is_silent() -> bool:
        nonlocal fed
        before, fed = fed, told.count("WATCHDOG=1")
        return before == fed

    wait_until(lambda: not patience.wait(_WATCHDOG_US / 1e6) and is_silent(), WAIT_S, "the watchdog was not fed")
    os.kill(pid, signal.SIGABRT)
