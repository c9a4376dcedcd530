"""The sections of the page, each from the report alone."""

from __future__ import annotations

from collections.abc import Sequence

from quantize.report import findings, words
from quantize.report.blocks import key, section
from quantize.report.findings import Kind, Numbered, Shipped
from quantize.report.markup import Markup, element, joined, one_line
from quantize.report.pareto import NARROW, WIDE, pareto_plot
from quantize.report.provenance import facts, how_measured
from quantize.report.tables import Row, number_cell, table, text_cell
from quantize.search_report import SearchReport, ShippedVariant

MOST_REFUSED_SHOWN = 8
_BADGES = {
    Kind.SHIPS: "ships",
    Kind.REFUSED: "refused",
    Kind.FAILED: "failed",
    Kind.INTERRUPTED: "interrupted",
}


def tiles(report: SearchReport) -> Markup:
    """The four figures that matter of the variant for this CPU."""
    one = findings.main_variant(report).variant
    fp32_us, fp32_bytes = findings.fp32_p50_us(one), findings.fp32_size_bytes(report)
    fp32_memory = report.candidates[0].memory_bytes if report.candidates else None
    return element(
        "ul",
        _tile(
            words.times(one.speedup),
            "as fast as fp32",
            f"p50 {words.microseconds(one.p50_us)}, fp32 {words.microseconds(fp32_us)}",
        ),
        _tile(
            words.metric_value(one.metric),
            one_line(report.metric),
            f"fp32 {words.metric_value(one.fp32_metric)}, keeps {words.keeps(one.keeps)}",
        ),
        _tile(words.size(one.size_bytes), "file", f"fp32 {words.size(fp32_bytes)}"),
        _tile(words.size(one.memory_bytes), "memory", f"fp32 {words.size(fp32_memory)}"),
        class_="tiles",
    )


def banners(report: SearchReport) -> Markup:
    """The warnings, then what a reader must bear in mind."""
    return joined(
        [element("p", element("b", "Warning "), one, class_="banner") for one in report.warnings],
        [element("p", element("b", "Note "), one, class_="banner note") for one in findings.notes(report)],
    )


def what_ships(report: SearchReport) -> Markup:
    """The shipped variants beside fp32."""
    variants = findings.shipped(report)
    rows = [] if variants[0].variant.name == "fp32" else [_fp32_row(report, variants[0])]
    rows += [_shipped_row(report, one) for one in variants]
    heads = ("variant", _metric(report), "keeps", "speed", "p50", "p90", "size", "memory", "paired test")
    return section(
        "ships",
        "What ships",
        f"Judged on {words.plural(findings.judged_samples(report), findings.judged_on(report) + ' sample')}"
        + (
            ", which nothing was chosen by but what they refuse."
            if report.samples.get("final")
            else ", by which they were chosen too."
        )
        + f" At most {words.percent(report.max_drop)} of fp32's {one_line(findings.quality(report))} may be lost."
        + " Times are of one sample at a time on this CPU.",
        table(heads, rows, numbers=range(1, 9)),
        _pairs(report, variants),
    )


def what_was_tried(report: SearchReport) -> Markup:
    """The plot of all candidates."""
    wide, narrow = pareto_plot(report, width=WIDE), pareto_plot(report, width=NARROW)
    if wide is None or narrow is None:
        return section("tried", "What was tried", findings.tally(report) + ". Too few were measured to draw.")
    legend = [
        ("point ships", "ships"),
        ("point given", "fp32 as given"),
        ("point kept", "accurate, does not ship"),
        ("point refused", "loses too much"),
        ("point kept onfront", "outlined: no other beats it in speed, metric and size at once"),
    ]
    return section(
        "tried",
        "What was tried",
        f"{findings.tally(report)}. Up and left is better; a bubble's area is the file's size, #n its row among all"
        " candidates, the line the best metric for a speed. Metrics here are of the selection samples.",
        element(
            "figure",
            wide,
            narrow,
            element("ul", *[key(look, text) for look, text in legend], class_="key"),
        ),
        _not_drawn(report),
    )


def candidates(report: SearchReport) -> Markup:
    """Everything that was tried, row by row."""
    heads = ("#", "candidate", "outcome", _metric(report), "keeps", "speed", "p50", "size", "Q + DQ left", "took")
    return section(
        "candidates",
        "All candidates",
        f"{findings.tally(report)}. Metrics are of the selection samples, each time was measured in turns with fp32 as"
        " given. Quantize (Q) and dequantize (DQ) nodes left in the optimised graph are conversions that cost time.",
        table(
            heads,
            [_candidate_row(one) for one in findings.numbered(report)],
            numbers=(0, 3, 4, 5, 6, 7, 8, 9),
            sortable=True,
        ),
    )


def rewrites(report: SearchReport) -> Markup:
    """What was done to the graph before anything was quantized."""
    said = "Before anything was quantized the graph was rewritten; its answers stay the same, within rounding."
    return section(
        "rewrites",
        "Rewrites of the graph",
        said if report.rewrites else "The graph was taken as it was.",
        element("ul", *[element("li", one) for one in report.rewrites], class_="plain") if report.rewrites else None,
    )


def provenance(report: SearchReport) -> Markup:
    """Where it all comes from, and what was measured how."""
    pairs = [(element("dt", name), element("dd", value)) for name, value in facts(report)]
    return section(
        "provenance",
        "Provenance",
        "",
        element("dl", *[one for pair in pairs for one in pair]),
        element("h3", "What was measured, and how"),
        element("ul", *[element("li", one) for one in how_measured(report)], class_="plain"),
    )


