"""Features over time: how far each signal lay from what it is held against, hour by hour.

Invariants:
- colour is size, on the fixed scale of the signal's kind; a mark below is evidence: the two are never mixed;
- the strong mark allows for every cell of the map; the weak one is of its cell alone, which one cell in 1 / alpha has
  without any drift, and is drawn only where the signal drifted: elsewhere it would be noise;
- a time without data is drawn as missing, never as a small move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from fleet_server.drift.findings import DriftReport, SignalFinding, TimeCell, Verdict
from fleet_server.drift.page import words
from fleet_server.drift.page.axes import Axis, time_ticks
from fleet_server.drift.page.blocks import section, verdict_badge
from fleet_server.drift.page.chart import WIDTH, stretched, ticks_below
from fleet_server.drift.page.markup import Markup, element, joined, short
from fleet_server.drift.page.sizes import LEVELS, SCALES, Scale

MAX_COLUMNS = 240
"""More times than that are drawn in groups, each with its largest size and its strongest evidence."""
_ROW, _CELL, _MARK = 26.0, 18.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Block:
    """What is drawn from `start_ns` to `end_ns`: the cell of the largest size, and a p-value for all cells there."""

    start_ns: int
    end_ns: int
    cell: TimeCell
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class Times:
    """The map's columns: from `start_ns`, `columns` of `step_ns` each, drawn `group` at a time."""

    start_ns: int
    step_ns: int
    columns: int
    group: int

    @property
    def end_ns(self) -> int:
        """Where the last column ends."""
        return self.start_ns + self.columns * self.step_ns


def times_of(report: DriftReport, *, most: int = MAX_COLUMNS) -> Times | None:
    """The columns of a report's timelines, drawn as at most `most`; None where no signal has a timeline.

    The step is the least distance between two times of one signal; a single time lasts to the report's end.
    """
    starts = [sorted({one.start_ns for one in signal.timeline}) for signal in report.signals if signal.timeline]
    if not starts:
        return None
    first, last = min(one[0] for one in starts), max(one[-1] for one in starts)
    steps = [second - start for one in starts for start, second in pairwise(one)]
    step = min(steps) if steps else max(report.end_ns - first, words.SECOND_NS)
    columns = (last - first) // step + 1
    return Times(start_ns=first, step_ns=step, columns=columns, group=math.ceil(columns / most))


