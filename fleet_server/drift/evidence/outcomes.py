"""Outcomes: is the share of right answers another than expected? The device is the unit.

Each device's share of right answers weighs the same. Its variance is that between devices, and never less than
answers that are right independently with the expected chance would show: five devices that were never wrong have no
variance between them, and are no proof that the accuracy rose. What the other side's mean is, is estimated too, unless
it is told as exact.
"""

from __future__ import annotations

from fleet_server.drift.evidence.exchanging import difference_interval, exchange_labels, flip_pairs
from fleet_server.drift.evidence.quadratic import VariancePart, dempster_p_value, mean_interval
from fleet_server.drift.evidence.result import (
    Counts,
    Evidence,
    Matrix,
    check_same_devices,
    e_value_of,
    nothing_to_say,
)
from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import Interval, check_level

METHOD = "devices' accuracy (Welch)"
METHOD_EXCHANGED = "devices' accuracy, "
_EXACT = 1e9


def accuracy_against_expected(
    correct: Counts, judged: Counts, *, expected: float, expected_count: int | None = None, alpha: float = 0.05
) -> Evidence:
    """Hold devices' right answers `correct` `[devices]` of `judged` `[devices]` against the accuracy that was promised.

    `expected` was measured on `expected_count` samples; None: taken as exact. Devices without a judged answer are left
    out. Raises InvalidRequestError for counts that do not fit.
    """
    check_level("alpha", alpha)
    if not 0 <= expected <= 1:
        raise InvalidRequestError(f"the expected accuracy is {expected}: it lies from 0 to 1")
    means, totals = _shares(correct, judged)
    units = len(means)
    if units < 2:
        return nothing_to_say(METHOD)
    # half a sample more on each side, so that a promise of 1 has some room
    promised = (expected * (expected_count or _EXACT) + 0.5) / ((expected_count or _EXACT) + 1.0)
    single = promised * (1.0 - promised)
    between = float(means.var(ddof=1)) / units
    least = single * float((1.0 / totals).mean()) / units
    parts = [
        VariancePart(trace=between, squared_trace=between**2, freedom=units - 1.0),
        _known(max(0.0, least - between), float(totals.sum())),
        _known(single / (expected_count or _EXACT), float(expected_count or _EXACT)),
    ]
    difference = float(means.mean()) - expected
    cross = sum(part.trace for part in parts) ** 2 - sum(part.squared_trace for part in parts)
    p_value = dempster_p_value(difference**2, parts, cross_traces=cross)
    return _evidence(p_value, METHOD, difference, mean_interval(difference, parts, alpha=alpha))


def accuracy_between_devices(
    seen_correct: Counts,
    seen_judged: Counts,
    expected_correct: Counts,
    expected_judged: Counts,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Evidence:
    """Hold devices' accuracies `[devices]` against other devices' `[devices]`: exchanging of their labels."""
    check_level("alpha", alpha)
    left, _ = _shares(seen_correct, seen_judged)
    right, _ = _shares(expected_correct, expected_judged)
    if not len(left) or not len(right) or len(left) + len(right) < 3:
        return nothing_to_say(METHOD_EXCHANGED)
    p_value, method = exchange_labels(left[:, None], right[:, None], seed=seed)
    interval = difference_interval(left, right, alpha=alpha)
    return _evidence(p_value, METHOD_EXCHANGED + method, float(left.mean() - right.mean()), interval)


def accuracy_paired_devices(
    seen_correct: Counts,
    seen_judged: Counts,
    expected_correct: Counts,
    expected_judged: Counts,
    *,
    alpha: float = 0.05,
    seed: int = 0,
) -> Evidence:
    """Hold devices' accuracies `[devices]` against those of the same devices, row by row: flipping of signs."""
    check_level("alpha", alpha)
    check_same_devices(len(seen_judged), len(expected_judged))
    both = (seen_judged > 0) & (expected_judged > 0)
    if int(both.sum()) < 2:
        return nothing_to_say(METHOD_EXCHANGED)
    left, _ = _shares(seen_correct[both], seen_judged[both])
    right, _ = _shares(expected_correct[both], expected_judged[both])
    p_value, method = flip_pairs((left - right)[:, None], seed=seed)
    interval = difference_interval(left - right, None, alpha=alpha)
    return _evidence(p_value, METHOD_EXCHANGED + method, float((left - right).mean()), interval)


def _known(trace: float, count: float) -> VariancePart:
    return VariancePart(trace=trace, squared_trace=trace**2, freedom=max(1.0, count - 1.0))


def _shares(correct: Counts, judged: Counts) -> tuple[Matrix, Counts]:
    if correct.shape != judged.shape or correct.ndim != 1 or bool((correct > judged).any() or (correct < 0).any()):
        raise InvalidRequestError("right answers and judged answers are counts of the same devices, right <= judged")
    kept = judged > 0
    return correct[kept] / judged[kept], judged[kept]


def _evidence(p_value: float, method: str, difference: float, interval: Interval | None) -> Evidence:
    return Evidence(
        p_value=p_value,
        e_value=e_value_of(p_value),
        method=method,
        difference=difference,
        difference_interval=interval,
    )
