"""D3: false alarms of Evidently, NannyML and alibi-detect on the null fleet of D2, run as their users would.

Each day of a fleet-week the pooled values of all devices are held against the reference, with each library's defaults
(its program in `drift/peers` says which). Nothing drifts, so every alarm is false. Two fleets: a few devices with all
their values, and a thousand with as many rows a day, taken at random. The reference has REFERENCE_DAYS days' worth of
rows, drawn one independent of the other from the very distribution that the fleet's population has.
Silence alone proves nothing, so a few weeks more have the drift of DRIFT from their first moment: a moderate one, on
about 7 % of the devices. There is no target: the figures stand beside D2's. It holds when every peer could be measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import binomtest

from benchmarks.drift.null_fleet import REFERENCE_DAYS, Columns, fleet_of, null_behaviour, pooled_days, reference_rows
from benchmarks.environments import environment, installed_versions
from benchmarks.result import Result
from fleet_server.errors import UnavailableError
from fleet_server.simulator import Drift, DriftKind, VirtualFleet

ID = "D3"
TITLE = "share of null fleet-weeks with a false alarm / 0.05: the median of the peers' rules on pooled data"
STATED_RATE = 0.05
LONG = True
"""Runs only when it is asked for by name: it installs its peers."""
PROGRAMS = Path(__file__).parent / "drift" / "peers"
PEERS = {"evidently": "evidently", "nannyml": "nannyml", "alibi_detect": "alibi-detect"}
ROWS_PER_DAY = 10_000
DRIFT = Drift(kind=DriftKind.FEATURE_SHIFT, feature="brightness", by=0.8, where={"site": "lisbon"}, share=0.2)
_TIMEOUT_S = 1_200.0
_ERROR_CHARS = 300
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Fleets:
    """Fleet-weeks of one size, one for each seed."""

    devices: int
    weeks: int
    weeks_with_drift: int


SIZES = (Fleets(devices=50, weeks=8, weeks_with_drift=2), Fleets(devices=1_000, weeks=4, weeks_with_drift=1))


def run() -> Result:
    """Install the peers, draw the fleet-weeks, let every peer look at every day."""
    small = bool(os.environ.get("EDGEFLEET_BENCH_SMALL"))
    failed: dict[str, str] = {}
    pythons: dict[str, Path] = {}
    for name in PEERS:
        try:
            pythons[name] = environment(f"drift-{name.replace('_', '-')}", PROGRAMS / f"{name}.txt")
        except UnavailableError as error:
            failed[name] = str(error)[:_ERROR_CHARS]
    measured: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        for drifts, weeks in (((), size.weeks), ((DRIFT,), size.weeks_with_drift)):
            looks: dict[str, list[list[bool]]] = {}
            for seed in range(1 if small else weeks):
                print(f"{ID}: {size.devices} devices, week {seed + 1}{', with drift' * bool(drifts)}", file=sys.stderr)
                fleet = fleet_of(null_behaviour(drifts=drifts), devices=size.devices, seed=seed)
                for name, days in _week(fleet, pythons, failed).items():
                    looks.setdefault(name, []).append(days)
            what = f"{size.devices} devices, {'with drift' if drifts else 'null'}"
            measured[what] = {name: alarm_shares(weeks) for name, weeks in looks.items()}
    null = [by_rule for what, by_rule in measured.items() if what.endswith("null")]
    shares = [one["weeks_with_an_alarm"] for by_rule in null for one in by_rule.values()]
    return Result(
        id=ID,
        title=TITLE,
        ratio=round(median(shares) / STATED_RATE, 3) if shares else float("nan"),
        target="none: shown beside D2",
        holds=not failed,
        figures={
            **measured,
            "rows_per_day_at_most": ROWS_PER_DAY,
            "drift": "brightness moved by 0.8 SD on a fifth of the devices at one of three sites",
            "versions": {name: installed_versions(python).get(PEERS[name]) for name, python in pythons.items()},
            "failed": failed,
        },
    )


def alarm_shares(weeks: list[list[bool]]) -> dict[str, Any]:
    """Shares of days and of weeks with an alarm, the latter with its 95 % interval (Clopper and Pearson 1934)."""
    with_alarm = sum(map(any, weeks))
    interval = binomtest(with_alarm, len(weeks)).proportion_ci()
    return {
        "weeks_with_an_alarm": round(with_alarm / len(weeks), 3),
        "interval": [round(float(interval.low), 3), round(float(interval.high), 3)],
        "days_with_an_alarm": round(sum(map(sum, weeks)) / sum(map(len, weeks)), 3),
        "weeks": len(weeks),
    }


def _week(fleet: VirtualFleet, pythons: dict[str, Path], failed: dict[str, str]) -> dict[str, list[bool]]:
    """By peer and what it calls an alarm, whether each day had one."""
    looks: dict[str, list[bool]] = {}
    with tempfile.TemporaryDirectory(prefix="edgefleet-d3-") as folder:
        _save(Path(folder) / "reference.npz", reference_rows(rows=REFERENCE_DAYS * ROWS_PER_DAY, seed=fleet.seed))
        for number, rows in enumerate(pooled_days(fleet, rows_per_day=ROWS_PER_DAY)):
            _save(Path(folder) / f"day{number}.npz", rows)
        for name, python in pythons.items():
            try:
                done = subprocess.run(
                    [python, PROGRAMS / f"{name}_days.py", folder, str(fleet.seed)],
                    capture_output=True,
                    text=True,
                    timeout=_TIMEOUT_S,
                    check=True,
                    cwd=folder,
                    env={**os.environ, **_ONE_THREAD},
                )
            except subprocess.TimeoutExpired:
                failed[name] = f"a week took longer than {_TIMEOUT_S:.0f} s"
            except subprocess.CalledProcessError as error:
                failed[name] = (error.stderr.strip().splitlines() or ["it said nothing"])[-1][:_ERROR_CHARS]
            else:
                for rule, days in json.loads(done.stdout.splitlines()[-1]).items():
                    looks[f"{name}: {rule}"] = days
                    print(f"    {name}: {rule}: {sum(days)} of {len(days)} days", file=sys.stderr)
    return looks


def _save(path: Path, columns: Columns) -> None:
    np.savez(path, allow_pickle=False, **columns)
