"""Whether an error rate rose, looked at after every batch: a Shiryaev-Roberts mixture e-process.

For each ratio r of RATIOS, with p1 = r p0 (at most halfway from p0 to 1), and a batch with k errors of n events,

    M_r <- (M_r + n) L_r,   L_r = (p1/p0)^k ((1 - p1)/(1 - p0))^(n - k),   M = the mean of M_r over r

While no event's chance of error, given the past, is above p0, M less the events so far has no upward drift: the mean
number of events to a false alarm, M >= threshold, is at least the threshold (Shiryaev 1963, Roberts 1966; as an
e-detector, Shin, Ramdas, Rinaldo 2023). Single events, n = 1, are the classical M <- (M + 1) L. A batch puts all
its possible moments of change at its start, so its order inside does not matter.

- p0 is known, not estimated from the same events; it may differ from batch to batch (each device its own). An
  estimate is replaced by its upper confidence limit, else the alarm comes more often than stated.
- Events are not exchangeable draws from the fleet: one p0 for devices that differ is exceeded by some of them for ever.
- After an alarm it starts again from `start`. All in logarithms: a batch may hold any number of events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.intervals import check_positive

Values = NDArray[np.float64]

RATIOS = (1.25, 1.5, 2.0, 3.0)
"""Error rates, as multiples of the base rate, among which the evidence is shared equally."""


def start(*shape: int) -> Values:
    """log M_r before any event, `[*shape, ratios]`: one watch, or an array of watches that are updated together."""
    return np.full((*shape, len(RATIOS)), -np.inf)


def update(log_masses: Values, *, errors: ArrayLike, events: ArrayLike, base_rate: ArrayLike) -> Values:
    """log M_r `[..., ratios]` after one more batch with `errors` of `events` `[...]`, of which `base_rate` is usual.

    A batch without events changes nothing. Raises InvalidRequestError for what are no counts, and for base rates
    outside (0, 1).
    """
    ratios = log_likelihood_ratios(errors=errors, events=events, base_rate=base_rate)
    with np.errstate(divide="ignore"):
        log_events = np.log(np.asarray(events, dtype=np.float64))[..., None]
    updated: Values = np.logaddexp(log_masses, log_events) + ratios
    return updated


def log_evidence(log_masses: Values) -> Values:
    """ln M `[...]`: an alarm when it reaches the logarithm of the mean number of events to a false alarm."""
    evidence: Values = logsumexp(log_masses, axis=-1) - np.log(log_masses.shape[-1])
    return evidence


def is_alarm(log_masses: Values, *, events_to_false_alarm: float) -> NDArray[np.bool_]:
    """Whether M `[...]` has reached `events_to_false_alarm`, the mean number of events between false alarms."""
    check_positive("events_to_false_alarm", events_to_false_alarm)
    alarm: NDArray[np.bool_] = np.asarray(log_evidence(log_masses) >= np.log(events_to_false_alarm))
    return alarm


def rate_increase_log_e_value(*, errors: ArrayLike, events: ArrayLike, base_rate: ArrayLike) -> Values:
    """ln of the e-value `[...]` that the rate of all these events is above `base_rate`: the mean of L_r.

    For a change at a known moment, or none: an e-process from the first event on, so valid at any look.
    """
    ratios = log_likelihood_ratios(errors=errors, events=events, base_rate=base_rate)
    e_value: Values = logsumexp(ratios, axis=-1) - np.log(len(RATIOS))
    return e_value


def onset(*, errors: ArrayLike, events: ArrayLike, base_rate: ArrayLike) -> int:
    """The batch `[batches]` from which the error rate was most likely higher: the largest L_r from there to the end.

    An estimate, not a test: it gives an answer without a change too, and stands beside an alarm only.
    """
    ratios = log_likelihood_ratios(errors=errors, events=events, base_rate=base_rate)
    if ratios.ndim != 2 or not len(ratios):
        raise InvalidRequestError("an onset is looked for in a list of batches, at least one")
    from_here = np.cumsum(ratios[::-1], axis=0)[::-1]
    return int(from_here.max(axis=1).argmax())


def log_likelihood_ratios(*, errors: ArrayLike, events: ArrayLike, base_rate: ArrayLike) -> Values:
    """ln L_r `[..., ratios]` of batches `[...]`."""
    wrong, all_events = np.asarray(errors, dtype=np.float64), np.asarray(events, dtype=np.float64)
    usual = np.asarray(base_rate, dtype=np.float64)
    if not bool(((wrong >= 0) & (wrong <= all_events) & np.isfinite(all_events)).all()):
        raise InvalidRequestError("a batch has 0 <= errors <= events")
    if not bool(((usual > 0) & (usual < 1)).all()):
        raise InvalidRequestError("a base rate lies between 0 and 1; raise one of 0 to its upper confidence limit")
    risen = np.minimum(np.multiply.outer(usual, np.array(RATIOS)), (1 + usual[..., None]) / 2)
    of_errors = np.log(risen / usual[..., None])
    of_others = np.log1p(-risen) - np.log1p(-usual)[..., None]
    ratios: Values = wrong[..., None] * of_errors + (all_events - wrong)[..., None] * of_others
    return ratios
