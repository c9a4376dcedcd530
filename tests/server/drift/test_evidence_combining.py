"""One false-alarm rate over all signals of a report."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.drift.evidence import adjusted_p_values, e_value_of, holm
from fleet_server.drift.evidence.combining import weighted_holm
from fleet_server.drift.findings import SignalKind
from fleet_server.errors import InvalidRequestError

KINDS = [SignalKind.FEATURE] * 20 + [SignalKind.CLASSES, SignalKind.SCORE, SignalKind.EMBEDDING]


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_columns_take_nothing_from_the_predicted_classes() -> None:
    p_values = [0.5] * 20 + [0.01, 0.5, 0.5]
    assert adjusted_p_values(KINDS, p_values)[20] == pytest.approx(0.01 * 5 / 2)
    assert adjusted_p_values(KINDS[19:], p_values[19:])[1] == pytest.approx(0.01 * 5 / 2)


def test_the_rate_of_a_report_holds_for_independent_and_for_equal_signals() -> None:
    random, runs = np.random.default_rng(0), 4_000
    independent = random.random((runs, len(KINDS)))
    equal = np.tile(random.random((runs, 1)), (1, len(KINDS)))
    for rows in (independent, equal):
        alarms = np.mean([min(adjusted_p_values(KINDS, row.tolist())) <= 0.05 for row in rows])
        assert alarms <= 0.05 + 2 * (0.05 * 0.95 / runs) ** 0.5


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 5)), min_size=1, max_size=12))
def test_adjusting_never_lowers_a_p_value_and_does_not_depend_on_the_order(
    signals: list[tuple[float, float]],
) -> None:
    p_values, weights = [p for p, _ in signals], [w for _, w in signals]
    adjusted = weighted_holm(p_values, weights)
    assert all(high >= low * (1 - 1e-9) for high, low in zip(adjusted, p_values, strict=True))
    backwards = weighted_holm(p_values[::-1], weights[::-1])[::-1]
    assert sorted(backwards) == pytest.approx(sorted(adjusted))


def test_an_e_value_of_uniform_p_values_is_at_most_one_on_average() -> None:
    uniform = np.random.default_rng(1).random(20_000)
    assert np.mean([e_value_of(p_value) for p_value in uniform]) < 1.1
    assert e_value_of(0.0) > 1e9
    assert e_value_of(1.0) <= 1.0


def test_kinds_and_p_values_of_other_signals_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        adjusted_p_values(KINDS, [0.1])
