"""Devices against devices, by exchanging what the null hypothesis says is exchangeable.

- `between_devices`: device labels. Dempster's statistic (`Length.STUDENTIZED`), so that sides which differ in spread
  alone, and in how many devices they have, keep the level too.
- `paired_devices`: the sign of each device's own change. What a device always is, its habit, cancels: far more power.

Few enough relabellings are all made, and the p-value is exact and no smaller than one over their number: three
devices against three never say anything at 5 %. Otherwise RELABELLINGS are drawn from `seed`; where none of them
reaches the observed statistic, Dempster's law says how much smaller the p-value is. It takes over from MAX_EXCHANGED
devices on, where it is exact enough and exchanging is slow.
"""

from __future__ import annotations

import numpy as np

from fleet_server.drift.evidence.effects import pairs_effect, slices_effect
from fleet_server.drift.evidence.quadratic import VariancePart, dempster_p_value, mean_interval, variance_part
from fleet_server.drift.evidence.result import (
    Counts,
    Evidence,
    Matrix,
    check_counts,
    check_edges_fit,
    check_same_devices,
    e_value_of,
    nothing_to_say,
    shares,
)
from fleet_server.drift.evidence.scores import class_scores, moment_scores, ranks
from fleet_server.drift.findings import Effect
from fleet_server.statistics.intervals import Interval, check_level
from fleet_server.statistics.permutation import Length, compare_groups, compare_pairs, flip_signs, relabel

RELABELLINGS = 1999
MAX_EXCHANGED = 2000
"""Devices on both sides together; beyond it the law for many devices is used."""
POOLED_VALUES = 10_000
"""Of both sides' mean shares, as which cells are ranked and rare classes told."""
METHOD_BETWEEN = "device labels exchanged"
METHOD_PAIRED = "signs of devices' own changes flipped"
METHOD_MANY = "device means (Dempster)"


def between_devices(
    seen: Counts,
    expected: Counts,
    *,
    edges: Matrix | None,
    alpha: float = 0.05,
    seed: int = 0,
    effects: bool = True,
) -> Evidence:
    """Hold devices' counts `[devices, cells]` against other devices' `[devices, cells]`.

    `edges` `[cells + 1]` of a number's bins; None: the cells are classes. Devices without a count are left out. One
    device on a side is held against the spread of the other side's. Raises InvalidRequestError when shapes do not fit.
    """
    _check(seen, expected, edges, alpha)
    left, right = shares(seen), shares(expected)
    scores = _scores(left, right, ordered=edges is not None)
    if scores is None or not len(left) or not len(right) or len(left) + len(right) < 3:
        return nothing_to_say(METHOD_BETWEEN)
    p_value, method = exchange_labels(left @ scores, right @ scores, seed=seed)
    rank = Effect()
    if edges is not None:
        rank = _rank(*(side @ _pooled_ranks(left, right) for side in (left, right)), alpha=alpha)
    size = slices_effect(left, right, edges, values=int(seen.sum()), rank=rank, seed=seed) if effects else rank
    return Evidence(p_value=p_value, e_value=e_value_of(p_value), method=method, effect=size)


def paired_devices(
    seen: Counts,
    expected: Counts,
    *,
    edges: Matrix | None,
    alpha: float = 0.05,
    seed: int = 0,
    effects: bool = True,
) -> Evidence:
    """Hold devices' counts `[devices, cells]` against those of the same devices, row by row.

    As `between_devices`; devices without a count on either side are left out.
    """
    _check(seen, expected, edges, alpha)
    check_same_devices(len(seen), len(expected))
    both = seen.any(axis=1) & expected.any(axis=1)
    left, right = shares(seen[both]), shares(expected[both])
    scores = _scores(left, right, ordered=edges is not None)
    if scores is None or len(left) < 2:
        return nothing_to_say(METHOD_PAIRED)
    p_value, method = flip_pairs((left - right) @ scores, seed=seed)
    rank = Effect()
    if edges is not None:
        rank = _rank((left - right) @ _pooled_ranks(left, right), None, alpha=alpha)
    size = pairs_effect(left, right, edges, values=int(seen[both].sum()), rank=rank, seed=seed) if effects else rank
    return Evidence(p_value=p_value, e_value=e_value_of(p_value), method=method, effect=size)


