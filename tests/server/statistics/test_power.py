"""How much is needed: R's figures, inverses, and the power that was promised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from fleet_server.errors import InvalidRequestError
from fleet_server.statistics.power import (
    design_effect,
    devices_needed,
    mean_effect,
    mean_power,
    mean_size,
    rate_effect,
    rate_size,
)


def test_the_figures_are_those_of_power_t_test_and_power_prop_test() -> None:
    assert mean_power(size=20, effect=1.0) == pytest.approx(0.868953, abs=5e-7)
    assert mean_size(effect=1.0, power=0.9) == pytest.approx(22.0211, abs=5e-5)
    assert rate_size(control=0.05, treated=0.06, power=0.8) == pytest.approx(8157.7, abs=0.05)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.05, 5), st.floats(0.1, 10), st.sampled_from([0.01, 0.05]), st.sampled_from([0.5, 0.8, 0.95]))
def test_size_effect_and_power_are_inverses(effect: float, deviation: float, alpha: float, power: float) -> None:
    size = mean_size(effect=effect, deviation=deviation, alpha=alpha, power=power)
    if size > 2:
        assert mean_power(size=size, effect=-effect, deviation=deviation, alpha=alpha) == pytest.approx(power, abs=1e-6)
        assert mean_effect(size=size, deviation=deviation, alpha=alpha, power=power) == pytest.approx(effect, rel=1e-5)
    else:
        assert mean_power(size=2, effect=effect, deviation=deviation, alpha=alpha) >= power


@given(st.floats(0.001, 0.9), st.floats(50, 1e7), st.floats(1, 500), st.floats(0, 1))
def test_the_smallest_rise_of_a_rate_needs_just_the_size_given(
    control: float, size: float, each: float, icc: float
) -> None:
    rise = rate_effect(control=control, size=size, cluster_size=each, icc=icc)
    if rise is None:
        assert rate_size(control=control, treated=1 - 1e-6, cluster_size=each, icc=icc) > size * 0.99
    else:
        assert 0 < rise < 1 - control
        needed = rate_size(control=control, treated=control + rise, cluster_size=each, icc=icc)
        assert needed == pytest.approx(size, rel=1e-4)


def test_the_computed_size_gives_the_promised_power() -> None:
    random = np.random.default_rng(6)
    size = round(mean_size(effect=0.8, power=0.8))
    found = ttest_ind(random.normal(size=(4000, size)), random.normal(0.8, 1, size=(4000, size)), axis=1).pvalue <= 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def test_devices_that_differ_need_more_events_and_the_computed_number_of_devices_gives_the_power() -> None:
    assert design_effect(cluster_size=101, icc=0.05) == 6
    assert rate_size(control=0.1, treated=0.15, cluster_size=101, icc=0.05) == pytest.approx(
        6 * rate_size(control=0.1, treated=0.15)
    )
    icc, each = 0.02, 100
    devices = devices_needed(control=0.1, treated=0.15, events_per_device=each, icc=icc)
    random = np.random.default_rng(7)

    def means(rate: float) -> np.ndarray:
        strength = 1 / icc - 1  # of the beta distribution with this intraclass correlation
        return random.binomial(each, random.beta(rate * strength, (1 - rate) * strength, (2000, devices))) / each

    found = ttest_ind(means(0.1), means(0.15), axis=1).pvalue <= 0.05
    assert 0.74 <= found.mean() <= 0.86


def test_huge_sizes_are_computed_by_the_normal_distribution_without_a_jump() -> None:
    sizes = [mean_size(effect=effect) * effect**2 for effect in (0.01, 0.00397, 0.00395, 1e-6)]
    assert sizes == pytest.approx([sizes[0]] * 4, rel=1e-4)
    assert mean_size(effect=50) == 2
    effects = [mean_effect(size=size) * size**0.5 for size in (9e5, 1.1e6, 1e12)]
    assert effects == pytest.approx([effects[0]] * 3, rel=1e-4)


def test_impossible_plans_are_refused() -> None:
    assert rate_effect(control=0.5, size=3) is None
    calls: tuple[Callable[[], object], ...] = (
        lambda: mean_power(size=1, effect=1),
        lambda: mean_size(effect=0),
        lambda: mean_size(effect=1, power=0.01),
        lambda: mean_effect(size=1),
        lambda: rate_size(control=0.1, treated=0.1),
        lambda: rate_size(control=0, treated=0.1),
        lambda: rate_effect(control=0.1, size=0),
        lambda: design_effect(cluster_size=0.5, icc=0.1),
        lambda: design_effect(cluster_size=5, icc=1.1),
    )
    for call in calls:
        with pytest.raises(InvalidRequestError):
            call()
