"""Virtual time: the null is the reference, devices differ, counts agree, and the same seed gives the same windows."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from scipy.special import ndtri

from fleet_protocol.embedding_sums import FEATURE_SCALE, decode_sums, encode_sums
from fleet_protocol.histogram import LatencyHistogram
from fleet_protocol.messages import Window, decode, encode
from fleet_protocol.varint import encode_sparse
from fleet_server.errors import InvalidRequestError
from fleet_server.simulator import DayNight, FleetBehaviour
from fleet_server.simulator.references import reference_of
from fleet_server.telemetry_store.sketches import encode_dense_many, encode_sums_many
from tests.server.simulator.fleets import DAY_S, MANIFEST, MONDAY_NS, SITES, S, day_of, device_means, fleet, sketch

_UNEQUAL: dict[str, Any] = {"spread": 0.4, "day": DayNight(traffic=0.7, features=0.5)}


def test_devices_and_hours_mixed_have_the_reference_s_shares_exactly() -> None:
    day = DayNight(traffic=0.7, features=0.5)
    reference = reference_of(MANIFEST, spread=0.4, day=day)
    grid = ndtri((np.arange(60) + 0.5) / 60)
    location, scale = (part.ravel() for part in np.meshgrid(0.4 * grid, 0.2 * grid))
    still = np.zeros(len(location))
    for signal in reference.numeric:
        shifts, weights = day.day() if signal.follows_hour else (np.zeros(1), np.ones(1))
        mixed = sum(
            weight * signal.probabilities(location + shift, np.exp(scale), shift_sd=still, noise_sd=still).mean(axis=0)
            for shift, weight in zip(shifts, weights, strict=True)
        )
        assert mixed[: len(signal.shares)] == pytest.approx(signal.shares, abs=4e-4), signal.name
    assert [signal.name for signal in reference.numeric if signal.follows_hour] == ["mean", "brightness"]


def test_a_fleet_s_whole_day_looks_like_the_reference_though_every_device_differs() -> None:
    windows = day_of(fleet(300, **_UNEQUAL))
    for feature in ("mean", "std"):
        means = np.array(list(device_means(windows, feature).values()))
        assert 0.3 < means.std() < 0.5
        assert abs(means.mean()) < 4 * 0.4 / np.sqrt(300)


def test_embeddings_classes_confidence_and_accuracy_average_what_the_bundle_says() -> None:
    windows = [window for window in day_of(fleet(300, **_UNEQUAL)) if window.count]
    count = sum(window.count for window in windows)
    random = MANIFEST.random_features
    assert random is not None
    by_device: defaultdict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(257))
    for window in windows:
        by_device[window.device][1:] += decode_sums(window.embedding_sums) / FEATURE_SCALE
        by_device[window.device][0] += window.embedding_count
    means = np.array([row[1:] / row[0] for row in by_device.values()])
    expected = np.array(random.sums) / random.count / np.sqrt(2 / len(random.sums))
    z = (means.mean(axis=0) - expected) / (means.std(axis=0) / np.sqrt(len(means)))
    assert np.sqrt((z**2).mean()) < 1.6
    classes = np.zeros(10)
    for window in windows:
        for index, number in window.classes.items():
            classes[index] += number
    assert classes / count == pytest.approx(np.array(MANIFEST.classes) / sum(MANIFEST.classes), abs=0.008)
    right = sum(window.outcomes.correct for window in windows if window.outcomes)
    assert right / count == pytest.approx(0.996, abs=0.001)
    sure = sum(window.estimated_accuracy.confidence_sum for window in windows if window.estimated_accuracy)
    assert sure / count == pytest.approx(0.984, abs=0.006)


def test_each_device_has_its_own_habit_of_classes() -> None:
    shares = fleet(500, spread=0.3).traits().classes
    usual = np.array(MANIFEST.classes) / sum(MANIFEST.classes)
    assert (shares.std(axis=0) / usual).mean() == pytest.approx(0.3, abs=0.04)
    assert shares.mean(axis=0) == pytest.approx(usual, abs=4 * 0.03 / np.sqrt(500))


def test_noon_and_night_differ_by_the_site_s_own_clock() -> None:
    windows = day_of(fleet(150, spread=0.0, day=DayNight(traffic=0.7, features=0.8)))
    virtual = fleet(150)
    site = {name: labels["site"] for name, labels in virtual.labels().items()}

    def seen(place: str, utc_hour: int) -> tuple[float, int]:
        then = [w for w in windows if site[w.device] == place and (w.end_ns - MONDAY_NS) // (3_600 * S) == utc_hour]
        means = device_means(then, "mean")
        return sum(means.values()) / len(means), sum(w.count for w in then) // len(then)

    for place, offset_h in SITES.items():
        noon, night = seen(place, int(14 - offset_h) % 24), seen(place, int(2 - offset_h) % 24)
        assert noon[0] > 0.4 > -0.4 > night[0]
        assert noon[1] > 3 * night[1]


def test_a_weekend_is_quieter() -> None:
    windows = day_of(fleet(15, day=DayNight(weekend=0.25)), days=7)
    by_day = np.zeros(7)
    for window in windows:
        by_day[(window.end_ns - 1 - MONDAY_NS) // (DAY_S * S)] += window.count
    assert by_day[6] < 0.4 * by_day[2]


def test_devices_traffic_is_as_unequal_as_asked_and_a_few_are_nearly_silent() -> None:
    counts: defaultdict[str, int] = defaultdict(int)
    for window in day_of(fleet(600, traffic_spread=1.0, silent_share=0.1, rate_per_s=0.12), days=0.25):
        counts[window.device] += window.count
    made = np.array(list(counts.values()))
    assert 0.05 < (made < 200).mean() < 0.2
    assert np.log(made[made > 200]).std() == pytest.approx(0.9, abs=0.2)


def test_every_window_agrees_with_itself_follows_the_last_one_and_travels() -> None:
    last: dict[str, Window] = {}
    ends = []
    for window in day_of(fleet(7)):
        assert decode(Window, encode(window)) == window
        for feature in ("mean", "std", "brightness", "sharpness", "score"):
            assert sketch(window, feature).count == window.count
        assert sum(window.classes.values()) == window.embedding_count == window.count
        assert sum(size * number for size, number in window.batch_sizes.items()) == window.count
        for times in (window.latency, window.queue_wait):
            assert LatencyHistogram.from_bytes(times).count == window.count
        before = last.get(window.device)
        assert window.start_ns == (before.end_ns if before else MONDAY_NS)
        assert window.sequence == (before.sequence + 1 if before else 1)
        last[window.device] = window
        ends.append(window.end_ns)
    assert ends == sorted(ends)
    assert len(last) == 7


def test_a_seed_repeats_everything_and_more_devices_leave_a_device_as_it_was() -> None:
    assert day_of(fleet(5), days=0.2) == day_of(fleet(5), days=0.2)
    assert day_of(fleet(5), days=0.2) != day_of(fleet(5, seed=2), days=0.2)
    assert fleet(5).characters == fleet(9).characters[:5]
    assert np.array_equal(fleet(5).traits().location, fleet(9).traits().location[:5])


def test_a_busy_window_is_counted_whole() -> None:
    windows = day_of(fleet(2, rate_per_s=5.0, spread=0.0), days=1 / 12)
    assert max(window.count for window in windows) > 10_000
    assert all(LatencyHistogram.from_bytes(window.latency).count == window.count for window in windows)


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 2**48)))
def test_rows_are_encoded_as_one_by_one(counts: NDArray[np.int64]) -> None:
    assert encode_dense_many(counts) == [encode_sparse(row) for row in counts]
    signed = counts - counts[::-1]
    assert encode_sums_many(signed) == [encode_sums(row) for row in signed]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="sees no day and night"):
        FleetBehaviour(window_s=86_400, day=DayNight(traffic=0.5))
    with pytest.raises(InvalidRequestError, match="day and night"):
        DayNight(traffic=1.0)
    with pytest.raises(InvalidRequestError, match="site 'mars'"):
        FleetBehaviour(sites={"mars": 40})
    with pytest.raises(InvalidRequestError, match="traffic_spread"):
        FleetBehaviour(traffic_spread=9)
    with pytest.raises(InvalidRequestError, match="0 devices"):
        fleet(0)
