"""What sections are built of: sections, tables whose columns sort, badges, and what a picture's colours mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fleet_server.drift.findings import Severity, Verdict
from fleet_server.drift.page.markup import Child, Markup, element, joined

VERDICTS = {
    Verdict.DRIFT: "drift",
    Verdict.NOT_FOUND: "no drift found",
    Verdict.NOT_ENOUGH_EVIDENCE: "not enough evidence",
}
_SEVERITY_ORDER = tuple(Severity)
_VERDICT_ORDER = (Verdict.NOT_ENOUGH_EVIDENCE, Verdict.NOT_FOUND, Verdict.DRIFT)


def section(anchor: str, title: str, lead: Child, *content: Child) -> Markup:
    """A part of the page that can be linked to."""
    said = None if lead is None else element("p", lead, class_="soft")
    return element("section", element("h3", title), said, *content, id=anchor)


def table(
    heads: Sequence[Markup], rows: Iterable[Markup], *, caption: str, sortable: bool = False, look: str = ""
) -> Markup:
    """Rows under heads that stay readable on a phone: the table scrolls, the page does not."""
    body = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", heads)),
        element("tbody", rows),
        class_="sortable" if sortable else look or None,
    )
    return element("div", body, class_="scroll", tabindex="0", role="region", aria_label=caption)


def head(text: str, *, is_number: bool = False, hint: str | None = None) -> Markup:
    """A column's head."""
    return element("th", text, scope="col", class_="n" if is_number else None, title=hint)


def cell(*content: Child, look: str | None = None, sorts_as: float | None = None) -> Markup:
    """A cell of text; `sorts_as` orders it among its column."""
    return element("td", *content, class_=look, data_v=_sort_value(sorts_as) if sorts_as is not None else None)


def number(text: str, value: float | None) -> Markup:
    """A cell of a number; one without a number sorts last."""
    return element("td", text, class_="n", data_v=_sort_value(value))


def verdict_badge(verdict: Verdict) -> Markup:
    """A verdict, told apart by its words and its shape, not by colour alone."""
    return element("span", VERDICTS[verdict], class_=f"badge {verdict.value}")


def severity_badge(severity: Severity) -> Markup:
    """A severity, with as many bars."""
    count = _SEVERITY_ORDER.index(severity)
    bars = [element("i", class_="on" if place < count else None) for place in range(3)]
    return element("span", element("span", bars, class_="bars", aria_hidden="true"), severity.value, class_="severity")


def verdict_rank(verdict: Verdict) -> int:
    """Drift highest."""
    return _VERDICT_ORDER.index(verdict)


def severity_rank(severity: Severity) -> int:
    """The worst highest."""
    return _SEVERITY_ORDER.index(severity)


def key(items: Iterable[tuple[str, str]]) -> Markup:
    """What a picture's looks mean: (look, words)."""
    return element(
        "ul",
        [element("li", element("span", class_=f"swatch {look}", aria_hidden="true"), said) for look, said in items],
        class_="key",
    )


def note(kind: str, *content: Child) -> Markup:
    """Something to bear in mind."""
    return element("p", element("b", f"{kind} "), *content, class_=f"banner {kind.lower()}")


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Names and values."""
    return element("dl", [joined(element("dt", name), element("dd", value)) for name, value in pairs])


def _sort_value(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.12g}"
