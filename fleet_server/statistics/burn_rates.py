"""How fast an error budget burns, and when that deserves a page or a ticket: rules as data.

A burn rate of 1 spends a period's budget in just that period. A rule fires when the rate is at or above its own over
a long window, which shows that it matters, and over a short one, which shows that it still goes on (Google, "The Site
Reliability Workbook", chapter 5; factors for a budget of 30 days). Too few events say nothing, either way.
A rule that fires ends at RELEASE of its rate, so that it does not flutter.

These are thresholds, not tests: they say how much was lost, not whether chance did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet_server.errors import InvalidRequestError

HOUR_S = 3600
RELEASE = 0.9
"""The share of a rule's rate below which it ends."""


class Urgency(StrEnum):
    """Whom a rule calls: a page wakes somebody, a ticket waits for the morning."""

    PAGE = "page"
    TICKET = "ticket"


class Burn(StrEnum):
    """What a rule says. TOO_FEW: not enough events in the long window to say anything."""

    FIRING = "firing"
    QUIET = "quiet"
    TOO_FEW = "too_few"


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnRule:
    """Fires at `burn_rate` over both windows, with at least `min_events` in the long one."""

    burn_rate: float
    long_window_s: int
    short_window_s: int
    urgency: Urgency
    min_events: int = 100

    def __post_init__(self) -> None:
        if not (self.burn_rate > 0 and 0 < self.short_window_s < self.long_window_s and self.min_events >= 1):
            raise InvalidRequestError(f"{self} is no rule: use a rate above 0, a shorter second window, events from 1")


RULES = (
    BurnRule(burn_rate=14.4, long_window_s=HOUR_S, short_window_s=300, urgency=Urgency.PAGE),
    BurnRule(burn_rate=6.0, long_window_s=6 * HOUR_S, short_window_s=1800, urgency=Urgency.PAGE),
    BurnRule(burn_rate=1.0, long_window_s=72 * HOUR_S, short_window_s=6 * HOUR_S, urgency=Urgency.TICKET),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What happened in a window: `errors` of `events`."""

    errors: int
    events: int

    def __post_init__(self) -> None:
        if not 0 <= self.errors <= self.events:
            raise InvalidRequestError(f"{self.errors} errors of {self.events} events: use 0 <= errors <= events")


def burn_rate(spending: Spending, *, budget: float) -> float:
    """How many times faster than allowed the budget, a share of events that may fail, is spent; 0 without events.

    >>> round(burn_rate(Spending(errors=144, events=10_000), budget=0.001), 3)
    14.4
    """
    if not 0 < budget < 1:
        raise InvalidRequestError(f"a budget of {budget}: the share of events that may fail, such as 0.001")
    return spending.errors / spending.events / budget if spending.events else 0.0


def judge(
    rule: BurnRule, *, long_window: Spending, short_window: Spending, budget: float, was_firing: bool = False
) -> Burn:
    """What `rule` says of what its two windows hold."""
    rate = rule.burn_rate * (RELEASE if was_firing else 1.0) * (1 - 1e-12)
    if long_window.events < rule.min_events:
        return Burn.TOO_FEW
    if not short_window.events:
        return Burn.FIRING if was_firing else Burn.QUIET  # silence neither starts nor ends anything
    burning = all(burn_rate(window, budget=budget) >= rate for window in (long_window, short_window))
    return Burn.FIRING if burning else Burn.QUIET


def judge_all(
    spending: Mapping[int, Spending],
    *,
    budget: float,
    rules: tuple[BurnRule, ...] = RULES,
    firing: frozenset[BurnRule] = frozenset(),
) -> dict[BurnRule, Burn]:
    """Each rule's word, from what was spent by window length in seconds, given which were `firing` before.

    Raises InvalidRequestError when a window of a rule is missing.
    """
    missing = {window for rule in rules for window in (rule.long_window_s, rule.short_window_s)} - spending.keys()
    if missing:
        raise InvalidRequestError(
            f"the windows of {sorted(missing)} s are missing: burn-rate rules need each of theirs"
        )
    return {
        rule: judge(
            rule,
            long_window=spending[rule.long_window_s],
            short_window=spending[rule.short_window_s],
            budget=budget,
            was_firing=rule in firing,
        )
        for rule in rules
    }
