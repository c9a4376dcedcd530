"""How to read a report, what it assumes, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from fleet_server.drift.findings import DriftReport, SignalFinding, SignalKind
from fleet_server.drift.page import words
from fleet_server.drift.page.blocks import facts, section
from fleet_server.drift.page.markup import Markup, element, joined, short

MAX_NAMES_SHOWN = 6
_TOO_LITTLE = "there is too little to judge by: it is neither drift nor its absence."


class Making(Struct, frozen=True, kw_only=True):
    """How a page came to be: when, from which server, by which edgefleet, and what was asked."""

    made_at_ns: int
    server: str
    edgefleet: str
    query: str


def method(reports: Sequence[DriftReport], *, anchor: str) -> Markup:
    """What the words and numbers of the page mean, as far as they occur in it."""
    signals = [signal for report in reports for signal in report.signals]
    alpha = max((report.alpha for report in reports), default=0.05)
    if not signals:
        return section(anchor, "How to read this", None, facts([("Not enough evidence", _TOO_LITTLE)]))
    points = [
        (
            "Drift",
            "the signal differs by more than chance explains. It may be too small to matter: see its size.",
        ),
        (
            "No drift found",
            "the signal was judged and nothing was seen. A drift too small for so little data may hide.",
        ),
        ("Not enough evidence", _TOO_LITTLE),
        (
            "p",
            f"allows for all signals of a comparison. The rate of {words.percent(alpha)} is of one look at one "
            "comparison: whoever looks every hour, or at many versions, sees false alarms more often.",
        ),
        (
            "e",
            "weighs evidence as a fair bet against no drift would grow: without drift, 20 or more comes at most one "
            "time in twenty. It holds however signals and segments depend on each other, and asks for more than p.",
        ),
        ("Severity and size", "say how far a signal moved and never how sure that is. A large fleet sees tiny moves."),
        (
            "Devices are the unit",
            "values of one device resemble each other, so a million values of ten devices say what ten devices say. "
            "Each device counts the same, however busy it was. Devices are assumed not to sway each other; those that "
            "share a room or a daylight do, so compare whole days, or the same hours.",
        ),
        (
            "PSI, JSD, Hellinger, KS, W1",
            "grow with chance alone where there are few values. No threshold is set on them: where a p stands beside "
            "one it is calibrated for its sample. Each p of these is of its statistic alone.",
        ),
    ]
    if any(signal.kind is SignalKind.EMBEDDING for signal in signals):
        said = "compares inputs as the model sees them, from sums of random features: it sees that they moved, not how."
        points.append(("MMD", said))
    if any(signal.onset_ns is not None for signal in signals):
        points.append(
            ("Since", "the likeliest start, as fine as the timeline; a slow drift starts earlier than it shows.")
        )
    if any(signal.segments for signal in signals):
        said = "each part of the fleet was held against its rest, allowing for all parts. It says where, and not why."
        points.append(("Where it moved", said))
    return section(
        anchor,
        "How to read this",
        None,
        facts(points),
        _methods(signals),
    )


def _methods(signals: Sequence[SignalFinding]) -> Markup | None:
    by_method: dict[str, list[str]] = {}
    for signal in signals:
        if signal.method:
            names = by_method.setdefault(signal.method, [])
            if signal.signal not in names:
                names.append(signal.signal)
    if not by_method:
        return None
    items = []
    for name, users in by_method.items():
        shown = ", ".join(short(user, most=40) for user in users[:MAX_NAMES_SHOWN])
        more = f" and {len(users) - MAX_NAMES_SHOWN:,} more" if len(users) > MAX_NAMES_SHOWN else ""
        items.append(element("li", element("b", short(name)), f": {shown}{more}"))
    return joined(element("h4", "Tests used"), element("ul", items, class_="plain"))


def making(reports: Sequence[DriftReport], made: Making, *, anchor: str) -> Markup:
    """When, from where and with which question the page was made."""
    windows = sum(report.windows for report in reports)
    return section(
        anchor,
        "How this was made",
        None,
        facts(
            [
                ("made", f"{words.moment(made.made_at_ns)} UTC"),
                ("server", element("code", short(made.server))),
                ("edgefleet", short(made.edgefleet)),
                ("asked", element("code", short(made.query, most=1000))),
                ("read", words.plural(windows, "window")),
            ]
        ),
    )