def blocks(timeline: Sequence[TimeCell], times: Times) -> list[Block]:
    """What is drawn of one signal, in the order of time; a size that is no number is missing."""
    width = times.step_ns * times.group
    known = sorted((one for one in timeline if math.isfinite(one.size)), key=lambda one: one.start_ns)
    drawn = []
    for place, grouped in groupby(known, key=lambda one: (one.start_ns - times.start_ns) // width):
        cells = list(grouped)
        probabilities = [one.p_value for one in cells if one.p_value is not None and math.isfinite(one.p_value)]
        start_ns = times.start_ns + place * width
        drawn.append(
            Block(
                start_ns=start_ns,
                end_ns=min(start_ns + width, times.end_ns),
                cell=max(cells, key=lambda one: abs(one.size)),
                p_value=min(1.0, min(probabilities) * len(probabilities)) if probabilities else None,
            )
        )
    return drawn


def mark(p_value: float | None, *, alpha: float, tested: int) -> str:
    """The evidence of a cell: "strong" when it holds beside all `tested` cells, "weak" alone, else ""."""
    if p_value is None or p_value > alpha:
        return ""
    return "strong" if p_value * tested <= alpha else "weak"


def heat_map(report: DriftReport, signals: Sequence[SignalFinding], *, anchor: str, links: Sequence[str]) -> Markup:
    """The map's section: `signals` in the order of its rows, `links` their sections' anchors."""
    times = times_of(report)
    if times is None:
        return section(
            anchor, "When it moved", None, element("p", "There is no timeline: no time was judged by itself.")
        )
    x = Axis(low=float(times.start_ns), high=float(times.end_ns), start=0.0, end=WIDTH)
    ticks = time_ticks(times.start_ns, times.end_ns)
    drawn_blocks = [blocks(signal.timeline, times) for signal in signals]
    tested = sum(one.p_value is not None for row in drawn_blocks for one in row)
    rows = [
        _row(signal, link, drawn, times=times, x=x, alpha=report.alpha, tested=tested)
        for signal, link, drawn in zip(signals, links, drawn_blocks, strict=True)
    ]
    over_time = element(
        "th", element("span", "size over time, UTC", class_="unseen"), ticks_below(x, ticks), scope="col"
    )
    heads = element("tr", element("th", "signal", scope="col"), over_time)
    picture = element(
        "table",
        element("caption", "Each signal's size over time", class_="unseen"),
        element("colgroup", element("col", class_="names"), element("col")),
        element("thead", heads),
        element("tbody", rows),
        class_="heat",
    )
    return section(anchor, "When it moved", _lead(times), picture, _legend(signals, report.alpha, tested))


def _lead(times: Times) -> str:
    width = words.length(times.step_ns * times.group)
    lead = f"Each cell is {width}; its colour is how far the signal lay from what it is compared with."
    if times.group > 1:
        lead += f" {times.columns:,} times are drawn {times.group} at a time: each cell shows the largest of them."
    return lead


def _row(
    signal: SignalFinding, link: str, drawn: Sequence[Block], *, times: Times, x: Axis, alpha: float, tested: int
) -> Markup:
    scale = SCALES[signal.kind]
    middle = _CELL / 2
    bounds = [times.start_ns, *(end for one in drawn for end in (one.start_ns, one.end_ns)), times.end_ns]
    gaps = [
        (x.at(float(end)), x.at(float(start)))
        for end, start in zip(bounds[::2], bounds[1::2], strict=True)
        if end < start
    ]
    marks = [mark(one.p_value, alpha=alpha, tested=tested) for one in drawn]
    shown = ("strong", "weak") if signal.verdict is Verdict.DRIFT else ("strong",)
    cells = [_cell(one, scale, x, told if told in shown else "") for one, told in zip(drawn, marks, strict=True)]
    strip = stretched(
        [element("line", x1=first, x2=last, y1=middle, y2=middle, class_="missing") for first, last in gaps],
        cells,
        label=_spoken(signal, drawn, scale, alpha, tested),
        height=_ROW,
        look="strip",
    )
    name = element("a", short(signal.signal, most=32), href=f"#{link}", title=short(signal.signal))
    return element(
        "tr",
        element("th", element("div", element("span", name), verdict_badge(signal.verdict)), scope="row"),
        element("td", strip),
    )


def _cell(one: Block, scale: Scale, x: Axis, evidence: str) -> Markup:
    left, right = x.at(float(one.start_ns)), x.at(float(one.end_ns))
    gap = min(1.0, (right - left) * 0.06)
    said = f"{words.moment(one.start_ns)}: {scale.text(one.cell.size)} on {words.plural(one.cell.devices, 'device')}"
    if one.p_value is not None:
        said += f", p {words.probability(one.p_value)}"
    box = element(
        "rect",
        element("title", said),
        x=left,
        y=0.0,
        width=right - left - gap,
        height=_CELL,
        class_=f"h{scale.level(one.cell.size)}",
    )
    if not evidence:
        return box
    height = _MARK if evidence == "strong" else _MARK / 2
    under = element("rect", x=left, y=_CELL + 2, width=right - left - gap, height=height, class_=f"mark {evidence}")
    return joined(box, under)


def _spoken(signal: SignalFinding, drawn: Sequence[Block], scale: Scale, alpha: float, tested: int) -> str:
    name = short(signal.signal, most=80)
    if not drawn:
        return f"{name}: no data"
    most = max(drawn, key=lambda one: abs(one.cell.size))
    strong = sum(mark(one.p_value, alpha=alpha, tested=tested) == "strong" for one in drawn)
    return (
        f"{name}: largest {scale.text(most.cell.size)} at {words.moment(most.start_ns)} UTC; "
        f"evidence in {words.of(strong, len(drawn))} cells"
    )


def _legend(signals: Sequence[SignalFinding], alpha: float, tested: int) -> Markup:
    present = {SCALES[signal.kind].name: SCALES[signal.kind] for signal in signals if signal.timeline}
    swatches = [element("i", class_=f"h{level}") for level in range(LEVELS)]
    bounds = "; ".join(f"{scale.bounds_text()} ({scale.name})" for scale in present.values())
    evidence = f"evidence (p ≤ {alpha:g}) also when all {words.plural(tested, 'cell')} of this map are allowed for"
    alone = (
        f"p ≤ {alpha:g} of this cell alone, as one cell in {round(1 / alpha)} has without any drift; "
        "shown for signals that drifted"
    )
    items = [element("li", _swatch("ramp", swatches), f"small to large; steps at {bounds}")]
    if tested:
        items += [element("li", _swatch("swatch strong"), evidence), element("li", _swatch("swatch weak"), alone)]
    items.append(element("li", _swatch("swatch missing"), "no data"))
    return element("ul", items, class_="key legend")


def _swatch(look: str, *inside: Iterable[Markup]) -> Markup:
    return element("span", *inside, class_=look, aria_hidden="true")
