"""Silent deaths of two groups, looked at again and again."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import pytest
from scipy.stats import hypergeom

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.survival import RATIOS, hazard_increase_log_e_values, log_rank_p_value

ALPHA = 0.05


class Deaths(TypedDict):
    """What both tests take."""

    deaths_first: list[int]
    at_risk_first: list[int]
    deaths_second: list[int]
    at_risk_second: list[int]


def simulated(
    random: np.random.Generator, *, sizes: tuple[int, int], hazards: tuple[float, float], looks: int
) -> Deaths:
    """Devices that die with these chances between looks, and leave with a chance of 2 % for other reasons."""
    alive = list(sizes)
    columns: tuple[list[int], ...] = ([], [], [], [])
    for _ in range(looks):
        for group in (0, 1):
            died = int(random.binomial(alive[group], hazards[group]))
            columns[2 * group].append(died)
            columns[2 * group + 1].append(alive[group])
            alive[group] -= died
            alive[group] -= int(random.binomial(alive[group], 0.02))
    return Deaths(
        deaths_first=columns[0], at_risk_first=columns[1], deaths_second=columns[2], at_risk_second=columns[3]
    )


def until(deaths: Deaths, look: int) -> Deaths:
    """What was known at this look."""
    return Deaths(
        deaths_first=deaths["deaths_first"][:look], at_risk_first=deaths["at_risk_first"][:look],
        deaths_second=deaths["deaths_second"][:look], at_risk_second=deaths["at_risk_second"][:look],
    )  # fmt: skip


def test_equal_hazards_reach_one_over_alpha_at_any_look_in_at_most_alpha_of_all_runs() -> None:
    random = np.random.default_rng(1)
    runs, alarms, fixed = 300, 0, 0
    for _ in range(runs):
        deaths = simulated(random, sizes=(60, 240), hazards=(0.04, 0.04), looks=25)
        alarms += bool(hazard_increase_log_e_values(**deaths).max() >= math.log(1 / ALPHA))
        fixed += any(log_rank_p_value(**until(deaths, look)) <= ALPHA for look in range(3, 26, 2))
    assert alarms / runs <= ALPHA
    assert fixed / runs > 2 * ALPHA  # why the classical test is for one planned look


def test_a_group_that_dies_three_times_as_fast_is_found() -> None:
    random = np.random.default_rng(2)
    runs = 100
    found = sum(
        bool(
            hazard_increase_log_e_values(
                **simulated(random, sizes=(60, 240), hazards=(0.06, 0.02), looks=25)
            ).max() >= math.log(1 / ALPHA)
        )
        for _ in range(runs)
    )  # fmt: skip
    assert found >= 0.9 * runs


def test_a_group_that_dies_slower_is_no_evidence_of_harm() -> None:
    deaths = simulated(np.random.default_rng(3), sizes=(200, 200), hazards=(0.01, 0.06), looks=20)
    assert hazard_increase_log_e_values(**deaths)[-1] < 0


def test_each_look_with_ties_has_mean_one() -> None:
    possible = np.arange(0, 8)
    e_values = [
        math.exp(
            hazard_increase_log_e_values(
                deaths_first=[k], at_risk_first=[12], deaths_second=[7 - k], at_risk_second=[30]
            )[0]
        )
        for k in possible.tolist()
    ]  # fmt: skip
    assert float(hypergeom.pmf(possible, 42, 12, 7) @ e_values) == pytest.approx(1)


def test_a_single_death_is_the_likelihood_ratio_of_the_safe_log_rank_test() -> None:
    found = hazard_increase_log_e_values(deaths_first=[1], at_risk_first=[10], deaths_second=[0], at_risk_second=[30])
    expected = np.mean([(w * 10 / (w * 10 + 30)) / 0.25 for w in RATIOS])
    assert math.exp(found[0]) == pytest.approx(expected)


def test_looks_without_deaths_or_without_one_group_say_nothing() -> None:
    found = hazard_increase_log_e_values(
        deaths_first=[0, 3, 0], at_risk_first=[5, 5, 0], deaths_second=[0, 0, 2], at_risk_second=[9, 0, 9]
    )
    assert found.tolist() == pytest.approx([0, 0, 0])
    assert log_rank_p_value(deaths_first=[0], at_risk_first=[5], deaths_second=[0], at_risk_second=[5]) == 1


def test_the_log_rank_test_agrees_with_the_textbook_example() -> None:
    """Freireich's remissions under 6-MP and placebo: chi-squared 16.79."""
    treated = {6: (21, 3), 7: (17, 1), 10: (15, 1), 13: (12, 1), 16: (11, 1), 22: (7, 1), 23: (6, 1)}
    placebo = {1: 2, 2: 2, 3: 1, 4: 2, 5: 2, 8: 4, 11: 2, 12: 2, 15: 1, 17: 1, 22: 1, 23: 1}
    at_risk_treated = {1: 21, 2: 21, 3: 21, 4: 21, 5: 21, 6: 21, 7: 17, 8: 16, 10: 15, 11: 13, 12: 12, 13: 12,
                       15: 11, 16: 11, 17: 10, 22: 7, 23: 6}  # fmt: skip
    times = sorted(at_risk_treated)
    alive, at_risk_placebo = 21, []
    for when in times:
        at_risk_placebo.append(alive)
        alive -= placebo.get(when, 0)
    p_value = log_rank_p_value(
        deaths_first=[treated.get(when, (0, 0))[1] for when in times],
        at_risk_first=[at_risk_treated[when] for when in times],
        deaths_second=[placebo.get(when, 0) for when in times],
        at_risk_second=at_risk_placebo,
    )
    assert p_value == pytest.approx(4.17e-5, rel=0.01)


def test_numbers_that_are_no_deaths_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        log_rank_p_value(deaths_first=[2], at_risk_first=[1], deaths_second=[0], at_risk_second=[1])
    with pytest.raises(InvalidRequestError):
        hazard_increase_log_e_values(deaths_first=[0, 0], at_risk_first=[1], deaths_second=[0], at_risk_second=[1])
