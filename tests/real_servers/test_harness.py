"""The servers, the relay and the processes of tests do what the tests that use them rely on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import pytest
import urllib3
from paho.mqtt.enums import CallbackAPIVersion

from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.mosquitto import Mosquitto
from tests.real_servers.processes import Process, accepts, free_port, wait_until
from tests.real_servers.relay import Relay
from tests.real_servers.requirements import REQUIRE

ROOT = Path(__file__).parents[2]


class _Client:
    """A small MQTT client that remembers what it received."""

    def __init__(self, broker: Mosquitto, name: str, *, password: str | None = None) -> None:
        self.received: list[tuple[str, bytes]] = []
        self.refused = False
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        self._client.username_pw_set(name, password)
        self._client.on_message = lambda _client, _data, message: self.received.append(
            (message.topic, bytes(message.payload))
        )
        self._client.on_connect = self._on_connect
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        wait_until(lambda: self._client.is_connected() or self.refused, 10.0, f"{name} is answered")

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: object, _properties: object) -> None:
        self.refused = getattr(reason, "is_failure", False)

    def subscribe(self, topic: str) -> None:
        granted = threading.Event()
        self._client.on_subscribe = lambda *_: granted.set()
        self._client.subscribe(topic, qos=1)
        assert granted.wait(10.0)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10.0)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_mosquitto_keeps_retained_messages_and_queues_over_a_restart_on_the_same_port(mosquitto: Mosquitto) -> None:
    listener = _Client(mosquitto, "listener")
    listener.subscribe("queue")
    listener.close()
    sender = _Client(mosquitto, "sender")
    sender.publish("kept", b"1", retain=True)
    sender.publish("queue", b"2")
    sender.close()
    port = mosquitto.port
    mosquitto.restart()
    assert mosquitto.port == port
    listener = _Client(mosquitto, "listener")
    listener.subscribe("kept")
    wait_until(lambda: len(listener.received) == 2, 10.0, "both messages came")
    assert sorted(listener.received) == [("kept", b"1"), ("queue", b"2")]
    listener.close()


def test_mosquitto_killed_is_gone_and_starts_again(mosquitto: Mosquitto) -> None:
    mosquitto.kill()
    assert not accepts(mosquitto.port)
    mosquitto.start()
    assert accepts(mosquitto.port)


def test_mosquitto_lets_in_only_its_users_and_each_only_to_its_topics(tmp_path: Path) -> None:
    acl = "user reader\ntopic read open/#\ntopic read secret/#\nuser writer\ntopic write open/#\n"
    with Mosquitto(tmp_path, users={"reader": "r", "writer": "w"}, acl=acl) as broker:
        stranger = _Client(broker, "stranger", password="r")
        assert stranger.refused
        stranger.close()
        reader, writer = _Client(broker, "reader", password="r"), _Client(broker, "writer", password="w")
        reader.subscribe("#")
        writer.publish("secret/x", b"1")
        writer.publish("open/x", b"2")
        wait_until(lambda: reader.received, 10.0, "the allowed message came")
        assert reader.received == [("open/x", b"2")]
        reader.close()
        writer.close()


def test_a_mosquitto_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_setting"):
        Mosquitto(tmp_path, settings=["no_such_setting true"]).start()


def test_influxdb_keeps_its_data_over_a_restart(tmp_path: Path) -> None:
    with InfluxDB(tmp_path) as server:
        if server.external:
            pytest.skip("the server in EDGEFLEET_TEST_INFLUX_URL is not restarted")

        def query(text: str) -> bytes:
            return urllib3.request("POST", f"{server.url}/query", fields={"db": "d", "q": text}).data

        query("CREATE DATABASE d")
        written = urllib3.request("POST", f"{server.url}/api/v2/write?bucket=d&org=-&precision=ns", body=b"m f=1i 7")
        assert written.status == 204
        server.kill()
        assert urllib3.request("GET", f"{server.url}/ping").status == 502
        server.restart()
        assert b'"1970-01-01T00:00:00.000000007Z",1' in query("SELECT * FROM m")


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it receives."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return  # the relay reset it

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return  # closed
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield int(listening.getsockname()[1])
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5.0)


def _dial(relay: Relay) -> socket.socket:
    return socket.create_connection((relay.host, relay.port), timeout=10.0)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (part := connection.recv(65536)):
        received += part
    return received


def test_a_relay_passes_bytes_both_ways_unchanged(echo: int) -> None:
    payload = os.urandom(1_000_000)
    with Relay(echo) as relay, _dial(relay) as connection:
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        assert _receive(connection, len(payload)) == payload
        sender.join(5.0)
        assert (relay.connections, relay.accepted) == (1, 1)


def test_a_relay_passes_the_end_of_one_direction_and_keeps_the_other_open(echo: int) -> None:
    with Relay(echo) as relay, _dial(relay) as connection:
        connection.sendall(b"all")
        connection.shutdown(socket.SHUT_WR)
        assert _receive(connection, 100) == b"all"


@pytest.mark.parametrize("bad", [Relay.cut, Relay.drop_connections])
def test_a_cut_resets_open_connections(echo: int, bad: Callable[[Relay], None]) -> None:
    with Relay(echo) as relay, _dial(relay) as connection:
        connection.sendall(b"x")
        assert _receive(connection, 1) == b"x"
        bad(relay)
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_a_cut_relay_refuses_until_it_is_restored_on_the_same_port(echo: int) -> None:
    with Relay(echo) as relay:
        for bad in (relay.cut, relay.refuse):
            bad()
            with pytest.raises(ConnectionRefusedError):
                _dial(relay)
            relay.restore()
            with _dial(relay) as connection:
                connection.sendall(b"x")
                assert _receive(connection, 1) == b"x"


def test_a_refusing_relay_keeps_open_connections_alive(echo: int) -> None:
    with Relay(echo) as relay, _dial(relay) as connection:
        connection.sendall(b"x")
        assert _receive(connection, 1) == b"x"
        relay.refuse()
        connection.sendall(b"y")
        assert _receive(connection, 1) == b"y"


def test_a_paused_relay_is_silent_and_delivers_later(echo: int) -> None:
    with Relay(echo) as relay, _dial(relay) as connection:
        relay.pause()
        connection.sendall(b"x")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        relay.resume()
        connection.settimeout(10.0)
        assert _receive(connection, 1) == b"x"


def test_a_relay_delays_and_throttles(echo: int) -> None:
    with Relay(echo) as relay, _dial(relay) as connection:
        relay.delay(0.1)
        started = time.monotonic()
        connection.sendall(b"x")
        assert _receive(connection, 1) == b"x"
        assert time.monotonic() - started >= 0.2
        relay.restore()
        relay.throttle(100_000)
        started = time.monotonic()
        connection.sendall(bytes(40_000))
        assert len(_receive(connection, 40_000)) == 40_000
        assert time.monotonic() - started >= 0.2


def test_a_relay_tears_an_answer_where_it_is_told(echo: int) -> None:
    with Relay(echo) as relay, _dial(relay) as connection:
        relay.cut_after(1_000)
        connection.sendall(bytes(5_000))
        assert len(_receive(connection, 5_000)) == 1_000


def test_a_relay_before_nobody_ends_the_connection(echo: int) -> None:
    with Relay(free_port()) as relay, _dial(relay) as connection, suppress(ConnectionResetError):  # as good an end
        assert connection.recv(1) == b""


def test_no_child_outlives_a_test_run_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.real_servers.processes import Process\n"
        "child = Process(['sleep', '600'], folder=Path(sys.argv[1]), name='child')\n"
        "print(child.pid, flush=True); time.sleep(600)\n"
    )
    parent = Process(
        [sys.executable, "-c", script, tmp_path], folder=tmp_path, name="parent", env={"PYTHONPATH": str(ROOT)}
    )
    try:
        text = parent.wait_ready(parent.stdout_path.read_text, 30.0, "the child's number is known")
        child = psutil.Process(int(text))
        parent.signal(signal.SIGKILL)
        wait_until(lambda: not child.is_running() or child.status() == "zombie", 10.0, "the child is gone")
    finally:
        parent.kill()


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = Process(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], folder=tmp_path, name="stubborn"
    )
    child.wait_ready(child.output, 10.0, "it is ready")
    assert child.stop(timeout_s=0.2) == -signal.SIGKILL
    assert child.output() == "ready\n"
    assert child.stop() == child.kill() == -signal.SIGKILL


def test_waiting_for_what_does_not_come_ends_with_its_name() -> None:
    with pytest.raises(TimeoutError, match="pigs fly"):
        wait_until(lambda: False, 0.05, "pigs fly")


@pytest.mark.parametrize(("required", "status", "counted"), [("", 0, "1 skipped"), ("1", 1, "1 failed")])
def test_a_missing_real_part_is_listed_at_the_end_and_fails_where_it_is_required(
    tmp_path: Path, required: str, status: int, counted: str
) -> None:
    (tmp_path / "test_needing.py").write_text(
        "from tests.real_servers.requirements import note_unverified, require_program\n"
        "def test_needs(): require_program('no-such-server')\n"
        "def test_notes(request): note_unverified(request.node, 'a large fleet', 'two cores here')\n"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            tmp_path,
        ],
        env={**os.environ, REQUIRE: required, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == status, run.stdout + run.stderr
    assert counted in run.stdout
    _, found, closing = run.stdout.partition("not verified on this machine:")
    assert found
    assert "- a large fleet: two cores here" in closing
    assert ("- no-such-server: no no-such-server on the PATH" in closing) == (required == "")
