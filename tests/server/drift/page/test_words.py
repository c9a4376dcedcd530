"""Numbers, probabilities and times as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet_server.drift.findings import Population
from fleet_server.drift.page import words
from fleet_server.drift.page.axes import number_ticks, time_ticks
from fleet_server.drift.page.markup import element, joined, short
from fleet_server.drift.page.populations import name_of
from tests.server.drift.page.examples import END_NS, HOUR_NS


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (words.figure(0.0123456), "0.0123"),
        (words.figure(1234.5), "1,234"),
        (words.figure(-0.5), "\N{MINUS SIGN}0.500"),
        (words.figure(math.nan), words.NONE),
        (words.probability(0.0), "< 10⁻⁹"),
        (words.probability(0.00012), "1.2 \N{MULTIPLICATION SIGN} 10⁻⁴"),
        (words.probability(0.0431), "0.043"),
        (words.probability(0.5), "0.50"),
        (words.percent(0.99999), "> 99.9\N{NO-BREAK SPACE}%"),
        (words.percent(0.00001), "0.001\N{NO-BREAK SPACE}%"),
        (words.percent(1e-7), "< 0.001\N{NO-BREAK SPACE}%"),
        (words.percent(0.0), "0\N{NO-BREAK SPACE}%"),
        (words.percent(1.0), "100\N{NO-BREAK SPACE}%"),
        (words.accuracy(0.9992), "0.999"),
        (words.accuracy(1.0), "1.00"),
        (words.points(-0.072), "\N{MINUS SIGN}7.2"),
        (words.sigmas(0.8), f"+0.80\N{NO-BREAK SPACE}{words.SIGMA}"),
        (words.e_value(41_000.0), "41,000"),
        (words.e_value(math.inf), "> 10⁹"),
        (words.span(END_NS - 24 * HOUR_NS, END_NS), "2026-05-03 13:20 to 2026-05-04 13:20 UTC (1 d)"),
        (words.span(END_NS - HOUR_NS // 2, END_NS), "2026-05-04 12:50 to 13:20 UTC (30 min)"),
        (words.moment(2**63 - 1), "2262-04-11 23:47"),
        (words.moment(-(10**30)), f"{-(10**30)} ns"),
    ],
)
def test_a_value_reads_well(said: str, text: str) -> None:
    assert said == text


@pytest.mark.parametrize("hours", [0.3, 1, 5, 24, 48, 24 * 7, 24 * 30, 24 * 900])
def test_ticks_of_time_fall_on_round_times_and_say_the_day(hours: float) -> None:
    start_ns, end_ns = END_NS - int(hours * HOUR_NS), END_NS
    ticks = time_ticks(start_ns, end_ns)
    assert 2 <= len(ticks) <= 10
    assert all(start_ns <= tick.at <= end_ns for tick in ticks)
    assert any(" " in tick.text for tick in ticks)  # a date
    assert 1 <= sum(tick.major for tick in ticks) <= 5


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_of_numbers_lie_on_their_axis(low: float, width: float) -> None:
    high = low + width
    ticks = number_ticks(low, high)
    assert len(ticks) <= 9
    assert all(low - 1e-6 * width <= tick.at <= high + 1e-6 * width for tick in ticks)


@given(st.text(), st.integers(3, 60))
def test_a_shortened_name_fits_and_keeps_its_end(text: str, most: int) -> None:
    line = short(text, most=most)
    assert len(line) <= most
    assert "\n" not in line


def test_only_markup_is_markup() -> None:
    assert joined("<b>", element("i", "&", None, ["x"], title='"')) == '&lt;b&gt;<i title="&quot;">&amp;x</i>'


def test_the_other_side_has_a_name() -> None:
    seen = Population(model="m", version="2", start_ns=END_NS - 24 * HOUR_NS, end_ns=END_NS)
    week = Population(model="m", version="2", start_ns=END_NS - 8 * 24 * HOUR_NS, end_ns=END_NS - 24 * HOUR_NS)
    named = {
        name_of(Population(model="m", version="2", is_reference=True), seen): "the reference",
        name_of(replace(seen, same_hours=True), seen): "the same hours before",
        name_of(replace(seen, version="1"), seen): "version 1",
        name_of(replace(seen, selector="site=lisbon"), seen): "site=lisbon",
        name_of(replace(seen, device="pi-7"), seen): "device pi-7",
        name_of(week, seen): "the week before",
        name_of(seen, replace(seen, device="pi-7")): "the other devices",
        name_of(seen, seen): "the other side",
    }
    assert all(found == expected for found, expected in named.items())
