"""The decision whether int8 may ship."""

from __future__ import annotations

import math

import pytest

from quantize.errors import InvalidOptionError
from quantize.gate import judge, parse_max_drop
from quantize.metrics import METRICS


@pytest.mark.parametrize(
    ("fp32", "int8", "accepted"),
    [(0.98, 0.98, True), (0.98, 0.99, True), (1.0, 0.995, True), (1.0, 0.9949, False), (0.5, 0.496, False)],
)
def test_int8_ships_only_within_the_allowed_drop_of_fp32(fp32: float, int8: float, accepted: bool) -> None:
    assert judge(metric=METRICS["accuracy"], fp32=fp32, int8=int8, max_drop=0.005).accepted is accepted


@pytest.mark.parametrize(("fp32", "int8"), [(math.nan, 0.9), (0.9, math.nan), (0.0, 0.0), (math.inf, 0.9)])
def test_a_metric_that_is_no_evidence_never_lets_int8_ship(fp32: float, int8: float) -> None:
    verdict = judge(metric=METRICS["accuracy"], fp32=fp32, int8=int8, max_drop=1.0)

    assert not verdict.accepted
    assert "no evidence" in verdict.reason


def test_a_refusal_names_both_scores_and_the_allowance() -> None:
    reason = judge(metric=METRICS["accuracy"], fp32=0.9, int8=0.45, max_drop=0.005).reason

    assert all(part in reason for part in ("refused", "0.9000", "0.4500", "50.00%", "0.50%"))


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), ("0", 0.0), ("100%", 1.0), ("1", 1.0)])
def test_a_drop_is_a_percentage_or_a_fraction(text: str, value: float) -> None:
    assert parse_max_drop(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "2", "101%", "-1%", "nan", "0.5 %", "1e-3", "half"])
def test_a_drop_that_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="max-drop"):
        parse_max_drop(text)
