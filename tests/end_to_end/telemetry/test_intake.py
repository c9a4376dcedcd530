"""Late, repeated and reordered windows, a device that lies, and garbage, through a real broker into real stores: the
series is exactly that of the good windows, and what was set aside can be looked at.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from fleet_protocol.bundle_folder import read_manifest
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.keys import PrivateKey
from fleet_protocol.messages import Assignment, Outcomes, Presence, Probation, Window, encode
from fleet_protocol.topics import TopicKind, topic_of
from fleet_server.config import load_config
from fleet_server.database.engine import open_engine
from fleet_server.rollouts.desired import assign
from tests.end_to_end.fleet import FLEET, MODEL, ROOT, Fleet, eventually
from tests.end_to_end.mqtt_client import MqttClient
from tests.end_to_end.test_hostile_clients import by_hand
from tests.real_servers.influxdb import InfluxDB

HONEST, LIAR = "honest", "liar"
_S = 10**9
_MINUTE = 60 * _S
_BOOT = "00000001-0badcafe"


def made(device: str, sequence: int, end_ns: int, **changes: Any) -> Window:
    """A window as an agent makes it, of a model that no registry knows."""
    dice = random.Random(f"{device} {sequence}")
    values = [dice.lognormvariate(7, 0.6) for _ in range(dice.randint(1, 50))]
    latency = LatencyHistogram.of(values).to_bytes()
    fields: dict[str, Any] = {
        "device": device, "boot_id": _BOOT, "sequence": sequence, "model": "local", "version": "1.0.0",
        "variant": "file", "arm": "main", "start_ns": end_ns - _MINUTE, "end_ns": end_ns, "count": len(values),
        "latency": latency, "queue_wait": latency, "outcomes": Outcomes(correct=len(values) - 1, wrong=1),
    }  # fmt: skip  # as lines of facts
    return Window(**{**fields, **changes})


def variant_of(version: str) -> str:
    """The name of a variant that a shipped version has: which ones, its search decides each time it is made."""
    return read_manifest(ROOT / "models" / MODEL / "bundles" / version).variants[0].name


def assign_version(fleet: Fleet, device: str, version: str, bundle: str) -> None:
    """What a device should run, signed by the server's own key."""
    config = load_config(fleet.server_config)
    engine, key = open_engine(config.database_url), config.director_key()
    assert isinstance(key, PrivateKey)
    wanted = Assignment(model=MODEL, version=version, bundle=bundle)
    with engine.begin() as connection:
        assign(
            connection, fleet=FLEET, device=device, assignments={MODEL: [wanted]}, signer=key,
            now_ns=time.time_ns(), probation=Probation(),
        )  # fmt: skip
    engine.dispose()


def send(client: MqttClient, *windows: Window) -> None:
    """Publish windows, close together."""
    for one in windows[:-1]:
        client.publish(topic_of(FLEET, one.device, TopicKind.TELEMETRY), encode(one), wait=False)
    client.publish(topic_of(FLEET, windows[-1].device, TopicKind.TELEMETRY), encode(windows[-1]))


def quarantined(fleet: Fleet) -> dict[str, int]:
    """reason -> windows set aside since the server's start."""
    prefix = 'edgefleet_ingest_quarantined_total{reason="'
    found = fleet.metrics().items()
    return {name.removeprefix(prefix).removesuffix('"}'): int(count) for name, count in found if prefix in name}


