"""What the agent tells its supervisor, over real datagram sockets."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from edge_agent.service.supervision import Supervision
from edge_agent.service.supervisor import Supervisor
from tests.agent.service.notify_socket import NotifySocket
from tests.real_servers.processes import wait_until


@pytest.fixture(params=["file", "abstract"])
def heard(request: pytest.FixtureRequest, tmp_path: Path):
    with NotifySocket(tmp_path if request.param == "file" else None) as heard:
        yield heard


def supervisor_at(heard: NotifySocket, **more: str) -> Supervisor:
    supervisor = Supervisor.from_environment({"NOTIFY_SOCKET": heard.address, **more})
    assert supervisor is not None
    return supervisor


def test_every_word_arrives_as_systemd_reads_it(heard: NotifySocket) -> None:
    supervisor = supervisor_at(heard)
    supervisor.ready()
    supervisor.alive()
    supervisor.status("two\nlines")
    supervisor.extend_timeout(2.5)
    supervisor.stopping()
    supervisor.close()

    assert heard.told() == ["READY=1", "WATCHDOG=1", "STATUS=two lines", "EXTEND_TIMEOUT_USEC=2500000", "STOPPING=1"]


@pytest.mark.parametrize("address", ["", "relative", "@", "vsock:2:1234"])
def test_without_a_socket_there_is_no_supervisor(address: str) -> None:
    assert Supervisor.from_environment({"NOTIFY_SOCKET": address}) is None
    assert Supervisor.from_environment({}) is None


def test_a_supervisor_that_does_not_listen_stops_nothing(tmp_path: Path) -> None:
    supervisor = Supervisor(address=str(tmp_path / "nobody"))
    supervisor.ready()
    supervisor.close()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_only_when_it_is_meant_for_this_process(
    tmp_path: Path, environment: dict[str, str], watchdog_s: float | None
) -> None:
    supervisor = Supervisor.from_environment({"NOTIFY_SOCKET": str(tmp_path / "x"), **environment})
    assert supervisor is not None and supervisor.watchdog_s == watchdog_s
    supervisor.close()


def test_an_agent_that_serves_is_ready_then_alive_and_says_when_it_stops(heard: NotifySocket) -> None:
    with Supervision(supervisor_at(heard, WATCHDOG_USEC="40000")) as supervision:
        heard.wait_for("EXTEND_TIMEOUT_USEC=")
        assert "READY=1" not in heard.told()
        supervision.serving(lambda: [])
        heard.wait_for("READY=1")
        wait_until(lambda: heard.count("WATCHDOG=1") > 3, 10.0, "the watchdog was fed")
    told = heard.told()

    assert told[-1] == "STOPPING=1"
    assert told.count("READY=1") == told.count("STOPPING=1") == 1
    assert "EXTEND_TIMEOUT_USEC=30000000" not in told[told.index("READY=1") :]


def test_an_agent_that_is_stuck_says_so_once_and_feeds_the_watchdog_no_more_until_it_lives_again(
    heard: NotifySocket,
) -> None:
    stuck: list[str] = []
    asked = threading.Semaphore(0)

    def look() -> list[str]:
        asked.release()
        return list(stuck)

    with Supervision(supervisor_at(heard, WATCHDOG_USEC="40000")) as supervision:
        supervision.serving(look)
        heard.wait_for("WATCHDOG=1")
        stuck.append("the updater thread is stuck")
        heard.wait_for("STATUS=stuck: the updater thread is stuck")
        fed = heard.count("WATCHDOG=1")
        for _ in range(asked._value + 5):
            assert asked.acquire(timeout=10.0)
        assert heard.count("WATCHDOG=1") == fed
        assert heard.count("STATUS=stuck: the updater thread is stuck") == 1
        stuck.clear()
        wait_until(lambda: heard.count("WATCHDOG=1") > fed, 10.0, "it was fed again")


def test_a_bug_in_the_look_ends_no_process_that_works(heard: NotifySocket) -> None:
    def look() -> list[str]:
        raise RuntimeError("a bug")

    with Supervision(supervisor_at(heard, WATCHDOG_USEC="40000")) as supervision:
        supervision.serving(look)
        heard.wait_for("WATCHDOG=1")


def test_without_a_supervisor_nothing_runs_and_an_agent_that_never_served_is_never_ready(heard: NotifySocket) -> None:
    before = threading.active_count()
    with Supervision(None) as supervision:
        supervision.serving(lambda: ["never asked"])
        assert threading.active_count() == before
    with Supervision(supervisor_at(heard)):
        pass
    assert "READY=1" not in heard.told()
