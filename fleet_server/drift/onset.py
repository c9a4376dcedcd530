"""Since when: the step of time at which a signal that drifts began to. Pure functions of arrays.

One change is looked for in the course of the devices' means, `[devices, steps]`, projected on the drift's direction
so that 0 is what was expected: the split with the largest gain in least squares. It is told only where
- the change is more than chance by the devices' own differences, after less before, allowing for every split;
- before it the devices were nearer to what was expected than to where they are now, else it began earlier;
- where it lies holds when devices are drawn anew (bootstrap over devices), to within half of the span.
An onset is an interval that holds the true one about nineteen times in twenty; no onset is told rather than an invented
one. Drift that grows slowly has no moment, and day and night make one of their own: compare with the same hours then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from fleet_server.drift.evidence import MIN_DEVICES
from fleet_server.drift.signals import Matrix
from fleet_server.drift.tallies import Course

MIN_STEPS = 4
MAX_STEPS = 24 * 14
LEVEL = 0.01
RESAMPLES = 200
MAX_LEVEL_BEFORE = 0.5
"""Of the level after: more, and the drift was there from the start."""
MAX_WIDTH = 0.5
"""Of the span."""
_COVERAGE = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Onset:
    """When a drift began: the best guess and the interval it lies in, UTC nanoseconds."""

    at_ns: int
    earliest_ns: int
    latest_ns: int


def device_steps(course: Course, *, expected: Matrix, direction: Matrix) -> tuple[Matrix, NDArray[np.int64]]:
    """(means less `expected` `[units]`, along `direction` `[scores]`: `[units, steps]`, NaN without values; the steps).

    Without any step, and beyond MAX_STEPS, there are no steps.
    """
    steps, units = np.unique(course.steps), len(expected)
    if len(steps) > MAX_STEPS:
        return np.zeros((units, 0)), steps[:0]
    places = course.units * len(steps) + np.searchsorted(steps, course.steps)
    size = units * len(steps)
    totals = np.bincount(places, course.totals, minlength=size).reshape(units, len(steps))
    sums = np.bincount(places, course.sums[:, : len(direction)] @ direction, minlength=size).reshape(units, len(steps))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals > 0, sums / totals, np.nan) - expected[:, None], steps


def find_onset(
    means: Matrix, steps: NDArray[np.int64], *, step_ns: int, start_ns: int, end_ns: int, seed: int = 0
) -> Onset | None:
    """The onset in devices' means `[devices, steps]`, which are above 0 where they drift; None where none is told."""
    if len(means) < MIN_DEVICES or len(steps) < MIN_STEPS:
        return None
    there = np.isfinite(means)
    filled = np.where(there, means, 0.0)
    split = int(_splits(filled.sum(axis=0)[None], there.sum(axis=0)[None])[0])
    if not _is_change(filled, there, split):
        return None
    random = np.random.default_rng(seed)
    weights = random.multinomial(len(means), np.full(len(means), 1 / len(means)), size=RESAMPLES).astype(np.float64)
    drawn = _splits(weights @ filled, weights @ there)
    low, high = (round(float(place)) for place in np.quantile(drawn, _COVERAGE))
    low, high = min(low, split), max(high, split)
    earliest = max(start_ns, int(steps[low - 1]) * step_ns)
    latest = min(end_ns, (int(steps[high]) + 1) * step_ns)
    if latest - earliest > MAX_WIDTH * (end_ns - start_ns):
        return None
    return Onset(at_ns=max(start_ns, int(steps[split]) * step_ns), earliest_ns=earliest, latest_ns=latest)


def _splits(sums: Matrix, counts: Matrix) -> NDArray[np.int64]:
    """The best split `[rows]`, from 1, of series whose steps have these sums and counts `[rows, steps]`."""
    before_sum, before = np.cumsum(sums, axis=1)[:, :-1], np.cumsum(counts, axis=1)[:, :-1]
    after_sum, after = sums.sum(axis=1, keepdims=True) - before_sum, counts.sum(axis=1, keepdims=True) - before
    size = np.maximum(before, 1e-9) * np.maximum(after, 1e-9) / np.maximum(before + after, 1e-9)
    gain = size * (after_sum / np.maximum(after, 1e-9) - before_sum / np.maximum(before, 1e-9)) ** 2
    found: NDArray[np.int64] = np.argmax(np.where((before > 0) & (after > 0), gain, -1.0), axis=1) + 1
    return found


def _is_change(filled: Matrix, there: NDArray[np.bool_], split: int) -> bool:
    before, after = there[:, :split].sum(axis=1), there[:, split:].sum(axis=1)
    both = (before > 0) & (after > 0)
    if int(both.sum()) < MIN_DEVICES:
        return False
    level_before = filled[both, :split].sum(axis=1) / before[both]
    level_after = filled[both, split:].sum(axis=1) / after[both]
    change = level_after - level_before
    error = float(change.std(ddof=1)) / len(change) ** 0.5
    if error <= 0 or float(level_before.mean()) > MAX_LEVEL_BEFORE * float(level_after.mean()):
        return False
    p_value = float(student_t.sf(float(change.mean()) / error, len(change) - 1)) * (filled.shape[1] - 1)
    return bool(p_value <= LEVEL)
