"""Where and since when: segments, devices that moved, onsets, and what is said when there is none."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from fleet_protocol.messages import Window
from fleet_server.drift.drill_down import SegmentEvidence
from fleet_server.drift.findings import DriftReport, Population, Severity, SignalFinding, Verdict
from fleet_server.drift.onset import find_onset
from fleet_server.drift.report import Comparison, compare
from fleet_server.drift.segments import DeviceFacts, Segmentation, moved_devices, segment_devices, segment_p_values
from fleet_server.drift.signals import reference_of
from fleet_server.drift.tallies import HOUR_NS, Tally
from tests.server.drift.fleets import MODEL, VERSION
from tests.server.drift.hours import DAY_START_NS, PlacedFleet, place_manifest

MADE = place_manifest()
DAY_END_NS = DAY_START_NS + 24 * HOUR_NS


def report_of(fleet: PlacedFleet, windows: list[Window], *, detail: bool = False) -> DriftReport:
    population = Population(model=MODEL, version=VERSION, start_ns=DAY_START_NS, end_ns=DAY_END_NS)
    return compare(
        Comparison(
            seen=Tally(reference_of(MADE), step_ns=HOUR_NS).add_all(windows),
            expected=None,
            seen_population=population,
            expected_population=Population(model=MODEL, version=VERSION, is_reference=True),
            facts=fleet.facts,
        ),
        detail=detail,
    )


def brightness_of(report: DriftReport) -> SignalFinding:
    return next(signal for signal in report.signals if signal.signal == "brightness")


def test_a_move_at_one_site_is_told_with_its_site_its_devices_and_its_hour() -> None:
    fleet = PlacedFleet(1, devices=60, sites=("lisbon", "oslo", "riga"))
    report = report_of(fleet, fleet.windows(moved=1.2, site="lisbon", from_hour=9))
    found = brightness_of(report)
    assert found.verdict is Verdict.DRIFT
    assert found.severity in (Severity.MEDIUM, Severity.HIGH)
    main = found.segments[0]
    assert (main.by, main.value, main.devices) == ("site", "lisbon", 20)
    assert main.devices_moved >= 17
    assert main.shift_sd == pytest.approx(1.2 * 15 / 24, abs=0.2)
    assert found.onset_ns == DAY_START_NS + 9 * HOUR_NS
    clock = time.strftime("%H:%M", time.gmtime(found.onset_ns / 1e9))
    assert "of 20 devices at site=lisbon since " in found.sentence
    assert clock in found.sentence
    assert found.sentence in report.sentence.replace(", against the reference", "")
    assert "kind-" not in found.sentence


def test_a_small_group_is_found_although_the_fleets_mean_hardly_moved() -> None:
    fleet = PlacedFleet(2, devices=160, sites=("lisbon", *["elsewhere"] * 19), spread=0.3)
    found = brightness_of(report_of(fleet, fleet.windows(moved=1.0, site="lisbon", hours=6)))
    assert (found.verdict, found.segments[0].value) == (Verdict.DRIFT, "lisbon")
    assert found.effect is not None and found.effect.shift_sd is not None
    assert abs(found.effect.shift_sd) < 0.2
    assert 5 <= found.devices_moved <= 14


def test_fleet_and_segments_share_the_level_of_a_signal() -> None:
    random, runs, alarms = np.random.default_rng(8), 4_000, 0
    segmentation = Segmentation(names=(("site", "a"),) * 12, members=np.zeros((12, 0), dtype=bool))
    for _ in range(runs):
        evidence = SegmentEvidence(segmentation=segmentation, p_values=random.random(12))
        alarms += evidence.combined(random.random()) <= 0.05
    assert 0.04 <= alarms / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    one = SegmentEvidence(segmentation=segmentation, p_values=np.array([1e-6, *[0.5] * 11]))
    assert one.combined(0.5) == pytest.approx(12e-6 / 0.2)
    assert one.combined(1e-9) == pytest.approx(1e-9 / 0.8)


def test_a_move_of_the_whole_fleet_names_no_site() -> None:
    fleet = PlacedFleet(3)
    found = brightness_of(report_of(fleet, fleet.windows(moved=-0.8, from_hour=12)))
    assert found.segments == []
    assert "at site" not in found.sentence
    assert "moved by \N{MINUS SIGN}0.4 \N{GREEK SMALL LETTER SIGMA}" in found.sentence
    assert found.devices_moved >= 30


def test_without_drift_nothing_moved_and_no_segment_is_told() -> None:
    runs, alarms = 40, 0
    for seed in range(runs):
        fleet = PlacedFleet(1_000 + seed, devices=30, sites=("lisbon", "oslo", "riga"))
        report = report_of(fleet, fleet.windows(hours=1, values=40))
        alarms += report.verdict is Verdict.DRIFT
        for signal in report.signals:
            if signal.verdict is not Verdict.DRIFT:
                assert (signal.segments, signal.devices_moved, signal.onset_ns) == ([], 0, None)
    assert alarms / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


@pytest.mark.parametrize("inside", [5, 14, 60])
def test_a_segment_of_few_unequal_devices_raises_no_more_alarms_than_stated(inside: int) -> None:
    random, runs = np.random.default_rng(inside), 1_500
    members = (np.arange(120) < inside)[None]
    p_values = [
        segment_p_values(random.normal(0, random.lognormal(0, 0.7, (120, 1)), (120, 4)), members)[0]
        for _ in range(runs)
    ]
    for level in (0.05, 0.002):
        share = float(np.mean(np.array(p_values) <= level))
        assert share <= level + 3 * math.sqrt(level * (1 - level) / runs)


def test_labels_that_name_devices_or_hold_too_few_make_no_segments() -> None:
    names = [f"d{number}" for number in range(40)]
    facts = {
        name: DeviceFacts(labels={"serial": name, "site": "a" if number < 20 else "b", "rare": "x" * (number < 4)})
        for number, name in enumerate(names)
    }
    found = segment_devices(names, facts, dict.fromkeys(names, "int8"))
    assert found.names == (("site", "a"), ("site", "b"))
    assert found.members.sum(axis=1).tolist() == [20, 20]


@pytest.mark.parametrize("inside", [14, 100, 180])
def test_of_ten_devices_said_to_have_moved_nine_did(inside: int) -> None:
    random, false, found = np.random.default_rng(4), [], []
    for _ in range(100):
        deviations = random.normal(0, 0.2, (200, 1))
        deviations[:inside] += 1.0
        peers = np.arange(200) >= inside if inside < 100 else None
        moved = moved_devices(deviations, direction=np.ones(1), noise=np.eye(1), values=np.full(200, 5e3), peers=peers)
        false.append(moved[inside:].sum() / max(1, moved.sum()))
        found.append(moved[:inside].mean())
    assert np.mean(false) <= 0.13
    assert np.mean(found) >= 0.95


def onset_in(means: np.ndarray) -> object:
    steps = np.arange(means.shape[1])
    return find_onset(means, steps, step_ns=1, start_ns=0, end_ns=means.shape[1])


def test_an_onset_lies_in_its_interval_nineteen_times_in_twenty() -> None:
    random, runs, held, told = np.random.default_rng(5), 100, 0, 0
    for _ in range(runs):
        at = int(random.integers(6, 18))
        means = random.normal(0, 0.3, (30, 1)) * 0.1 + random.normal(0, 0.4, (30, 24))
        means[:, at:] += 0.8
        onset = onset_in(means)
        if onset is not None:
            told += 1
            held += onset.earliest_ns <= at <= onset.latest_ns  # type: ignore[attr-defined]
    assert told >= 0.9 * runs
    assert held >= 0.93 * told


def test_no_onset_is_told_for_what_was_always_there_or_grew_or_never_came() -> None:
    random = np.random.default_rng(6)
    noise = random.normal(0, 0.4, (30, 24))
    assert onset_in(noise + 0.8) is None
    assert onset_in(noise) is None
    assert onset_in(noise[:4]) is None
    told = sum(onset_in(random.normal(0, 0.4, (30, 24)) + 0.4) is not None for _ in range(60))
    assert told <= 3


def test_timelines_and_distributions_come_with_detail_only() -> None:
    fleet = PlacedFleet(7, devices=12)
    windows = fleet.windows(hours=24, moved=1.0, from_hour=12, values=30)
    plain, full = report_of(fleet, windows), report_of(fleet, windows, detail=True)
    assert brightness_of(plain).distribution is None
    found = brightness_of(full)
    assert [cell.start_ns for cell in found.timeline] == [DAY_START_NS + hour * HOUR_NS for hour in range(24)]
    assert max(cell.size for cell in found.timeline[:12]) < min(cell.size for cell in found.timeline[12:])
    assert found.distribution is not None
    assert sum(found.distribution.seen) == pytest.approx(1) == pytest.approx(sum(found.distribution.expected))
    assert len(found.distribution.edges) == len(found.distribution.seen) + 1


def test_a_segment_whose_devices_erred_once_each_is_no_place_of_a_drift() -> None:
    """Ten shares of 99 %, all alike, beside a hundred of which few erred at all: alike by chance, and rare."""
    random = np.random.default_rng(5)
    values = np.full(110, 100.0)
    deviations = np.concatenate([np.full(10, -0.006), 0.004 - random.binomial(100, 0.004, 100) / 100])[:, None]
    members = (np.arange(110) < 10)[None]
    alone = segment_p_values(deviations, members)[0]
    with_chance = segment_p_values(deviations, members, noise=np.array([[0.004 * 0.996]]), values=values)[0]
    assert alone < 1e-4
    assert with_chance > 0.001
