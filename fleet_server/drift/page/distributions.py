"""Both sides of a signal over each other: densities of a number, paired bars of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fleet_server.drift.findings import Distribution, SignalFinding
from fleet_server.drift.page import words
from fleet_server.drift.page.axes import Axis, number_ticks
from fleet_server.drift.page.blocks import cell, head, key, number, table
from fleet_server.drift.page.chart import HEIGHT, WIDTH, framed, grid, stretched
from fleet_server.drift.page.densities import Densities, Steps, densities, share_below, unusable
from fleet_server.drift.page.markup import Markup, element, joined, short

MAX_CLASSES_SHOWN = 20
"""More classes than that show those that differ most, and the rest as one."""
_SHARE_WORTH_TELLING = 0.001
_SHARE_WORTH_A_SIGN = 0.02
_ROOM_ABOVE = 1.06


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """A class and its share of what was predicted, on both sides."""

    label: str
    seen: float
    expected: float


def picture(finding: SignalFinding, *, expected_name: str) -> Markup | None:
    """The picture of a signal's distribution, None where it has none; `expected_name` is what it is held against."""
    given = finding.distribution
    if given is None:
        return None
    if reason := unusable(given):
        return element("p", f"The distributions cannot be drawn: {reason}.", class_="soft")
    if given.edges:
        return _numbers(finding, given, expected_name)
    return _classes(finding.signal, given, expected_name)


def _numbers(finding: SignalFinding, given: Distribution, expected_name: str) -> Markup:
    drawn = densities(given)
    x = Axis(low=drawn.low, high=drawn.high, start=0.0, end=WIDTH)
    y = Axis(low=0.0, high=drawn.top * _ROOM_ABOVE, start=HEIGHT, end=0.0)
    ticks = number_ticks(drawn.low, drawn.high, most=8)
    drawing = stretched(
        grid(x=x, x_ticks=ticks, y=None, y_ticks=()),
        _area(drawn.expected, x, y, "expected"),
        _area(drawn.seen, x, y, "seen"),
        _line(drawn.expected, x, y, "expected"),
        _line(drawn.seen, x, y, "seen"),
        _hover(given, drawn, x, expected_name),
        label=f"Density of {short(finding.signal, most=80)}, seen over {expected_name}, "
        f"from {words.figure(drawn.low)} to {words.figure(drawn.high)}",
    )
    return element(
        "figure",
        key([("seen", "seen"), ("expected", expected_name)]),
        framed(joined(drawing, _signs(drawn)), x=x, x_ticks=ticks, y=None, y_ticks=()),
        element("figcaption", " ".join(_said(finding, drawn, expected_name))),
    )


def _said(finding: SignalFinding, drawn: Densities, expected_name: str) -> list[str]:
    said = ["Density, each bin at its true width: areas are shares of values."]
    for side, share_seen, share_expected in (
        ("left", drawn.seen.below, drawn.expected.below),
        ("right", drawn.seen.above, drawn.expected.above),
    ):
        if max(share_seen, share_expected) >= _SHARE_WORTH_TELLING:
            said.append(
                f"Beyond the {side} edge: {words.percent(share_seen)} of what was seen, "
                f"{words.percent(share_expected)} of {expected_name}."
            )
    if finding.beyond_reference:
        said.append("The outermost bins also hold what lies beyond the reference's range.")
    if drawn.is_cut:
        said.append("The highest bins are cut off at the top.")
    return said


def _signs(drawn: Densities) -> Markup:
    """Where much of what was seen lies beyond the axis, a sign in the picture says so."""
    signs = []
    if drawn.seen.below >= _SHARE_WORTH_A_SIGN:
        signs.append(element("span", f"← {words.percent(drawn.seen.below)} of seen", class_="beyond left"))
    if drawn.seen.above >= _SHARE_WORTH_A_SIGN:
        signs.append(element("span", f"{words.percent(drawn.seen.above)} of seen →", class_="beyond right"))
    return joined(signs)


