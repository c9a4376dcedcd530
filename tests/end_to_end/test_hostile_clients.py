"""A client with a valid credential sends what no device would: the server and the agents stay up and count it."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from fleet_protocol.messages import (
    MAX_CONTROL_BYTES,
    MAX_TELEMETRY_BYTES,
    Desired,
    Event,
    EventKind,
    Message,
    Presence,
    Reported,
    Stored,
    Window,
    encode,
)
from fleet_protocol.topics import FROM_DEVICE, TopicKind, topic_of
from fleet_server.message_bus.access import SERVER_USER
from tests.end_to_end.accounting import require_every_window_once
from tests.end_to_end.fleet import FLEET, Fleet, eventually
from tests.end_to_end.mqtt_client import MqttClient
from tests.end_to_end.test_server_faults import BOTH_BROKERS, Broker
from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.processes import accepts

MALLORY, VICTIM = "mallory", "victim"
_BOOT = "00000001-0badcafe"
_MOST = 2**63 - 1
_MADE_FOR = {
    TopicKind.TELEMETRY: Window,
    TopicKind.EVENTS: Event,
    TopicKind.PRESENCE: Presence,
    TopicKind.REPORTED: Reported,
}


def window(device: str, sequence: int, **changes: Any) -> Window:
    """A plain window that ended now."""
    now_ns = time.time_ns()
    plain: dict[str, Any] = {"start_ns": now_ns - 10**9, "end_ns": now_ns, "count": 7} | changes
    return Window(
        device=device, boot_id=_BOOT, sequence=sequence, model="digits", version="1.0.0", variant="file", arm="main",
        **plain,
    )  # fmt: skip  # as one line of facts


def good(kind: TopicKind, device: str, sequence: int) -> Message:
    """A message of a device as it should be."""
    now_ns = time.time_ns()
    match kind:
        case TopicKind.TELEMETRY:
            return window(device, sequence)
        case TopicKind.EVENTS:
            return Event(
                device=device, boot_id=_BOOT, sequence=sequence, at_ns=now_ns, kind=EventKind.MODEL_LOAD_FAILED
            )
        case TopicKind.PRESENCE:
            return Presence(device=device, boot_id=_BOOT, online=True, at_ns=now_ns)
        case _:
            return Reported(device=device, boot_id=_BOOT, sequence=sequence, at_ns=now_ns)


def malformed(kind: TopicKind, device: str) -> list[bytes]:
    """Payloads of this kind that every receiver must refuse."""
    dice = random.Random(f"{kind}")
    packed = kind is TopicKind.TELEMETRY
    to_bytes = msgspec.msgpack.encode if packed else msgspec.json.encode
    whole = encode(good(kind, device, 1))
    fields: dict[str, Any] = msgspec.to_builtins(good(kind, device, 1))
    limit = MAX_TELEMETRY_BYTES if packed else MAX_CONTROL_BYTES
    return [
        *(dice.randbytes(size) for size in (1, 7, 100, 4_000, 60_000)),
        *(whole[:size] for size in (1, len(whole) // 3, len(whole) // 2, len(whole) - 1)),
        whole + b"\x00\x01",
        to_bytes({**fields, "padding": "x" * limit}),
        to_bytes({**fields, "schema": 0}),
        to_bytes({**fields, "device": VICTIM}),
        to_bytes({**fields, "device": "../../etc/passwd"}),
        to_bytes({**fields, "boot_id": "x" * 5_000}),
        to_bytes({name: -1 if isinstance(value, int) else value for name, value in fields.items()}),
        to_bytes([fields]),
        b"[" * 50_000,
        b"\x91" * 50_000,
        b'{"schema":1,"device":"\xff\xfe"}',
    ]


def newer(kind: TopicKind, device: str) -> list[bytes]:
    """Payloads of a later major schema: one that otherwise reads as ours, one that does not."""
    to_bytes = msgspec.msgpack.encode if kind is TopicKind.TELEMETRY else msgspec.json.encode
    fields: dict[str, Any] = msgspec.to_builtins(good(kind, device, 1))
    return [to_bytes({**fields, "schema": 2}), to_bytes({"schema": 3, "everything": ["is", "new"]})]


def extreme_windows(device: str) -> list[bytes]:
    """Windows of the right form with numbers and bytes that no device counts. Sequences from 100."""
    noise = random.Random(7).randbytes(2_000)
    changes: list[dict[str, Any]] = [
        {"start_ns": 0, "end_ns": _MOST, "count": _MOST},
        {"count": _MOST, "errors": {"x" * 1_000: _MOST, 'a",b=1\n\x00 \\': _MOST, "\u2028\U0001f4a5": 1}},
        {"start_ns": 0, "end_ns": 0, "classes": {-(2**63): _MOST, _MOST: _MOST}, "batch_sizes": {0: _MOST}},
        {"latency": noise, "queue_wait": noise, "score": noise, "features": {"f": noise, "": b""}},
        {"outcomes": {"correct": _MOST, "wrong": _MOST, "squared_error_sum": 1e308, "squared_error_count": 1}},
        {"outcomes": {"squared_error_sum": float("inf"), "squared_error_count": 1}},
        {"estimated_accuracy": {"count": 1, "confidence_sum": float("nan"), "variance_sum": float("-inf")}},
        {"resources": {"cpu_percent": float("nan"), "temperature_c": float("inf"), "rss_bytes": _MOST}},
        {"outbox": {"depth": _MOST, "dropped": _MOST, "merged": _MOST}},
        {"sequence": 2**53 - 1},
        {"covers": list(range(1_000, 40_000, 2))},
    ]
    plain: dict[str, Any] = msgspec.to_builtins(window(device, 1), builtin_types=(bytes,))
    return [
        msgspec.msgpack.encode({**plain, "sequence": 100 + number, **change}) for number, change in enumerate(changes)
    ]


def extreme_control(device: str) -> list[tuple[TopicKind, Message]]:
    """Events, reports and presences of the right form with texts that a database may not like."""
    nasty = "\x00\x1b[2J'; DROP TABLE devices; --\u2028\U0001f4a5" * 20
    event = Event(
        device=device, boot_id=_BOOT, sequence=500, at_ns=_MOST, kind=EventKind.REVERTED,
        model=nasty, bundle=nasty, detail=nasty,
    )  # fmt: skip  # as one line of facts
    report = Reported(
        device=device, boot_id=_BOOT, sequence=2**53 - 1, at_ns=_MOST, generation=2**53 - 1,
        agent_version=nasty, cpu_signature=nasty, labels={"a": "\x00"},
    )  # fmt: skip  # as one line of facts
    presence = Presence(device=device, boot_id=_BOOT, online=True, at_ns=_MOST)
    return [(TopicKind.EVENTS, event), (TopicKind.REPORTED, report), (TopicKind.PRESENCE, presence)]


@contextmanager
def by_hand(fleet: Fleet, device: str) -> Iterator[MqttClient]:
    """A client with the credential of a newly enrolled device."""
    secret = fleet.enrol(device)["secret"]

    def let_in() -> bool:
        with MqttClient(fleet, user=device, password=secret) as probe:
            return probe.accepted

    eventually(let_in, 10, f"the broker admits {device}")
    with MqttClient(fleet, user=device, password=secret) as client:
        assert client.accepted
        yield client


def require_good_windows_are_stored(fleet: Fleet, client: MqttClient, device: str, sequence: int) -> None:
    """What a device sends after all that is taken in as ever."""
    client.publish(topic_of(FLEET, device, TopicKind.TELEMETRY), encode(window(device, sequence)))
    eventually(
        lambda: sequence in {stored["sequence"] for stored in fleet.windows(device)}, 20, "a good window is stored"
    )


@BOTH_BROKERS
def test_malformed_oversized_newer_and_foreign_payloads_are_counted_and_stop_nothing(
    tmp_path: Path, broker: Broker
) -> None:
    with Fleet(tmp_path, broker=broker) as fleet, by_hand(fleet, MALLORY) as client:
        refused = unsupported = 0
        for kind in FROM_DEVICE:
            topic = topic_of(FLEET, MALLORY, kind)
            for payload in malformed(kind, MALLORY):
                client.publish(topic, payload)
                refused += 1
            for payload in newer(kind, MALLORY):
                client.publish(topic, payload)
                unsupported += 1
        eventually(lambda: fleet.ingested("unsupported_schema") >= unsupported, 20, "every newer payload is counted")
        eventually(lambda: fleet.ingested("malformed") >= refused, 20, "every malformed payload is counted")
        require_good_windows_are_stored(fleet, client, MALLORY, 1)
        assert (fleet.ingested("malformed"), fleet.ingested("unsupported_schema")) == (refused, unsupported)
        assert fleet.ingested("windows") == 1
        assert "Traceback" not in fleet.server_log()


@pytest.mark.parametrize("store", ["embedded", "influxdb"])
def test_extreme_numbers_and_texts_of_a_valid_form_stop_neither_ingest_nor_api(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    influxdb: InfluxDB | None = request.getfixturevalue("influxdb") if store == "influxdb" else None
    with Fleet(tmp_path, influxdb=influxdb) as fleet, by_hand(fleet, MALLORY) as client:
        for payload in extreme_windows(MALLORY):
            client.publish(topic_of(FLEET, MALLORY, TopicKind.TELEMETRY), payload)
        for kind, message in extreme_control(MALLORY):
            client.publish(topic_of(FLEET, MALLORY, kind), encode(message))
        require_good_windows_are_stored(fleet, client, MALLORY, 1)
        set_aside = sum(value for name, value in fleet.metrics().items() if "quarantined" in name)
        assert fleet.ingested("windows") + set_aside >= len(extreme_windows(MALLORY)), "some are refused: not a test"
        assert fleet.ingested("store_failures") == 0, fleet.server_log()
        assert fleet.client.get(f"devices/{MALLORY}")["online"]
        for path in (f"devices/{MALLORY}/telemetry", "models/digits/metrics", "ingest", "kpis", "devices"):
            fleet.client.get(path)
        everything = {"start_ns": 0, "end_ns": _MOST}
        fleet.client.get(f"devices/{MALLORY}/telemetry", **everything)
        fleet.client.get("models/digits/metrics", **everything, step_s=366 * 86_400)
        assert "Traceback" not in fleet.server_log()


@pytest.mark.parametrize("store", ["embedded", "influxdb"])
def test_a_window_repeated_by_hand_even_with_other_contents_is_counted_once(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    influxdb: InfluxDB | None = request.getfixturevalue("influxdb") if store == "influxdb" else None
    with Fleet(tmp_path, influxdb=influxdb) as fleet, by_hand(fleet, MALLORY) as client:
        topic = topic_of(FLEET, MALLORY, TopicKind.TELEMETRY)
        first = window(MALLORY, 1)
        forged = window(MALLORY, 1, start_ns=first.start_ns - 10**9, end_ns=first.end_ns - 5 * 10**8, count=1_000_000)
        for message in (first, forged, first):  # close together: they come as one batch
            client.publish(topic, encode(message), wait=False)
        eventually(lambda: fleet.ingest_status()["repeats"] == 2, 20, "two repeats are counted")
        fleet.kill_server()
        client.publish(topic, encode(forged))
        client.publish(topic, encode(first))
        fleet.start_server()
        eventually(lambda: fleet.ingest_status()["repeats"] == 4, 20, "the repeats after the restart are counted")
        stored = fleet.windows(MALLORY)
        assert [(found["sequence"], found["end_ns"], found["count"]) for found in stored] == [(1, first.end_ns, 7)]
        assert fleet.ingest_status()["windows"] == 1


@BOTH_BROKERS
def test_a_device_can_neither_write_as_another_nor_read_anothers_desired(tmp_path: Path, broker: Broker) -> None:
    with Fleet(tmp_path, broker=broker) as fleet, by_hand(fleet, MALLORY) as client:
        fleet.enrol(VICTIM)
        secret = client.password
        hers = topic_of(FLEET, MALLORY, TopicKind.DESIRED)
        his = topic_of(FLEET, VICTIM, TopicKind.DESIRED)
        with MqttClient(fleet, user=SERVER_USER, password=fleet.server_password) as server:
            server.publish(his, b"secret", retain=True)
            client.subscribe(his, f"edgefleet/1/{FLEET}/+/desired", f"edgefleet/1/{FLEET}/{VICTIM}/#")
            client.subscribe("#", "+/+/+/+/+", f"$share/all/{his}", topic_of(FLEET, VICTIM, TopicKind.TELEMETRY), hers)
            server.publish(topic_of(FLEET, VICTIM, TopicKind.STORED), b"secret")
            server.publish(his, b"secret")
            eventually(lambda: _has_arrived(server, client, hers), 10, "what is hers arrives")
            with MqttClient(
                fleet, user=MALLORY, password=secret, client_id="late"
            ) as late:  # what is retained is there
                late.subscribe(his, hers)
                eventually(lambda: _has_arrived(server, late, hers), 10, "what is hers arrives")
        assert {topic for topic, _ in (*client.received, *late.received)} == {hers}

        for kind in FROM_DEVICE:
            client.publish(topic_of(FLEET, VICTIM, kind), encode(good(kind, VICTIM, 1)), wait=False)
            client.publish(topic_of("other-fleet", MALLORY, kind), encode(good(kind, MALLORY, 1)), wait=False)
        require_good_windows_are_stored(fleet, client, MALLORY, 2)
        victim = fleet.client.get(f"devices/{VICTIM}")
        assert (victim["online"], victim["reported"], victim["last_seen_ns"]) == (False, None, 0)
        assert fleet.windows(VICTIM) == []
        assert fleet.ingested("malformed") == 0


@BOTH_BROKERS
def test_a_last_will_reaches_no_topic_that_its_device_may_not_write(tmp_path: Path, broker: Broker) -> None:
    with Fleet(tmp_path, broker=broker) as fleet, by_hand(fleet, MALLORY) as client:
        secret = fleet.enrol(VICTIM)["secret"]
        wills: list[tuple[str, Message]] = [
            (topic_of(FLEET, MALLORY, TopicKind.PRESENCE), good(TopicKind.PRESENCE, MALLORY, 1)),
            (topic_of(FLEET, MALLORY, TopicKind.DESIRED), window(MALLORY, 1)),
            *((topic_of(FLEET, MALLORY, kind), good(kind, MALLORY, 3)) for kind in FROM_DEVICE),
        ]
        for number, (topic, message) in enumerate(wills):
            left = MqttClient(fleet, user=VICTIM, password=secret, client_id=f"left-{number}")
            left.leave_a_will(topic, message)
            with left:
                if left.accepted:
                    left.vanish()
        require_good_windows_are_stored(fleet, client, MALLORY, 2)
        mallory = fleet.client.get(f"devices/{MALLORY}")
        assert (mallory["online"], mallory["reported"]) == (False, None)
        assert {stored["sequence"] for stored in fleet.windows(MALLORY)} == {2}


@BOTH_BROKERS
def test_a_device_speaks_the_version_its_broker_has(tmp_path: Path, broker: Broker) -> None:
    with Fleet(tmp_path, broker=broker) as fleet:
        device = fleet.add_device(VICTIM, settings={"mqtt": {"protocol": "auto"}})
        eventually(lambda: fleet.windows(VICTIM), 20, "its windows are stored")
        assert f"with MQTT {'5' if broker == 'mosquitto' else '3.1.1'}" in device.log()


def _has_arrived(server: MqttClient, client: MqttClient, topic: str) -> bool:
    """Whether something came on `topic`; it is sent again until then, since a subscription takes a moment."""
    server.publish(topic, b"hers")
    return any(received == topic for received, _ in client.received)


@BOTH_BROKERS
def test_nobody_gets_in_without_a_name_with_a_wrong_secret_or_with_anothers(tmp_path: Path, broker: Broker) -> None:
    with Fleet(tmp_path, broker=broker) as fleet, by_hand(fleet, MALLORY):
        secret = fleet.enrol(VICTIM)["secret"]
        credentials = [
            (None, None), ("", ""), (MALLORY, ""), (MALLORY, secret), (MALLORY, "x" * 60_000), (SERVER_USER, secret),
            ("stranger", secret), (f"{VICTIM}\u0000", secret), ("#", secret),
        ]  # fmt: skip  # (user, password)
        for user, password in credentials:
            try:
                with MqttClient(fleet, user=user, password=password) as client:
                    assert not client.accepted, f"{user!r} got in"
            except ValueError:
                continue  # the client library itself has no form for it


@BOTH_BROKERS
def test_a_device_that_takes_the_sessions_of_server_and_device_costs_no_window(tmp_path: Path, broker: Broker) -> None:
    with Fleet(tmp_path, broker=broker) as fleet:
        device = fleet.add_device(VICTIM, window_s=0.1)
        secret = fleet.enrol(MALLORY)["secret"]
        eventually(lambda: fleet.windows(VICTIM), 20, "the first window is stored")
        for taken in (f"edgefleet-server-{FLEET}", f"edgefleet-{FLEET}-{VICTIM}") * 2:
            with MqttClient(fleet, user=MALLORY, password=secret, client_id=taken) as client:
                windows = device.status()["windows"]
                eventually(lambda windows=windows: device.status()["windows"] > windows + 3, 10, "windows are made")  # type: ignore[misc] # a bound default
            assert {topic for topic, _ in client.received} == set()
        require_every_window_once(fleet, [device])


def test_bytes_that_are_not_mqtt_leave_the_embedded_broker_and_the_server_up(tmp_path: Path) -> None:
    dice = random.Random(3)
    with Fleet(tmp_path, broker="embedded") as fleet, by_hand(fleet, MALLORY) as client:
        for size in (1, 2, 14, 300, 5_000, 100_000) * 3:
            with socket.create_connection(("127.0.0.1", fleet.mqtt_port), timeout=5) as raw:
                raw.sendall(dice.choice([b"", b"\x10", b"\x10\xff\xff\xff\x7f"]) + dice.randbytes(size))
        assert accepts(fleet.mqtt_port)
        require_good_windows_are_stored(fleet, client, MALLORY, 1)


def test_hostile_control_messages_leave_an_agent_answering_and_delivering(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet:
        device = fleet.add_device(VICTIM, window_s=0.1)
        eventually(lambda: fleet.windows(VICTIM), 20, "the first window is stored")
        boot = fleet.windows(VICTIM)[0]["boot_id"]
        stored_elsewhere = Stored(device=MALLORY, boot_id=boot, ranges=[(1, 2**53 - 1)])
        backwards = Stored(device=VICTIM, boot_id=boot, ranges=[(2**53 - 1, 1)] * 1_000)
        unsigned = Desired(fleet=FLEET, device=VICTIM, generation=2**53 - 1, issued_at_ns=_MOST, assignments=[])
        with MqttClient(fleet, user=SERVER_USER, password=fleet.server_password) as server:
            refusable = malformed(TopicKind.STORED, VICTIM)
            for payload in (*refusable, encode(stored_elsewhere), encode(backwards)):
                server.publish(topic_of(FLEET, VICTIM, TopicKind.STORED), payload)
            for payload in (b"", encode(unsigned), *malformed(TopicKind.DESIRED, VICTIM)):
                server.publish(topic_of(FLEET, VICTIM, TopicKind.DESIRED), payload)
            server.publish(topic_of(FLEET, VICTIM, TopicKind.STORED), b"the last")
        eventually(lambda: device.log().count("/stored is refused") >= 10, 20, "the agent refuses what it gets")
        answered, windows = device.answered(), device.status()["windows"]
        eventually(lambda: device.answered() > answered + 20, 10, "the agent answers on")
        eventually(lambda: len(fleet.windows(VICTIM)) > windows, 20, "its windows are stored as ever")
        assert device.is_running
        assert fleet.client.get(f"devices/{VICTIM}")["reported"].get("generation", 0) == 0
        assert "Traceback" not in device.log()
        assert device.stop() == 0
        made = device.status()["windows"]
        eventually(lambda: len(fleet.windows(VICTIM)) == made, 20, "every window is stored")
        assert httpx.get(f"{fleet.url}/health", timeout=5).status_code == 200
