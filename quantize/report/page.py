"""The report as one HTML file: nothing is loaded from elsewhere, nothing but its own script may run."""

from __future__ import annotations

import base64
import hashlib

from quantize.report import breakdowns, findings, sections, words
from quantize.report.markup import Markup, element, joined, one_line
from quantize.report.style import CSS, SCRIPT
from quantize.search_report import SearchReport


def render_html(report: SearchReport) -> bytes:
    """The report as one self-contained page, UTF-8: the same bytes for the same report."""
    title = f"{report.model} {report.version}"
    parts = [
        ("What ships", sections.what_ships(report)),
        ("What was tried", sections.what_was_tried(report)),
        ("Class by class", breakdowns.classes(report)),
        ("Layer by layer", breakdowns.layers(report)),
        ("All candidates", sections.candidates(report)),
        ("Rewrites", sections.rewrites(report)),
        ("Provenance", sections.provenance(report)),
    ]
    anchors = ("ships", "tried", "classes", "layers", "candidates", "rewrites", "provenance")
    links = [
        element("a", name, href=f"#{anchor}")
        for anchor, (name, part) in zip(anchors, parts, strict=True)
        if part is not None
    ]
    page = element(
        "html",
        _head(f"{title}: edge-quantize report"),
        element(
            "body",
            element(
                "header",
                element("p", "edge-quantize report", class_="eyebrow"),
                element("h1", report.model, " ", element("small", report.version)),
                element("p", findings.verdict(report), class_="lead"),
                sections.tiles(report),
                sections.banners(report),
            ),
            element("nav", *links, aria_label="Sections"),
            element("main", *[part for _, part in parts]),
            element("footer", f"{one_line(report.source)}, {words.moment(report.created_at_ns)}"),
            element("script", Markup(SCRIPT)),
        ),
        lang="en",
    )
    return joined(Markup("<!doctype html>\n"), page, "\n").encode("utf-8", "replace")


def _head(title: str) -> Markup:
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", one_line(title)),
        element("style", Markup(CSS)),
    )