def exchange_labels(seen: Matrix, expected: Matrix, *, seed: int) -> tuple[float, str]:
    """(p-value, method) of the difference of mean scores `[devices, k]` of two sides, one device or more on each."""
    both = np.vstack([seen, expected])
    studentized = min(len(seen), len(expected)) >= 2
    law = _law(seen, expected) if studentized else 1.0
    if len(both) > MAX_EXCHANGED and studentized:
        return law, METHOD_MANY
    if not np.ptp(both, axis=0).any():
        return 1.0, METHOD_BETWEEN
    labels = relabel(np.arange(len(both)) < len(seen), relabellings=RELABELLINGS, seed=seed)
    test = compare_groups(both, labels, length=Length.STUDENTIZED if studentized else Length.PLAIN)
    beyond = test.rank == 1 and not labels.is_exact and studentized
    return (min(test.p_value, law) if beyond else test.p_value), METHOD_BETWEEN


def flip_pairs(differences: Matrix, *, seed: int) -> tuple[float, str]:
    """(p-value, method) of the mean of devices' own changes of score `[devices, k]`, two devices or more."""
    parts = [_part(differences)]
    mean = differences.mean(axis=0)
    law = dempster_p_value(float(mean @ mean), parts, cross_traces=0.0)
    if len(differences) > MAX_EXCHANGED:
        return law, METHOD_MANY
    if not differences.any():
        return 1.0, METHOD_PAIRED
    flips = flip_signs(len(differences), flips=RELABELLINGS, seed=seed)
    test = compare_pairs(differences, flips, length=Length.STUDENTIZED)
    return (min(test.p_value, law) if test.rank == 1 and not flips.is_exact else test.p_value), METHOD_PAIRED


def difference_interval(seen: Matrix, expected: Matrix | None, *, alpha: float) -> Interval | None:
    """Welch's interval of the difference of devices' means of one number `[devices]`; without `expected`, of `seen`.

    None where a side has one device or nothing varies.
    """
    sides = [seen] if expected is None else [seen, expected]
    if min(len(side) for side in sides) < 2:
        return None
    difference = float(seen.mean() - (0.0 if expected is None else expected.mean()))
    return mean_interval(difference, [_part(side[:, None]) for side in sides], alpha=alpha)


def _law(seen: Matrix, expected: Matrix) -> float:
    difference = seen.mean(axis=0) - expected.mean(axis=0)
    left, right = _variance(seen), _variance(expected)
    parts = [variance_part(left, len(seen) - 1.0), variance_part(right, len(expected) - 1.0)]
    return dempster_p_value(float(difference @ difference), parts, cross_traces=2.0 * float((left * right).sum()))


def _variance(rows: Matrix) -> Matrix:
    variance: Matrix = np.atleast_2d(np.cov(rows, rowvar=False)) / len(rows)
    return variance


def _part(rows: Matrix) -> VariancePart:
    return variance_part(_variance(rows), len(rows) - 1.0)


def _rank(seen: Matrix, expected: Matrix | None, *, alpha: float) -> Effect:
    shift = float(seen.mean() - (0.0 if expected is None else expected.mean()))
    interval = difference_interval(seen, expected, alpha=alpha)
    return Effect(shift_rank=shift, shift_interval=None if interval is None else (interval.lower, interval.upper))


def _pooled(left: Matrix, right: Matrix) -> Counts:
    """All devices' mean shares as counts: the same however devices are labelled, as exchanging labels wants it."""
    middle = np.vstack([left, right]).mean(axis=0)
    counts: Counts = np.rint(middle * POOLED_VALUES).astype(np.int64)
    return counts


def _pooled_ranks(left: Matrix, right: Matrix) -> Matrix:
    return ranks(_pooled(left, right))


def _scores(left: Matrix, right: Matrix, *, ordered: bool) -> Matrix | None:
    """What both sides are scored by; None where nothing could differ."""
    if not len(left) or not len(right) or left.shape[1] < 2:
        return None
    pooled = _pooled(left, right)
    return moment_scores(pooled) if ordered else class_scores(pooled)


def _check(seen: Counts, expected: Counts, edges: Matrix | None, alpha: float) -> None:
    check_level("alpha", alpha)
    cells = seen.shape[-1] if seen.ndim else 0
    check_counts("the counts seen", seen, cells)
    check_counts("the counts expected", expected, cells)
    check_edges_fit(edges, cells)
