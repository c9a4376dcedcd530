"""What `edge-quantize run` prints when it is done: the outcome, the variants in a table, and where the rest is."""

from __future__ import annotations

from pathlib import Path

from quantize.report import findings, words
from quantize.report.markup import one_line
from quantize.search_report import SearchReport

REPORT_FOLDER, PAGE = "report", "report.html"
_LEFT_COLUMNS = 2
_LONGEST = 4_000


def summary_lines(report: SearchReport, folder: Path) -> list[str]:
    """The lines for the bundle at `folder`; nothing in them can move a terminal's cursor."""
    after = [
        *(f"warning: {one}" for one in report.warnings),
        *(f"note: {one}" for one in findings.notes(report)),
        f"{findings.tally(report)} in {words.seconds(report.took_s)}",
        f"report: {folder / REPORT_FOLDER / PAGE}",
        f"bundle (unsigned): {folder}",
    ]
    head = f"{report.model} {report.version}: {findings.verdict(report)}"
    return [_line(head), "", *_table(report), "", *map(_line, after)]


def _table(report: SearchReport) -> list[str]:
    variants = findings.shipped(report)
    rows = [["variant", "for", one_line(report.metric, most=24), "keeps", "p50", "p90", "speed", "size", "memory"]]
    first = variants[0].variant
    if first.name != "fp32":
        given = report.candidates[0] if report.candidates else None
        rows.append(
            [
                "(fp32 as given)",
                "",
                words.metric_value(first.fp32_metric),
                "",
                words.microseconds(findings.fp32_p50_us(first)),
                "",
                words.times(1.0),
                words.size(findings.fp32_size_bytes(report)),
                words.size(given.memory_bytes if given else None),
            ]
        )
    rows += [
        [
            one_line(one.variant.name, most=40),
            one_line(",".join(one.architectures)) or "every CPU",
            words.metric_value(one.variant.metric),
            words.keeps(one.variant.keeps),
            words.microseconds(one.variant.p50_us),
            words.microseconds(one.variant.p90_us),
            words.times(one.variant.speedup),
            words.size(one.variant.size_bytes),
            words.size(one.variant.memory_bytes),
        ]
        for one in variants
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in rows]


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if place < _LEFT_COLUMNS else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _line(text: str) -> str:
    return one_line(text, most=_LONGEST)
