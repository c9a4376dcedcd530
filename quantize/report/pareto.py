"""The plot of all candidates: latency beside fp32's to the right, the metric upwards, the file's size as the bubble.

Up and left is better, always: a metric of which less is better is drawn upside down. The range follows what may ship,
so that one broken candidate does not press the others into a line; those outside are triangles at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantize.report import words
from quantize.report.findings import Kind, Numbered, numbered
from quantize.report.labels import Anchor, Box, place
from quantize.report.markup import Markup, element, joined, one_line
from quantize.report.scales import Axis, widened
from quantize.search.choice import relative_latency
from quantize.search_report import SearchReport

WIDE, NARROW = 940, 370
SLOWEST = 2.0
"""Latencies above this many times the slowest of those that matter are drawn at the edge."""
DRAWABLE = 1e100
"""A figure above it is no measurement, and no axis holds it."""
MOST_LABELS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 14, 16, 46
_SMALLEST, _LARGEST = 4.0, 15.0
_CLASSES = {
    Kind.SHIPS: "ships",
    Kind.GIVEN: "given",
    Kind.KEPT: "kept",
    Kind.REFUSED: "refused",
    Kind.UNJUDGED: "kept",
}


@dataclass(frozen=True, kw_only=True)
class _Point:
    candidate: Numbered
    latency: float
    metric: float
    size_bytes: int


def pareto_plot(report: SearchReport, *, width: int) -> Markup | None:
    """The plot as SVG, `width` units wide; None where fewer than two candidates were measured."""
    points = _points(report)
    if len(points) < 2:
        return None
    height = 420 if width >= WIDE else 360
    axes = _axes(report, points, width, height)
    return element(
        "svg",
        element("title", "Latency and metric of every measured candidate"),
        _grid(report, axes, width),
        _limit(report, axes),
        _front(report, axes, points),
        (_bubble(report, axes, point, _radius(point, points)) for point in _by_importance(points)),
        _labels(axes, points, width),
        viewBox=f"0 0 {width} {height}",
        class_="plot " + ("wide" if width >= WIDE else "narrow"),
        role="img",
    )


def least_metric(report: SearchReport) -> float | None:
    """The metric below which (or above, where less is better) a candidate is refused."""
    fp32 = words.known(report.candidates[0].metric) if report.candidates else None
    if fp32 is None or fp32 <= 0:
        return None
    keeps = 1 - report.max_drop
    if report.higher_is_better:
        return fp32 * keeps
    return fp32 / keeps if keeps > 0 else None


@dataclass(frozen=True, kw_only=True)
class _Axes:
    x: Axis
    y: Axis


def _points(report: SearchReport) -> list[_Point]:
    return [
        _Point(
            candidate=one,
            latency=relative_latency(one.result),
            metric=one.result.metric,
            size_bytes=max(0, one.result.size_bytes or 0),
        )
        for one in numbered(report)
        if one.kind in _CLASSES
        and one.result.metric is not None
        and abs(one.result.metric) < DRAWABLE
        and one.result.speedup is not None
        and one.result.speedup > 0
        and relative_latency(one.result) < DRAWABLE
    ]


def _axes(report: SearchReport, points: Sequence[_Point], width: int, height: int) -> _Axes:
    central = [one for one in points if one.candidate.kind in (Kind.SHIPS, Kind.GIVEN)] or list(points)
    slowest = SLOWEST * max(one.latency for one in central)
    latencies = [one.latency for one in points if one.latency <= slowest]
    least = least_metric(report)
    anchors = [one.metric for one in central] + ([] if least is None else [least])
    reach = max(3 * (max(anchors) - min(anchors)), 0.02 * max(map(abs, anchors)))
    values = [one.metric for one in points if min(anchors) - reach <= one.metric <= max(anchors) + reach]
    left, right = widened(min(latencies), max(latencies))
    low, high = widened(min([*values, *anchors]), max([*values, *anchors]), share=0.2)
    bottom, top = (height - _BOTTOM, _TOP) if report.higher_is_better else (_TOP, height - _BOTTOM)
    return _Axes(
        x=Axis(low=max(0.0, left), high=right, start=_LEFT, end=width - _RIGHT),
        y=Axis(low=low, high=high, start=bottom, end=top),
    )


def _grid(report: SearchReport, axes: _Axes, width: int) -> Markup:
    x, y = axes.x, axes.y
    foot, head = max(y.start, y.end), min(y.start, y.end)
    lines = []
    for value, text in x.ticks(8 if width >= WIDE else 4):
        at = x.at(value)
        lines += [
            element("line", x1=at, x2=at, y1=head, y2=foot, class_="grid"),
            element("text", f"{text}{words.TIMES}", x=at, y=foot + 17, text_anchor="middle"),
        ]
    for value, text in y.ticks(6):
        at = y.at(value)
        lines += [
            element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"),
            element("text", text, x=x.start - 8, y=at + 4, text_anchor="end"),
        ]
    one_time = x.at(1.0)
    if x.holds(1.0):
        lines.append(element("line", x1=one_time, x2=one_time, y1=head, y2=foot, class_="axis"))
    middle = (head + foot) / 2
    arrow = "" if report.higher_is_better else ", less is better (drawn upside down)"
    titles = [
        element(
            "text",
            "latency beside fp32 as given  (← faster)",
            x=(x.start + x.end) / 2,
            y=foot + 38,
            text_anchor="middle",
            class_="name",
        ),
        element(
            "text",
            one_line(report.metric, most=28) + arrow,
            x=13,
            y=middle,
            text_anchor="middle",
            class_="name",
            transform=f"rotate(-90 13 {middle:.0f})",
        ),
    ]
    return joined(lines, titles)


def _limit(report: SearchReport, axes: _Axes) -> Markup | None:
    least = least_metric(report)
    if least is None or not axes.y.holds(least):
        return None
    at, foot = axes.y.at(least), max(axes.y.start, axes.y.end)
    return joined(
        element(
            "rect", x=axes.x.start, y=at, width=axes.x.end - axes.x.start, height=max(0.0, foot - at), class_="out"
        ),
        element("line", x1=axes.x.start, x2=axes.x.end, y1=at, y2=at, class_="limit"),
        element(
            "text",
            f"{words.percent(report.max_drop)} may be lost",
            x=axes.x.end - 4,
            y=at + 15,
            text_anchor="end",
            class_="limit",
        ),
    )


def _front(report: SearchReport, axes: _Axes, points: Sequence[_Point]) -> Markup | None:
    """Steps through the candidates that no other one beats in latency and metric."""
    steps: list[_Point] = []
    for one in sorted(points, key=lambda point: (point.latency, -_quality(report, point))):
        if not steps or _quality(report, one) > _quality(report, steps[-1]):
            steps.append(one)
    path = ""
    for place_, one in enumerate(steps):
        x, y = axes.x.at(one.latency), axes.y.at(one.metric)
        path += f"M{x:.1f} {y:.1f}" if not place_ else f"H{x:.1f}V{y:.1f}"
    return element("path", d=f"{path}H{axes.x.end:.1f}", class_="front") if steps else None


def _quality(report: SearchReport, point: _Point) -> float:
    return point.metric if report.higher_is_better else -point.metric


def _bubble(report: SearchReport, axes: _Axes, point: _Point, radius: float) -> Markup:
    x, y = axes.x.at(point.latency), axes.y.at(point.metric)
    one = point.candidate
    said = (
        f"#{one.number} {one.result.name}: {one.kind}\n{one_line(one.result.scheme.quantization)}\n"
        f"{one_line(report.metric)} {words.metric_value(point.metric)}, keeps {words.keeps(one.result.keeps)}\n"
        f"{words.times(one.result.speedup)} as fast, p50 {words.microseconds(one.result.p50_us)},"
        f" {words.size(one.result.size_bytes)}"
    )
    look = f"point {_CLASSES[one.kind]}" + (" onfront" if one.result.on_front else "")
    if axes.x.holds(point.latency) and axes.y.holds(point.metric):
        shape = element("circle", element("title", said), cx=x, cy=y, r=radius, class_=look)
    else:
        shape = element(
            "path", element("title", f"{said}\nout of range"), d=_triangle(axes, point), class_=f"{look} off"
        )
    return shape


def _triangle(axes: _Axes, point: _Point) -> str:
    """It points to where the value is."""
    x, y = axes.x.at(point.latency), axes.y.at(point.metric)
    right = 0 if axes.x.holds(point.latency) else 1
    down = 0 if axes.y.holds(point.metric) else 1 if y > (axes.y.start + axes.y.end) / 2 else -1
    if right and down:
        return f"M{x:.1f} {y:.1f}l-11 0l11 {-11 * down}z"
    if down:
        return f"M{x - 6:.1f} {y - 10 * down:.1f}h12l-6 {10 * down}z"
    return f"M{x - 10:.1f} {y - 6:.1f}v12l10 -6z"


def _radius(point: _Point, points: Sequence[_Point]) -> float:
    """The bubble's area is in proportion to the file's size."""
    largest = max(one.size_bytes for one in points)
    share = point.size_bytes / largest if largest else 0.0
    return max(_SMALLEST, _LARGEST * math.sqrt(share))


def _by_importance(points: Sequence[_Point]) -> list[_Point]:
    """What matters is drawn last, above the others; of equals the small one."""
    order = [Kind.REFUSED, Kind.UNJUDGED, Kind.KEPT, Kind.GIVEN, Kind.SHIPS]
    return sorted(
        points, key=lambda one: (order.index(one.candidate.kind), one.candidate.result.on_front, -one.size_bytes)
    )


def _labels(axes: _Axes, points: Sequence[_Point], width: int) -> Markup:
    named = [one for one in points if one.candidate.kind in (Kind.SHIPS, Kind.GIVEN)]
    named.sort(key=lambda one: (one.candidate.kind is not Kind.SHIPS, one.latency))
    front = [one for one in points if one.candidate.result.on_front and one not in named]
    anchors = [_anchor(axes, one, points, name=True, width=width) for one in named]
    anchors += [_anchor(axes, one, points, name=False, width=width) for one in front]
    frame = Box(
        left=axes.x.start,
        top=min(axes.y.start, axes.y.end) - 8,
        right=axes.x.end,
        bottom=max(axes.y.start, axes.y.end),
    )
    bubbles = [
        Box(left=a.x - a.radius, top=a.y - a.radius, right=a.x + a.radius, bottom=a.y + a.radius) for a in anchors
    ]
    drawn = []
    for one in place(anchors[:MOST_LABELS], frame, bubbles):
        middle = (one.box.left + one.box.right) / 2
        if one.is_far:
            above = one.box.top < one.anchor.y
            edge = one.box.bottom - 2 if above else one.box.top + 2
            near = one.anchor.y - one.anchor.radius if above else one.anchor.y + one.anchor.radius
            drawn.append(element("line", x1=one.anchor.x, y1=near, x2=middle, y2=edge, class_="lead"))
        drawn.append(
            element("text", one.anchor.text, x=middle, y=one.box.bottom - 4, text_anchor="middle", class_="label")
        )
    return joined(drawn)


def _anchor(axes: _Axes, point: _Point, points: Sequence[_Point], *, name: bool, width: int) -> Anchor:
    text = f"#{point.candidate.number}"
    if name:
        meant = point.candidate.result.architectures
        text += f" {point.candidate.result.name}" + (f" ({meant[0]})" if len(meant) == 1 and width >= WIDE else "")
    return Anchor(
        x=axes.x.at(point.latency),
        y=axes.y.at(point.metric),
        radius=_radius(point, points),
        text=one_line(text, most=40),
    )
