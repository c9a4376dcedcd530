"""All layers at a glance, in the graph's order: a column each, as high as its signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from quantize.report import words
from quantize.report.markup import Markup, element, joined, one_line
from quantize.report.scales import Axis
from quantize.search_report import LayerResult

WIDE, NARROW = 940, 370
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 220, 52, 8, 12, 34


def highest_db(layers: Sequence[LayerResult]) -> float:
    """The ratio in dB that fills a bar: the greatest that tells anything, or twice the median where that is less.

    One layer without any noise would make all others look alike.
    """
    known = [value for one in layers if (value := words.known(one.signal_to_noise_db)) is not None]
    telling = [value for value in known if 0 < value < words.NO_DIFFERENCE_DB]
    return max(1.0, min(max(telling), 2 * median(telling))) if telling else 1.0


def kind_of(layer: LayerResult) -> str:
    """The class that colours a layer: in float, as an integer, or never asked."""
    if layer.excluded:
        return "float"
    return "integer" if words.is_known(layer.signal_to_noise_db) else "unknown"


def layer_chart(layers: Sequence[LayerResult], *, width: int) -> Markup:
    """The chart as SVG, `width` units wide."""
    y = Axis(low=0.0, high=highest_db(layers) * 1.06, start=_HEIGHT - _BOTTOM, end=_TOP)
    x = Axis(low=0.0, high=float(max(1, len(layers))), start=_LEFT, end=width - _RIGHT)
    grid = []
    for value, text in y.ticks(4):
        at = y.at(value)
        grid.append(element("line", x1=_LEFT, x2=width - _RIGHT, y1=at, y2=at, class_="grid"))
        grid.append(element("text", text, x=_LEFT - 7, y=at + 4, text_anchor="end"))
    step = (width - _RIGHT - _LEFT) / max(1, len(layers))
    columns = []
    for place, layer in enumerate(layers):
        ratio = words.known(layer.signal_to_noise_db)
        # a column that was not measured, or has no height, still shows its colour
        top = min(y.at(ratio or 0.0), y.start - 3.0)
        columns.append(
            element(
                "rect",
                element("title", f"{one_line(layer.name)} ({one_line(layer.operator)}): {words.decibels(ratio)}"),
                x=x.at(float(place)) + step * 0.1,
                y=top,
                width=max(0.6, step * 0.8),
                height=y.start - top,
                class_=f"column {kind_of(layer)}",
            )
        )
    return element(
        "svg",
        element("title", "Signal-to-noise ratio of every layer"),
        joined(grid, columns),
        element("line", x1=_LEFT, x2=width - _RIGHT, y1=y.start, y2=y.start, class_="axis"),
        element(
            "text",
            "layers, first to last  (dB: higher is less noise)",
            x=(_LEFT + width - _RIGHT) / 2,
            y=_HEIGHT - 8,
            text_anchor="middle",
            class_="name",
        ),
        viewBox=f"0 0 {width} {_HEIGHT}",
        class_="plot " + ("wide" if width >= WIDE else "narrow"),
        role="img",
    )
