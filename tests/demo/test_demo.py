"""The demo as a user runs it: on Mosquitto, on the embedded broker, on a broker that is already there.

The three run at the same time, because each mostly waits.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.real_servers.mosquitto import Mosquitto
from tests.real_servers.processes import Process, wait_until
from tests.real_servers.requirements import find_program, require_program

_ROOT = Path(__file__).parent.parent.parent
_DEADLINE_S = 170
_WITHOUT_MOSQUITTO = "/usr/bin:/bin"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    folder = tmp_path_factory.mktemp("demo")
    mosquitto = find_program("mosquitto")
    running = {"embedded": _start(folder / "embedded", {"PATH": _WITHOUT_MOSQUITTO})}
    external = None
    if mosquitto:
        running["mosquitto"] = _start(folder / "mosquitto", {"PATH": f"{Path(mosquitto).parent}:{_WITHOUT_MOSQUITTO}"})
        external = Mosquitto(folder / "broker", users={"team": "a secret"})
        external.start()
        url = f"mqtt://team:a%20secret@127.0.0.1:{external.port}"
        running["external"] = _start(folder / "external", {"PATH": _WITHOUT_MOSQUITTO, "EDGEFLEET_MQTT_URL": url})
    yield running
    for process in running.values():
        process.stop()
    if external:
        external.stop()


def _start(folder: Path, environment: dict[str, str], *arguments: str) -> Process:
    folder.mkdir()
    return Process(
        [
            sys.executable,
            "-m",
            "fleet_server.cli",
            "demo",
            "--source",
            str(_ROOT),
            *(arguments or ("--duration", "5", "--json")),
        ],
        folder=folder,
        name="demo",
        env={**_plain_environment(), "TMPDIR": str(folder), **environment},
    )


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("EDGEFLEET_")}


def _summary(process: Process) -> dict[str, Any]:
    status = process.wait(_DEADLINE_S)
    lines = [line for line in process.output().splitlines() if line.startswith("{")]
    assert status == 0, process.output()[-3000:]
    assert len(lines) == 1, "one JSON object on standard output"
    summary: dict[str, Any] = json.loads(lines[0])
    return summary


@pytest.mark.parametrize(
    ("name", "says"),
    [("mosquitto", "mosquitto ("), ("embedded", "embedded broker (amqtt)"), ("external", "EDGEFLEET_MQTT_URL")],
)
def test_the_whole_story_happens_and_nothing_is_lost_or_doubled(
    demos: dict[str, Process], name: str, says: str
) -> None:
    if name != "embedded":
        require_program("mosquitto")
    summary = _summary(demos[name])

    assert says in summary["broker"]
    assert summary["scenes"] == {"installed": True, "upgraded": True, "rolled back": True, "offline": True}
    assert summary["lost"] == summary["duplicates"] == 0
    assert summary["inferences"] == summary["inferences_stored"] > 1000
    assert summary["windows_sent"] == summary["stored"] > 50
    assert summary["devices_exposed"] == 1
    assert 0 < summary["seconds_to_detect"] < 60
    assert summary["seconds_to_first_inference"] < 60
    assert set(summary["final_versions"].values()) == {"1.1.0"}
    assert len(summary["final_versions"]) == 5


def test_ctrl_c_in_the_middle_of_the_story_ends_every_process_soon(tmp_path: Path) -> None:
    demo = _start(tmp_path / "run", {"PATH": _WITHOUT_MOSQUITTO}, "--json")
    demo.wait_ready(lambda: "exposed devices healthy" in demo.output(), 60, "the first stage")
    children = psutil.Process(demo.pid).children(recursive=True)
    assert len(children) >= 6, "a server and five devices"

    demo.signal(signal.SIGINT)

    assert demo.wait(60) == 130, demo.output()[-2000:]
    wait_until(lambda: not any(_lives(child) for child in children), 10, "the end of every child")


def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    demo = _start(tmp_path / "run", {"PATH": _WITHOUT_MOSQUITTO})
    demo.wait_ready(lambda: "five devices" in demo.output(), 60, "the devices")
    children = psutil.Process(demo.pid).children(recursive=True)

    demo.kill()

    wait_until(lambda: not any(_lives(child) for child in children), 30, "the end of every child")


@pytest.mark.parametrize("url", ["http://127.0.0.1", "mqtt://", "mqtt://host:notaport"])
def test_an_unusable_broker_url_is_one_clear_line_and_status_2(tmp_path: Path, url: str) -> None:
    demo = _start(tmp_path / "run", {"PATH": _WITHOUT_MOSQUITTO, "EDGEFLEET_MQTT_URL": url})
    assert demo.wait(30) == 2
    assert "EDGEFLEET_MQTT_URL must be mqtt://" in demo.output()
    assert "Traceback" not in demo.output()


def test_outside_a_checkout_the_demo_says_what_it_needs(tmp_path: Path) -> None:
    demo = _start(tmp_path / "run", {"PATH": _WITHOUT_MOSQUITTO}, "--source", str(tmp_path))
    assert demo.wait(30) == 2
    assert "checkout" in demo.output()
    assert "Traceback" not in demo.output()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
