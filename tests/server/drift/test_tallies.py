"""Counting: many records at once equal one by one, in any order, whatever is torn."""

from __future__ import annotations

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.bins import BinSketch
from fleet_protocol.messages import EstimatedAccuracy, Outcomes
from fleet_server.drift.signals import reference_of
from fleet_server.drift.tallies import HOUR_NS, Tally
from fleet_server.telemetry_store.merge import merge
from fleet_server.telemetry_store.merged import Grain
from tests.server.drift.hours import DAY_START_NS, PlacedFleet, place_manifest, sketch_of

MADE = place_manifest()


def tally_of(windows: list) -> Tally:  # type: ignore[type-arg]
    return Tally(reference_of(MADE), step_ns=HOUR_NS).add_all(windows)


@settings(max_examples=20, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_the_order_of_windows_changes_no_sum(order: object) -> None:
    windows = PlacedFleet(3, devices=6).windows(hours=3, values=8)
    shuffled = list(windows)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = tally_of(windows), tally_of(shuffled)
    for place in range(2):
        assert {k: v.tolist() for k, v in first.counted[place].by_device.items()} == {
            k: v.tolist() for k, v in second.counted[place].by_device.items()
        }


def test_sums_equal_sketches_merged_one_by_one() -> None:
    windows = PlacedFleet(4, devices=5).windows(hours=4, values=200)
    tally = tally_of(windows)
    for name in tally.names:
        whole = BinSketch(MADE.features[0].edges)
        for one in windows:
            if one.device == name:
                whole.merge(BinSketch.from_bytes(MADE.features[0].edges, one.features["brightness"]))
        expected = whole.bins.copy()
        expected[0] += whole.outside[0]
        expected[-1] += whole.outside[1]
        assert tally.counted[0].by_device[name].tolist() == expected.tolist()


def test_merged_hours_count_what_their_windows_count() -> None:
    windows = PlacedFleet(5, devices=6).windows(hours=3, values=50, accuracy=(0.9, 0.9))
    merged = merge(windows, Grain.DEVICE_HOUR, lambda _: "")
    single, hours = tally_of(windows), tally_of(merged)
    assert (hours.windows, hours.values) == (single.windows, single.values)
    for place in range(2):
        assert {k: v.tolist() for k, v in hours.counted[place].by_device.items()} == {
            k: v.tolist() for k, v in single.counted[place].by_device.items()
        }
    assert sorted(set(hours.estimates.steps.tolist())) == sorted(set(single.estimates.steps.tolist()))


def test_a_window_counts_in_the_hour_that_it_ends_in() -> None:
    windows = PlacedFleet(6, devices=1).windows(hours=2, values=5)
    assert tally_of(windows).counted[0].course.steps.tolist() == [DAY_START_NS // HOUR_NS, DAY_START_NS // HOUR_NS + 1]


def test_a_torn_sketch_takes_nothing_else_with_it() -> None:
    first, second = PlacedFleet(7, devices=2).windows(hours=1, values=30)
    torn = msgspec.structs.replace(first, features={**first.features, "brightness": b"\xff\xff"})
    tally = tally_of([torn, second])
    assert [counted.torn for counted in tally.counted] == [1, 0]
    assert [len(counted.by_device) for counted in tally.counted] == [1, 2]


def test_a_device_that_lies_about_its_confidence_says_nothing() -> None:
    first, second, third = PlacedFleet(8, devices=3).windows(hours=1, values=30)
    lies = msgspec.structs.replace(
        first, estimated_accuracy=EstimatedAccuracy(count=10, confidence_sum=1e9, variance_sum=1.0)
    )
    nan = msgspec.structs.replace(
        second, estimated_accuracy=EstimatedAccuracy(count=10, confidence_sum=float("nan"), variance_sum=1.0)
    )
    told = msgspec.structs.replace(
        third, estimated_accuracy=EstimatedAccuracy(count=10, confidence_sum=9.0, variance_sum=0.9)
    )
    totals, sums = (tally := tally_of([lies, nan, told])).sums_by_unit(tally.estimates)
    assert (totals.tolist(), sums[:, 0].tolist()) == ([0.0, 0.0, 10.0], [0.0, 0.0, 9.0])


def test_outcomes_add_exactly_however_many_there_are() -> None:
    (one,) = PlacedFleet(9, devices=1).windows(hours=1, values=30)
    many = [msgspec.structs.replace(one, outcomes=Outcomes(correct=2**30 + 1, wrong=1)) for _ in range(3)]
    totals, sums = (tally := tally_of(many)).sums_by_unit(tally.outcomes)
    assert (totals[0], sums[0, 0]) == (3 * (2**30 + 2), 3 * (2**30 + 1))


def test_values_beyond_the_range_are_in_the_outer_cells() -> None:
    (one,) = PlacedFleet(10, devices=1).windows(hours=1, values=30)
    far = msgspec.structs.replace(one, features={"brightness": sketch_of(MADE, 0, [-99.0, -99.0, 99.0, np.nan])})
    counted = tally_of([far]).counted[0]
    cells = counted.by_device["device-000"]
    assert (cells[0], cells[-1], cells.sum(), counted.beyond, counted.unusable) == (2, 1, 3, 3, 1)
