"""The decision whether int8 may ship."""

from __future__ import annotations

import pytest

from quantize.errors import InvalidOptionError
from quantize.gate import is_accurate, parse_max_drop
from quantize.metrics import METRICS


@pytest.mark.parametrize(
    ("fp32", "int8", "accepted"),
    [(0.98, 0.98, True), (0.98, 0.99, True), (1.0, 0.995, True), (1.0, 0.9949, False), (0.5, 0.496, False)],
)
def test_int8_ships_only_within_the_allowed_drop_of_fp32(fp32: float, int8: float, accepted: bool) -> None:
    assert is_accurate(METRICS["accuracy"].keeps(fp32=fp32, variant=int8), 0.005) is accepted


def test_what_is_no_evidence_never_lets_int8_ship() -> None:
    assert not is_accurate(None, 1.0)
    assert not is_accurate(METRICS["accuracy"].keeps(fp32=0.0, variant=0.0), 0.5)


@pytest.mark.parametrize(("text", "value"), [("0.5%", 0.005), ("0.005", 0.005), ("0", 0.0), ("100%", 1.0), ("1", 1.0)])
def test_a_drop_is_a_percentage_or_a_fraction(text: str, value: float) -> None:
    assert parse_max_drop(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "%", "2", "101%", "-1%", "nan", "0.5 %", "1e-3", "half"])
def test_a_drop_that_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="max-drop"):
        parse_max_drop(text)