def require_series(fleet: Fleet, windows: list[Window]) -> None:
    """Every step of the local model's series is the sum of these windows, from every source."""
    first_ns = min(one.end_ns for one in windows) // (3_600 * _S) * 3_600 * _S
    end_ns = (time.time_ns() // (3_600 * _S) + 1) * 3_600 * _S
    for step_s, source in ((3_600, "fleet_hour"), (600, "fleet_minute"), (601, "windows")):
        found = fleet.client.get("models/local/metrics", start_ns=first_ns, end_ns=end_ns, step_s=step_s)
        assert found["read_from"] == source
        wanted: dict[int, list[Window]] = {}
        for one in windows:
            wanted.setdefault((one.end_ns - 1) // (step_s * _S) * step_s * _S, []).append(one)
        assert [point["start_ns"] for point in found["points"]] == sorted(wanted)
        for point in found["points"]:
            latency = LatencyHistogram()
            of_step = wanted[point["start_ns"]]
            for one in of_step:
                latency.merge(LatencyHistogram.from_bytes(one.latency))
            assert (point["windows"], point["count"]) == (len(of_step), latency.count)
            assert point["correct"] == sum(one.outcomes.correct for one in of_step if one.outcomes)
            assert (point["p99_us"], point["p999_us"]) == (latency.quantile_us(0.99), latency.quantile_us(0.999))


@pytest.mark.parametrize("store", ["embedded", "influxdb"])
def test_the_series_is_that_of_the_good_windows_whatever_comes_with_them(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    influxdb: InfluxDB | None = request.getfixturevalue("influxdb") if store == "influxdb" else None
    now_ns = time.time_ns() // _S * _S
    good = [made(HONEST, n, now_ns - (n % 40) * 7 * _MINUTE) for n in range(1, 61)]
    good += [made(LIAR, n, now_ns - n * _MINUTE) for n in range(1, 11)]
    torn = made(HONEST, 61, now_ns - _MINUTE, features={"brightness": b"\x80", "contrast": b"\x05"})
    absurd: dict[str, dict[str, Any]] = {
        "too_old": {"start_ns": 0, "end_ns": 10 * _MINUTE},
        "in_the_future": {"end_ns": 4_102_444_800 * _S, "start_ns": 4_102_444_740 * _S},
        "span": {"start_ns": now_ns - 300 * 86_400 * _S},
        "overflow": {"count": 2**62, "latency": b"", "queue_wait": b""},
        "contradiction": {"count": 7},
        "unknown_version": {"model": MODEL, "version": "9.9.9", "variant": "int8"},
        "unknown_variant": {"model": MODEL, "version": "1.0.0", "variant": "made-up"},
        "not_assigned": {"model": MODEL, "version": "1.1.0", "variant": variant_of("1.1.0")},
    }
    lies = [made(LIAR, 100 + n, **{"end_ns": now_ns, **changes}) for n, changes in enumerate(absurd.values())]
    lies.append(made(LIAR, 120, **absurd["too_old"]))
    mixed = [*good, *lies, torn, *good[10:30], *lies]
    random.Random(5).shuffle(mixed)
    with Fleet(tmp_path, influxdb=influxdb) as fleet, by_hand(fleet, HONEST) as honest, by_hand(fleet, LIAR) as liar:
        bundles = {version: str(fleet.publish(version)["bundle"]) for version in ("1.0.0", "1.1.0")}
        assign_version(fleet, LIAR, "1.0.0", bundles["1.0.0"])
        for one in mixed:
            send(honest if one.device == HONEST else liar, one)
            if one.sequence % 10 == 0:
                liar.publish(topic_of(FLEET, LIAR, TopicKind.TELEMETRY), b"\x93garbage", wait=False)
        eventually(lambda: fleet.ingested("windows") >= len(good) + 1, 20, "every good window is taken in")
        eventually(lambda: sum(quarantined(fleet).values()) >= len(lies), 20, "every lie is set aside")
        eventually(lambda: fleet.ingested("repeats") >= 20 + len(lies), 20, "every repeat is counted")

        assert fleet.ingested("windows") == len(good) + 1
        assert quarantined(fleet) == {**dict.fromkeys(absurd, 1), "too_old": 2}
        assert fleet.ingested("repeats") == 20 + len(lies)
        assert fleet.metrics()['edgefleet_ingest_sketches_dropped_total{reason="sketch_unreadable"}'] == 1
        require_series(fleet, [*good, torn])
        kept = [one for one in fleet.windows(HONEST) if one["sequence"] == 61]
        assert kept and kept[0]["count"] == torn.count
        assert fleet.client.get(f"models/{MODEL}/metrics")["points"] == []
        _require_told(fleet, set(absurd), len(lies))

        fleet.restart_server()
        send(liar, *lies)
        send(honest, *good[:5])
        send(liar, made(LIAR, 11, now_ns - 11 * _MINUTE))
        eventually(lambda: fleet.ingested("windows") == 1, 20, "the next good window is taken in")
        assert quarantined(fleet) == {}, "what was set aside once is a repeat for ever"
        require_series(fleet, [*good, torn, made(LIAR, 11, now_ns - 11 * _MINUTE)])


def _require_told(fleet: Fleet, reasons: set[str], lies: int) -> None:
    counts = fleet.client.pages("quarantine/counts", device=LIAR)
    assert {count["reason"] for count in counts} == reasons
    windows = fleet.client.pages("quarantine", device=LIAR, limit=5)
    assert len(windows) == lies and windows[0]["id"] > windows[-1]["id"]
    assert fleet.client.get("quarantine", reason="span")["items"][0]["window"]["count"] > 0
    assert fleet.client.get(f"devices/{LIAR}")["not_counted"]["too_old"] == 2
    assert fleet.client.get(f"devices/{HONEST}")["not_counted"] == {"sketch_unreadable": 1}
    log = fleet.server_log()
    for reason in reasons:
        assert log.count(f"telemetry of device {LIAR} does not count: {reason}") == 1, reason
    assert "Traceback" not in log


def test_a_real_agent_counts_before_and_after_an_update_and_a_clock_that_is_off_is_told(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fleet, by_hand(fleet, LIAR) as wrong:
        digest = str(fleet.publish("1.1.0")["bundle"])
        device = fleet.add_device(HONEST)
        eventually(lambda: fleet.windows(HONEST), 20, "windows of the plain file are stored")
        assign_version(fleet, HONEST, "1.1.0", digest)

        def updated() -> bool:
            return any(one["version"] == "1.1.0" and one["count"] for one in fleet.windows(HONEST))

        eventually(updated, 40, "windows of the assigned version are stored")
        ahead_ns = time.time_ns() + 3_600 * _S
        wrong.publish(
            topic_of(FLEET, LIAR, TopicKind.PRESENCE),
            encode(Presence(device=LIAR, boot_id=_BOOT, online=True, at_ns=ahead_ns)),
        )
        eventually(lambda: (fleet.client.get(f"devices/{LIAR}")["clock"] or {}).get("is_off"), 20, "its clock is off")
        off, right = (fleet.client.get(f"devices/{name}")["clock"] for name in (LIAR, HONEST))
        assert abs(off["skew_s"] - 3_600) < 5
        assert not right["is_off"] and abs(right["skew_s"]) < 3 and right["late_s"] < 30
        assert quarantined(fleet) == {}, device.log()
        assert device.stop() == 0
