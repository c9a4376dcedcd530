"""McNemar's test against scipy's binomial test, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from quantize.paired_test import mcnemar


def answers(first_only: int, second_only: int, both: int = 50) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    first = np.array([True] * first_only + [False] * second_only + [True] * both)
    second = np.array([False] * first_only + [True] * second_only + [True] * both)
    return first, second


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (2, 3), (12, 1), (400, 460), (0, 30)])
def test_the_p_value_is_the_exact_sign_tests(first: int, second: int) -> None:
    found = mcnemar(*answers(first, second))

    assert (found.first_only, found.second_only) == (first, second)
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found.p_value == pytest.approx(expected, abs=1e-12)


def test_very_many_pairs_are_approximated_closely() -> None:
    found = mcnemar(*answers(6_100, 5_900))

    assert found.p_value == pytest.approx(binomtest(6_100, 12_000).pvalue, rel=2e-3)
