"""Any two populations: through the database and the store, by their short forms and in full."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine, insert

from fleet_protocol.messages import Window
from fleet_server.database.engine import open_engine
from fleet_server.database.tables import devices, metadata, models
from fleet_server.drift import reading
from fleet_server.drift.findings import DriftReport, Population, SignalFinding, Verdict
from fleet_server.drift.pairing import Pairing
from fleet_server.drift.populations import (
    DAY_NS,
    WEEK_NS,
    Question,
    Side,
    expected_population,
    hour_spans,
    name_of,
    parse_selector,
    seen_population,
)
from fleet_server.drift.reading import read_drift
from fleet_server.errors import InvalidRequestError
from fleet_server.telemetry_store import EmbeddedStore
from fleet_server.telemetry_store.merge import merge
from fleet_server.telemetry_store.merged import Grain
from tests.server.drift.fleets import MODEL, VERSION
from tests.server.drift.hours import DAY_START_NS, HOUR_NS, PlacedFleet
from tests.server.drift.test_report import publish

FLEET = "demo"
DAY_END_NS = DAY_START_NS + 24 * HOUR_NS


class Placed:
    """A fleet with places, in a database and a store."""

    def __init__(self, folder: Path, fleet: PlacedFleet) -> None:
        self.fleet = fleet
        self.engine: Engine = open_engine(f"sqlite:///{folder / 'fleet.db'}")
        metadata.create_all(self.engine)
        self.store = EmbeddedStore(folder / "telemetry.db")
        rows = [
            {"fleet": FLEET, "device": name, "labels": facts.labels, "created_ns": 1}
            for name, facts in fleet.facts.items()
        ]
        with self.engine.begin() as connection:
            connection.execute(insert(models).values(model=MODEL, created_ns=1))
            connection.execute(insert(devices), rows)
        publish(self.engine, fleet.made)

    def write(self, windows: list[Window], *, boot: int = 1) -> None:
        told = [msgspec.structs.replace(one, boot_id=f"00000000-{boot:08x}") for one in windows]
        self.store.write(FLEET, told)
        self.store.write_merged(FLEET, Grain.DEVICE_HOUR, merge(told, Grain.DEVICE_HOUR, lambda _: ""))

    def ask(self, question: Question | None = None, **changes: int) -> DriftReport:
        (report,) = read_drift(
            self.engine, self.store, fleet=FLEET, model=MODEL, version=VERSION, question=question,
            start_ns=changes.get("start_ns", DAY_START_NS), end_ns=changes.get("end_ns", DAY_END_NS),
        )  # fmt: skip
        return report


def brightness_of(report: DriftReport) -> SignalFinding:
    return next(signal for signal in report.signals if signal.signal == "brightness")


@pytest.fixture
def placed(tmp_path: Path) -> Iterator[Placed]:
    made = Placed(tmp_path, PlacedFleet(11, devices=24, spread=0.6))
    yield made
    made.store.close()
    made.engine.dispose()


def test_devices_held_against_their_own_last_week_see_what_their_differences_hide(placed: Placed) -> None:
    placed.write(placed.fleet.windows(start_ns=DAY_START_NS - DAY_NS, hours=6, values=200), boot=1)
    placed.write(placed.fleet.windows(moved=0.15, hours=6, values=200), boot=2)
    against_reference = brightness_of(placed.ask())
    assert against_reference.verdict is Verdict.NOT_FOUND
    report = placed.ask(Question(against="last-week"))
    found = brightness_of(report)
    assert (report.pairing, found.verdict) == (Pairing.PAIRED.value, Verdict.DRIFT)
    assert found.effect is not None and found.effect.shift_sd == pytest.approx(0.15, abs=0.1)
    assert "against the week before" in report.sentence


def test_day_and_night_are_no_drift_against_the_same_hours_of_earlier_weeks(placed: Placed) -> None:
    dawn_ns = DAY_START_NS + 4 * HOUR_NS
    for week in range(3):
        placed.write(
            placed.fleet.windows(start_ns=DAY_START_NS - week * WEEK_NS, hours=4, moved=-1.5, values=60), boot=week + 1
        )
        placed.write(
            placed.fleet.windows(start_ns=DAY_START_NS - week * WEEK_NS + 12 * HOUR_NS, hours=4), boot=week + 9
        )
    assert brightness_of(placed.ask(end_ns=dawn_ns)).verdict is Verdict.DRIFT
    report = placed.ask(Question(against="same-hours"), end_ns=dawn_ns)
    assert brightness_of(report).verdict is Verdict.NOT_FOUND
    assert report.expected.values == 2 * 24 * 4 * 60
    assert "the same hours of earlier weeks" in report.sentence


def test_one_device_is_held_against_the_rest_of_the_fleet(placed: Placed) -> None:
    odd = placed.fleet.names[3]
    windows = placed.fleet.windows(hours=3, values=100)
    strange = PlacedFleet(11, devices=24, spread=0.6).windows(hours=3, values=100, moved=5.0)
    placed.write([one for one in windows if one.device != odd] + [one for one in strange if one.device == odd])
    report = placed.ask(Question(seen=Side(device=odd), against="fleet"))
    found = brightness_of(report)
    assert (report.seen.devices, report.expected.devices) == (1, 24)
    assert found.p_value is not None and found.p_value <= 0.1
    usual = brightness_of(placed.ask(Question(seen=Side(device=placed.fleet.names[5]), against="fleet")))
    assert usual.p_value is not None and usual.p_value > found.p_value
    assert "the rest of the fleet" in usual.sentence


def test_one_site_is_held_against_another(placed: Placed) -> None:
    placed.write(placed.fleet.windows(hours=3, moved=2.0, site="lisbon"))
    report = placed.ask(Question(seen=Side(selector="site=lisbon"), against="selector:site=oslo"))
    assert (report.pairing, report.seen.devices, report.expected.devices) == (Pairing.BETWEEN.value, 12, 12)
    assert brightness_of(report).verdict is Verdict.DRIFT
    assert "against devices at site=oslo" in report.sentence or "against site=oslo" in report.sentence


def test_a_version_is_held_against_another_on_the_devices_that_ran_both(placed: Placed) -> None:
    publish(placed.engine, msgspec.structs.replace(placed.fleet.made, version="0.9.0"))
    placed.write(placed.fleet.windows(hours=3, moved=1.0))
    before = [msgspec.structs.replace(one, version="0.9.0") for one in placed.fleet.windows(hours=3)]
    placed.write(before, boot=2)
    report = placed.ask(Question(against="version:0.9.0"))
    assert (report.pairing, brightness_of(report).verdict) == (Pairing.PAIRED.value, Verdict.DRIFT)
    assert f"against {MODEL} 0.9.0" in report.sentence


def test_many_windows_are_read_from_merged_hours_and_the_report_says_so(
    placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed.write(placed.fleet.windows(hours=6, moved=1.0))
    exact = placed.ask()
    monkeypatch.setattr(reading, "MAX_WINDOWS", 20)
    merged = placed.ask(start_ns=DAY_START_NS + 5, end_ns=DAY_START_NS + 6 * HOUR_NS - 5)
    assert (exact.read_from, merged.read_from) == ("windows", "device hours")
    assert (merged.start_ns, merged.end_ns, merged.windows_truncated) == (
        DAY_START_NS, DAY_START_NS + 6 * HOUR_NS, False,
    )  # fmt: skip
    assert [(s.signal, s.values, s.p_value) for s in merged.signals] == [
        (s.signal, s.values, s.p_value) for s in exact.signals
    ]


def test_a_fleet_too_large_to_read_whole_is_sampled_and_the_report_says_of_how_many(
    placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed.write(placed.fleet.windows(hours=6))
    monkeypatch.setattr(reading, "MAX_WINDOWS", 0)
    monkeypatch.setattr(reading, "MAX_DEVICE_HOURS", 24 * 12)
    first, second = placed.ask(), placed.ask()
    assert first.devices_sampled_of == 24
    assert 3 <= first.seen.devices <= 21
    assert first == second


@pytest.mark.parametrize(
    "question",
    [
        Question(against="yesterday"),
        Question(against="fleet"),
        Question(against="version:"),
        Question(against="selector:site"),
        Question(seen=Side(selector="site=a,site=b")),
        Question(against="reference", expected=Side(version="1.0.0")),
        Question(expected=Side(version=VERSION)),
        Question(expected=Side(start_ns=5, end_ns=5)),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_by_name(question: Question) -> None:
    with pytest.raises(InvalidRequestError):
        expected_population(question, seen_population(question, model=MODEL, version=VERSION, start_ns=10, end_ns=20))


def test_same_hours_are_those_of_each_earlier_week() -> None:
    seen = Population(model=MODEL, version=VERSION, start_ns=10 * WEEK_NS, end_ns=10 * WEEK_NS + DAY_NS)
    spans = hour_spans(expected_population(Question(against="same-hours"), seen))
    assert spans == [(week * WEEK_NS, week * WEEK_NS + DAY_NS) for week in (6, 7, 8, 9)]
    assert name_of(seen) == f"{MODEL} {VERSION}"
    assert parse_selector("site=lisbon,kind=a b").labels == {"site": "lisbon", "kind": "a b"}
    assert math.isclose(sum(end - start for start, end in spans), 4 * DAY_NS)
