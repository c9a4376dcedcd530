"""The standing watch: its rate over a week, what it remembers, and that of two servers one looks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import binom
from sqlalchemy import insert

from fleet_protocol.messages import Window
from fleet_server.drift import open_findings
from fleet_server.drift.findings import Verdict
from fleet_server.drift.monitor import (
    MonitorSettings,
    OutcomeWatch,
    alpha_of_look,
    design_effect,
    look_at,
    watch_outcomes,
)
from fleet_server.drift.open_findings import acknowledge, list_findings
from fleet_server.drift.signals import Reference, reference_of
from fleet_server.drift.tallies import HOUR_NS, Tally
from fleet_server.drift.watching import GRACE_S, DriftMonitor
from fleet_server.errors import NotFoundError
from tests.server.drift.fleets import MODEL, VERSION, S
from tests.server.drift.hours import DAY_START_NS, PlacedFleet, with_outcomes
from tests.server.drift.test_questions import FLEET, Placed

SETTINGS = MonitorSettings()
DAILY = MonitorSettings(look_every_s=86_400)
DAY_END_NS = DAY_START_NS + 24 * HOUR_NS


@pytest.fixture
def placed(tmp_path: Path) -> Iterator[Placed]:
    made = Placed(tmp_path, PlacedFleet(21, devices=20))
    yield made
    made.store.close()
    made.engine.dispose()


def monitor_of(placed: Placed, *, now_ns: int) -> DriftMonitor:
    return DriftMonitor(placed.engine, placed.store, fleet=FLEET, settings=SETTINGS, now_ns=lambda: now_ns)


def look_time(hours: int) -> int:
    return DAY_START_NS + hours * HOUR_NS + GRACE_S * S + 1


def test_the_looks_of_a_week_spend_no_more_than_their_share() -> None:
    for every in (3_600, 7_200, 86_400):
        settings = MonitorSettings(look_every_s=every)
        assert alpha_of_look(settings) * (7 * 86_400 / every) == pytest.approx(0.04)


def test_a_week_of_looks_at_the_same_unequal_devices_keeps_its_rate() -> None:
    """Devices keep their peculiarities from day to day: what one look shows by chance, the next one shows again."""
    weeks, alarms = 12, 0
    for seed in range(weeks):
        fleet = PlacedFleet(5_000 + seed, devices=20, spread=0.5)
        reference = unequal_reference(0.5)
        for day in range(7):
            start_ns = DAY_START_NS + day * 24 * HOUR_NS
            windows = fleet.windows(start_ns=start_ns, hours=1, values=60)
            report = look_at(
                reference, windows, fleet.facts, start_ns=start_ns, end_ns=start_ns + 24 * HOUR_NS, settings=DAILY
            )
            assert report.seen.devices == 20
            if report.verdict is Verdict.DRIFT:
                alarms += 1
                break
    assert alarms <= binom.ppf(0.999, weeks, 0.04)


def unequal_reference(spread: float) -> Reference:
    """The reference of a whole population of devices that differ by `spread`."""
    from tests.server.drift.fleets import manifest

    random = np.random.default_rng(9)
    values = {name: random.normal(0, (1 + spread**2) ** 0.5, 4_000) for name in ("brightness", "contrast")}
    made = manifest(values)
    edges = PlacedFleet(1).made.features
    features = [
        msgspec.structs.replace(
            own, counts=np.histogram(np.clip(values[own.name], own.edges[0], own.edges[-1]), own.edges)[0].tolist()
        )
        for own in edges
    ]
    return reference_of(msgspec.structs.replace(made, features=features))


def test_a_drift_opens_one_finding_that_is_renewed_acknowledged_and_closed(
    placed: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed.write(placed.fleet.windows(hours=24, moved=1.5, site="lisbon", from_hour=8, values=40))
    assert monitor_of(placed, now_ns=look_time(24)).step() == 1
    (opened,) = list_findings(placed.engine, fleet=FLEET)
    assert (opened.signal, opened.opened_ns) == ("brightness", DAY_START_NS + 24 * HOUR_NS)
    assert "site=lisbon" in opened.finding.sentence
    with placed.engine.begin() as connection:
        acknowledge(connection, opened.id, fleet=FLEET, actor="ana", now_ns=5)
        acknowledge(connection, opened.id, fleet=FLEET, actor="bo", now_ns=6)
        with pytest.raises(NotFoundError):
            acknowledge(connection, "nobody", fleet=FLEET, actor="ana", now_ns=5)
    assert monitor_of(placed, now_ns=look_time(25)).step() == 1
    (renewed,) = list_findings(placed.engine, fleet=FLEET, model=MODEL)
    assert (renewed.id, renewed.opened_ns, renewed.acknowledged_by) == (opened.id, opened.opened_ns, "ana")
    assert renewed.found_ns == DAY_START_NS + 25 * HOUR_NS
    quiet = placed.fleet.windows(start_ns=DAY_END_NS, hours=30, values=40)
    placed.write([msgspec.structs.replace(one, sequence=one.sequence + 100) for one in quiet])
    monkeypatch.setattr(open_findings, "CLOSE_AFTER_NS", 20 * HOUR_NS)
    assert monitor_of(placed, now_ns=look_time(54)).step() == 1
    assert list_findings(placed.engine, fleet=FLEET) == []
    (closed,) = list_findings(placed.engine, fleet=FLEET, closed=True)
    assert closed.closed_ns == DAY_START_NS + 54 * HOUR_NS
    told = placed.store.points(
        FLEET, "drift", start_ns=0, end_ns=2 * DAY_END_NS, tags={"model": MODEL, "feature": "brightness"}
    )
    assert [point.fields["verdict"] for point in told] == ["drift", "drift", "not_found"]
    assert all(point.tags["version"] == VERSION for point in told)


def test_of_servers_that_look_at_once_one_does(placed: Placed) -> None:
    placed.write(placed.fleet.windows(hours=3))
    monitors = [monitor_of(placed, now_ns=look_time(24)) for _ in range(3)]
    assert [monitor.step() for monitor in monitors] == [1, 0, 0]
    assert [monitor.step() for monitor in monitors] == [0, 0, 0]
    assert monitor_of(placed, now_ns=look_time(25)).step() == 1


def test_nobody_is_judged_before_the_second_day(placed: Placed) -> None:
    """Half a day of a fleet with day and night looks like drift."""
    placed.write(placed.fleet.windows(hours=26, moved=2.0, values=40))
    assert [monitor_of(placed, now_ns=look_time(hours)).step() for hours in (3, 12, 21)] == [0, 0, 0]
    assert monitor_of(placed, now_ns=look_time(24)).step() == 1
    assert [opened.signal for opened in list_findings(placed.engine, fleet=FLEET)] == ["brightness"]


def test_devices_that_came_in_the_middle_of_the_day_are_not_in_its_look(placed: Placed) -> None:
    early = set(placed.fleet.names[:12])
    windows = placed.fleet.windows(hours=24, values=40)
    late = placed.fleet.windows(hours=24, moved=3.0, values=40)
    placed.write([one for one in windows if one.device in early])
    placed.write([one for one in late if one.device not in early and one.sequence > 12])
    assert monitor_of(placed, now_ns=look_time(24)).step() == 1
    (told,) = placed.store.points(
        FLEET, "drift", start_ns=0, end_ns=2 * DAY_END_NS, tags={"model": MODEL, "feature": "brightness"}
    )
    assert (told.fields["devices"], told.fields["verdict"]) == (12, "not_found")


def test_a_version_that_sent_nothing_or_cannot_be_read_stops_no_other(placed: Placed) -> None:
    from fleet_server.database.tables import versions

    assert monitor_of(placed, now_ns=look_time(24)).step() == 0
    with placed.engine.begin() as connection:
        connection.execute(
            insert(versions).values(
                model=MODEL, version="0.1.0", bundle="9" * 64, manifest={}, published_by="t", published_ns=1
            )
        )
    windows = placed.fleet.windows(hours=3)
    placed.write([*windows])
    placed.write([msgspec.structs.replace(one, version="0.1.0") for one in windows], boot=7)
    assert monitor_of(placed, now_ns=look_time(24)).step() == 2


def outcome_tally(windows: list[Window]) -> Tally:
    reference = Reference(model=MODEL, version=VERSION, signals=(), expected_accuracy=0.9, values=100_000)
    return Tally(reference, step_ns=HOUR_NS).add_all(windows)


def test_outcomes_that_got_worse_raise_an_alarm_and_those_that_did_not_do_not() -> None:
    fleet, alarms = PlacedFleet(31, devices=12), 0
    for seed in range(20):
        watch = OutcomeWatch()
        for look in range(24):
            windows = with_outcomes(fleet.windows(hours=1, values=1), 0.9, judged=20, seed=1_000 * seed + look)
            watch, alarm = watch_outcomes(watch, outcome_tally(windows), settings=SETTINGS)
            alarms += alarm is not None
    assert alarms == 0
    worse = None
    for look in range(12):
        windows = with_outcomes(fleet.windows(hours=1, values=1), 0.75, judged=20, seed=look)
        watch, worse = watch_outcomes(watch, outcome_tally(windows), settings=SETTINGS)
        if worse is not None:
            break
    assert worse is not None
    assert "fell below the 0.90" in worse.sentence
    assert watch.log_masses == [None] * 4


def test_devices_that_err_together_count_as_few() -> None:
    random = np.random.default_rng(3)
    events = np.full(400, 50.0)
    independent = random.binomial(50, 0.1, 400).astype(float)
    together = random.binomial(50, random.beta(1, 9, 400)).astype(float)
    assert design_effect(independent, events) == pytest.approx(1.0, abs=0.25)
    assert design_effect(together, events) == pytest.approx(1 + 49 / 11, rel=0.35)
    assert design_effect(np.zeros(3), np.ones(3)) == 1.0
