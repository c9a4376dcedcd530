"""Accuracy over time: drawn as what it is, and not at all where its direction is not known."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from fleet_server.drift.findings import DriftReport
from fleet_server.drift.page.accuracy import accuracy_over_time, lines
from fleet_server.drift.page.heat_map import times_of
from tests.server.drift.page import examples


@pytest.fixture
def report() -> DriftReport:
    return examples.one_site()[0]


def drawn(report: DriftReport) -> str:
    section = accuracy_over_time(report, anchor="a")
    assert section is not None
    return section


def test_a_loss_is_drawn_below_what_was_expected(report: DriftReport) -> None:
    times = times_of(report)
    assert times is not None
    measured, estimated = lines(report, times)
    last = measured.drawn[-1]
    assert measured.value(last) == pytest.approx(0.97 - 0.06, abs=0.03)
    assert len(measured.drawn) == 24 - 6
    assert len(estimated.drawn) == 24 - 2
    section = drawn(report)
    base = float(re.findall(r'y1="([\d.]+)"[^>]*class="line base"', section)[0])
    path = re.findall(r'<path d="([^"]+)" class="line seen"', section)[0]
    assert float(path.split()[-1]) > base  # downwards is more
    assert path.count("M") == 2  # the line is broken where no outcomes were known
    assert "it cannot see that the truth" in section


def test_a_size_without_a_direction_is_not_drawn_as_accuracy(report: DriftReport) -> None:
    unsigned = [
        replace(signal, timeline=[replace(cell, size=abs(cell.size)) for cell in signal.timeline])
        for signal in report.signals
    ]
    section = drawn(replace(report, signals=unsigned))
    assert "<svg" not in section
    assert "Estimated over the whole span: 0.91; expected: 0.97." in section


def test_without_an_expected_accuracy_the_change_is_drawn(report: DriftReport) -> None:
    section = drawn(replace(report, expected_accuracy=None, estimated_accuracy=None))
    assert "no change" in section
    assert 'aria-label="Change of accuracy over time' in section


def test_a_report_without_any_accuracy_has_no_such_section() -> None:
    assert accuracy_over_time(examples.no_drift()[0], anchor="a") is None
