"""What only the InfluxDB store promises: outages, torn answers, retention, and points that people can read."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from msgspec.structs import replace

from fleet_protocol.messages import OutboxStatus, Outcomes, Resources
from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store import Grain, InfluxStore, MergedKey, MergedWindow, Slice, influx
from fleet_server.telemetry_store.line_protocol import tag_text
from tests.real_servers.influxdb import InfluxDB
from tests.real_servers.processes import free_port, wait_until
from tests.real_servers.relay import Relay
from tests.server.telemetry_store.windows import RETENTION_S, T0_NS, latency_of, window

EVERYTHING = Slice(fleet="home", start_ns=-1, end_ns=2**63 - 1)


def _open(server: InfluxDB, **changes: object) -> InfluxStore:
    settings = {"url": server.url, "token": server.token, "org": server.org, "bucket": server.new_bucket(), **changes}
    return InfluxStore(**settings)  # type: ignore[arg-type]  # a test names only what it changes


@pytest.fixture
def store(influxdb: InfluxDB) -> Iterator[InfluxStore]:
    opened = _open(influxdb)
    opened.set_up(raw_retention_s=RETENTION_S, merged_retention_s=RETENTION_S)
    yield opened
    opened.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[InfluxDB]:
    """A server that this test may stop and kill."""
    with InfluxDB(tmp_path / "influxdb") as server:
        server._own("stopped")
        yield server


def _query(store: InfluxStore, text: str) -> list[dict[str, object]]:
    return [dict(zip(columns, row, strict=True)) for columns, row in store._rows(text)]


def test_a_stopped_server_is_told_with_its_url_and_a_started_one_works_again(own_server: InfluxDB) -> None:
    store = _open(own_server, timeout_s=5.0)
    store.set_up(raw_retention_s=RETENTION_S)
    store.write("home", [window(sequence=1)])
    for away in (own_server.kill, own_server.stop):  # behind its front (502), then altogether (refused)
        away()
        for call in (
            store.check,
            lambda: store.write("home", [window(sequence=2)]),
            lambda: store.windows(EVERYTHING),
            lambda: store.totals_by_device(EVERYTHING),
            lambda: store.set_up(raw_retention_s=RETENTION_S),
        ):
            with pytest.raises(StoreUnavailableError, match=own_server.url) as told:
                call()
            assert told.value.retryable
    own_server.restart()
    store.check()
    store.write("home", [window(sequence=2)])
    assert [w.sequence for w in store.windows(EVERYTHING)] == [1, 2]
    store.close()


def test_kill_9_of_the_server_in_the_middle_of_writing_loses_nothing_acknowledged(own_server: InfluxDB) -> None:
    store = _open(own_server, timeout_s=5.0)
    store.set_up(raw_retention_s=RETENTION_S)
    acknowledged: list[int] = []

    def write_until_it_fails() -> None:
        for sequence in itertools.count(1):
            try:
                store.write("home", [window(sequence=sequence, end_ns=T0_NS + sequence)])
            except StoreUnavailableError:
                return
            acknowledged.append(sequence)

    writer = threading.Thread(target=write_until_it_fails)
    writer.start()
    wait_until(lambda: len(acknowledged) >= 50, 30.0, "50 writes are acknowledged")
    own_server.kill()
    writer.join(30.0)
    assert not writer.is_alive()
    own_server.restart()
    found = [w.sequence for w in store.windows(EVERYTHING, limit=10**6)]
    assert found[: len(acknowledged)] == acknowledged
    store.close()


def test_a_server_that_hangs_is_given_up_after_the_timeout(own_server: InfluxDB) -> None:
    store = _open(own_server, timeout_s=0.5)
    store.set_up(raw_retention_s=RETENTION_S)
    own_server.pause()
    with pytest.raises(StoreUnavailableError, match="timed out"):
        store.write("home", [window()])
    with pytest.raises(StoreUnavailableError, match="timed out"):
        store.windows(EVERYTHING)
    own_server.resume()
    wait_until(lambda: _works(store), 10.0, "the store works again")
    store.write("home", [window()])
    assert store.windows(EVERYTHING) == [window()]
    store.close()


def _works(store: InfluxStore) -> bool:
    try:
        store.check()
    except StoreUnavailableError:
        return False
    return True


def test_an_answer_torn_by_the_network_is_never_read_as_a_shorter_one(influxdb: InfluxDB) -> None:
    port = urllib3.util.parse_url(influxdb.url).port
    assert port is not None
    with Relay(port) as relay:
        store = _open(influxdb, url=f"http://127.0.0.1:{relay.port}", timeout_s=5.0)
        store.set_up(raw_retention_s=RETENTION_S)
        windows = [window(sequence=n, end_ns=T0_NS + n) for n in range(1, 3_001)]
        store.write("home", windows)
        for passed in (0, 100, 20_000, 700_000):
            relay.cut_after(passed)
            with pytest.raises(StoreUnavailableError):
                store.totals_by_device(EVERYTHING)
            relay.restore()
        assert store.windows(EVERYTHING, limit=10**6) == windows
        store.close()


def test_a_write_cut_off_by_the_network_can_be_written_again(influxdb: InfluxDB) -> None:
    port = urllib3.util.parse_url(influxdb.url).port
    assert port is not None
    with Relay(port) as relay:
        store = _open(influxdb, url=f"http://127.0.0.1:{relay.port}", timeout_s=5.0)
        store.set_up(raw_retention_s=RETENTION_S)
        relay.cut_after(10)  # the server has the windows, its acknowledgement is torn
        with pytest.raises(StoreUnavailableError):
            store.write("home", [window()])
        relay.restore()
        store.write("home", [window()])
        assert store.windows(EVERYTHING) == [window()]
        relay.cut()
        with pytest.raises(StoreUnavailableError):
            store.write("home", [window(sequence=2)])
        relay.restore()
        store.write("home", [window(sequence=2)])
        assert len(store.windows(EVERYTHING)) == 2
        store.close()


def test_what_is_not_influxdb_is_told(influxdb: InfluxDB) -> None:
    nobody = _open(influxdb, url=f"http://127.0.0.1:{free_port()}", timeout_s=1.0)
    with pytest.raises(StoreUnavailableError, match="check that it runs"):
        nobody.check()
    no_influx = _open(influxdb, url=f"{influxdb.url}/write", timeout_s=1.0)  # a path that answers 404
    with pytest.raises(StoreUnavailableError, match="404"):
        no_influx.check()


def test_a_database_that_is_not_there_reads_as_empty_and_refuses_writes(influxdb: InfluxDB) -> None:
    store = _open(influxdb)
    assert store.windows(EVERYTHING) == []
    assert store.totals_by_device(EVERYTHING) == []
    if influxdb.external:
        return  # 3.x makes the database with the first write
    with pytest.raises(StoreUnavailableError, match="fleet db init"):
        store.write("home", [window()])
    with pytest.raises(StoreUnavailableError, match="not found"):
        store.check()


def test_a_hostile_database_name_stays_a_name(own_server: InfluxDB) -> None:
    for name in ('x" WITH DURATION 1h', 'a"; DROP DATABASE "telemetry', "it's", "semi;colon & more"):
        store = _open(own_server, bucket=name)
        store.set_up(raw_retention_s=RETENTION_S)
        store.write("home", [window()])
        assert store.windows(EVERYTHING) == [window()]
        assert [name] in [list(row) for _, row in store._rows("SHOW DATABASES")]
        store.close()
    with pytest.raises(StoreUnavailableError, match="invalid name"):
        _open(own_server, bucket="back\\slash").set_up(raw_retention_s=RETENTION_S)


def test_the_retention_is_set_and_changed(own_server: InfluxDB) -> None:
    store = _open(own_server, bucket="kept")
    for retention_s, told in ((14 * 86_400, "336h0m0s"), (3_600, "1h0m0s"), (2 * 365 * 86_400, "17520h0m0s")):
        store.set_up(raw_retention_s=retention_s)
        (policy,) = _query(store, 'SHOW RETENTION POLICIES ON "kept"')
        assert (policy["duration"], policy["default"]) == (told, True)
        (policy,) = _query(store, 'SHOW RETENTION POLICIES ON "kept_merged"')
        assert (policy["duration"], policy["default"]) == ("17520h0m0s", True)
    store.set_up(raw_retention_s=3_600, merged_retention_s=7_200)
    (policy,) = _query(store, 'SHOW RETENTION POLICIES ON "kept_merged"')
    assert policy["duration"] == "2h0m0s"
    with pytest.raises(InvalidRequestError, match="3600"):
        store.set_up(raw_retention_s=3_599)
    store.close()


def test_windows_beyond_the_retention_do_not_hold_up_the_others_of_their_batch(influxdb: InfluxDB) -> None:
    store = _open(influxdb)
    store.set_up(raw_retention_s=3_600)
    far = 2**62  # in the year 2116
    store.write("home", [window(sequence=1, end_ns=T0_NS // 2), window(sequence=2, end_ns=far)])
    assert [w.sequence for w in store.windows(EVERYTHING)] == [2]
    store.close()


def test_a_write_larger_than_its_limits_goes_in_several_batches(
    store: InfluxStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influx, "MAX_LINES_PER_WRITE", 7)
    windows = [window(sequence=n, end_ns=T0_NS + n, outcomes=Outcomes(correct=n)) for n in range(1, 24)]
    store.write("home", windows)
    assert store.windows(EVERYTHING) == windows
    bodies = list(influx._batches("home", windows))
    assert [body.count(b"\n") + 1 for body in bodies] == [7] * 6 + [4]
    monkeypatch.setattr(influx, "MAX_BYTES_PER_WRITE", 2_000)
    assert max(map(len, influx._batches("home", windows))) <= 2_000


def test_every_line_is_one_point_with_the_documented_tags_and_fields(store: InfluxStore) -> None:
    one = window(
        latency=latency_of(100.0, 200.0, 400.0),
        queue_wait=latency_of(7.0),
        errors={"timeout": 2},
        outcomes=Outcomes(correct=5, wrong=2, squared_error_sum=0.5, squared_error_count=4),
        resources=Resources(cpu_percent=12.5, rss_bytes=1000, temperature_c=float("nan"), disk_free_bytes=7),
        outbox=OutboxStatus(depth=4, dropped=5, merged=6),
    )
    store.write("home", [one])
    (point,) = _query(store, 'SELECT * FROM "inference"')
    latency = [point[name] for name in ("p50_us", "p90_us", "p95_us", "p99_us", "mean_us", "max_us", "queue_p95_us")]
    assert latency == pytest.approx([200, 400, 400, 400, 233.3, 400, 7], rel=1 / 64)
    known = {name: point[name] for name in ("fleet", "device", "model", "version", "variant", "arm", "count", "errors")}
    assert known == {
        "fleet": "home",
        "device": "dev-1",
        "model": "digits",
        "version": "1.0.0",
        "variant": "int8-qdq-u8s8",
        "arm": "main",
        "count": 3,
        "errors": 2,
    }
    assert (point["boot_id"], point["sequence"]) == (one.boot_id, one.sequence)
    (outcome,) = _query(store, 'SELECT correct, wrong, squared_error_sum, squared_error_count FROM "outcome"')
    assert [outcome[name] for name in ("correct", "wrong", "squared_error_sum", "squared_error_count")] == [
        5,
        2,
        0.5,
        4,
    ]
    (resource,) = _query(store, 'SELECT * FROM "resource"')
    resource.pop("time")
    assert resource == {
        "fleet": "home",
        "device": "dev-1",
        "cpu_percent": 12.5,
        "rss_bytes": 1000,
        "disk_free_bytes": 7,
        "outbox_depth": 4,
        "outbox_dropped": 5,
        "outbox_merged": 6,
    }


def test_hostile_tags_come_back_as_their_text_and_make_no_further_point_or_field(store: InfluxStore) -> None:
    hostile = [
        "a,device=b", "a b=1i 5", "a=b", "a\\", "\\", "a\\,b", 'q"q', "it's", "#", "%", "", " ", "\n", "x\ny,z=1 f=2 3",
        "\x00", "\t", "ü,=🙂", "\u2028",
    ]  # fmt: skip  # a list of attacks reads as one
    store.write("home", [window(arm=text, device=f"dev-{n}") for n, text in enumerate(hostile)])
    store.write("home", [window(variant=text, boot_id=text, device="other") for text in hostile])
    points = _query(store, 'SELECT "count", "device", "arm" FROM "inference" WHERE "device" != \'other\'')
    assert {str(point["device"]): point["arm"] for point in points} == {
        f"dev-{n}": tag_text(text) for n, text in enumerate(hostile)
    }
    others = _query(store, 'SELECT "boot_id", "variant" FROM "inference" WHERE "device" = \'other\'')
    assert {(point["boot_id"], point["variant"]) for point in others} == {(text, tag_text(text)) for text in hostile}
    assert {name for point in _query(store, "SHOW TAG KEYS FROM inference") for name in [point["tagKey"]]} == {
        "fleet", "device", "model", "version", "variant", "arm",
    }  # fmt: skip  # as above
    assert [point["name"] for point in _query(store, "SHOW MEASUREMENTS")] == ["inference"]


def test_the_token_is_in_no_message_and_no_repr(own_server: InfluxDB) -> None:
    store = _open(own_server, token="s3cr3t-token", timeout_s=1.0)
    assert "s3cr3t" not in repr(store)
    own_server.stop()
    for call in (store.check, lambda: store.write("home", [window()])):
        with pytest.raises(StoreUnavailableError) as told:
            call()
        assert "s3cr3t" not in str(told.value)


def test_a_merged_window_is_a_point_that_people_can_read_in_the_place_of_its_grain(store: InfluxStore) -> None:
    of_fleet = MergedKey(model="digits", version="1.0.0", variant="int8", arm="main", cohort="canary")
    one = MergedWindow(
        key=of_fleet, start_ns=T0_NS, windows=3, devices=2, count=1_000, errors={"a": 1, "b": 2},
        latency=latency_of(*range(1, 1_001)), queue_wait=latency_of(7.0),
    )  # fmt: skip  # as one call reads
    store.write_merged("home", Grain.FLEET_MINUTE, [one])
    store.write_merged("home", Grain.FLEET_HOUR, [replace(one, start_ns=0)])
    of_device = replace(one, key=replace(of_fleet, cohort="", device="dev-1"))
    store.write_merged("home", Grain.DEVICE_HOUR, [of_device])
    (point,) = _query(store, 'SELECT * FROM "inference_fleet"')
    assert point["time"] == T0_NS
    names = ("p50_us", "p90_us", "p95_us", "p99_us", "p999_us", "max_us", "mean_us", "queue_p95_us")
    assert [point[name] for name in names] == pytest.approx([500, 900, 950, 990, 999, 1000, 500.5, 7], rel=1 / 64)
    assert {name: point[name] for name in ("count", "errors", "devices", "windows", "cohort", "fleet", "variant")} == {
        "count": 1000, "errors": 3, "devices": 2, "windows": 3, "cohort": "canary", "fleet": "home", "variant": "int8",
    }  # fmt: skip  # as one answer reads
    (hour,) = [dict(zip(columns, row, strict=True)) for columns, row in store._server.rows(
        store._merged_bucket, 'SELECT * FROM "inference_fleet"'
    )]  # fmt: skip  # as one call reads
    assert (hour["time"], hour["p999_us"]) == (0, point["p999_us"])
    (device,) = _query(store, 'SELECT * FROM "inference_device_hour"')
    assert (device["device"], device["devices"], "cohort" in device) == ("dev-1", 2, False)
    gone = MergedWindow(key=of_fleet, start_ns=T0_NS)
    store.write_merged("home", Grain.FLEET_MINUTE, [gone])
    (empty,) = _query(store, 'SELECT * FROM "inference_fleet"')
    assert [empty[name] for name in (*names, "count", "windows", "devices")] == [0] * 11
