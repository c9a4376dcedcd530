"""The recorder: every call in exactly one window, every outcome with the version that predicted."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_agent.errors import InvalidInputError
from edge_agent.telemetry.recorder import Inputs, Recorder
from edge_agent.telemetry.series import Series
from edge_agent.telemetry.waiting_samples import MAX_INPUT_BYTES
from fleet_protocol.bins import BinSketch
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Event, EventKind, OutboxStatus, Resources, Window, decode, encode
from fleet_protocol.topics import TopicKind
from tests.agent.telemetry.device import EDGES, KEY, Device, X, manifest
from tests.agent.telemetry.windows import open_outbox
from tests.real_servers.processes import wait_until


def record(
    recorder: Recorder, series: Series, inputs: Inputs, *, classes: tuple[int, ...], scores: tuple[float, ...]
) -> None:
    """What the serving path does for an answered call."""
    series.samples.append((5.0, 0.0, 1, classes, scores))
    recorder.sample_inputs(series, inputs)


def test_a_window_holds_what_was_recorded(device: Device) -> None:
    device.put_to_work()
    for _ in range(5):
        device.path.infer("m", X)
    with pytest.raises(InvalidInputError):
        device.path.infer("m", {"wrong": X["x"]})

    [window] = device.closed()

    assert (window.model, window.version, window.variant, window.arm) == KEY
    assert (window.count, window.errors) == (5, {"invalid_input": 1})
    assert LatencyHistogram.from_bytes(window.latency).count == 5
    assert window.classes == {1: 5}
    assert BinSketch.from_bytes(EDGES, window.features["f0"]).bins.tolist() == [0, 5, 0]
    assert BinSketch.from_bytes([0.0, 3.0, 6.0], window.score).bins.tolist() == [0, 5]
    assert window.resources is not None and window.resources.rss_bytes
    assert window.start_ns <= window.end_ns


def test_windows_under_concurrent_callers_count_every_call_exactly_once(tmp_path: Path) -> None:
    device = Device(tmp_path, window_s=0.1)
    device.put_to_work()
    device.recorder.start()
    calls = [400] * 4

    def call(times: int) -> None:
        for _ in range(times):
            device.path.infer("m", X)

    threads = [threading.Thread(target=call, args=(times,), daemon=True) for times in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wait_until(lambda: device.recorder.windows_closed >= 2, 10, "two windows were closed")
    device.recorder.stop()
    windows = device.closed()

    assert sum(window.count for window in windows) == sum(calls)
    assert sum(LatencyHistogram.from_bytes(window.latency).count for window in windows) == sum(calls)
    assert sum(sum(window.classes.values()) for window in windows) == sum(calls)
    sampled = sum(BinSketch.from_bytes(EDGES, window.features["f0"]).count for window in windows)
    assert 0 < sampled <= sum(calls)
    assert [window.sequence for window in windows] == list(range(1, len(windows) + 1))
    device.close()


def test_windows_cover_all_time_and_follow_each_other(device: Device) -> None:
    device.put_to_work()
    windows = [window for _ in range(4) for window in device.closed()]

    assert len(windows) == 4
    for earlier, later in itertools.pairwise(windows):
        assert abs(later.start_ns - earlier.end_ns) < 10**9  # the same moment on two clocks


def test_a_model_that_serves_and_idles_still_has_its_window(device: Device) -> None:
    device.put_to_work()

    assert [window.count for window in (*device.closed(), *device.closed())] == [0, 0]


def test_a_model_that_was_swapped_out_keeps_its_last_counts_and_then_falls_silent(device: Device) -> None:
    device.put_to_work("1.0.0")
    device.path.infer("m", X)
    device.put_to_work("2.0.0")
    device.path.infer("m", X)
    device.path.infer("m", X)

    first = device.closed()
    later = [window.version for _ in range(4) for window in device.closed()]

    assert {window.version: window.count for window in first} == {"1.0.0": 1, "2.0.0": 2}
    assert set(later) == {"2.0.0"}


def test_a_call_that_began_before_a_swap_is_counted_with_the_version_that_answered_it(device: Device) -> None:
    device.put_to_work("1.0.0")
    series = device.recorder.serve(KEY, manifest())
    device.put_to_work("2.0.0")
    device.closed()

    record(device.recorder, series, X, classes=(1,), scores=(3.0,))

    assert {window.version: window.count for window in device.closed()} == {"1.0.0": 1, "2.0.0": 0}


def test_a_version_that_comes_back_after_an_outcome_is_watched_again(device: Device) -> None:
    device.put_to_work("1.0.0")
    made = device.path.infer("m", X)
    device.put_to_work("2.0.0")
    for _ in range(5):  # until nothing is known of 1.0.0 any more
        device.closed()
    device.path.report_outcome(made.id, correct=True)

    device.put_to_work("1.0.0")
    device.path.infer("m", X)

    [window] = [window for window in device.closed() if window.version == "1.0.0"]
    assert BinSketch.from_bytes(EDGES, window.features["f0"]).count == 1
    assert window.score


def test_an_input_whose_feature_cannot_be_extracted_does_not_keep_a_window_from_closing(device: Device) -> None:
    device.put_to_work()
    series = device.recorder.serve(KEY, manifest())

    record(device.recorder, series, {"other": X["x"]}, classes=(1,), scores=(3.0,))
    record(device.recorder, series, X, classes=(1,), scores=(3.0,))

    [window] = device.closed()
    assert window.count == 2
    assert BinSketch.from_bytes(EDGES, window.features["f0"]).count == 1


def test_the_caller_may_change_its_input_after_the_call(device: Device) -> None:
    device.put_to_work()
    mine = {"x": np.ones((1, 3), dtype=np.float32)}

    device.path.infer("m", mine)
    mine["x"][:] = 100.0

    assert BinSketch.from_bytes(EDGES, device.closed()[0].features["f0"]).bins.tolist() == [0, 1, 0]


def test_inputs_beyond_the_bound_are_not_held_and_their_calls_still_count(device: Device) -> None:
    device.put_to_work()
    for _ in range(1_000):
        device.path.infer("m", X)
    large = {"x": np.ones((MAX_INPUT_BYTES // 12 + 1, 3), dtype=np.float32)}
    device.path.infer("m", large)

    [window] = device.closed()

    assert window.count == 1_001
    assert 64 <= BinSketch.from_bytes(EDGES, window.features["f0"]).count <= 256


def test_a_model_of_more_classes_than_a_window_holds_still_has_windows_the_server_takes(device: Device) -> None:
    device.put_to_work()
    series = device.recorder.serve(KEY, manifest())
    for number in range(6_000):
        record(device.recorder, series, {}, classes=(number,), scores=())
    record(device.recorder, series, {}, classes=(5_999,), scores=())

    [window] = device.closed()

    assert window.count == 6_001
    assert window.classes[5_999] == 2


def test_stats_grow_over_windows_and_are_not_reset_by_them(device: Device) -> None:
    device.put_to_work()
    device.path.infer("m", X)
    device.closed()
    device.path.infer("m", X)
    with pytest.raises(InvalidInputError):
        device.path.infer("m", {})

    stats = device.path.stats("m", "main")

    assert stats is not None
    assert (stats.count, stats.errors, stats.refused, stats.latency.count) == (2, 0, 1, 2)


def test_dropped_records_are_told_by_an_event_once(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path / "outbox.db", max_bytes=2_000)
    recorder = Recorder(device="d1", window_s=3_600.0, outbox=outbox, data_dir=tmp_path)
    for _ in range(40):
        recorder.emit(EventKind.AGENT_STARTED, detail="x" * 100)
    recorder.close_window()
    recorder.close_window()

    events = [decode(Event, record.payload) for record in outbox.pending(100) if record.kind is TopicKind.EVENTS]
    told = [event for event in events if event.kind is EventKind.OUTBOX_OVERFLOW]
    assert len(told) == 1
    assert "records dropped" in told[0].detail
    outbox.close()


def test_an_event_with_a_long_detail_is_shortened_to_what_the_server_takes(device: Device) -> None:
    device.recorder.emit(EventKind.REVERTED, model="m", detail="x" * 10_000)

    [record] = device.outbox.pending(10)
    assert len(decode(Event, record.payload).detail) == 2_000


def test_without_a_fleet_nothing_is_kept_but_the_counters(tmp_path: Path) -> None:
    recorder = Recorder(device="standalone", window_s=3_600.0, outbox=None, data_dir=None)
    series = recorder.serve(KEY, None)
    record(recorder, series, X, classes=(), scores=())
    recorder.emit(EventKind.AGENT_STARTED)

    assert recorder.stats(KEY).count == 1
    assert recorder.outbox_status() == OutboxStatus()


@pytest.mark.parametrize("count", [600, 6_000])
def test_a_window_with_ten_features_fits_into_two_kilobytes(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(5)
    edges = np.linspace(0.0, 1.0, 65)
    sketches = {}
    for number in range(10):
        sketch = BinSketch(edges)
        sketch.record_many(rng.uniform(0.0, 1.0, count))
        sketches[f"feature_{number}"] = sketch.to_bytes()
    window = Window(
        device="press-0007", boot_id="00000001-0000abcd", sequence=100_000, model="digits", version="1.10.0",
        variant="int8-qdq-u8s8", arm="main", start_ns=time.time_ns(), end_ns=time.time_ns() + 1, count=count,
        latency=LatencyHistogram.of(rng.lognormal(6.0, 0.2, count)).to_bytes(), features=sketches,
        classes=dict.fromkeys(range(10), count // 10),
        resources=Resources(cpu_percent=12.5, rss_bytes=6 * 10**7, temperature_c=50.0, disk_free_bytes=10**10),
        outbox=OutboxStatus(depth=1),
    )  # fmt: skip

    assert len(encode(window)) <= 2_048


def test_a_window_tells_how_long_calls_waited_and_how_many_shared_a_run(device: Device) -> None:
    series = device.put_to_work().series
    series.samples += [(900.0, 700.0, 3, (), ())] * 3 + [(200.0, 0.0, 1, (), ())]

    [window] = device.closed()

    waits = LatencyHistogram.from_bytes(window.queue_wait)
    assert waits.count == 4
    assert abs(waits.quantile_us(0.9) - 700.0) < 700.0 / 64
    assert window.batch_sizes == {3: 1, 1: 1}


def test_totals_go_on_over_windows(device: Device) -> None:
    series = device.put_to_work().series
    series.samples.append((900.0, 700.0, 2, (), ()))
    device.closed()
    series.samples.append((100.0, 0.0, 2, (), ()))
    before_ns = time.time_ns()

    totals = device.recorder.totals()[series.key]

    assert (totals.count, totals.failed, totals.latency_us, totals.queue_us) == (2, 0, 1000.0, 700.0)
    assert totals.last_at_ns >= before_ns
