"""What every telemetry store promises (fleet_server/telemetry_store/port.py), run over each implementation."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, OutboxStatus, Outcomes, Resources, ShadowAgreement, Window
from fleet_server.errors import InvalidRequestError, StoreUnavailableError
from fleet_server.telemetry_store import Slice, TelemetryStore
from tests.server.telemetry_store.conftest import Place
from tests.server.telemetry_store.windows import (
    MINUTE_NS,
    RETENTION_S,
    SECOND_NS,
    T0_NS,
    any_window,
    latency_of,
    window,
)

EVERYTHING = Slice(fleet="home", start_ns=-1, end_ns=2**63 - 1)
HOUR = Slice(fleet="home", start_ns=T0_NS - 60 * MINUTE_NS, end_ns=T0_NS)
ON_THE_SAME_STORE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_a_window_comes_back_exactly_as_it_was_written(store: TelemetryStore) -> None:
    full = window(
        errors={"timeout": 2, "überlauf \"',=\\\n": 1},
        queue_wait=latency_of(3.0),
        batch_sizes={1: 3},
        features={"mean": b"\x00\x01"},
        classes={3: 2, 7: 1},
        outcomes=Outcomes(correct=2, wrong=1, squared_error_sum=0.25, squared_error_count=1),
        estimated_accuracy=EstimatedAccuracy(count=3, confidence_sum=2.5, variance_sum=0.25),
        resources=Resources(cpu_percent=12.5, rss_bytes=1 << 40, temperature_c=-3.0, throttled=True),
        outbox=OutboxStatus(depth=4, dropped=5, merged=6),
        covers=[7, 8],
    )
    store.write("home", [full])
    assert store.windows(EVERYTHING) == [full]


@ON_THE_SAME_STORE
@given(written=st.lists(any_window, min_size=1, max_size=5, unique_by=lambda w: (w.device, w.boot_id, w.sequence)))
def test_any_valid_window_round_trips_and_counts_in_the_sums(store: TelemetryStore, written: list[Window]) -> None:
    fleet = f"f{random.Random(repr(written)).getrandbits(64):x}"
    everything = replace(EVERYTHING, fleet=fleet)
    # a window that ends at 0 lies in no slice: a slice's start is excluded and times start at 0
    expected = sorted(written, key=lambda w: (w.end_ns, w.device, w.boot_id, w.sequence))
    store.write(fleet, written)
    assert store.windows(everything) == expected
    totals = store.totals_by_device(everything)
    assert sum(row.totals.windows for row in totals) == len(written)
    assert sum(row.totals.count for row in totals) == sum(w.count for w in written)


def test_writing_windows_again_changes_nothing(store: TelemetryStore) -> None:
    batch = [window(sequence=n, end_ns=T0_NS + n) for n in range(1, 20)]
    store.write("home", batch)
    before = store.totals_by_device(EVERYTHING), store.windows(EVERYTHING)
    store.write("home", batch)
    store.write("home", list(reversed(batch[3:9])) * 3)
    assert (store.totals_by_device(EVERYTHING), store.windows(EVERYTHING)) == before
    assert before[0][0].totals.windows == 19


def test_windows_of_one_device_that_end_at_the_same_time_are_all_kept(store: TelemetryStore) -> None:
    boots = ("0123abcd-00000001", "0123abcd-00000002", "ffffffff-ffffffff")
    batch = [window(boot_id=boot, sequence=n) for boot in boots for n in range(1, 1_001)]
    store.write("home", batch)
    assert store.windows(EVERYTHING, limit=10_000) == batch
    assert store.totals_by_device(EVERYTHING)[0].totals.count == 3 * len(batch)


def test_the_same_sequence_of_another_boot_device_or_fleet_is_another_window(store: TelemetryStore) -> None:
    store.write("home", [window(), window(boot_id="0123abcd-00000002"), window(device="dev-2")])
    store.write("office", [window(count=9)])
    assert len(store.windows(EVERYTHING)) == 3
    assert store.windows(replace(EVERYTHING, fleet="office")) == [window(count=9)]


def test_nothing_written_is_nothing_read(store: TelemetryStore) -> None:
    store.write("home", [])
    assert store.windows(EVERYTHING) == []
    assert store.totals_by_device(EVERYTHING) == []
    assert store.series(EVERYTHING, step_ns=SECOND_NS) == []


def test_a_slice_takes_its_end_and_leaves_its_start(store: TelemetryStore) -> None:
    at = {n: window(sequence=n, end_ns=T0_NS + offset) for n, offset in enumerate((-1, 0, 1, 999, 1_000_000), 1)}
    store.write("home", list(at.values()))

    def found(start: int, end: int) -> list[int]:
        where = Slice(fleet="home", start_ns=T0_NS + start, end_ns=T0_NS + end)
        listed = [w.sequence for w in store.windows(where)]
        assert sum(row.totals.windows for row in store.totals_by_device(where)) == len(listed)
        assert sum(point.totals.windows for point in store.series(where, step_ns=10)) == len(listed)
        return listed

    assert found(-2, 1_000_000) == [1, 2, 3, 4, 5]
    assert found(-1, 0) == [2]
    assert found(0, 1) == [3]
    assert found(0, 999) == [3, 4]
    assert found(1, 998) == []
    assert found(999, 1_000_000) == [5]
    assert found(0, 0) == []
    assert found(5, -5) == []


def test_a_slice_is_narrowed_by_model_version_arm_and_devices(store: TelemetryStore) -> None:
    batch = [
        window(device=device, model=model, version=version, arm=arm, sequence=n)
        for n, (device, model, version, arm) in enumerate(
            [
                ("dev-1", "digits", "1.0.0", "main"),
                ("dev-2", "digits", "1.0.0", "shadow"),
                ("dev-3", "digits", "1.1.0", "main"),
                ("dev-4", "kws", "1.0.0", "main"),
            ],
            1,
        )
    ]
    store.write("home", batch)

    def found(**narrowed: object) -> list[str]:
        return [row.device for row in store.totals_by_device(replace(EVERYTHING, **narrowed))]  # type: ignore[arg-type]  # the fields of Slice

    assert found() == ["dev-1", "dev-2", "dev-3", "dev-4"]
    assert found(model="digits") == ["dev-1", "dev-2", "dev-3"]
    assert found(version="1.0.0") == ["dev-1", "dev-2", "dev-4"]
    assert found(model="digits", version="1.0.0", arm="main") == ["dev-1"]
    assert found(arm="shadow") == ["dev-2"]
    assert found(devices=frozenset({"dev-2", "dev-4", "nobody"})) == ["dev-2", "dev-4"]
    assert found(model="nothing") == []


def test_an_empty_set_of_devices_is_no_device_at_all(store: TelemetryStore) -> None:
    store.write("home", [window()])
    nobody = replace(EVERYTHING, devices=frozenset())
    assert store.windows(nobody) == []
    assert store.totals_by_device(nobody) == []
    assert store.series(nobody, step_ns=SECOND_NS) == []


def test_a_late_window_lands_in_its_own_time(store: TelemetryStore) -> None:
    store.write("home", [window(sequence=2, end_ns=T0_NS)])
    store.write("home", [window(sequence=1, end_ns=T0_NS - 600 * MINUTE_NS)])
    assert [w.sequence for w in store.windows(EVERYTHING)] == [1, 2]
    assert [w.sequence for w in store.windows(HOUR)] == [2]
    starts = [point.start_ns for point in store.series(EVERYTHING, step_ns=MINUTE_NS)]
    assert starts == [T0_NS - 601 * MINUTE_NS, T0_NS - MINUTE_NS]


def test_the_latest_windows_come_oldest_first(store: TelemetryStore) -> None:
    # within one millisecond, written in disorder: the order is that of the ends all the same
    batch = [window(sequence=n, end_ns=T0_NS + n * 7) for n in range(1, 2_501)]
    shuffled = random.Random(5).sample(batch, len(batch))
    store.write("home", shuffled)
    assert store.windows(EVERYTHING, limit=3) == batch[-3:]
    assert store.windows(EVERYTHING) == batch[-1000:]
    assert store.windows(EVERYTHING, limit=99_999) == batch
    assert store.windows(EVERYTHING, limit=0) == []


def test_merged_totals_equal_a_merge_by_hand(store: TelemetryStore) -> None:
    rng = random.Random(7)
    batch: list[Window] = []
    by_hand: dict[tuple[str, str], list[Any]] = {}
    for n in range(1, 301):
        device, version = f"dev-{rng.randrange(4)}", rng.choice(["1.0.0", "1.1.0"])
        values = [rng.lognormvariate(5, 2) for _ in range(rng.randrange(30))]
        known = Outcomes(correct=rng.randrange(9), wrong=rng.randrange(9)) if rng.random() < 0.5 else None
        errors = {"timeout": rng.randrange(3), "input": rng.randrange(3)}
        one = window(
            device=device,
            version=version,
            sequence=n,
            end_ns=T0_NS - n * SECOND_NS,
            count=len(values),
            errors=errors,
            latency=latency_of(*values),
            outcomes=known,
        )
        batch.append(one)
        sums = by_hand.setdefault((device, version), [0, 0, 0, 0, 0, LatencyHistogram(), set()])
        for place, amount in enumerate(
            (1, one.count, sum(errors.values()), known.correct if known else 0, known.wrong if known else 0)
        ):
            sums[place] += amount
        sums[5].merge(LatencyHistogram.of(values))
        sums[6].add(one.end_ns)
    store.write("home", batch)

    rows = store.totals_by_device(EVERYTHING)
    assert [(row.device, row.version) for row in rows] == sorted(by_hand)
    for row in rows:
        windows, count, errors_sum, correct, wrong, latency, ends = by_hand[row.device, row.version]
        totals = row.totals
        assert (totals.windows, totals.count, totals.errors) == (windows, count, errors_sum)
        assert (totals.correct, totals.wrong) == (correct, wrong)
        assert totals.latency == latency
        assert (row.first_end_ns, row.last_end_ns) == (min(ends), max(ends))


def test_what_a_shadow_did_is_summed_like_everything_else(store: TelemetryStore) -> None:
    batch = [
        window(sequence=1, arm="next", count=0, shadow=ShadowAgreement(compared=40, disagreed=3)),
        window(sequence=2, arm="next", count=0, shadow=ShadowAgreement(compared=2, disagreed=2)),
        window(sequence=3, arm="main"),
    ]
    store.write("home", batch)

    assert store.windows(EVERYTHING) == batch
    by_arm = {row.arm: row.totals for row in store.totals_by_device(EVERYTHING)}
    assert (by_arm["next"].shadow_compared, by_arm["next"].shadow_disagreed) == (42, 5)
    assert (by_arm["main"].shadow_compared, by_arm["main"].shadow_disagreed) == (0, 0)
    [point] = store.series(EVERYTHING, step_ns=MINUTE_NS)
    assert (point.totals.shadow_compared, point.totals.shadow_disagreed) == (42, 5)


def test_classes_memory_temperature_and_p95_are_told_of_what_has_them(store: TelemetryStore) -> None:
    def told(rss_bytes: int | None, temperature_c: float | None) -> Resources:
        return Resources(rss_bytes=rss_bytes, temperature_c=temperature_c)

    batch = [
        window(sequence=1, classes={0: 2, 7: 1}, resources=told(100, 40.5), latency=latency_of(*range(1, 101))),
        window(sequence=2, end_ns=T0_NS + 1, classes={7: 4}, resources=told(200, None), latency=b""),
        window(sequence=3, end_ns=T0_NS + 2, resources=told(None, 41.0), latency=b""),
        window(sequence=4, end_ns=T0_NS + 3, resources=told(None, 1e300), latency=b""),
        window(sequence=1, device="silent", latency=b""),
    ]
    store.write("home", batch)
    one, silent = (row.totals for row in store.totals_by_device(EVERYTHING))
    assert one.classes == {0: 2, 7: 5}
    assert (one.rss_bytes, one.temperature_c) == (150.0, 40.75)
    assert one.p95_us == pytest.approx(95, rel=0.01)
    assert (silent.classes, silent.p95_us, silent.rss_bytes, silent.temperature_c) == ({}, None, None, None)


def test_a_series_sums_each_step_and_leaves_empty_ones_out(store: TelemetryStore) -> None:
    ends = (T0_NS - MINUTE_NS, T0_NS - MINUTE_NS + 1, T0_NS - 1, T0_NS, T0_NS + 1, T0_NS + 5 * MINUTE_NS)
    store.write("home", [window(sequence=n, device=f"dev-{n}", end_ns=end) for n, end in enumerate(ends, 1)])
    points = store.series(EVERYTHING, step_ns=MINUTE_NS)
    assert [(point.start_ns - T0_NS, point.totals.windows, point.totals.count) for point in points] == [
        (-2 * MINUTE_NS, 1, 3),
        (-MINUTE_NS, 3, 9),
        (0, 1, 3),
        (4 * MINUTE_NS, 1, 3),
    ]
    assert points[1].totals.latency == LatencyHistogram.of([100.0, 200.0, 400.0] * 3)


def test_a_step_of_nothing_is_refused(store: TelemetryStore) -> None:
    with pytest.raises(InvalidRequestError, match="step"):
        store.series(EVERYTHING, step_ns=0)


def test_a_torn_histogram_of_one_device_does_not_stop_the_sums_of_the_others(store: TelemetryStore) -> None:
    overflowing = LatencyHistogram()
    overflowing.counts[:] = 2**62
    store.write(
        "home",
        [
            window(device="dev-1"),
            window(device="dev-2", latency=b"\xff\xff", queue_wait=b"\x01"),
            window(device="dev-3", latency=overflowing.to_bytes()),
        ],
    )
    latencies = {row.device: row.totals.latency.count for row in store.totals_by_device(EVERYTHING)}
    assert latencies == {"dev-1": 3, "dev-2": 0, "dev-3": 0}
    (point,) = store.series(EVERYTHING, step_ns=MINUTE_NS)
    assert (point.totals.windows, point.totals.count, point.totals.latency.count) == (3, 9, 3)


def test_numbers_at_the_edge_of_64_bits_are_stored(store: TelemetryStore) -> None:
    most = 2**63 - 1
    extreme = window(
        count=most,
        end_ns=most,
        errors={"a": most, "b": most},
        outcomes=Outcomes(correct=most, squared_error_sum=float("inf")),
        resources=Resources(cpu_percent=float("nan"), temperature_c=float("-inf"), rss_bytes=most),
    )
    store.write("home", [extreme, window(sequence=2)])
    assert [w.sequence for w in store.windows(EVERYTHING)] == [2, 1]
    late = store.totals_by_device(replace(EVERYTHING, start_ns=T0_NS))[0].totals
    assert (late.count, late.errors, late.correct) == (most, most, most)
    assert store.windows(replace(EVERYTHING, end_ns=most - 1)) == [window(sequence=2)]


def test_a_window_of_the_largest_payload_is_stored(store: TelemetryStore) -> None:
    large = window(features={f"f{n}": random.Random(n).randbytes(30_000) for n in (1, 2)})
    store.write("home", [large, window(sequence=2)])
    assert store.windows(EVERYTHING) == [large, window(sequence=2)]


@ON_THE_SAME_STORE
@given(
    fleet=st.text(min_size=1, max_size=24)
    | st.sampled_from(
        ["' OR 1=1 --", "a' OR 'b'='b", 'x" FROM y', "\\", "a\\", "\\'", "a,b=c d", "%5C", "%", " ", "\n1"]
    )
)
def test_no_name_however_hostile_reads_or_writes_anything_but_its_own(store: TelemetryStore, fleet: str) -> None:
    store.write("bystander", [window(device="bystander")])
    store.write(fleet, [window(device="own")])
    asked = replace(EVERYTHING, fleet=fleet)
    assert [w.device for w in store.windows(asked) if fleet != "bystander"] in ([], ["own"])
    assert "own" in [w.device for w in store.windows(asked)]
    bystander = replace(EVERYTHING, fleet="bystander")
    assert [w.device for w in store.windows(bystander) if fleet != "bystander"] in ([], ["bystander"])
    for narrowed in (
        replace(bystander, model=fleet),
        replace(bystander, version=fleet),
        replace(bystander, arm=fleet),
        replace(bystander, devices=frozenset({fleet})),
    ):
        assert store.windows(narrowed) == []


def test_thousands_of_devices_are_summed_and_selected(store: TelemetryStore) -> None:
    devices = [f"dev-{n:05d}" for n in range(6_000)]
    store.write("home", [window(device=device) for device in devices])
    rows = store.totals_by_device(EVERYTHING)
    assert [row.device for row in rows] == devices
    assert all(row.totals.latency.count == 3 for row in rows)
    half = frozenset(devices[::2])
    assert [row.device for row in store.totals_by_device(replace(EVERYTHING, devices=half))] == devices[::2]
    (point,) = store.series(replace(EVERYTHING, devices=half), step_ns=MINUTE_NS)
    assert (point.totals.windows, point.totals.latency.count) == (3_000, 9_000)
    latest = store.windows(replace(EVERYTHING, devices=half), limit=2)
    assert [w.device for w in latest] == devices[::2][-2:]


def test_several_threads_write_and_read_at_once_and_nothing_is_lost(store: TelemetryStore) -> None:
    def write(device: int) -> None:
        for sequence in range(1, 21):
            store.write("home", [window(device=f"dev-{device}", sequence=sequence, end_ns=T0_NS + sequence)])
            store.totals_by_device(HOUR)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    rows = store.totals_by_device(EVERYTHING)
    assert [row.totals.windows for row in rows] == [20] * 8


def test_a_store_that_is_opened_again_has_everything(place: Place) -> None:
    first = place.open()
    first.set_up(raw_retention_s=RETENTION_S)
    first.write("home", [window()])
    first.close()
    second = place.open()
    second.set_up(raw_retention_s=RETENTION_S)
    second.check()
    assert second.windows(EVERYTHING) == [window()]
    second.close()


def test_setting_up_twice_with_another_retention_keeps_the_windows(store: TelemetryStore) -> None:
    store.write("home", [window()])
    store.set_up(raw_retention_s=RETENTION_S - 86_400)
    store.set_up(raw_retention_s=RETENTION_S)
    assert store.windows(EVERYTHING) == [window()]


def test_a_retention_of_nothing_is_refused(store: TelemetryStore) -> None:
    with pytest.raises(InvalidRequestError, match="raw_retention_s"):
        store.set_up(raw_retention_s=0)


def test_a_closed_store_says_so_and_closing_twice_is_fine(place: Place) -> None:
    opened = place.open()
    opened.set_up(raw_retention_s=RETENTION_S)
    opened.close()
    opened.close()
    for call in (
        opened.check,
        lambda: opened.write("home", [window()]),
        lambda: opened.windows(EVERYTHING),
        lambda: opened.totals_by_device(EVERYTHING),
    ):
        with pytest.raises(StoreUnavailableError, match="closed"):
            call()