def _tile(figure: str, name: str, beside: str) -> Markup:
    return element("li", element("span", name), element("b", figure), element("span", beside))


def _fp32_row(report: SearchReport, beside: Shipped) -> Row:
    given = report.candidates[0] if report.candidates else None
    fp32_us = findings.fp32_p50_us(beside.variant)
    metric, memory = beside.variant.fp32_metric, given.memory_bytes if given else None
    fp32_bytes = findings.fp32_size_bytes(report)
    return (
        [
            text_cell("fp32", element("small", "as given, for comparison: not in the bundle"), look="wide"),
            number_cell(words.metric_value(metric), metric),
            number_cell("100 %", 1.0),
            number_cell(words.times(1.0), 1.0),
            number_cell(words.microseconds(fp32_us), fp32_us),
            number_cell("", None),
            number_cell(words.size(fp32_bytes), fp32_bytes, hint=_bytes(fp32_bytes)),
            number_cell(words.size(memory), memory, hint=_bytes(memory)),
            text_cell(""),
        ],
        "base",
    )


def _shipped_row(report: SearchReport, one: Shipped) -> Row:
    variant = one.variant
    return (
        [
            text_cell(
                element("b", variant.name),
                element("small", "for ", one_line(", ".join(one.architectures)) or "every CPU"),
                element("small", variant.quantization),
                look="wide",
            ),
            number_cell(words.metric_value(variant.metric), variant.metric),
            number_cell(words.keeps(variant.keeps), variant.keeps),
            number_cell(words.times(variant.speedup), variant.speedup),
            number_cell(words.microseconds(variant.p50_us), variant.p50_us),
            number_cell(words.microseconds(variant.p90_us), variant.p90_us),
            number_cell(words.size(variant.size_bytes), variant.size_bytes, hint=_bytes(variant.size_bytes)),
            number_cell(words.size(variant.memory_bytes), variant.memory_bytes, hint=_bytes(variant.memory_bytes)),
            _p_value_cell(variant),
        ],
        "ships" if one == findings.main_variant(report) else None,
    )


def _p_value_cell(variant: ShippedVariant) -> Markup:
    first, second = variant.fp32_only_right, variant.variant_only_right
    if first is None or second is None or variant.p_value is None:
        return element("td", "does not apply", class_="n none")
    below = element("small", f"{first:,} lost, {second:,} gained")
    return number_cell(words.probability(variant.p_value), variant.p_value, below=below)


def _pairs(report: SearchReport, variants: Sequence[Shipped]) -> Markup | None:
    """The paired tests in words."""
    total = findings.judged_samples(report)
    said = [(one.variant.name, findings.pairs_in_words(one.variant, total)) for one in variants]
    items = [element("li", element("b", name), f": {sentence}") for name, sentence in said if sentence]
    if not items:
        return None
    return joined(element("h3", "Sample by sample, beside fp32"), element("ul", *items, class_="plain"))


def _not_drawn(report: SearchReport) -> Markup | None:
    """The candidates that failed or were refused, below the plot with their reasons; many are folded."""
    order = (Kind.FAILED, Kind.INTERRUPTED, Kind.REFUSED)
    rows = sorted(
        (one for one in findings.numbered(report) if one.kind in order), key=lambda one: order.index(one.kind)
    )
    if not rows:
        return None
    items = [
        element("li", _badge(one), f" #{one.number} {one.result.name}: ", one.result.reason or "no reason given")
        for one in rows
    ]
    title = f"Refused or failed: {len(rows):,}"
    said = element("ul", *items, class_="plain")
    if len(rows) > MOST_REFUSED_SHOWN:
        return element("details", element("summary", title), said)
    return joined(element("h3", title), said)


def _candidate_row(one: Numbered) -> Row:
    result = one.result
    quantize, dequantize = result.quantize_nodes, result.dequantize_nodes
    left = None if quantize is None or dequantize is None else quantize + dequantize
    reason = "" if result.reason == one.kind else result.reason
    p90, memory = words.microseconds(result.p90_us), words.size(result.memory_bytes)
    return (
        [
            number_cell(str(one.number), one.number),
            text_cell(element("b", result.name), element("small", one_line(result.scheme.quantization)), look="wide"),
            text_cell(_badge(one), element("span", reason, class_="why"), look="mid"),
            number_cell(words.metric_value(result.metric), result.metric),
            number_cell(words.keeps(result.keeps), result.keeps),
            number_cell(words.times(result.speedup), result.speedup),
            number_cell(words.microseconds(result.p50_us), result.p50_us, below=element("small", f"p90 {p90}")),
            number_cell(
                words.size(result.size_bytes),
                result.size_bytes,
                below=element("small", f"memory {memory}"),
                hint=_bytes(result.size_bytes),
            ),
            number_cell(f"{quantize} + {dequantize}", left),
            number_cell(words.seconds(result.took_s), result.took_s, below=element("small", one_line(result.by))),
        ],
        "ships" if result.shipped else None,
    )


def _badge(one: Numbered) -> Markup:
    return element("span", str(one.kind), class_=f"badge {_BADGES.get(one.kind, '')}".strip())


def _bytes(value: int | None) -> str | None:
    return None if value is None else f"{value:,} bytes"


def _metric(report: SearchReport) -> str:
    """The metric's name as a column's head."""
    return one_line(report.metric, most=24)
