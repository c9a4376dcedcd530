"""Exchanging devices: exact where few, its error rate where devices differ, its speed."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.permutation import (
    Length,
    Values,
    compare_groups,
    compare_kernels,
    compare_means,
    compare_pairs,
    flip_signs,
    max_adjusted,
    relabel,
)

ALPHA = 0.05


def within(misses: int, runs: int, rate: float = ALPHA) -> bool:
    """Whether a rate of `misses` is at or under `rate`, with three binomial standard errors."""
    return misses / runs <= rate + 3 * math.sqrt(rate * (1 - rate) / runs)


def test_few_devices_are_relabelled_in_every_way_as_scipy_does() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=5), random.normal(0.8, 1, size=4)
    groups = relabel([True] * 5 + [False] * 4, seed=1)
    assert groups.is_exact and groups.is_first.shape == (math.comb(9, 5), 9)
    assert len({row.tobytes() for row in groups.is_first}) == math.comb(9, 5)
    expected = permutation_test(
        (first, second), lambda a, b, axis: (a.mean(axis=axis) - b.mean(axis=axis)) ** 2, vectorized=True,
        permutation_type="independent", n_resamples=np.inf, alternative="greater",
    )  # fmt: skip
    test = compare_groups(np.concatenate((first, second)), groups)
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.statistic == pytest.approx(expected.statistic)


def test_the_studentized_statistic_of_one_value_is_welchs_t_squared() -> None:
    values = np.random.default_rng(2).normal(5, 1, size=17)
    is_first = np.arange(17) < 6
    first, second = values[:6], values[6:]
    t_squared = (first.mean() - second.mean()) ** 2 / (first.var(ddof=1) / 6 + second.var(ddof=1) / 11)
    test = compare_groups(values, relabel(is_first, relabellings=50, seed=1), length=Length.STUDENTIZED)
    assert test.statistic == pytest.approx(t_squared)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_means_forms_and_kernels_of_the_same_statistic_agree(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(14, 3))
    root = random.normal(size=(3, 3))
    form = root @ root.T
    groups = relabel(random.permutation(np.arange(14) < 5), relabellings=99, seed=seed)

    def quadratic(first: Values, second: Values) -> Values:
        return np.asarray(np.einsum("rc,cd,rd->r", first - second, form, first - second))

    tests = [
        compare_groups(values, groups, form=form),
        compare_means(values, groups, statistic=quadratic),
        compare_kernels(values @ form @ values.T, groups),
    ]
    assert len({test.rank for test in tests}) == 1
    for test in tests:
        assert test.statistic == pytest.approx(tests[0].statistic)
        assert test.null == pytest.approx(tests[0].null)
        assert test.p_value == test.rank / 100
    diagonal = compare_groups(values, groups, form=[1.0, 0.0, 0.0])
    assert diagonal.null == pytest.approx(compare_groups(values[:, 0], groups).null)


def test_unequal_devices_without_a_difference_raise_no_more_alarms_than_stated() -> None:
    random = np.random.default_rng(3)
    runs, alarms = 400, {Length.PLAIN: 0, Length.STUDENTIZED: 0}
    groups = relabel(np.arange(20) < 8, relabellings=199, seed=5)
    for _ in range(runs):
        tilt = random.normal(0, 0.6, size=(20, 10))  # each device has its own distribution
        shares = random.multinomial(300, np.exp(tilt) / np.exp(tilt).sum(axis=1, keepdims=True)) / 300
        for length in alarms:
            alarms[length] += compare_groups(shares, groups, length=length).p_value <= ALPHA
    assert all(within(count, runs) for count in alarms.values()), alarms
    assert all(count > 0.02 * runs for count in alarms.values()), alarms


def test_a_moved_group_is_found() -> None:
    random = np.random.default_rng(4)
    values = random.normal(size=(40, 6))
    values[:20, 2] += 2
    for length in Length:
        assert compare_groups(values, relabel(np.arange(40) < 20, seed=1), length=length).p_value <= 0.001


def test_groups_that_differ_in_spread_alone_need_the_studentized_length() -> None:
    random = np.random.default_rng(6)
    runs, alarms = 400, {Length.PLAIN: 0, Length.STUDENTIZED: 0}
    groups = relabel(np.arange(72) < 12, relabellings=199, seed=5)
    for _ in range(runs):
        values = np.concatenate((random.normal(0, 3, 12), random.normal(0, 1, 60)))
        for length in alarms:
            alarms[length] += compare_groups(values, groups, length=length).p_value <= ALPHA
    assert alarms[Length.PLAIN] > 0.2 * runs
    assert alarms[Length.STUDENTIZED] <= 0.09 * runs  # 5.1 % of 2,000 runs


def test_a_difference_between_strata_that_are_unevenly_spread_is_no_drift() -> None:
    random = np.random.default_rng(7)
    hardware = np.repeat([0, 1], 20)
    is_first = np.concatenate((np.arange(20) < 18, np.arange(20) < 2))
    values = random.normal(size=40) + 3 * hardware
    assert compare_groups(values, relabel(is_first, seed=1)).p_value <= 0.005
    within_strata = relabel(is_first, seed=1, strata=hardware)
    assert compare_groups(values, within_strata).p_value > ALPHA
    assert (within_strata.is_first[:, :20].sum(axis=1) == 18).all()
    assert (within_strata.is_first[:, 20:].sum(axis=1) == 2).all()


def test_few_strata_are_relabelled_in_every_way_with_the_given_one_first() -> None:
    groups = relabel([False, True, False, True, False], seed=1, strata=["a", "a", "b", "b", "b"])
    assert groups.is_exact and len(groups.is_first) == 2 * 3
    assert groups.is_first[0].tolist() == [False, True, False, True, False]
    assert len({row.tobytes() for row in groups.is_first}) == 6


def test_pairs_are_turned_round_in_every_way_when_few_and_tell_a_common_change() -> None:
    flips = flip_signs(8, seed=1)
    assert flips.is_exact and flips.signs.shape == (256, 8) and (flips.signs[0] == 1).all()
    assert compare_pairs([1.0, 2, 1, 1, 3, 1, 2, 1], flips).p_value == 2 / 256
    random = np.random.default_rng(8)
    many = flip_signs(30, flips=199, seed=2)
    assert (many.signs[0] == 1).all() and (many.signs[1:] == -1).any()
    runs, alarms = 400, {Length.PLAIN: 0, Length.STUDENTIZED: 0}
    for _ in range(runs):
        changes = random.standard_t(3, size=(30, 4))
        for length in alarms:
            alarms[length] += compare_pairs(changes, many, length=length).p_value <= ALPHA
    assert all(within(count, runs) and count > 0.02 * runs for count in alarms.values()), alarms


def test_the_same_seed_gives_the_same_p_value_and_values_that_are_equal_give_one() -> None:
    values = np.random.default_rng(9).normal(size=(50, 2))
    is_first = np.arange(50) < 25
    assert (
        compare_groups(values, relabel(is_first, seed=3)).p_value
        == compare_groups(values, relabel(is_first, seed=3)).p_value
    )
    assert (relabel(is_first, seed=3).is_first != relabel(is_first, seed=4).is_first).any()
    for length in Length:
        assert compare_groups(np.full((50, 2), 0.1), relabel(is_first, seed=3), length=length).p_value == 1


def test_the_adjusted_p_values_keep_the_rate_of_any_alarm_and_are_bonferroni_at_worst() -> None:
    random = np.random.default_rng(10)
    runs, alarms, signals = 300, 0, 12
    groups = relabel(np.arange(24) < 12, relabellings=299, seed=5)
    for _ in range(runs):
        shared = random.normal(size=(24, 1))
        tests = [compare_groups(shared + 0.5 * random.normal(size=(24, 1)), groups) for _ in range(signals)]
        table = np.array([[test.statistic, *test.null] for test in tests])
        adjusted = max_adjusted(table)
        alone = np.array([test.p_value for test in tests])
        assert (adjusted >= alone - 1e-12).all()
        assert (np.sort(adjusted)[:1] <= alone.min() * signals + 1e-12).all()
        alarms += bool((adjusted <= ALPHA).any())
    assert within(alarms, runs)
    assert alarms > 0.02 * runs


def test_adjusted_p_values_keep_the_order_of_the_evidence_and_ties_are_no_evidence() -> None:
    random = np.random.default_rng(12)
    for _ in range(50):
        table = random.normal(size=(6, 40)).cumsum(axis=0)
        adjusted, alone = max_adjusted(table), (table >= table[:, :1]).mean(axis=1)
        assert (np.diff(adjusted[np.argsort(alone, kind="stable")]) >= 0).all()
    assert max_adjusted(np.full((3, 20), 0.7)).tolist() == [1, 1, 1]
    assert max_adjusted([[0.1 + 0.2, 0.3, 0.0, 0.0]]).tolist() == [0.5]  # rounding is no evidence
    assert max_adjusted([[5.0, *range(4)], [5.0, *range(4, 0, -1)]]).tolist() == [0.2, 0.2]


def test_a_fleet_of_four_hundred_devices_is_compared_in_well_under_a_second() -> None:
    values = np.random.default_rng(11).dirichlet(np.ones(64), 400)
    began = time.process_time()
    compare_groups(values, relabel(np.arange(400) < 200, relabellings=2000, seed=1), length=Length.STUDENTIZED)
    assert time.process_time() - began < 0.5


def test_groups_and_values_that_do_not_fit_are_refused() -> None:
    groups = relabel([True, True, False], seed=1)
    for is_first in ([True, True], [False], [[True, False]]):
        with pytest.raises(InvalidRequestError):
            relabel(is_first, seed=1)
    for count in (0, 10**9):
        with pytest.raises(InvalidRequestError):
            relabel([True, False], relabellings=count, seed=1)
    short_and_torn: tuple[list[float], ...] = ([1.0, 2.0], [1.0, 2.0, math.nan])
    for wrong in short_and_torn:
        with pytest.raises(InvalidRequestError):
            compare_groups(wrong, groups)
    with pytest.raises(InvalidRequestError):
        compare_groups([1.0, 2.0, 3.0], groups, length=Length.STUDENTIZED)
    with pytest.raises(InvalidRequestError):
        compare_groups([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]], groups, form=[[1, 0], [0, -1]])
    with pytest.raises(InvalidRequestError):
        compare_kernels([[1.0]], groups)
    with pytest.raises(InvalidRequestError):
        flip_signs(0, seed=1)
    with pytest.raises(InvalidRequestError, match="use 1 to 40"):
        relabel(np.arange(10**7) < 5, seed=1)
    with pytest.raises(InvalidRequestError):
        relabel([True, False], seed=1, strata=["a"])
