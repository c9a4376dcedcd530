"""What every telemetry store promises of merged windows and points, run over each implementation."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fleet_protocol.bins import MAX_BINS
from fleet_protocol.histogram import BUCKETS
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement
from fleet_protocol.varint import MAX_COUNT, encode_sparse
from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store import Grain, MergedKey, MergedWindow, Point, Slice, TelemetryStore
from fleet_server.telemetry_store.merge import merge, order
from tests.server.telemetry_store.conftest import Place
from tests.server.telemetry_store.windows import MINUTE_NS, RETENTION_S, T0_NS, latency_of, window

HOUR_NS = 60 * MINUTE_NS
H0_NS = T0_NS // HOUR_NS * HOUR_NS
EVERYTHING = Slice(fleet="home", start_ns=-1, end_ns=2**63 - 1)
HOSTILE = ["", "a,b=c d", 'q"', "it's", "%", "\\", "x\ny,z=1 f=2 3", "ü🙂"]


def key(**changes: Any) -> MergedKey:
    fields = {"model": "digits", "version": "1.0.0", "variant": "int8", "arm": "main"}
    return MergedKey(**{**fields, **changes})


def merged(start_ns: int = H0_NS, **changes: Any) -> MergedWindow:
    fields: dict[str, Any] = {"windows": 2, "devices": 1, "count": 3, "latency": latency_of(100.0, 200.0, 400.0)}
    of_key = {name: changes.pop(name) for name in list(changes) if name in MergedKey.__struct_fields__}
    return MergedWindow(key=key(**of_key), start_ns=start_ns, **{**fields, **changes})


def found(store: TelemetryStore, grain: Grain, **narrowed: Any) -> list[MergedWindow]:
    return list(store.merged(replace(EVERYTHING, **narrowed), grain))


@pytest.mark.parametrize("grain", Grain)
def test_a_merged_window_comes_back_exactly_and_only_in_its_grain(store: TelemetryStore, grain: Grain) -> None:
    one = merged(
        device="dev-1" if grain is Grain.DEVICE_HOUR else "",
        cohort="" if grain is Grain.DEVICE_HOUR else "canary",
        first_end_ns=H0_NS + 1, last_end_ns=H0_NS + 9, errors={"überlauf \"',=\\\n": 1}, queue_wait=latency_of(3.0),
        batch_sizes={1: 3}, features={"mean": b"\x00\x01", "": b""}, classes={3: 2}, score=b"\x00\x01",
        embedding_count=4, embedding_sums=b"\x01\x02", shadow=ShadowAgreement(compared=2),
        outcomes=Outcomes(correct=1, squared_error_sum=0.1), refused=3, device_hashes=b"12345",
        estimated_accuracy=EstimatedAccuracy(count=3, confidence_sum=2.7, variance_sum=0.1),
    )  # fmt: skip  # every field
    store.write_merged("home", grain, [one])
    assert found(store, grain) == [one]
    assert [found(store, other) for other in Grain if other is not grain] == [[], []]
    assert list(store.merged(replace(EVERYTHING, fleet="office"), grain)) == []
    assert store.windows(EVERYTHING) == []


def test_a_later_merged_window_takes_the_place_of_the_earlier_and_an_empty_one_takes_it_away(
    store: TelemetryStore,
) -> None:
    other = merged(H0_NS + HOUR_NS)
    store.write_merged("home", Grain.FLEET_HOUR, [merged(count=1), other])
    store.write_merged("home", Grain.FLEET_HOUR, [merged(count=2)])
    assert found(store, Grain.FLEET_HOUR) == [merged(count=2), other]
    gone = MergedWindow(key=key(), start_ns=H0_NS)
    store.write_merged("home", Grain.FLEET_HOUR, [gone, MergedWindow(key=key(arm="never"), start_ns=H0_NS)])
    assert found(store, Grain.FLEET_HOUR) == [other]
    store.write_merged("home", Grain.FLEET_HOUR, [])
    store.write_merged("home", Grain.FLEET_HOUR, [merged(count=4)])
    assert found(store, Grain.FLEET_HOUR) == [merged(count=4), other]


def test_merged_windows_come_by_start_then_key_whatever_order_they_were_written_in(store: TelemetryStore) -> None:
    written = [
        merged(H0_NS + hour * HOUR_NS, model=model, version=version, arm=arm, device=f"dev-{device}")
        for hour in range(4)
        for model in ("a", "B")
        for version in ("1.0.0", "1.10.0", "1.9.0")
        for arm in ("main", "b")
        for device in range(60)
    ]
    shuffled = random.Random(3).sample(written, len(written))
    for at in range(0, len(shuffled), 700):
        store.write_merged("home", Grain.DEVICE_HOUR, shuffled[at : at + 700])
    assert found(store, Grain.DEVICE_HOUR) == sorted(written, key=order)


def test_a_slice_of_merged_windows_takes_its_start_and_leaves_its_end(store: TelemetryStore) -> None:
    store.write_merged("home", Grain.FLEET_MINUTE, [merged(H0_NS + n * MINUTE_NS) for n in range(4)])

    def starts(start: int, end: int) -> list[int]:
        there = found(store, Grain.FLEET_MINUTE, start_ns=H0_NS + start, end_ns=H0_NS + end)
        return [(one.start_ns - H0_NS) // MINUTE_NS for one in there]

    assert starts(0, 2 * MINUTE_NS) == [0, 1]
    assert starts(1, 2 * MINUTE_NS + 1) == [1, 2]
    assert starts(MINUTE_NS, MINUTE_NS) == []
    assert starts(9 * MINUTE_NS, 0) == []


def test_a_slice_of_merged_windows_is_narrowed_by_everything_in_their_key(store: TelemetryStore) -> None:
    of_fleet = [
        merged(cohort="a"), merged(cohort="b"), merged(version="1.1.0"), merged(variant="fp32"), merged(arm="x"),
        merged(model="kws"),
    ]  # fmt: skip  # one change each
    store.write_merged("home", Grain.FLEET_HOUR, of_fleet)
    for narrowed, expected in (
        ({"cohort": "a"}, [0]), ({"cohort": ""}, [2, 3, 4, 5]), ({"version": "1.1.0"}, [2]), ({"variant": "fp32"}, [3]),
        ({"arm": "x"}, [4]), ({"model": "kws"}, [5]), ({"model": "digits", "cohort": "b", "arm": "main"}, [1]),
        ({"model": "nothing"}, []),
    ):  # fmt: skip  # a table
        expected_ones = sorted((of_fleet[n] for n in expected), key=order)
        assert found(store, Grain.FLEET_HOUR, **narrowed) == expected_ones, narrowed
    of_devices = [merged(device=f"dev-{n}") for n in range(600)]
    store.write_merged("home", Grain.DEVICE_HOUR, of_devices)
    for names in ({"dev-1", "dev-20", "nobody"}, {f"dev-{n}" for n in range(550)}, set()):
        there = found(store, Grain.DEVICE_HOUR, devices=frozenset(names))
        assert {one.key.device for one in there} == names - {"nobody"}


def test_what_a_grain_does_not_know_is_refused_rather_than_left_out_of_the_question(store: TelemetryStore) -> None:
    with pytest.raises(InvalidRequestError, match="cohort"):
        found(store, Grain.DEVICE_HOUR, cohort="a")
    for grain in (Grain.FLEET_MINUTE, Grain.FLEET_HOUR):
        with pytest.raises(InvalidRequestError, match="device hours"):
            found(store, grain, devices=frozenset({"dev-1"}))
    of_cohort = replace(EVERYTHING, cohort="a")
    for call in (
        lambda: store.windows(of_cohort),
        lambda: list(store.each_window(of_cohort)),
        lambda: store.totals_by_device(of_cohort),
        lambda: store.series(of_cohort, step_ns=1),
    ):
        with pytest.raises(InvalidRequestError, match="cohort"):
            call()


def test_hostile_texts_in_a_key_stay_texts(store: TelemetryStore) -> None:
    written = [merged(cohort=text, arm=f"a{n}") for n, text in enumerate(HOSTILE)]
    store.write_merged("home", Grain.FLEET_MINUTE, written)
    assert found(store, Grain.FLEET_MINUTE) == sorted(written, key=order)
    for one in written:
        assert found(store, Grain.FLEET_MINUTE, cohort=one.key.cohort) == [one]


def test_the_largest_merged_window_there_can_be_is_kept(store: TelemetryStore) -> None:
    bins = encode_sparse(np.full(MAX_BINS + 5, MAX_COUNT))
    one = merged(
        latency=encode_sparse(np.full(BUCKETS, MAX_COUNT)), features={f"feature-{n}": bins for n in range(256)},
        classes=dict.fromkeys(range(4096), 2 ** 63 - 1), embedding_sums=b"\x80\x01" * 4_096,
    )  # fmt: skip  # as one call reads
    store.write_merged("home", Grain.FLEET_MINUTE, [one])
    assert found(store, Grain.FLEET_MINUTE) == [one]


def test_each_window_yields_every_window_of_a_slice_once(store: TelemetryStore) -> None:
    written = [
        window(device=f"dev-{n % 7}", sequence=n + 1, end_ns=T0_NS + n, variant="a" if n % 3 else "b")
        for n in range(3_000)
    ]
    store.write("home", written)

    def there(**narrowed: Any) -> list[int]:
        return sorted(one.sequence for one in store.each_window(replace(EVERYTHING, **narrowed)))

    assert there() == list(range(1, 3_001))
    assert there(start_ns=T0_NS + 9, end_ns=T0_NS + 2_000) == list(range(11, 2_002))
    assert there(variant="b", model="digits") == list(range(1, 3_001, 3))
    assert there(devices=frozenset({"dev-3"}), version="1.0.0", model="digits") == list(range(4, 3_001, 7))
    assert there(devices=frozenset()) == there(model="nothing") == []
    for _ in range(9):  # one that is left early gives back what it holds
        some = store.each_window(EVERYTHING)
        next(some)
        some.close()
    assert len(there()) == 3_000


def test_merging_what_is_stored_equals_merging_what_was_written(store: TelemetryStore) -> None:
    written = [window(device=f"dev-{n % 5}", sequence=n + 1, end_ns=T0_NS + n * 10**9) for n in range(500)]
    store.write("home", random.Random(1).sample(written, len(written)))
    store.write("home", written[:50])
    for grain in Grain:
        expected = merge(written, grain, str.upper)
        store.write_merged("home", grain, merge(store.each_window(EVERYTHING), grain, str.upper))
        assert found(store, grain) == expected


def point(at_ns: int = T0_NS, **changes: Any) -> Point:
    fields: dict[str, Any] = {
        "measurement": "drift", "tags": {"model": "digits", "feature": "mean"}, "fields": {"p": 0.25, "devices": 7},
    }  # fmt: skip  # as one call reads
    return Point(at_ns=at_ns, **{**fields, **changes})


def points(store: TelemetryStore, measurement: str = "drift", **tags: str) -> list[Point]:
    return store.points("home", measurement, start_ns=0, end_ns=2**63 - 1, tags=tags)


def test_a_point_comes_back_as_it_was_with_the_types_of_its_fields(store: TelemetryStore) -> None:
    fields = {"whole": 2**62 + 1, "float": 2.0, "small": 1e-300, "text": 'a "b" \\ c\nd, e=f', "empty": "", "minus": -3}
    one = point(fields=fields, tags={"model": "digits", "note": 'x="1", y\\', "none": ""})
    store.write_points("home", [one])
    (back,) = points(store)
    assert back == one
    assert {name: type(value) for name, value in back.fields.items()} == {
        name: type(value) for name, value in fields.items()
    }


def test_a_point_is_replaced_by_the_one_of_its_measurement_tags_and_time(store: TelemetryStore) -> None:
    store.write_points("home", [point(fields={"p": 1}), point(T0_NS + 1), point(tags={"model": "digits"})])
    store.write_points("home", [point(fields={"verdict": "drift"}), point(measurement="kpi")])
    assert points(store) == [point(fields={"verdict": "drift"}), point(tags={"model": "digits"}), point(T0_NS + 1)]
    assert points(store, "kpi") == [point(measurement="kpi")]
    assert points(store, "never") == []
    assert store.points("office", "drift", start_ns=0, end_ns=2**63 - 1, tags={}) == []


def test_points_are_chosen_by_time_and_tags(store: TelemetryStore) -> None:
    written = [point(T0_NS + n, tags={"model": "a" if n % 2 else "b", "x": text}) for n, text in enumerate(HOSTILE)]
    store.write_points("home", written[::-1])
    assert points(store) == written
    assert points(store, model="a") == written[1::2]
    for one in written:
        assert points(store, x=one.tags["x"], model=one.tags["model"]) == [one]
    assert points(store, nosuch="a") == []
    assert store.points("home", "drift", start_ns=T0_NS + 1, end_ns=T0_NS + 3, tags={}) == written[1:3]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"measurement": "inference"}, "no measurement"), ({"measurement": "Drift; DROP"}, "no measurement"),
        ({"fields": {}}, "1 to 64 fields"), ({"fields": {"p": float("nan")}}, "p is nan"),
        ({"fields": {"p": 2**63}}, "64 bits"), ({"fields": {"time": 1}}, "'time'"), ({"tags": {"a b": ""}}, "'a b'"),
        ({"tags": {"p": "x"}}, "'p'"), ({"at_ns": -1}, "1970"), ({"fields": {"p": "x" * 5_000}}, "characters"),
        ({"fields": {f"f{n}": "x" * 4_000 for n in range(10)}}, "bytes"), ({"fields": {"p": "\ud800"}}, "Unicode"),
    ],
)  # fmt: skip  # a table
def test_a_point_that_no_store_could_keep_is_refused_and_nothing_of_its_batch_written(
    store: TelemetryStore, wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        store.write_points("home", [point(), point(**wrong)])
    assert points(store) == []


def test_a_merged_retention_of_no_time_is_refused(store: TelemetryStore) -> None:
    with pytest.raises(InvalidRequestError, match="merged_retention_s"):
        store.set_up(raw_retention_s=RETENTION_S, merged_retention_s=0)


def test_a_closed_store_says_so_of_merged_windows_and_points_too(place: Place) -> None:
    opened = place.open()
    opened.set_up(raw_retention_s=RETENTION_S)
    opened.close()
    for call in (
        lambda: opened.write_merged("home", Grain.FLEET_HOUR, [merged()]),
        lambda: found(opened, Grain.FLEET_HOUR),
        lambda: list(opened.each_window(EVERYTHING)),
        lambda: opened.write_points("home", [point()]),
        lambda: points(opened),
    ):
        with pytest.raises(StoreUnavailableError, match="closed"):
            call()