def _corners(steps: Steps, x: Axis, y: Axis) -> list[tuple[float, float]]:
    return [
        (x.at(edge), y.at(density))
        for density, (first, second) in zip(steps.densities, pairwise(steps.edges), strict=True)
        for edge in (first, second)
    ]


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _area(steps: Steps, x: Axis, y: Axis, look: str) -> Markup:
    corners = _corners(steps, x, y)
    closed = [(corners[0][0], HEIGHT), *corners, (corners[-1][0], HEIGHT)]
    return element("path", d=_path(closed) + "Z", class_=f"area {look}")


def _line(steps: Steps, x: Axis, y: Axis, look: str) -> Markup:
    return element("path", d=_path(_corners(steps, x, y)), class_=f"line {look}")


def _hover(given: Distribution, drawn: Densities, x: Axis, expected_name: str) -> Markup:
    """A bin's figures where the pointer is; needs no script."""
    edges = drawn.seen.edges
    totals = sum(given.seen), sum(given.expected)
    shares = [
        [share_below(given.edges, side, edge) / total for edge in edges]
        for side, total in zip((given.seen, given.expected), totals, strict=True)
    ]
    return joined(
        element(
            "rect",
            element(
                "title",
                f"{words.figure(first)} to {words.figure(second)}: "
                f"seen {words.percent(shares[0][place + 1] - shares[0][place])}, "
                f"{expected_name} {words.percent(shares[1][place + 1] - shares[1][place])}",
            ),
            x=x.at(first),
            y=0.0,
            width=x.at(second) - x.at(first),
            height=HEIGHT,
            class_="hover",
        )
        for place, (first, second) in enumerate(pairwise(edges))
    )


def _classes(signal: str, given: Distribution, expected_name: str) -> Markup:
    seen_total, expected_total = sum(given.seen), sum(given.expected)
    shares = [
        ClassShare(label=short(label, most=60), seen=seen / seen_total, expected=expected / expected_total)
        for label, seen, expected in zip(given.labels, given.seen, given.expected, strict=True)
    ]
    shown, rest = classes_to_show(shares)
    said = "Shares of what was predicted, per class; the change is in percentage points."
    if rest is not None:
        said = f"Of {len(shares):,} classes the {len(shown)} that differ most. {said}"
    # what is told as one is no class, so it sets no scale and has no bar
    largest = max(max(one.seen, one.expected) for one in shown)
    numbers = [head(name, is_number=True) for name in ("seen", expected_name, "change")]
    rows = [_class_row(one, largest) for one in shown] + ([] if rest is None else [_class_row(rest, None)])
    caption = f"Classes of {short(signal, most=80)}: seen and {expected_name}"
    return element(
        "figure",
        key([("seen", "seen"), ("expected", expected_name)]),
        table([head("class"), head("share"), *numbers], rows, caption=caption, sortable=True),
        element("figcaption", said),
    )


def classes_to_show(shares: Sequence[ClassShare]) -> tuple[list[ClassShare], ClassShare | None]:
    """(the classes to show, in their own order; all others as one, None where there are few)."""
    if len(shares) <= MAX_CLASSES_SHOWN:
        return list(shares), None
    places = sorted(range(len(shares)), key=lambda place: (-abs(shares[place].seen - shares[place].expected), place))
    shown, rest = sorted(places[:MAX_CLASSES_SHOWN]), places[MAX_CLASSES_SHOWN:]
    other = ClassShare(
        label=f"the other {len(rest):,}",
        seen=math.fsum(shares[place].seen for place in rest),
        expected=math.fsum(shares[place].expected for place in rest),
    )
    return [shares[place] for place in shown], other


def _class_row(one: ClassShare, largest: float | None) -> Markup:
    bars = [] if not largest else [_bar(one.seen / largest, "seen"), _bar(one.expected / largest, "expected")]
    return element(
        "tr",
        element("th", one.label, scope="row"),
        cell(bars, look="bars-cell", sorts_as=one.seen),
        number(words.percent(one.seen), one.seen),
        number(words.percent(one.expected), one.expected),
        number(words.points(one.seen - one.expected), one.seen - one.expected),
    )


def _bar(share: float, look: str) -> Markup:
    return element("div", element("i", style=f"width:{share * 100:.2f}%", class_=look), class_="pair-bar")
