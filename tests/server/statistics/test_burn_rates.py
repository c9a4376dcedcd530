"""Burn-rate rules: the three of the workbook, too few events, hysteresis."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.burn_rates import (
    HOUR_S,
    RULES,
    Burn,
    BurnRule,
    Spending,
    Urgency,
    burn_rate,
    judge,
    judge_all,
)

BUDGET = 0.001
WINDOWS_S = sorted({window for rule in RULES for window in (rule.long_window_s, rule.short_window_s)})


def spending(rate: float, events: int = 1_000_000) -> Spending:
    """A window in which the budget burns this many times faster than allowed."""
    return Spending(errors=round(rate * BUDGET * events), events=events)


def test_the_rules_are_those_of_a_budget_of_thirty_days() -> None:
    assert [(r.burn_rate, r.long_window_s, r.short_window_s, r.urgency) for r in RULES] == [
        (14.4, HOUR_S, 300, Urgency.PAGE),
        (6, 6 * HOUR_S, 1800, Urgency.PAGE),
        (1, 3 * 24 * HOUR_S, 6 * HOUR_S, Urgency.TICKET),
    ]
    shares = [rule.burn_rate * rule.long_window_s / (30 * 24 * HOUR_S) for rule in RULES]
    assert shares == pytest.approx([0.02, 0.05, 0.1])


@pytest.mark.parametrize(("rate", "firing"), [(14.4, 3), (14.3, 2), (6, 2), (5.9, 1), (1, 1), (0.9, 0), (0, 0)])
def test_a_steady_burn_fires_the_rules_up_to_its_rate(rate: float, firing: int) -> None:
    said = judge_all(dict.fromkeys(WINDOWS_S, spending(rate)), budget=BUDGET)
    assert [word is Burn.FIRING for word in said.values()] == [False] * (3 - firing) + [True] * firing


def test_a_burn_that_is_over_or_has_just_begun_does_not_fire() -> None:
    rule = RULES[0]
    assert judge(rule, long_window=spending(20), short_window=spending(0), budget=BUDGET) is Burn.QUIET
    assert judge(rule, long_window=spending(3), short_window=spending(100), budget=BUDGET) is Burn.QUIET


def test_too_few_events_say_nothing_and_silence_changes_nothing() -> None:
    rule = RULES[0]
    few = Spending(errors=50, events=99)
    assert judge(rule, long_window=few, short_window=few, budget=BUDGET) is Burn.TOO_FEW
    silent = Spending(errors=0, events=0)
    for was_firing, word in ((False, Burn.QUIET), (True, Burn.FIRING)):
        found = judge(rule, long_window=spending(20), short_window=silent, budget=BUDGET, was_firing=was_firing)
        assert found is word


def test_a_rule_that_fires_ends_below_a_lower_rate_than_it_begins() -> None:
    between = spending(13.5)
    windows = dict.fromkeys(WINDOWS_S, between)
    assert judge_all(windows, budget=BUDGET)[RULES[0]] is Burn.QUIET
    assert judge_all(windows, budget=BUDGET, firing=frozenset({RULES[0]}))[RULES[0]] is Burn.FIRING
    assert (
        judge_all(dict.fromkeys(WINDOWS_S, spending(12.9)), budget=BUDGET, firing=frozenset(RULES))[RULES[0]]
        is Burn.QUIET
    )


@given(st.integers(0, 1000), st.integers(0, 1000), st.booleans())
def test_more_errors_never_quieten_a_rule(errors: int, more: int, was_firing: bool) -> None:
    def fires(wrong: int) -> bool:
        window = Spending(errors=wrong, events=2000)
        return (
            judge(RULES[1], long_window=window, short_window=window, budget=0.01, was_firing=was_firing) is Burn.FIRING
        )

    assert fires(errors) <= fires(errors + more)


def test_rules_windows_and_budgets_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="21600"):
        judge_all({HOUR_S: spending(1), 300: spending(1)}, budget=BUDGET)
    with pytest.raises(InvalidRequestError):
        Spending(errors=2, events=1)
    with pytest.raises(InvalidRequestError):
        burn_rate(spending(1), budget=0)
    with pytest.raises(InvalidRequestError):
        BurnRule(burn_rate=1, long_window_s=300, short_window_s=300, urgency=Urgency.PAGE)
    assert burn_rate(Spending(errors=0, events=0), budget=BUDGET) == 0
