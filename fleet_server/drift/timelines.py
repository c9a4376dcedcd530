"""A signal over the parts of its span, for a heat map. Pure.

A part's size is the length of the devices' mean deviation in the signal's scores: about the move of the mean in
standard deviations for a number, the move of the shares for classes. An accuracy has one score, and its size a sign.
Its p-value is Dempster's test on the device means of that part alone, which allows for nothing else.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import f as f_distribution

from fleet_server.drift.evidence import MIN_DEVICES
from fleet_server.drift.findings import SignalKind, TimeCell
from fleet_server.drift.onset import MAX_STEPS
from fleet_server.drift.pairing import Judged
from fleet_server.drift.signals import Matrix
from fleet_server.drift.tallies import Tally

ACCURACIES = (SignalKind.ACCURACY, SignalKind.ESTIMATED_ACCURACY)
_NO_VARIANCE = 1e-18


def timeline_of(judged: Judged, seen: Tally) -> list[TimeCell]:
    """The signal step by step, oldest first; steps in which no judged device counted anything are left out."""
    course = judged.course
    if course is None or not len(judged.places):
        return []
    scores = judged.deviations.shape[1]
    baseline = np.zeros((len(seen.names), scores))
    baseline[judged.places] = judged.baseline
    is_judged = np.zeros(len(seen.names), dtype=bool)
    is_judged[judged.places] = True
    rows = is_judged[course.units]
    steps = np.unique(course.steps[rows])
    if len(steps) > MAX_STEPS:
        return []
    cells = []
    for step in steps.tolist():
        here = rows & (course.steps == step)
        units, place = np.unique(course.units[here], return_inverse=True)
        totals = np.bincount(place, course.totals[here])
        sums = np.stack([np.bincount(place, course.sums[here, column]) for column in range(scores)], axis=1)
        deviations = sums / totals[:, None] - baseline[units]
        mean = deviations.mean(axis=0)
        cells.append(
            TimeCell(
                start_ns=int(step) * seen.step_ns,
                devices=len(units),
                size=float(mean[0]) if judged.finding.kind in ACCURACIES else float(np.linalg.norm(mean)),
                p_value=_p_value(deviations),
            )
        )
    return cells


def _p_value(deviations: Matrix) -> float | None:
    devices = len(deviations)
    if devices < MIN_DEVICES:
        return None
    mean = deviations.mean(axis=0)
    variance = np.atleast_2d(np.cov(deviations, rowvar=False)) / devices
    trace, square = float(np.trace(variance)), float((variance**2).sum())
    if trace <= _NO_VARIANCE:
        return 1.0
    freedom = trace**2 / square
    return float(f_distribution.sf(float(mean @ mean) / trace, freedom, freedom * (devices - 1)))
