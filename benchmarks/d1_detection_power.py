"""D1: does the product find what the best test on raw values finds, with no more false alarms than it states?

One device sees 20 to 200 digits, drifting or not; the product says "drift" when any signal of its report does, at 5 %
for the whole report (`benchmarks.drift.digits`). Beside it, in the same run and on the same images, four tests on raw
values, each at 5 % for itself alone; and the shares that were published for them (STATISTICS, section 4). For every
shift and size the best of all eight is what the product is held against; the ratio is the smallest of ours over it.

It holds when no cell is below its best by more than ALLOWED_ERRORS standard errors of the difference of two shares of
so many runs, and the rows without drift together are at or under 5 % and as many standard errors.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from benchmarks.drift.digits import COLUMNS, NONE, SHIFTS, Deal, Digits, column_p_values, report_of, window_of
from benchmarks.result import Result
from fleet_server.drift.findings import SignalFinding, Verdict

ID = "D1"
TITLE = "drift found by the product / by the best test on raw values, the worst of all shifts and sizes"
TARGET = 1.0
ALPHA = 0.05
SIZES = (20, 50, 100, 200)
RUNS, RUNS_WITHOUT_DRIFT, PUBLISHED_RUNS = 100, 1_000, 40
ALLOWED_ERRORS = 2.0
FIRST_SEED = 10_000
"""Runs with smaller ones chose the statistics and weights of `fleet_server.drift.evidence`."""
PUBLISHED: dict[str, tuple[float, ...]] = {
    "half with noise 0.5": (0.97, 1.0, 1.0, 1.0),
    "class 0 gone": (0.12, 0.35, 0.95, 1.0),
    "half rolled 1 px": (0.97, 1.0, 1.0, 1.0),
    "brightness x 0.85": (0.55, 1.0, 1.0, 1.0),
}
"""The best published column by size."""


def run(runs: int = RUNS, runs_without_drift: int = RUNS_WITHOUT_DRIFT) -> Result:
    """Measure all shifts and sizes."""
    found = _measure(runs, runs_without_drift)
    cells = [_cell(found, shift, place, runs) for shift in SHIFTS if shift != NONE for place in range(len(SIZES))]
    alarms = float(np.mean([found[NONE, size]["product"] for size in SIZES]))
    trials = runs_without_drift * len(SIZES)
    rate_holds = alarms <= ALPHA + ALLOWED_ERRORS * (ALPHA * (1 - ALPHA) / trials) ** 0.5
    worst = min(cells, key=lambda cell: cell["ours"] / cell["best"])
    return Result(
        id=ID,
        title=TITLE,
        ratio=round(worst["ours"] / worst["best"], 3),
        target=f">= {TARGET} within binomial error; no more than {ALPHA:.0%} false alarms within it",
        holds=rate_holds and all(cell["holds"] for cell in cells),
        figures={
            "false_alarms": round(alarms, 4),
            "false_alarms_of_looks": trials,
            "worst": worst,
            "share_found_at": list(SIZES),
            "table": {shift: _row(found, shift) for shift in SHIFTS},
            "signals_found": {shift: _signals(found, shift) for shift in SHIFTS},
            "runs": runs,
            "cells_below_best": [cell for cell in cells if cell["ours"] < cell["best"]],
        },
    )


Found = dict[tuple[str, int], dict[str, Any]]


def _measure(runs: int, runs_without_drift: int) -> Found:
    digits = Digits()
    looks: dict[tuple[str, int], list[dict[str, Any]]] = {(shift, size): [] for shift in SHIFTS for size in SIZES}
    for seed in range(max(runs, runs_without_drift)):
        deal = digits.deal(FIRST_SEED + seed)
        for (shift, size), made in looks.items():
            if seed < (runs_without_drift if shift == NONE else runs):
                made.append(_look(deal, shift, size, columns=seed < runs))
    return {key: _shares(made) for key, made in looks.items()}


def _look(deal: Deal, shift: str, size: int, *, columns: bool) -> dict[str, Any]:
    seen = deal.seen(shift, size)
    report = report_of(deal.manifest, window_of(deal.manifest, seen), alpha=ALPHA)
    look: dict[str, Any] = {
        "product": report.verdict is Verdict.DRIFT,
        "signals": [_name(signal) for signal in report.signals if signal.verdict is Verdict.DRIFT],
    }
    if columns:
        look |= {name: p_value <= ALPHA for name, p_value in column_p_values(deal, seen).items()}
    return look


def _name(signal: SignalFinding) -> str:
    return signal.signal


def _shares(looks: list[dict[str, Any]]) -> dict[str, Any]:
    names = {name for look in looks for name in look["signals"]}
    shares: dict[str, Any] = {
        name: round(float(np.mean([look[name] for look in looks if name in look])), 3) for name in ("product", *COLUMNS)
    }
    shares["signals"] = {
        name: round(sum(name in look["signals"] for look in looks) / len(looks), 3) for name in sorted(names)
    }
    return shares


def _cell(found: Found, shift: str, place: int, runs: int) -> dict[str, Any]:
    size = SIZES[place]
    ours = float(found[shift, size]["product"])
    beside = {name: float(found[shift, size][name]) for name in COLUMNS}
    rivals = {**{name: (share, runs) for name, share in beside.items()}}
    rivals["published"] = (PUBLISHED[shift][place], PUBLISHED_RUNS)
    name, (best, trials) = max(rivals.items(), key=lambda rival: rival[1][0])
    holds = all(
        ours >= share - ALLOWED_ERRORS * ((share * (1 - share) / made) + ours * (1 - ours) / runs) ** 0.5
        for share, made in rivals.values()
    )
    return {"shift": shift, "n": size, "ours": ours, "best": best, "best_is": name, "of_runs": trials, "holds": holds}


def _row(found: Found, shift: str) -> dict[str, list[float]]:
    row = {name: [found[shift, size][name] for size in SIZES] for name in ("product", *COLUMNS)}
    return row | ({"best published": list(PUBLISHED[shift])} if shift in PUBLISHED else {})


def _signals(found: Found, shift: str) -> dict[str, dict[str, float]]:
    return {str(size): found[shift, size]["signals"] for size in SIZES}
