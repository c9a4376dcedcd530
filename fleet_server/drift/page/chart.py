"""The frame of a picture that stretches: the drawing scales with the page, its words do not.

The drawing is SVG of WIDTH x HEIGHT units, stretched to its box; ticks are text beside it, placed by percent. So one
picture reads on a phone and on a wide screen. Ticks that are not major are hidden where there is little room.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fleet_server.drift.page.axes import Axis, Tick
from fleet_server.drift.page.markup import Child, Markup, element, joined

WIDTH = 1000.0
HEIGHT = 240.0


def stretched(*drawing: Child, label: str, height: float = HEIGHT, look: str = "plot") -> Markup:
    """A drawing that fills its box; `label` says in words what it shows."""
    return element(
        "svg",
        joined(*drawing),
        class_=look,
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def framed(drawing: Markup, *, x: Axis, x_ticks: Sequence[Tick], y: Axis | None, y_ticks: Sequence[Tick]) -> Markup:
    """A drawing with ticks below and, where there is an axis, at its left."""
    rows = [] if y is None else y_ticks
    return element(
        "div",
        element("div", [_at_left(y, tick) for tick in rows if y is not None], class_="y-ticks", aria_hidden="true"),
        element("div", drawing, class_="box"),
        ticks_below(x, x_ticks),
        class_="framed" if y is not None else "framed bare",
    )


def ticks_below(x: Axis, ticks: Iterable[Tick]) -> Markup:
    """The ticks of a drawing's horizontal axis, as text."""
    return element("div", [_below(x, tick) for tick in ticks], class_="x-ticks", aria_hidden="true")


def grid(*, x: Axis | None, x_ticks: Iterable[Tick], y: Axis | None, y_ticks: Iterable[Tick]) -> Markup:
    """Faint lines at the ticks."""
    down = [] if x is None else [(x.at(tick.at), x.at(tick.at), 0.0, HEIGHT) for tick in x_ticks]
    across = [] if y is None else [(0.0, WIDTH, y.at(tick.at), y.at(tick.at)) for tick in y_ticks]
    return joined(element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_="grid") for x1, x2, y1, y2 in down + across)


def _below(x: Axis, tick: Tick) -> Markup:
    share = x.at(tick.at) / WIDTH
    side = "first" if share < 0.04 else "last" if share > 0.96 else ""
    text = joined(element("i", line) for line in tick.text.split("\n"))
    return element("span", text, class_=_classes(side, tick), style=f"left:{share * 100:.2f}%")


def _at_left(y: Axis, tick: Tick) -> Markup:
    return element("span", tick.text, class_=_classes("", tick), style=f"top:{y.at(tick.at) / HEIGHT * 100:.2f}%")


def _classes(side: str, tick: Tick) -> str | None:
    return " ".join(one for one in (side, "" if tick.major else "minor") if one) or None
