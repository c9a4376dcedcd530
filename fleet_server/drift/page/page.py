"""The drift reports of a model as one HTML file: nothing is loaded from elsewhere, only its own script may run.

A version's sections stand in the order in which people ask: is there drift, what was compared, which signals, when,
what it did to accuracy, how it looks. The same reports make the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from fleet_server.drift.findings import DriftReport, Severity, Verdict
from fleet_server.drift.page import words
from fleet_server.drift.page.accuracy import accuracy_over_time
from fleet_server.drift.page.blocks import severity_badge, severity_rank, verdict_badge, verdict_rank
from fleet_server.drift.page.heat_map import heat_map
from fleet_server.drift.page.markup import Markup, element, joined, short
from fleet_server.drift.page.method import Making, making, method
from fleet_server.drift.page.populations import compared, name_of
from fleet_server.drift.page.signals import in_order, signal_sections, signals_table
from fleet_server.drift.page.style import CSS, SCRIPT

NOTHING = (
    "No version of this model sent telemetry in this span, so there is nothing to compare. Look back further, or check "
    "with `fleet devices list` that devices run the model and are online."
)
_OTHERS = "Signals that did not move, or could not be judged"


def render_page(model: str, reports: Sequence[DriftReport], made: Making) -> bytes:
    """The reports of a model, one per version, as a self-contained page in UTF-8."""
    ordered = sorted(reports, key=lambda one: (-verdict_rank(one.verdict), -severity_rank(one.severity)))
    alone = len(ordered) == 1
    versions = [_version(report, f"v{place}", alone=alone) for place, report in enumerate(ordered, start=1)]
    page = element(
        "html",
        _head(f"Drift of {short(model, most=80)}"),
        element(
            "body",
            element("a", "Skip to the findings", href="#findings", class_="skip"),
            element("header", _header(model, ordered, made)),
            element(
                "main",
                versions or element("section", element("p", NOTHING)),
                method(ordered, anchor="method"),
                making(ordered, made, anchor="made"),
                id="findings",
            ),
            element(
                "footer", f"edgefleet drift report of {short(model, most=80)}, {words.moment(made.made_at_ns)} UTC"
            ),
            element("script", Markup(SCRIPT)),
        ),
        lang="en",
    )
    return joined(Markup("<!doctype html>\n"), page, "\n").encode("utf-8", "replace")


def _header(model: str, reports: Sequence[DriftReport], made: Making) -> Markup:
    title: list[str] = ["Drift of ", short(model, most=120)]
    if len(reports) == 1:
        title += [" ", element("small", short(reports[0].version, most=60))]
    if not reports:
        said = element("p", "Nothing to compare.", class_="lead")
    elif len(reports) == 1:
        said = _verdict(reports[0])
    else:
        said = element(
            "ul",
            [
                element(
                    "li",
                    element("a", short(report.version, most=60) or "no version", href=f"#v{place}"),
                    " ",
                    _badges(report),
                    element("p", report.sentence),
                )
                for place, report in enumerate(reports, start=1)
            ],
            class_="versions",
        )
    spans = {(report.start_ns, report.end_ns) for report in reports}
    times = [words.span(start, end) for start, end in sorted(spans)]
    return joined(
        element("p", "edgefleet drift report", class_="eyebrow"),
        element("h1", title),
        said,
        element("p", "; ".join(times) or f"asked {words.moment(made.made_at_ns)} UTC", class_="soft"),
    )


def _verdict(report: DriftReport) -> Markup:
    return joined(element("p", _badges(report), class_="badges"), element("p", report.sentence, class_="lead"))


def _badges(report: DriftReport) -> Markup:
    severity = report.severity if report.verdict is Verdict.DRIFT and report.severity is not Severity.NONE else None
    return joined(verdict_badge(report.verdict), " ", severity_badge(severity) if severity is not None else None)


def _version(report: DriftReport, anchor: str, *, alone: bool) -> Markup:
    signals = in_order(report)
    links = [f"{anchor}-s{place}" for place in range(1, len(signals) + 1)]
    expected_name = name_of(report.expected, report.seen)
    moved, others = signal_sections(signals, expected_name=expected_name, links=links)
    heading = None
    if not alone:
        title = element("h2", element("small", short(report.model, most=80)), " ", short(report.version, most=60))
        heading = element("div", title, _verdict(report), class_="version-head")
    parts: list[tuple[str, str, Markup | None]] = [
        ("compared", "What was compared", compared(report, anchor=f"{anchor}-compared"))
    ]
    if signals:
        parts += [
            ("signals", "Signals", signals_table(report, signals, anchor=f"{anchor}-signals", links=links)),
            ("times", "When it moved", heat_map(report, signals, anchor=f"{anchor}-times", links=links)),
        ]
    parts.append(("accuracy", "Accuracy", accuracy_over_time(report, anchor=f"{anchor}-accuracy")))
    parts.append(("moved", "What moved", _group(f"{anchor}-moved", "What moved", moved, is_card=False)))
    parts.append(("others", "The other signals", _group(f"{anchor}-others", _OTHERS, others, is_card=True)))
    shown = [(name, text, part) for name, text, part in parts if part is not None]
    links_to = [element("a", text, href=f"#{anchor}-{name}") for name, text, _ in shown]
    links_to.append(element("a", "How to read this", href="#method"))
    return element(
        "article",
        heading,
        element("nav", links_to, aria_label=f"Sections of {short(report.version, most=60)}"),
        [part for _, _, part in shown],
        id=anchor,
    )


def _group(anchor: str, title: str, content: Markup | None, *, is_card: bool) -> Markup | None:
    if content is None:
        return None
    return element("section" if is_card else "div", element("h3", title), content, id=anchor, class_="group")


def _head(title: str) -> Markup:
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(CSS)),
    )
