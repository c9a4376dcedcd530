"""D2: false alarms a week of the drift monitor on a null fleet; beside it how it does when something drifts.

The fleet (`drift/null_fleet`): unequal devices, day and night at three sites, windows late by minutes to days,
repeated, reordered and lost, dark devices with a backlog. The monitor looks every hour at the last whole day, as a
server does by default, and states at most 5 % of model-version-weeks with any alarm. Ways to look:
- the pure path (`drift/watched_week`), many fleet-weeks: seven days of looks, the first once a whole day is there;
- the real path (`drift/real_path`), one fleet: ingest with its ledger and checks, embedded store, merger, monitor, from
  the version's very first hour; every window counted once, and no finding;
- again with a drift from a known time on, a moderate one on a few devices and one at a whole site: when it is
  found and in what words, for a monitor that says nothing raises no false alarm either.
The ratio is the share of fleet-weeks with an alarm over the stated rate, of all sizes together. Its interval says how
much so many weeks can tell. A fleet whose weekends are quieter stands beside: at a weekend's edge a whole day is not
what a whole day usually is, which is outside the null.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from benchmarks.drift.null_fleet import DAYS, fleet_of, null_behaviour
from benchmarks.drift.real_path import watch_fleet
from benchmarks.drift.watched_week import Week, watch_week
from benchmarks.result import Result
from fleet_server.drift.monitor import MonitorSettings
from fleet_server.simulator import Drift, DriftKind

ID = "D2"
TITLE = "share of null fleet-weeks with any false alarm / the stated 0.05"
TARGET = 1.0
LONG = True
"""Runs only when it is asked for by name."""
SETTINGS = MonitorSettings()
FIRST_LOOK_H = 24
DRIFT_FROM_H = 72
REAL_DEVICES, REAL_DAYS = 100, 3.0
FEW = "brightness by 0.8 SD on a fifth of the devices at one of three sites"
SITE = "brightness by 0.8 SD on all devices at one of three sites"
SURE = "accuracy down by 0.05 on every device, and the confidence with it"


@dataclass(frozen=True, kw_only=True)
class Weeks:
    """Fleet-weeks of one kind, one for each seed."""

    what: str
    devices: int
    weeks: int
    drift: Drift | None = None
    weekend: float = 1.0


_AFTER_S = DRIFT_FROM_H * 3_600.0
NULL = (
    Weeks(what="100 devices", devices=100, weeks=20),
    Weeks(what="200 devices", devices=200, weeks=20),
    Weeks(what="1000 devices", devices=1_000, weeks=3),
)
BESIDE = (
    Weeks(what="100 devices, weekends at 0.6 of the traffic", devices=100, weeks=6, weekend=0.6),
    Weeks(
        what=FEW,
        devices=200,
        weeks=4,
        drift=Drift(
            kind=DriftKind.FEATURE_SHIFT,
            feature="brightness",
            by=0.8,
            where={"site": "lisbon"},
            share=0.2,
            after_s=_AFTER_S,
        ),
    ),
    Weeks(
        what=SITE,
        devices=200,
        weeks=4,
        drift=Drift(
            kind=DriftKind.FEATURE_SHIFT, feature="brightness", by=0.8, where={"site": "lisbon"}, after_s=_AFTER_S
        ),
    ),
    Weeks(
        what=SURE,
        devices=200,
        weeks=4,
        drift=Drift(kind=DriftKind.ACCURACY, by=0.05, known=True, after_s=_AFTER_S),
    ),
)


def run() -> Result:
    """All weeks, then the real path."""
    small = bool(os.environ.get("EDGEFLEET_BENCH_SMALL"))
    null = {kind.what: _all_weeks(kind, small) for kind in NULL}
    beside = {kind.what: (kind, _all_weeks(kind, small)) for kind in BESIDE}
    print(f"{ID}: the real path", file=sys.stderr)
    quiet = watch_fleet(fleet_of(null_behaviour(), devices=REAL_DEVICES, seed=101), SETTINGS, days=REAL_DAYS)
    moved = watch_fleet(
        fleet_of(null_behaviour(drifts=(_at_site(30 * 3_600.0),)), devices=REAL_DEVICES, seed=102),
        SETTINGS,
        days=2.0,
    )
    counted_once = quiet.windows + quiet.repeats == quiet.windows_sent
    every = [week for weeks in null.values() for week in weeks]
    alarms = _alarm_shares(every)
    ratio = round(alarms["weeks_with_an_alarm"] / SETTINGS.false_alarms_per_week, 3)
    found = all(
        sum(week.has_alarm(after_h=DRIFT_FROM_H) for week in weeks) > len(weeks) / 2
        for kind, weeks in beside.values()
        if kind.drift is not None and kind.what != FEW
    )
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=f"<= {TARGET}; on the real path every window once and no finding; site-wide drift found",
        holds=ratio <= TARGET and counted_once and not quiet.findings and found and bool(moved.findings),
        figures={
            "all_null_weeks": alarms,
            **{f"null, {what}": _alarm_shares(weeks) for what, weeks in null.items()},
            **{
                f"beside, {what}": _alarm_shares(weeks) if kind.drift is None else _detection(weeks)
                for what, (kind, weeks) in beside.items()
            },
            "real_path": {
                "devices": REAL_DEVICES,
                "days": REAL_DAYS,
                "windows_sent": quiet.windows_sent,
                "windows_counted": quiet.windows,
                "repeats_dropped": quiet.repeats,
                "false_findings": [finding.finding.sentence for finding in quiet.findings],
                "findings_with_drift": [finding.finding.sentence for finding in moved.findings],
            },
        },
    )


def _at_site(after_s: float) -> Drift:
    return Drift(kind=DriftKind.FEATURE_SHIFT, feature="brightness", by=0.8, where={"site": "lisbon"}, after_s=after_s)


def _all_weeks(kind: Weeks, small: bool) -> list[Week]:
    count = 2 if small else kind.weeks
    print(f"{ID}: {count} weeks of {kind.what}", file=sys.stderr)
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_Watch(kind=kind), range(count)))


@dataclass(frozen=True, kw_only=True)
class _Watch:
    """A function of the seed; a process takes no closure."""

    kind: Weeks

    def __call__(self, seed: int) -> Week:
        drifts = (self.kind.drift,) if self.kind.drift is not None else ()
        behaviour = null_behaviour(drifts=drifts, weekend=self.kind.weekend)
        fleet = fleet_of(behaviour, devices=self.kind.devices, seed=seed)
        return watch_week(fleet, SETTINGS, days=DAYS + FIRST_LOOK_H / 24, first_look_h=FIRST_LOOK_H)


def _alarm_shares(weeks: list[Week]) -> dict[str, Any]:
    """The share of weeks with an alarm and its 95 % interval (Clopper and Pearson 1934)."""
    with_alarm = sum(bool(week.alarms) for week in weeks)
    interval = binomtest(with_alarm, len(weeks)).proportion_ci()
    return {
        "weeks_with_an_alarm": round(with_alarm / len(weeks), 3),
        "interval": [round(float(interval.low), 3), round(float(interval.high), 3)],
        "weeks": len(weeks),
        "looks": sum(week.looks for week in weeks),
        "windows": sum(week.windows for week in weeks),
        "repeats": sum(week.repeats for week in weeks),
        "said": sorted({alarm.sentence for week in weeks for alarm in week.alarms[:1]})[:5],
    }


def _detection(weeks: list[Week]) -> dict[str, Any]:
    """Hours from the drift's beginning to the first look that says so, and what the last look says."""
    first = [week.first_alarm_h(after_h=DRIFT_FROM_H) for week in weeks]
    return {
        "weeks": len(weeks),
        "found_after_h": [None if hour is None else hour - DRIFT_FROM_H for hour in first],
        "false_alarms_before": sum(any(alarm.hour < DRIFT_FROM_H for alarm in week.alarms) for week in weeks),
        "said_last": [week.alarms[-1].sentence for week in weeks if week.alarms][:2],
    }
