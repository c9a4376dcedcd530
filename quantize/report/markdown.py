"""The report as Markdown, for a terminal, a pull request or a wiki: the same sentences and figures as the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from quantize.report import findings, words
from quantize.report.markup import one_line
from quantize.report.provenance import facts, how_measured
from quantize.search_report import LayerResult, SearchReport

MOST_CLASSES = 100
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")
_LONG = 4_000


def render_markdown(report: SearchReport) -> str:
    """The report as Markdown of the GitHub kind: the same text for the same report."""
    sections = [
        f"# {_plain(report.model)} {_plain(report.version)}\n\n{_plain(findings.verdict(report))}",
        _points([f"**Warning:** {_plain(one)}" for one in report.warnings]),
        _points([f"**Note:** {_plain(one)}" for one in findings.notes(report)]),
        f"## What ships\n\n{_ships(report)}",
        _classes(report),
        f"## Layer by layer\n\n{_plain(findings.layers_in_words(report))}\n\n{_layers(report.layers)}"
        if report.layers
        else "",
        f"## All candidates\n\n{_plain(findings.tally(report))}.\n\n{_candidates(report)}",
        "## Rewrites of the graph\n\n" + (_points(map(_plain, report.rewrites)) or "The graph was taken as it was."),
        "## Provenance\n\n" + _table(("", ""), facts(report)),
        "## What was measured, and how\n\n" + _points(map(_plain, how_measured(report))),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _ships(report: SearchReport) -> str:
    heads = ("variant", "for", report.metric, "keeps", "p50", "p90", "speed", "size", "memory", "quantization")
    variants = findings.shipped(report)
    first, given = variants[0].variant, report.candidates[0] if report.candidates else None
    rows = []
    if first.name != "fp32":
        rows.append(
            [
                "fp32, as given: not in the bundle",
                "",
                words.metric_value(first.fp32_metric),
                "100 %",
                words.microseconds(findings.fp32_p50_us(first)),
                words.NOT_MEASURED,
                words.times(1.0),
                words.size(findings.fp32_size_bytes(report)),
                words.size(given.memory_bytes if given else None),
                "none",
            ]
        )
    rows += [
        [
            one.variant.name,
            ", ".join(one.architectures) or "every CPU",
            words.metric_value(one.variant.metric),
            words.keeps(one.variant.keeps),
            words.microseconds(one.variant.p50_us),
            words.microseconds(one.variant.p90_us),
            words.times(one.variant.speedup),
            words.size(one.variant.size_bytes),
            words.size(one.variant.memory_bytes),
            one.variant.quantization,
        ]
        for one in variants
    ]
    total = findings.judged_samples(report)
    judged = f"Judged on {words.plural(total, findings.judged_on(report) + ' sample')}."
    said = [(one.variant.name, findings.pairs_in_words(one.variant, total)) for one in variants]
    pairs = _points(_plain(f"{name}: {sentence}") for name, sentence in said if sentence)
    return "\n\n".join(filter(None, [judged, _table(heads, rows), pairs]))


def _classes(report: SearchReport) -> str:
    parts = []
    for one in findings.shipped(report):
        if not one.variant.classes:
            continue
        changed = findings.changed_classes(one.variant.classes)
        rows = [
            [
                delta.label,
                words.count(delta.samples),
                words.keeps(delta.fp32),
                words.keeps(delta.variant),
                words.points(delta.variant - delta.fp32),
            ]
            for delta in changed[:MOST_CLASSES]
        ]
        part = f"### {_plain(one.variant.name)}\n\n{_plain(findings.classes_in_words(one.variant.classes))}"
        parts.append(part + ("\n\n" + _table(("class", "samples", "fp32", "variant", "points"), rows) if rows else ""))
    return "\n\n".join(["## Class by class", *parts]) if parts else ""


def _layers(layers: Sequence[LayerResult]) -> str:
    return _table(
        ("layer", "operator", "weights", "signal to noise", "keeps, alone", "in float, a run is", "left in float"),
        [
            [
                one.name,
                one.operator,
                words.count(one.weights),
                words.decibels(one.signal_to_noise_db),
                words.keeps(one.keeps),
                words.change(one.float_gain_us),
                f"yes: {one.reason}" if one.excluded else "no",
            ]
            for one in layers
        ],
    )


def _candidates(report: SearchReport) -> str:
    heads = (
        "#", "candidate", "outcome", "reason", report.metric, "keeps", "speed", "p50", "p90", "size", "memory",
        "Q + DQ left", "step", "took", "scheme",
    )  # fmt: skip
    rows = []
    for one in findings.numbered(report):
        result = one.result
        left = (result.quantize_nodes, result.dequantize_nodes)
        rows.append(
            [
                str(one.number),
                result.name,
                str(one.kind),
                result.reason,
                words.metric_value(result.metric),
                words.keeps(result.keeps),
                words.times(result.speedup),
                words.microseconds(result.p50_us),
                words.microseconds(result.p90_us),
                words.size(result.size_bytes),
                words.size(result.memory_bytes),
                words.NOT_MEASURED if None in left else f"{left[0]} + {left[1]}",
                result.by,
                words.seconds(result.took_s),
                result.scheme.quantization,
            ]
        )
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, *rows]
    drawn = ["| " + " | ".join(map(_plain, cells)) + " |" for cells in lines]
    return "\n".join([drawn[0], "|" + "---|" * len(heads), *drawn[1:]])


def _points(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)


def _plain(text: str) -> str:
    """`text` on one line, so that nothing of it is markup."""
    return _SPECIAL.sub(r"\\\1", one_line(text, most=_LONG))
