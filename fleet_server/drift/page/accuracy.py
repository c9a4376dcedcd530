"""Accuracy over time, measured (outcomes) and estimated (confidence), where a report has either.

Invariants:
- a cell's size of these signals is drawn as a change of accuracy, seen less expected, only where some cell is below 0:
  a size without a sign does not tell a loss from a gain, and then the heat map alone shows it;
- with the expected accuracy known, the change is drawn as accuracy itself;
- missing times break the line: nothing is drawn where nothing was counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleet_server.drift.findings import DriftReport, SignalFinding, SignalKind
from fleet_server.drift.page import words
from fleet_server.drift.page.axes import Axis, number_ticks, time_ticks
from fleet_server.drift.page.blocks import key, section
from fleet_server.drift.page.chart import HEIGHT, WIDTH, framed, grid, stretched
from fleet_server.drift.page.heat_map import Block, Times, blocks, times_of
from fleet_server.drift.page.markup import Markup, element, joined
from fleet_server.drift.page.words import is_number

_NAMES = {SignalKind.ACCURACY: "measured", SignalKind.ESTIMATED_ACCURACY: "estimated"}
_LOOKS = {SignalKind.ACCURACY: "seen", SignalKind.ESTIMATED_ACCURACY: "estimate"}
_LEAST_RANGE = 0.02
_BLIND = (
    "The estimate comes from the model's own confidence. It sees inputs that became harder; it cannot see that the "
    "truth behind the same inputs has changed. Only outcomes can."
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One accuracy over time, drawn where it was counted."""

    kind: SignalKind
    drawn: tuple[Block, ...]
    base: float

    def value(self, block: Block) -> float:
        """The accuracy, or its change where the expected one is not known."""
        return self.base + block.cell.size


def lines(report: DriftReport, times: Times) -> list[Line]:
    """The accuracies that have a timeline with a direction, measured first."""
    base = report.expected_accuracy
    found = [
        Line(
            kind=signal.kind,
            drawn=tuple(blocks(signal.timeline, times)),
            base=base if base is not None and is_number(base) else 0.0,
        )
        for signal in sorted(report.signals, key=lambda one: one.kind is not SignalKind.ACCURACY)
        if signal.kind in _NAMES
    ]
    return [one for one in found if any(block.cell.size < 0 for block in one.drawn)]


def accuracy_over_time(report: DriftReport, *, anchor: str) -> Markup | None:
    """The section; None where a report says nothing of accuracy."""
    signals = [signal for signal in report.signals if signal.kind in _NAMES]
    if not signals and not is_number(report.estimated_accuracy):
        return None
    times = times_of(report)
    drawn = [] if times is None else lines(report, times)
    chart = None if times is None or not drawn else _chart(report, drawn, times)
    return section(
        anchor,
        "Accuracy",
        _lead(report),
        chart,
        [element("p", signal.sentence) for signal in signals if signal.sentence],
        element("p", _BLIND, class_="soft") if _has_estimate(report, signals) else None,
    )


def _has_estimate(report: DriftReport, signals: Sequence[SignalFinding]) -> bool:
    return is_number(report.estimated_accuracy) or any(one.kind is SignalKind.ESTIMATED_ACCURACY for one in signals)


def _lead(report: DriftReport) -> str | None:
    if not is_number(report.estimated_accuracy):
        return None
    estimate = words.accuracy(report.estimated_accuracy)
    if not is_number(report.expected_accuracy):
        return f"Estimated over the whole span: {estimate}."
    return f"Estimated over the whole span: {estimate}; expected: {words.accuracy(report.expected_accuracy)}."


def _chart(report: DriftReport, drawn: Sequence[Line], times: Times) -> Markup:
    has_base = is_number(report.expected_accuracy)
    base = report.expected_accuracy if report.expected_accuracy is not None and has_base else 0.0
    values = [base, *(line.value(block) for line in drawn for block in line.drawn)]
    low, high = min(values), max(values)
    room = max((high - low) * 0.12, (_LEAST_RANGE - (high - low)) / 2, 1e-9)
    ceiling = max(1.0, high) if has_base else high + room
    x = Axis(low=float(times.start_ns), high=float(times.end_ns), start=0.0, end=WIDTH)
    y = Axis(low=low - room, high=min(high + room, ceiling), start=HEIGHT, end=0.0)
    x_ticks, y_ticks = time_ticks(times.start_ns, times.end_ns), number_ticks(y.low, y.high, most=5)
    spoken = ", ".join(_spoken(line, report) for line in drawn)
    drawing = stretched(
        grid(x=x, x_ticks=x_ticks, y=y, y_ticks=y_ticks),
        element("line", x1=0.0, x2=WIDTH, y1=y.at(base), y2=y.at(base), class_="line base"),
        [_line(line, x, y) for line in drawn],
        label=f"{'Accuracy' if has_base else 'Change of accuracy'} over time: {spoken}",
    )
    looks = [(_LOOKS[line.kind], _NAMES[line.kind]) for line in drawn]
    expected = f"expected, {words.accuracy(base)}" if has_base else "no change"
    return element(
        "figure", key([*looks, ("base", expected)]), framed(drawing, x=x, x_ticks=x_ticks, y=y, y_ticks=y_ticks)
    )


def _spoken(line: Line, report: DriftReport) -> str:
    least = min(line.drawn, key=line.value)
    what = words.accuracy(line.value(least)) if is_number(report.expected_accuracy) else words.signed(least.cell.size)
    return f"{_NAMES[line.kind]}: lowest {what} at {words.moment(least.start_ns)} UTC"


def _line(line: Line, x: Axis, y: Axis) -> Markup:
    path, before = [], None
    for block in line.drawn:
        left, right, height = x.at(float(block.start_ns)), x.at(float(block.end_ns)), y.at(line.value(block))
        path.append(f"{'L' if before == block.start_ns else 'M'}{left:.1f} {height:.1f}L{right:.1f} {height:.1f}")
        before = block.end_ns
    hovers = [
        element(
            "rect",
            element("title", f"{words.moment(block.start_ns)}: {_NAMES[line.kind]} {words.figure(line.value(block))}"),
            x=x.at(float(block.start_ns)),
            y=max(0.0, y.at(line.value(block)) - HEIGHT / 12),
            width=x.at(float(block.end_ns)) - x.at(float(block.start_ns)),
            height=HEIGHT / 6,
            class_="hover",
        )
        for block in line.drawn
    ]
    return joined(element("path", d="".join(path), class_=f"line {_LOOKS[line.kind]}"), hovers)
