"""Features over time: colour is size, a mark is evidence, and no data is no data."""

from __future__ import annotations

import math
import re

import pytest
from msgspec.structs import replace

from fleet_server.drift.findings import Severity, SignalKind, TimeCell
from fleet_server.drift.page import render_page
from fleet_server.drift.page.heat_map import MAX_COLUMNS, Times, blocks, mark, times_of
from fleet_server.drift.page.sizes import HIGH, MEDIUM, SCALES
from fleet_server.drift.severity import severity_of
from tests.server.drift.page import examples
from tests.server.drift.page.examples import HOUR_NS

TIMES = Times(start_ns=0, step_ns=10, columns=4, group=1)


def cell(start_ns: int, size: float = 0.1, p_value: float | None = None) -> TimeCell:
    return TimeCell(start_ns=start_ns, devices=5, size=size, p_value=p_value)


def test_a_time_without_data_is_not_drawn_as_a_small_move() -> None:
    drawn = blocks([cell(30), cell(0), cell(10, math.nan)], TIMES)
    assert [(one.start_ns, one.end_ns) for one in drawn] == [(0, 10), (30, 40)]


def test_times_drawn_together_show_their_largest_size_and_allow_for_their_number() -> None:
    together = replace_group(TIMES, 2)
    first, second = blocks([cell(0, 0.2, 0.01), cell(10, -0.7, 0.3), cell(30, 0.1)], together)
    assert (first.start_ns, first.end_ns, first.cell.size) == (0, 20, -0.7)
    assert first.p_value == pytest.approx(0.02)
    assert (second.start_ns, second.end_ns, second.p_value) == (20, 40, None)


def replace_group(times: Times, group: int) -> Times:
    return Times(start_ns=times.start_ns, step_ns=times.step_ns, columns=times.columns, group=group)


def test_the_strong_mark_allows_for_every_cell_and_the_weak_one_for_none() -> None:
    assert mark(0.0001, alpha=0.05, tested=100) == "strong"
    assert mark(0.01, alpha=0.05, tested=100) == "weak"
    assert mark(0.06, alpha=0.05, tested=1) == ""
    assert mark(None, alpha=0.05, tested=100) == ""


def test_columns_are_as_wide_as_the_least_step_and_never_too_many() -> None:
    report = examples.one_site()[0]
    times = times_of(report)
    assert times is not None
    assert (times.step_ns, times.columns, times.group) == (HOUR_NS, 24, 1)
    assert (times.start_ns, times.end_ns) == (report.start_ns, report.end_ns)
    many = times_of(examples.many_features()[0])
    assert many is not None
    assert math.ceil(many.columns / many.group) <= MAX_COLUMNS
    assert times_of(examples.not_enough()[0]) is None


def test_a_single_time_lasts_to_the_end_of_the_report() -> None:
    report = examples.no_drift()[0]
    one = replace(report.signals[0], timeline=[cell(report.start_ns)])
    times = times_of(replace(report, signals=[one]))
    assert times is not None
    assert (times.start_ns, times.end_ns) == (report.start_ns, report.end_ns)


@pytest.mark.parametrize(
    ("kind", "effect"),
    [(SignalKind.FEATURE, "shift_sd"), (SignalKind.EMBEDDING, "mmd"), (SignalKind.CLASSES, "hellinger")],
)
def test_dark_colours_start_where_severity_is_medium_and_high(kind: SignalKind, effect: str) -> None:
    found = next(one for one in examples.one_site()[0].signals if one.effect is not None).effect
    assert found is not None
    empty = replace(found, shift_sd=None, mmd=None, hellinger=None)
    scale = SCALES[kind]
    for level, severity in ((MEDIUM, Severity.MEDIUM), (HIGH, Severity.HIGH)):
        bound = scale.bounds[level - 1]
        assert scale.level(bound) == scale.level(-bound) == level
        assert severity_of(replace(empty, **{effect: bound})) is severity
        assert severity_of(replace(empty, **{effect: bound * 0.99})) is not severity


def test_marks_stand_only_where_there_is_evidence() -> None:
    page = render_page("digits", examples.one_site(), examples.MADE).decode()
    heat = page[page.index('id="v1-times"') : page.index('id="v1-accuracy"')]
    rows = {re.sub(r"<.*?>", "", row): row for row in re.findall(r"<tr>.*?</tr>", heat, re.S)}
    moved = next(row for name, row in rows.items() if name.startswith("brightness"))
    still = next(row for name, row in rows.items() if name.startswith("width"))
    assert moved.count("mark strong") == 6
    assert "mark" not in still
    assert moved.count('class="missing"') == still.count('class="missing"') == 1
